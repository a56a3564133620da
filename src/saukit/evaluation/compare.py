"""The comparison stage: methods x seeds over one workspace, as tables, a picture and one document.

Each run is an ordinary one under runs/, trained by `fit` and evaluated once by `evaluate`; those that exist are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saukit.core.artifacts import (
    CONFIG_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    check_document,
    read_manifest,
    write_json,
    write_manifest,
)
from saukit.core.config import to_mapping
from saukit.core.console import Reporter
from saukit.core.documents import read_json
from saukit.core.plots import save_figure
from saukit.core.words import format_duration, format_share
from saukit.core.workspace import State, Workspace, claim, command_for, existing_state, prepare
from saukit.data.split import Split
from saukit.evaluation.charts import comparison_figure
from saukit.evaluation.comparison_files import (
    CHART_NAME,
    MARKDOWN_NAME,
    TABLE_NAME,
    write_tables,
)
from saukit.evaluation.config import CompareConfig
from saukit.evaluation.contenders import ComparisonPlan, PlannedRun, plan_comparison
from saukit.evaluation.jobs import FinishedRun, Jobs, finish_run
from saukit.evaluation.statistics import CONFIDENCE
from saukit.evaluation.summary import (
    SHAPE,
    differences,
    measures_of,
    method_entry,
    unknown_labels,
    verdict,
)
from saukit.synthesis.outcome import AUDIT, read_audit
from saukit.training.distributed import first_before_others, from_first, require_same

KIND = "comparison"
DOCUMENT_NAME = "compare.json"


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
    devices: Sequence[str],
    force: bool,
    reporter: Reporter,
) -> ComparisonResult:
    """Train and evaluate what is missing of a comparison, and write `comparisons/<name>`.

    As many runs are trained side by side as there are `devices`, names as those of `job_devices`; one in this process,
    or in those of `training.distributed.joined`, of which the first one writes.
    `force` replaces the comparison's files, never a run.
    Raises: as `plan_comparison`, before anything is trained, and `core.workspace.prepare`; LockHeldError if another
    process is still training a run when all others are done.
    """
    folder = workspace.comparison(name)
    plan = first_before_others(lambda: plan_comparison(config, workspace, device=torch.device(devices[0])))
    require_same("states of the runs", [(run.name, run.state) for run in plan.runs])
    _check_name(folder, plan.config, force=force)
    finished = _finish_all(plan, workspace, devices, reporter)
    return from_first(lambda: _written(plan, finished, workspace, folder, name=name, force=force))


def _written(
    plan: ComparisonPlan, finished: Sequence[FinishedRun], workspace: Workspace, folder: Path, *, name: str, force: bool
) -> ComparisonResult:
    """The comparison's folder, written or found complete."""
    inputs = plan.inputs | {f"run {run.name}": run.manifest.digest for run in finished}
    judged = None
    with workspace.lock(folder):
        if (workspace.synth / AUDIT).exists() and (force or not (folder / MANIFEST_NAME).exists()):
            judged = read_audit(workspace.synth)["overall"]  # one that is damaged takes no earlier comparison away
        state = prepare(
            folder, plan.config, kind=KIND, force=force, resume=True, another="another --name", inputs=inputs
        )
        if state == "complete":
            return ComparisonResult(state, folder, read_comparison(folder, plan.split.classes))
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


def read_comparison(folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """The compare.json in `folder`. Raises: CorruptArtifactError for what `comparison_document` does not make."""
    again = f"saukit compare --force --config {folder / CONFIG_NAME} --name {folder.name}"
    path, remedy = folder / DOCUMENT_NAME, f"make it again: `{command_for(folder, again)}`"
    document: dict[str, Any] = read_json(path, remedy=remedy)
    check_document(document, SHAPE, path, remedy=remedy, known={"K": classes}, also=unknown_labels)
    return document


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
    plan: ComparisonPlan, workspace: Workspace, devices: Sequence[str], reporter: Reporter
) -> list[FinishedRun]:
    """Every run of the plan, trained and evaluated, in the plan's order.

    A run that another process is at comes when the others are done. Raises: LockHeldError if no other is left.
    """
    states = [run.state for run in plan.runs]
    reporter.say(
        f"{len(plan.runs)} runs ({len(plan.contenders)} methods x {plan.config.seeds} seeds): "
        f"{states.count('complete')} there already, {states.count('partial')} begun, {states.count('new')} to start"
    )
    finished: dict[str, FinishedRun] = {}
    left = plan.to_come
    shares = dict.fromkeys((run.title for run in left), 0.0)
    work = {run.title: run.contender.images_seen for run in left}

    def listen(run: PlannedRun, news: str | float) -> None:
        if isinstance(news, str):
            reporter.warn(f"{run.title}: {news}")
            return
        if run.title not in shares:  # complete, and only evaluated
            return
        shares[run.title] = news
        percent = 100 * sum(share * work[title] for title, share in shares.items()) / sum(work.values())
        running = ", ".join(f"{title} {share:.0%}" for title, share in shares.items() if 0 < share < 1)
        progress.update(round(percent, 1), f"{len(finished)} of {len(plan.runs)} runs done; {running}")

    for run in plan.runs:
        if run.state == "complete":
            finished[run.title] = finish_run(run, workspace, torch.device(devices[0]), listen)
    if left:
        with Jobs(workspace, devices) as jobs, reporter.progress("compare, percent", 100) as progress:
            while left:
                waiting: list[PlannedRun] = []
                for run, outcome in jobs.finish(left, listen):
                    if isinstance(outcome, FinishedRun):
                        finished[run.title] = outcome
                        reporter.say(_progress_line(outcome, len(finished), len(plan.runs)))
                        listen(run, 1.0)
                        continue
                    waiting.append(run)
                    if len(waiting) == len(left):
                        raise outcome  # all that is left is in other hands
                    reporter.say(f"{run.title} is left for later: {outcome}")
                left = waiting
    return [finished[run.title] for run in plan.runs]


def _check_name(folder: Path, config: CompareConfig, *, force: bool) -> None:
    """Raises: UsageError if `folder` holds something else, before the runs are trained rather than after."""
    claim(folder, CompareConfig, kind=KIND, another="another --name")
    if force:
        return
    manifest = read_manifest(folder, kind=KIND, verify=False)
    if manifest is not None:
        existing_state(folder, config, kind=KIND, another="another --name", inputs=manifest.inputs)


def _progress_line(run: FinishedRun, done: int, total: int) -> str:
    figures = [f"balanced {format_share(run.results['balanced_accuracy'])}"]
    if (few := measures_of(run.results)["few"]) is not None:
        figures.append(f"few {format_share(few)}")
    figures.append("reused" if run.reused else format_duration(run.manifest.summary["seconds"]))
    return f"{done}/{total} {run.contender.label} seed {run.seed}: {', '.join(figures)}"


def _describe_split(split: Split) -> dict[str, Any]:
    return {
        "digest": split.manifest.digest,
        "source": split.source,
        "classes": list(split.classes),
        "class_counts": split.class_counts.tolist(),
        "groups": {name: list(rows) for name, rows in split.groups.members.items()},
    }
