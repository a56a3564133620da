"""What a workspace holds, read and verified once, as plain data for the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saukit.core.artifacts import CONFIG_NAME, Manifest, read_manifest
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.data.split import Split, load_split
from saukit.data.synthetic import KIND as CACHE_KIND
from saukit.data.synthetic import SyntheticImages, load_cache
from saukit.evaluation.compare import DOCUMENT_NAME
from saukit.evaluation.compare import KIND as COMPARISON_KIND
from saukit.evaluation.evaluate import RESULTS_NAME
from saukit.evaluation.statistics import mean
from saukit.report.config import ReportConfig
from saukit.synthesis.candidates import AUDIT, CLOSEST
from saukit.training.trainer import METRICS_NAME

MOST_RUNS = 60
MOST_SERIES = 12


@dataclass(frozen=True)
class Cache:
    """The kept synthetic images, what the audit says of them, and the PNG of the closest pairs."""

    images: SyntheticImages
    config: dict[str, Any]
    audit: dict[str, Any] | None
    closest: bytes | None


@dataclass(frozen=True)
class Run:
    """A complete run: its manifest, its resolved configuration, the lines of its log, and results.json if evaluated."""

    name: str
    manifest: Manifest
    config: dict[str, Any]
    log: list[dict[str, Any]]
    results: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """The training seed."""
        seed: int = self.config["seed"]
        return seed


@dataclass(frozen=True)
class Series:
    """Runs that differ in nothing but their seed, by ascending seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def results(self) -> list[dict[str, Any]]:
        """results.json of the runs that are evaluated."""
        return [run.results for run in self.runs if run.results is not None]

    @property
    def accuracy(self) -> float:
        """The mean balanced accuracy of the evaluated runs, to rank by; 0 without any."""
        return mean([results["balanced_accuracy"] for results in self.results]) or 0.0


@dataclass(frozen=True)
class Comparison:
    """A complete comparison: its folder's name, its manifest, and the document compare.json."""

    name: str
    manifest: Manifest
    document: dict[str, Any]

    def label_of(self, run: Run) -> str | None:
        """The label that a run has in it; None for another run, also one of that name that was made anew since."""
        if self.manifest.inputs.get(f"run {run.name}") != run.manifest.digest:
            return None
        return next(
            (
                str(method["label"])
                for method in self.document["methods"]
                for entry in method["runs"]
                if entry["name"] == run.name
            ),
            None,
        )


@dataclass(frozen=True)
class LeftOut:
    """A run or comparison that the page does not show, and why, or what to do about it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Contents:
    """All that the page is made from. `folder` is the workspace's own name, without the way to it."""

    folder: str
    split: Split
    split_config: dict[str, Any]
    cache: Cache | None
    comparison: Comparison | None
    series: tuple[Series, ...]
    left_out: tuple[LeftOut, ...]


def collect(config: ReportConfig, workspace: Workspace) -> Contents:
    """Everything of `workspace` that the page shows, each file verified.

    Raises: DataError without a split, or for a run or comparison asked for that is not there or belongs to another
    split; CorruptArtifactError if one of these is damaged. What was not asked for by name is left out instead.
    """
    split = load_split(workspace)
    left_out: list[LeftOut] = []
    comparison = _comparison(config, workspace, split, left_out)
    runs = _runs(config, workspace, split, comparison, left_out)
    return Contents(
        folder=workspace.root.resolve().name,
        split=split,
        split_config=_yaml(workspace.split / CONFIG_NAME),
        cache=_cache(workspace, split, left_out),
        comparison=comparison,
        series=_as_series(runs, comparison, left_out),
        left_out=tuple(left_out),
    )


def _comparison(config: ReportConfig, workspace: Workspace, split: Split, left_out: list[LeftOut]) -> Comparison | None:
    """The comparison asked for, or else the one of this split that was completed last."""
    root = workspace.root / "comparisons"
    found = []
    for folder in sorted(root.glob("*/")):
        try:
            manifest = read_manifest(folder, kind=COMPARISON_KIND)
        except CorruptArtifactError as error:
            if folder.name == config.comparison:
                raise
            left_out.append(LeftOut(folder.name, f"comparison is damaged: {error}"))
            continue
        if manifest is None:
            continue
        if manifest.inputs.get("split") != split.manifest.digest:
            left_out.append(LeftOut(folder.name, "comparison of another split than the one in this workspace"))
            continue
        document = json.loads((folder / DOCUMENT_NAME).read_text(encoding="utf-8"))
        found.append(Comparison(folder.name, manifest, document))
    if config.comparison is None:
        return max(found, key=lambda entry: entry.manifest.created, default=None)
    for entry in found:
        if entry.name == config.comparison:
            return entry
    raise DataError(
        f"no complete comparison {config.comparison!r} of this split in {root} "
        f"({_known('comparisons', [entry.name for entry in found])}): run `saukit compare` first"
    )


def _runs(
    config: ReportConfig,
    workspace: Workspace,
    split: Split,
    comparison: Comparison | None,
    left_out: list[LeftOut],
) -> list[Run]:
    """The runs to show: those asked for; or those of the comparison, the best methods first, then the latest."""
    names = workspace.run_names()
    if config.runs is not None:
        missing = [name for name in config.runs if name not in names]
        if missing:
            raise DataError(
                f"no complete run {', '.join(map(repr, missing))} in {workspace.root / 'runs'} "
                f"({_known('runs', names)})"
            )
        return [_read_run(workspace, name, split) for name in config.runs]
    compared = [] if comparison is None else sorted(comparison.document["methods"], key=_by_balanced_accuracy)
    first = [run["name"] for method in compared for run in method["runs"] if run["name"] in names]
    runs: list[Run] = []
    unevaluated: list[Run] = []
    too_many: list[str] = []
    for name in [*first, *(name for name in reversed(names) if name not in first)]:
        try:
            run = _read_run(workspace, name, split)
        except (CorruptArtifactError, DataError) as error:
            left_out.append(LeftOut(name, str(error)))
            continue
        if run.results is None:
            unevaluated.append(run)
        elif len(runs) == MOST_RUNS:
            too_many.append(name)
        else:
            runs.append(run)
    if not runs:
        return unevaluated[:MOST_RUNS]
    if too_many:
        text = ", ".join(too_many[:3]) + (", ..." if len(too_many) > 3 else "")
        reason = f"more than {MOST_RUNS} runs, the best methods come first: saukit report --runs {too_many[0]}"
        left_out.append(LeftOut(text, reason))
    left_out.extend(LeftOut(run.name, f"not evaluated: saukit eval --run {run.name}") for run in unevaluated)
    return runs


def _by_balanced_accuracy(method: dict[str, Any]) -> float:
    return -float(method["mean"]["balanced_accuracy"] or 0.0)


def _read_run(workspace: Workspace, name: str, split: Split) -> Run:
    folder = workspace.root / "runs" / name
    manifest = read_manifest(folder, kind="run")
    if manifest is None:
        raise DataError(f"the run in {folder} is not complete")
    if manifest.inputs.get("split") != split.manifest.digest:
        raise DataError(f"run {name} was made from another split than the one in this workspace: train it again")
    log = [json.loads(line) for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    results = None
    if RESULTS_NAME in manifest.files:
        results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
    return Run(name, manifest, _yaml(folder / CONFIG_NAME), log, results)


def _as_series(runs: Sequence[Run], comparison: Comparison | None, left_out: list[LeftOut]) -> tuple[Series, ...]:
    """Runs that differ only in their seed together: by the comparison's labels, the others by what they are."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        label = None if comparison is None else comparison.label_of(run)
        settings = {name: value for name, value in run.config.items() if name != "seed"}
        made_from = json.dumps([settings, run.manifest.inputs], sort_keys=True)
        groups.setdefault(("", made_from) if label is None else (label, ""), []).append(run)
    compared = [label for label, _ in groups if label]
    series: list[Series] = []
    for (label, _), members in groups.items():
        ordered = tuple(sorted(members, key=lambda run: (run.seed, run.name)))
        first = ordered[0]
        choices = (first.name.removesuffix(f"-seed{first.seed}"), first.name, f"{first.name} (not compared)")
        taken = {*compared, *(other.label for other in series)}
        series.append(Series(label or next(name for name in choices if name not in taken), ordered))
    # Those of the comparison as it has them, then the others by falling accuracy.
    series.sort(key=lambda entry: (entry.label not in compared, 0 if entry.label in compared else -entry.accuracy))
    for extra in series[MOST_SERIES:]:
        names = ",".join(run.name for run in extra.runs)
        left_out.append(LeftOut(extra.label, f"more than {MOST_SERIES} methods: saukit report --runs {names}"))
    return tuple(series[:MOST_SERIES])


def _cache(workspace: Workspace, split: Split, left_out: list[LeftOut]) -> Cache | None:
    """The cache, if there is a complete one of this split."""
    folder = workspace.synth
    try:
        manifest = read_manifest(folder, kind=CACHE_KIND, verify=False)
        if manifest is None:
            return None
        images = load_cache(workspace, split)
    except (CorruptArtifactError, DataError) as error:
        left_out.append(LeftOut("synthetic images", str(error)))
        return None
    audit = folder / AUDIT
    has_audit = AUDIT in images.manifest.files
    return Cache(
        images=images,
        config=_yaml(folder / CONFIG_NAME),
        audit=json.loads(audit.read_text(encoding="utf-8")) if has_audit else None,
        closest=(folder / CLOSEST).read_bytes() if CLOSEST in images.manifest.files else None,
    )


def _known(what: str, names: Sequence[str]) -> str:
    return f"complete {what}: {', '.join(names)}" if names else f"no complete {what}"


def _yaml(path: Path) -> dict[str, Any]:
    mapping: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return mapping
