"""The stage: collect what the workspace holds, render it into one HTML file that needs no other."""

import base64
import functools
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from saukit.core.artifacts import Manifest
from saukit.core.errors import UsageError
from saukit.core.files import check_out, open_regular
from saukit.core.plots import PALETTE
from saukit.core.version import __version__
from saukit.core.words import brief, format_duration, format_share, one_line, shortened
from saukit.core.workspace import Workspace
from saukit.core.writing import write_text
from saukit.evaluation.comparison_files import answer, difference_text, tone
from saukit.evaluation.summary import LESS_IS_BETTER, MEASURES, best_of
from saukit.report import sections, words
from saukit.report.collect import Contents, LeftOut, collect
from saukit.report.config import ReportConfig

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "page.html.j2", "style.css", "script.js"
MARK = '<meta name="generator" content="saukit '  # by which saukit knows its own pages
MOST_NAMES = 30  # class names of a group
TITLES = {
    "summary": "Summary",
    "data": "The split",
    "samples": "Samples",
    "audit": "Audit",
    "comparison": "Comparison",
    "runs": "Runs",
    "classes": "Classes",
    "models": "Models",
    "configuration": "Configuration",
    "repeat": "How to repeat it",
    "limits": "Limits",
}


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

    Raises: as `collect`; UsageError if `out` is no file, or one that saukit did not write.
    """
    _check_out(out, force=force)
    contents = collect(config, workspace)
    variables = _variables(contents, config.title)
    write_text(out, _environment().get_template(TEMPLATE).render(variables))
    return ReportResult(
        path=out,
        title=variables["title"],
        sections=list(variables["toc"].values()),
        runs=[run.name for run in contents.runs],
        comparison=None if contents.comparison is None else contents.comparison.name,
        headline=None if variables["answer"] is None else variables["answer"].headline,
        left_out=contents.left_out,
    )


def _variables(contents: Contents, title: str | None) -> dict[str, Any]:
    """What the template is filled with."""
    document, others = contents.document, [method.entry for method in contents.others]
    found = None if document is None else answer(document)
    parts = {
        "audit": sections.audit_section(contents),
        "comparison": sections.comparison_section(document),
        "runs": others,
        "classes": sections.classes_section(contents),
        "models": sections.models_section(contents),
        "configuration": sections.configuration_section(contents),
    }
    manifests = _manifests(contents)
    day = datetime.fromisoformat(max(manifest.created for _, manifest in manifests))
    script = _read(SCRIPT)
    return {
        "version": __version__,
        "title": title or words.title(contents),
        "date": f"{day.day} {day:%B %Y}",
        "style": Markup(_read(STYLE)),
        "palette": PALETTE,
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "measures": MEASURES,
        "accuracies": {name: title for name, title in MEASURES.items() if name not in LESS_IS_BETTER},
        "scores": list(sections.SCORES.values()),
        "contents": contents,
        "document": document,
        "toc": {anchor: name for anchor, name in TITLES.items() if parts.get(anchor, True)},
        "data_sentence": words.data_sentence(contents),
        "hints": words.hints(contents),
        "answer": found,
        "verdict_figure": sections.verdict_figure(document) if document and found else None,
        "per_class": words.changes_per_class(document) if document and found else [],
        "tiles": _tiles(contents),
        "split": sections.split_section(contents),
        "samples": sections.samples_section(contents),
        **parts,
        "best_of": best_of,
        "commands": _commands(contents),
        "protocol": words.protocol(contents),
        "artefacts": [entry for entry in manifests if entry[1].kind != "run"],
        "versions": _versions([manifest for _, manifest in manifests]),
        "limits": words.limits(contents),
    }


def _tiles(contents: Contents) -> list[tuple[str, str, str | None]]:
    """Key figures: name, value, note."""
    counts = contents.split.class_counts
    tiles: list[tuple[str, str, str | None]] = [
        ("Real images", f"{len(contents.split.train.labels):,}", f"{contents.split.num_classes:,} classes"),
        ("Largest : smallest", f"{counts.max():,} : {counts.min():,}", "images of a class"),
    ]
    if contents.cache is not None:
        tiles.append(("Synthetic images", f"{len(contents.cache.images.labels):,}", None))
    for measure, name in sections.SHOWN.items():
        there = [method for method in contents.entries if method["mean"][measure] is not None]
        if there:
            best = max(there, key=lambda method: method["mean"][measure])
            tiles.append((f"Best {name.lower()}", f"{format_share(best['mean'][measure])} %", best["label"]))
    return tiles


def _manifests(contents: Contents) -> list[tuple[str, Manifest]]:
    """Every artefact of the page."""
    return [
        ("split", contents.split.manifest),
        *([("synthetic images", contents.cache.images.manifest)] if contents.cache else []),
        *([("comparison", contents.comparison.manifest)] if contents.comparison else []),
        *((run.name, run.manifest) for run in contents.runs),
    ]


def _commands(contents: Contents) -> list[str]:
    """The commands that make everything again in another workspace."""

    def command(name: str, path: str, *more: str) -> str:
        config = f"{contents.folder}/{path}/config.yaml"
        return shlex.join(["saukit", name, "-w", "again", "--config", config, *more])

    root = ("--root", "FOLDER") if contents.split_config.get("dataset") == "folder" else ()
    lines = [command("make-lt", "split", *root)]
    if contents.cache is not None:
        lines.append(command("synth", "synth"))
    if contents.comparison is not None:
        name = contents.comparison.name
        lines.append(command("compare", f"comparisons/{name}", "--name", name))
    for run in (run for method in contents.others for run in method.runs):
        lines.append(command("train", f"runs/{run.name}", "--name", run.name))
        lines.append(shlex.join(["saukit", "eval", "-w", "again", "--run", run.name]))
    return [*lines, "saukit report -w again"]


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # names may hold control characters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=format_share,
        duration=format_duration,
        number="{:,}".format,
        difference=difference_text,
        tone=tone,
        setting=sections.setting,
        brief=brief,
        # Each name of a list in its own direction, and text with what stands in backticks as code.
        first_names=lambda names: Markup(
            shortened((f"<bdi>{escape(brief(name))}</bdi>" for name in names), limit=MOST_NAMES)
        ),
        commands=lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))),
    )
    return environment


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
    check_out(out)
    if force or not out.exists():
        return
    with open_regular(out) as file:
        head = file.read(4096)
    if MARK.encode() not in head:
        raise UsageError(f"{out} exists but saukit did not write it: give another --out, or replace it with --force")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
