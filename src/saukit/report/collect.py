"""What a workspace holds, read and verified once, as plain data for the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saukit.core.artifacts import CONFIG_NAME, Manifest, read_manifest
from saukit.core.config import load_saved, to_mapping
from saukit.core.documents import REMAKE, read_yaml
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.part_files import encodable
from saukit.data.split import Split, load_split
from saukit.data.synthetic import SyntheticImages, load_cache
from saukit.evaluation.compare import KIND as COMPARISON_KIND
from saukit.evaluation.compare import read_comparison
from saukit.evaluation.errors import ERRORS_PICTURE
from saukit.evaluation.evaluate import RESULTS_NAME, read_results
from saukit.evaluation.summary import Document, EvaluatedRun, method_entry
from saukit.evaluation.suspects import SUSPECTS_NAME, read_suspects
from saukit.report.config import ReportConfig
from saukit.synthesis.outcome import AUDIT, CLOSEST, read_audit
from saukit.training.config import TrainConfig
from saukit.training.metrics_log import read_log
from saukit.training.trainer import METRICS_NAME


@dataclass(frozen=True)
class Cache:
    """The kept synthetic images, what the audit says of them, and where the PNG of the closest pairs is."""

    images: SyntheticImages
    config: Document
    audit: Document | None
    closest: Path | None


@dataclass(frozen=True)
class Run(EvaluatedRun):
    """A run with its resolved configuration and its log.

    mistakes: where the PNG of the most confident ones is. suspects: the rows of suspects.csv, None if nobody looked.
    """

    config: Document
    log: list[Document]
    mistakes: Path | None
    suspects: list[Document] | None


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but their seed, by ascending seed. `entry` is the method as compare.json has it."""

    label: str
    runs: tuple[Run, ...]
    entry: Document


@dataclass(frozen=True)
class Comparison:
    """A complete comparison: its folder's name, its manifest, and the document compare.json."""

    name: str
    manifest: Manifest
    document: Document

    def label_of(self, run: Run) -> str | None:
        """The label that a run has in it; None for another run, also for one that was trained again since."""
        if self.manifest.inputs.get(f"run {run.name}") != run.manifest.digest:
            return None
        entries = {entry["name"]: method["label"] for method in self.document["methods"] for entry in method["runs"]}
        return entries.get(run.name)


@dataclass(frozen=True)
class LeftOut:
    """A run or comparison that the page does not show, and why, or what to do about it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Contents:
    """All that the page is made from. `folder` is the workspace's own name, without its parents.

    compared: the methods of the comparison whose runs are there, as it has them. others: of runs outside it, by
    falling accuracy.
    """

    folder: str
    split: Split
    split_config: Document
    cache: Cache | None
    comparison: Comparison | None
    compared: tuple[Method, ...]
    others: tuple[Method, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def document(self) -> Document | None:
        """The comparison's document."""
        return None if self.comparison is None else self.comparison.document

    @property
    def entries(self) -> list[Document]:
        """Every method as compare.json has it: those of the comparison, then the others."""
        return [*([] if self.document is None else self.document["methods"]), *(it.entry for it in self.others)]

    @property
    def runs(self) -> list[Run]:
        """Every run."""
        return [run for method in (*self.compared, *self.others) for run in method.runs]


def collect(config: ReportConfig, workspace: Workspace) -> Contents:
    """Everything of `workspace` that the page shows, each file verified.

    Raises: DataError without a split, or for a run or comparison asked for that is not there, not evaluated or of
    another split; CorruptArtifactError if one of these is damaged. What was not asked for by name is left out instead.
    """
    split = load_split(workspace)
    left_out: list[LeftOut] = []
    comparison = _comparison(config, workspace, split, left_out)
    runs = _runs(config, workspace, split, left_out)
    compared, others = _methods(runs, comparison)
    return Contents(
        folder=encodable(workspace.root.resolve().name),
        split=split,
        split_config=to_mapping(load_saved(SplitConfig, workspace.split / CONFIG_NAME)),
        cache=_cache(workspace, split, left_out),
        comparison=comparison,
        compared=compared,
        others=others,
        left_out=tuple(left_out),
    )


def _comparison(config: ReportConfig, workspace: Workspace, split: Split, left_out: list[LeftOut]) -> Comparison | None:
    """The comparison asked for, or else the one of this split that was completed last."""
    root = workspace.root / "comparisons"
    found = {}
    for folder in workspace.folders("comparison"):
        try:
            manifest = read_manifest(folder, kind=COMPARISON_KIND)
            if manifest is None:
                continue
            if manifest.inputs.get("split") != split.manifest.digest:
                left_out.append(LeftOut(folder.name, "comparison of another split than the one in this workspace"))
                continue
            found[folder.name] = Comparison(folder.name, manifest, read_comparison(folder, split.classes))
        except (CorruptArtifactError, DataError) as error:
            if folder.name == config.comparison:
                raise
            left_out.append(LeftOut(folder.name, f"comparison is damaged: {error}"))
    if config.comparison is None:
        return max(found.values(), key=lambda entry: entry.manifest.created, default=None)
    if config.comparison not in found:
        raise DataError(
            f"no complete comparison {config.comparison!r} of this split in {root} "
            f"({_known('comparisons', list(found))}): run `{workspace.command('saukit compare')}` first"
        )
    return found[config.comparison]


def _runs(config: ReportConfig, workspace: Workspace, split: Split, left_out: list[LeftOut]) -> list[Run]:
    """The runs asked for, or else every run that can be shown."""
    names = workspace.run_names()
    if config.runs is not None:
        if missing := [name for name in config.runs if name not in names]:
            for name in missing:
                read_manifest(workspace.root / "runs" / name, kind="run")  # one that is damaged says so
            raise DataError(
                f"no complete run {', '.join(map(repr, missing))} in {workspace.root / 'runs'} "
                f"({_known('runs', names)})"
            )
        return [_read_run(workspace, name, split) for name in config.runs]
    runs = []
    for name in names:
        try:
            runs.append(_read_run(workspace, name, split))
        except (CorruptArtifactError, DataError) as error:
            left_out.append(LeftOut(name, str(error)))
    return runs


def _read_run(workspace: Workspace, name: str, split: Split) -> Run:
    folder = workspace.root / "runs" / name
    manifest = read_manifest(folder, kind="run")
    if manifest is None:
        raise DataError(f"run {name} is not complete")
    if manifest.inputs.get("split") != split.manifest.digest:
        raise DataError(f"run {name} was made from another split than the one in this workspace: train it again")
    if RESULTS_NAME not in manifest.files:
        raise DataError(f"run {name} is not evaluated: saukit eval --run {name}")
    log = read_log(folder / METRICS_NAME)
    results = read_results(folder, split.classes)
    mistakes = folder / ERRORS_PICTURE if ERRORS_PICTURE in manifest.files else None
    suspects = read_suspects(folder / SUSPECTS_NAME) if SUSPECTS_NAME in manifest.files else None
    settings = to_mapping(load_saved(TrainConfig, folder / CONFIG_NAME))
    return Run(name, settings["seed"], manifest, results, settings, log, mistakes, suspects)


def _methods(runs: Sequence[Run], comparison: Comparison | None) -> tuple[tuple[Method, ...], tuple[Method, ...]]:
    """Runs that differ only in their seed together: those of the comparison, and the others."""
    groups: dict[tuple[str | None, str], list[Run]] = {}
    for run in runs:
        label = None if comparison is None else comparison.label_of(run)
        settings = {name: value for name, value in run.config.items() if name != "seed"}
        made_from = json.dumps([settings, run.manifest.inputs], sort_keys=True) if label is None else ""
        groups.setdefault((label, made_from), []).append(run)
    entries = {} if comparison is None else {entry["label"]: entry for entry in comparison.document["methods"]}
    found: dict[str, Method] = {}
    for (known, _), members in sorted(groups.items(), key=lambda item: item[0][0] is None):
        ordered = tuple(sorted(members, key=lambda run: (run.seed, run.name)))
        first = ordered[0]
        choices = (first.name.removesuffix(f"-seed{first.seed}"), first.name, f"{first.name} (not compared)")
        label = known or next(name for name in choices if name not in {*entries, *found})
        entry = entries[known] if known else method_entry(label, first.config, ordered)
        found[label] = Method(label, ordered, entry)
    others = [method for label, method in found.items() if label not in entries]
    others.sort(key=lambda method: -(method.entry["mean"]["balanced_accuracy"] or 0.0))
    return tuple(found[label] for label in entries if label in found), tuple(others)


def _cache(workspace: Workspace, split: Split, left_out: list[LeftOut]) -> Cache | None:
    """The cache, if there is a complete one of this split."""
    folder = workspace.synth
    if not (folder / CONFIG_NAME).exists():
        return None
    try:
        images = load_cache(workspace, split)
        files = images.manifest.files
        audit = read_audit(folder) if AUDIT in files else None
    except (CorruptArtifactError, DataError) as error:
        left_out.append(LeftOut("synthetic images", str(error)))
        return None
    return Cache(
        images=images,
        config=_yaml(folder / CONFIG_NAME),
        audit=audit,
        closest=folder / CLOSEST if CLOSEST in files else None,
    )


def _known(what: str, names: Sequence[str]) -> str:
    return f"complete {what}: {', '.join(names)}" if names else f"no complete {what}"


def _yaml(path: Path) -> Document:
    mapping = read_yaml(path)
    if not isinstance(mapping, dict):
        raise CorruptArtifactError(f"{path} is damaged: it holds no mapping of names to values; {REMAKE}")
    return mapping
