"""The stage: collect what the workspace holds, render it into one HTML file that needs no other."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from saukit.core.artifacts import Manifest, write_text
from saukit.core.console import format_duration, format_share
from saukit.core.errors import UsageError
from saukit.core.figures import GROUP_COLOURS
from saukit.core.version import __version__
from saukit.core.workspace import Workspace
from saukit.evaluation.comparison_files import LESS_IS_BETTER, MEASURES
from saukit.evaluation.statistics import CONFIDENCE, Difference
from saukit.report import run_sections, sections, words
from saukit.report.collect import Contents, LeftOut, collect
from saukit.report.config import ReportConfig
from saukit.report.findings import Verdict, methods_of, verdict

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "page.html.j2", "style.css", "script.js"
MARK = '<meta name="generator" content="saukit '  # by which saukit knows its own pages
MOST_NAMES = 30  # class names of a group
MOST_REPEATED = 4  # runs whose commands are shown at once


@dataclass(frozen=True)
class ReportResult:
    """A page that was written: what is on it, what it says, and what it leaves out."""

    path: Path
    title: str
    sections: list[str]
    runs: list[str]
    comparison: str | None
    headline: str | None
    left_out: tuple[LeftOut, ...]

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    @property
    def document(self) -> dict[str, Any]:
        """The same as plain values."""
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        return {"path": str(self.path), "bytes": self.bytes, **values}


def report(config: ReportConfig, workspace: Workspace, *, out: Path, force: bool) -> ReportResult:
    """Write the page about `workspace` to `out`, over an earlier page of saukit's, over another file with `force`.

    Raises: as `collect`; UsageError if `out` is a folder, or a file that saukit did not write.
    """
    _check_out(out, force=force)
    contents = collect(config, workspace)
    page = _Page(contents, config.title)
    write_text(out, page.html())
    return ReportResult(
        path=out,
        title=page.title,
        sections=[name for _, name in page.toc],
        runs=[run.name for series in contents.series for run in series.runs],
        comparison=None if contents.comparison is None else contents.comparison.name,
        headline=None if page.answer is None else page.answer.headline,
        left_out=contents.left_out,
    )


class _Page:
    """The contents, what they say, and the template's variables made from both."""

    def __init__(self, contents: Contents, title: str | None) -> None:
        self.contents = contents
        self.compared, self.others = methods_of(contents)
        confidence = CONFIDENCE if contents.comparison is None else contents.comparison.document["confidence"]
        self.confidence: float = confidence
        self.verdict: Verdict | None = verdict(self.compared, confidence)
        self.answer = None if self.verdict is None else words.answer(self.verdict, confidence)
        self.title = title or words.title(contents)
        self.parts: dict[str, sections.View | None] = {
            "split": sections.split_section(contents),
            "samples": sections.samples_section(contents),
            "audit": sections.audit_section(contents.cache),
            "comparison": sections.comparison_section(contents, self.compared, self.verdict),
            "classes": sections.classes_section(contents, self.compared, self.others, self.verdict),
            "curves": run_sections.curves_section(contents),
            "confusion": run_sections.confusion_section(contents, self.verdict),
            "calibration": run_sections.calibration_section(contents),
            "configuration": run_sections.configuration_section(contents),
        }

    @property
    def toc(self) -> list[tuple[str, str]]:
        """Anchor and name of the sections that are there."""
        entries = [
            ("summary", "Summary", True),
            ("data", "The split", True),
            ("samples", "Samples", True),
            ("audit", "Audit", self.parts["audit"]),
            ("comparison", "Comparison", self.parts["comparison"]),
            ("runs", "Other runs" if self.parts["comparison"] else "Evaluated runs", self.others),
            ("classes", "Classes", self.parts["classes"]),
            ("training", "Training", self.parts["curves"]),
            ("confusion", "Confusions", self.parts["confusion"]),
            ("calibration", "Calibration", self.parts["calibration"]),
            ("configuration", "Configuration", self.parts["configuration"]),
            ("repeat", "How to repeat it", True),
            ("limits", "Limits", True),
        ]
        return [(anchor, name) for anchor, name, there in entries if there]

    def html(self) -> str:
        """The page."""
        contents, found = self.contents, self.verdict
        script = _read(SCRIPT)
        first, more = self._commands()
        return (
            _environment()
            .get_template(TEMPLATE)
            .render(
                version=__version__,
                title=self.title,
                date=_date(max(manifest.created for _, manifest in self._artefacts())),
                style=Markup(_read(STYLE)),
                script=Markup(script),
                script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                group_colours=GROUP_COLOURS,
                measures=MEASURES,
                accuracies={name: title for name, title in MEASURES.items() if name not in LESS_IS_BETTER},
                confidence=f"{100 * self.confidence:g}",
                contents=contents,
                toc=self.toc,
                data_sentence=words.data_sentence(contents),
                hints=self._hints(),
                answer=self.answer,
                verdict=found,
                verdict_chart=None if found is None else sections.verdict_chart(found),
                where=[] if found is None else words.where(found, contents),
                few_shot_note=None if found is None else words.best_few_shot(self.compared, found),
                tiles=self._tiles(),
                others=self.others,
                others_best=sections.best_of(self.others),
                repeat=first,
                repeat_more=more,
                protocol=words.protocol(contents, self.parts["configuration"]),
                artefacts=[entry for entry in self._artefacts() if entry[1].kind != "run"],
                versions=_versions([manifest for _, manifest in self._artefacts()]),
                limits=words.limits(contents, [*self.compared, *self.others], self.compared),
                **self.parts,
            )
        )

    def _hints(self) -> list[str]:
        """What the workspace has not got yet, and the command that makes it."""
        contents, found = self.contents, []
        if contents.cache is None:
            found.append("There are no synthetic images: `saukit synth` makes them.")
        if not contents.series:
            found.append("There is no run yet: `saukit train`, then `saukit eval`.")
        elif not self.compared and not self.others:
            found.append(f"No run is evaluated yet: `saukit eval --run {contents.series[0].runs[0].name}`.")
        elif not self.compared:
            found.append(words.runs_sentence(self.others))
        return found

    def _tiles(self) -> list[tuple[str, str, str | None]]:
        """Key figures: name, value, note."""
        contents, methods = self.contents, [*self.compared, *self.others]
        counts = contents.split.class_counts
        tiles: list[tuple[str, str, str | None]] = [
            ("Real images", f"{len(contents.split.train.labels):,}", f"{contents.split.num_classes:,} classes"),
            ("Largest : smallest", f"{counts.max():,} : {counts.min():,}", "images of a class"),
        ]
        if contents.cache is not None:
            tiles.append(("Synthetic images", f"{len(contents.cache.images.labels):,}", None))
        for measure, name in (("balanced_accuracy", "Best balanced accuracy"), ("few", "Best few-shot accuracy")):
            there = [method for method in methods if method.mean[measure] is not None]
            if there:
                best = max(there, key=lambda method: method.mean[measure] or 0.0)
                tiles.append((name, f"{format_share(best.mean[measure])} %", best.label))
        return tiles

    def _artefacts(self) -> list[tuple[str, Manifest]]:
        """Every artefact of the page."""
        contents = self.contents
        return [
            ("split", contents.split.manifest),
            *([("synthetic images", contents.cache.images.manifest)] if contents.cache else []),
            *([("comparison", contents.comparison.manifest)] if contents.comparison else []),
            *((run.name, run.manifest) for series in contents.series for run in series.runs),
        ]

    def _commands(self) -> tuple[list[str], list[str]]:
        """The commands that make everything anew, and those of the runs beyond the first few."""
        contents = self.contents
        folder = contents.folder

        def command(name: str, path: str, *more: str) -> str:
            return shlex.join(["saukit", name, "-w", "again", "--config", f"{folder}/{path}/config.yaml", *more])

        root = ("--root", "FOLDER") if contents.split_config.get("dataset") == "folder" else ()
        first = [command("make-lt", "split", *root)]
        more: list[str] = []
        if contents.cache is not None:
            first.append(command("synth", "synth"))
        compared = set()
        if contents.comparison is not None:
            name = contents.comparison.name
            compared = {run["name"] for method in contents.comparison.document["methods"] for run in method["runs"]}
            first.append(command("compare", f"comparisons/{name}", "--name", name))
        runs = [run for series in contents.series for run in series.runs if run.name not in compared]
        for index, run in enumerate(runs):
            lines = first if index < MOST_REPEATED else more
            lines.append(command("train", f"runs/{run.name}", "--name", run.name))
            if run.results is not None:
                lines.append(shlex.join(["saukit", "eval", "-w", "again", "--run", run.name]))
        return [*first, "saukit report -w again"], more


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        share=format_share,
        duration=format_duration,
        interval=lambda found: words.with_interval(_difference(found)),
        tone=lambda found: words.tone(_difference(found)),
        setting=run_sections.setting,
        first_names=_first_names,
        commands=_commands_marked,
    )
    return environment


def _difference(found: Difference | Mapping[str, Any] | None) -> Difference | None:
    """A difference, also one that was read from compare.json."""
    return Difference(**found) if isinstance(found, Mapping) else found


def _first_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


def _commands_marked(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _versions(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Versions of all packages, and every one that was used where they differ."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _check_out(out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise UsageError(f"{out} is a folder: give a file as --out, such as {out / 'report.html'}")
    if force or not out.exists():
        return
    with out.open("rb") as file:
        if MARK.encode() not in file.read(4096):
            raise UsageError(
                f"{out} exists but saukit did not write it: give another --out, or replace it with --force"
            )


def _date(created: str) -> str:
    day = datetime.fromisoformat(created)
    return f"{day.day} {day:%B %Y}"


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
