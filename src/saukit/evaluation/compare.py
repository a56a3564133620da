"""The comparison stage: methods x seeds over one workspace, as tables, a picture and one document.

Each run is an ordinary one under runs/, trained by `fit` and evaluated once by `evaluate`; those that exist are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saukit.core.artifacts import CONFIG_NAME, FORMAT_VERSION, Manifest, read_manifest, write_json, write_manifest
from saukit.core.config import to_mapping
from saukit.core.console import ProgressLine, Reporter
from saukit.core.errors import LockHeldError
from saukit.core.interrupts import StopRequest
from saukit.core.plots import save_figure
from saukit.core.words import format_duration, format_share
from saukit.core.workspace import State, Workspace, existing_state, prepare
from saukit.data.split import Split
from saukit.evaluation.charts import comparison_figure
from saukit.evaluation.comparison_files import (
    CHART_NAME,
    MARKDOWN_NAME,
    TABLE_NAME,
    write_tables,
)
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.evaluation.contenders import ComparisonPlan, Contender, PlannedRun, locate, plan_comparison
from saukit.evaluation.evaluate import evaluate
from saukit.evaluation.statistics import CONFIDENCE
from saukit.evaluation.summary import differences, measures_of, method_entry, verdict
from saukit.synthesis.outcome import AUDIT
from saukit.training.trainer import fit, read_complete

KIND = "comparison"
DOCUMENT_NAME = "compare.json"


@dataclass(frozen=True)
class FinishedRun:
    """A run that is trained and evaluated: its manifest, and its results.json as a document."""

    contender: Contender
    seed: int
    name: str
    reused: bool
    manifest: Manifest
    results: dict[str, Any]


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison: whether it was there already ("complete"), its compare.json as a document, and where it is."""

    state: State
    folder: Path
    document: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """What there is to look at."""
        return [self.folder / name for name in (MARKDOWN_NAME, CHART_NAME)]


def compare(
    config: CompareConfig,
    workspace: Workspace,
    *,
    name: str,
    device: torch.device,
    force: bool,
    reporter: Reporter,
) -> ComparisonResult:
    """Train and evaluate what is missing of a comparison, and write `comparisons/<name>`.

    `force` replaces the comparison's files, never a run.
    Raises: as `plan_comparison`, before anything is trained, and `core.workspace.prepare`; LockHeldError if another
    process is still training a run when all others are done; Interrupted after a signal, once the state is saved.
    """
    folder = workspace.comparison(name)
    with StopRequest(at_once="the same call"):
        plan = plan_comparison(config, workspace, device=device)
        if not force:
            _check_name(folder, plan.config)
        finished = _finish_all(plan, workspace, device, reporter)
        inputs = plan.inputs | {f"run {run.name}": run.manifest.digest for run in finished}
        with workspace.lock(folder):
            state = prepare(
                folder, plan.config, kind=KIND, force=force, resume=True, another="another --name", inputs=inputs
            )
            if state == "complete":
                document = json.loads((folder / DOCUMENT_NAME).read_text(encoding="utf-8"))
                return ComparisonResult(state, folder, document)
            audit = workspace.synth / AUDIT
            judged = json.loads(audit.read_text(encoding="utf-8"))["overall"] if audit.exists() else None
            document = comparison_document(plan, finished, name=name, judged=judged)
            write_json(folder / DOCUMENT_NAME, document)
            write_tables(folder, document)
            save_figure(comparison_figure(document), folder / CHART_NAME)
            write_manifest(
                folder,
                kind=KIND,
                files=[CONFIG_NAME, DOCUMENT_NAME, TABLE_NAME, MARKDOWN_NAME, CHART_NAME],
                inputs=inputs,
                summary={"baseline": plan.baseline, "methods": len(plan.contenders), "runs": len(finished)},
                device=", ".join(sorted({run.manifest.device for run in finished})),
            )
    return ComparisonResult(state, folder, document)


def comparison_document(
    plan: ComparisonPlan, finished: Sequence[FinishedRun], *, name: str, judged: dict[str, Any] | None
) -> dict[str, Any]:
    """The figures of compare.json, all accuracies in [0, 1]; what is absent is null.

    `judged`: the overall figures of the audit of the synthetic images, if there is one.
    """
    entries = []
    for contender in plan.contenders:
        runs = [run for run in finished if run.contender == contender]
        entry = method_entry(contender.label, to_mapping(contender.config), runs)
        for described, run in zip(entry["runs"], runs, strict=True):
            described["reused"] = run.reused
        entries.append({**entry, "images_seen": contender.images_seen, "difference": None})
    (baseline,) = (entry for entry in entries if entry["label"] == plan.baseline)
    others = [entry for entry in entries if entry is not baseline]
    changes = differences([(entry, baseline) for entry in others], confidence=CONFIDENCE)
    for entry, change in zip(others, changes, strict=True):
        entry["difference"] = change
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "baseline": plan.baseline,
        "confidence": CONFIDENCE,
        "groups_rule": plan.split.groups.rule,
        "split": _describe_split(plan.split) | {"test_images": finished[0].results["test_images"]},
        "judged": judged,
        "methods": entries,
        "verdict": verdict(entries, confidence=CONFIDENCE),
    }


def _finish_all(
    plan: ComparisonPlan, workspace: Workspace, device: torch.device, reporter: Reporter
) -> list[FinishedRun]:
    """Every run of the plan, trained and evaluated, in the plan's order.

    A run that another process is at comes when the others are done. Raises: LockHeldError if no other is left.
    """
    states = [run.state for run in plan.runs]
    reporter.say(
        f"{len(plan.runs)} runs ({len(plan.contenders)} methods x {plan.config.seeds} seeds): "
        f"{states.count('complete')} there already, {states.count('partial')} begun, {states.count('new')} to start"
    )
    seconds = {label: list(values) for label, values in plan.seconds.items()}
    finished: dict[int, FinishedRun] = {}
    left = list(range(len(plan.runs)))
    while left:
        waiting: list[int] = []
        for position, index in enumerate(left):
            run = plan.runs[index]
            try:
                finished[index] = made = _finish(run, workspace, device, reporter)
            except LockHeldError as error:
                waiting.append(index)
                if len(waiting) == len(left):
                    raise  # all that is left is in other hands
                reporter.say(f"{_title(run)} is left for later: {error}")
                continue
            if run.state == "complete":
                continue
            if not made.reused:
                seconds.setdefault(run.contender.label, []).append(made.manifest.summary["seconds"])
            to_come = [plan.runs[i] for i in (*left[position + 1 :], *waiting)]
            ahead = [other.contender.label for other in to_come if other.state != "complete"]
            eta = plan.expected_seconds(ahead, seconds)
            reporter.say(_progress_line(made, len(finished), len(plan.runs), eta))
        left = waiting
    return [finished[index] for index in range(len(plan.runs))]


def _finish(run: PlannedRun, workspace: Workspace, device: torch.device, reporter: Reporter) -> FinishedRun:
    """Train one run if it is not there, and evaluate it if it is not. Looks again: another process may be at work."""
    name, state = locate(run.contender, run.seed, workspace)
    voice = _RunReporter(reporter, _title(run))
    reused = state == "complete"
    if not reused:
        config = run.contender.seeded(run.seed)
        if config.compile:
            torch.compiler.reset()  # or torch gives up on the same code after a few networks
        made = fit(config, workspace, name=name, device=device, force=False, resume=True, reporter=voice)
        reused = made.state == "complete"
    results = evaluate(EvalConfig(run=name), workspace, device=device, force=False, reporter=voice).document
    return FinishedRun(run.contender, run.seed, name, reused, read_complete(workspace.run(name)), results)


def _check_name(folder: Path, config: CompareConfig) -> None:
    """Raises: UsageError if `folder` holds another comparison, before the runs are trained rather than after."""
    manifest = read_manifest(folder, kind=KIND, verify=False)
    if manifest is not None:
        existing_state(folder, config, kind=KIND, another="another --name", inputs=manifest.inputs)


def _title(run: PlannedRun) -> str:
    return f"{run.contender.label} seed {run.seed}"


def _progress_line(run: FinishedRun, done: int, total: int, seconds_left: float | None) -> str:
    figures = [f"balanced {format_share(run.results['balanced_accuracy'])}"]
    if (few := measures_of(run.results)["few"]) is not None:
        figures.append(f"few {format_share(few)}")
    took = "reused" if run.reused else format_duration(run.manifest.summary["seconds"])
    left = "" if not seconds_left else f"; about {format_duration(seconds_left)} left"
    return f"{done}/{total} {run.contender.label} seed {run.seed}: {', '.join([*figures, took])}{left}"


def _describe_split(split: Split) -> dict[str, Any]:
    return {
        "digest": split.manifest.digest,
        "source": split.source,
        "classes": list(split.classes),
        "class_counts": split.class_counts.tolist(),
        "groups": {name: list(rows) for name, rows in split.groups.members.items()},
    }


class _RunReporter(Reporter):
    """The voice of one run of a comparison: its warnings, and a bar that goes when the run's one line comes."""

    def __init__(self, reporter: Reporter, title: str) -> None:
        super().__init__(quiet=reporter.quiet, json_output=reporter.json_output)
        self._title = title

    def say(self, text: str) -> None:
        """Nothing: the comparison says one line a run."""

    def progress(self, label: str, total: int, *, done: int = 0) -> ProgressLine:
        """The run's bar under its name in the comparison."""
        return _PassingLine(self._err, self._title, total, done=done, quiet=self.quiet)


class _PassingLine(ProgressLine):
    """A bar that leaves no trace on the terminal."""

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.live.transient = True
        return super().__enter__()
