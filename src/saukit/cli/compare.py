"""`saukit compare`: several methods with several seeds on one workspace, and what differs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from saukit.cli.options import Call, field_parameters, stage_command
from saukit.core.words import format_duration
from saukit.evaluation.config import DEFAULT_COMPARISON, IN_A_SPEC, CompareConfig, overlay
from saukit.training.config import TrainConfig

if TYPE_CHECKING:
    from saukit.evaluation.contenders import ComparisonPlan, Contender

SHARED = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.name not in (*IN_A_SPEC, "seed"))
JobsOption = Annotated[
    int | None,
    typer.Option(
        help="Trainings side by side, with one thread each on a CPU.", show_default="the usable cores, or the GPUs"
    ),
]


@stage_command(
    CompareConfig,
    others=field_parameters(TrainConfig, SHARED, panel="Training, shared by all methods"),
    every_process=True,
)
def command(
    call: Call,
    config: CompareConfig,
    name: Annotated[str, typer.Option(help="The comparison's name.")] = DEFAULT_COMPARISON,
    jobs: JobsOption = None,
) -> None:
    """Train several methods with several seeds, evaluate each run once, and show what differs from the baseline.

    Existing runs are used; --force replaces the comparison, never a run. Stopped, the same command continues.

    Examples:

      saukit compare --methods ce,balanced-softmax,sau+synth --seeds 5

      saukit compare --methods balanced-softmax,sau+synth-prior0.75 --steps 400 --name short

      saukit compare --config sweep.yaml --jobs 4
    """
    from saukit.cli.show import show_comparison
    from saukit.evaluation.compare import compare
    from saukit.evaluation.contenders import plan_comparison
    from saukit.evaluation.jobs import job_devices
    from saukit.training.distributed import joined

    if given := call.given(TrainConfig):
        config = dataclasses.replace(config, train=overlay(config.train or {}, given))
    device, devices = call.device, job_devices(call.device_name, jobs)
    if call.dry_run:
        _show_plan(plan_comparison(config, call.workspace, device=device), call, jobs=len(devices))
        return
    with joined(device):
        result = compare(config, call.workspace, name=name, devices=devices, force=call.force, reporter=call.reporter)
    show_comparison(result, call.reporter)


def _show_plan(plan: ComparisonPlan, call: Call, *, jobs: int) -> None:
    """The runs, which of them are there, and how long the others would take."""
    from saukit.training.estimate import estimate_seconds
    from saukit.training.plan import plan_training

    def measure(contender: Contender) -> float:
        return estimate_seconds(plan_training(contender.config, call.workspace, name=None, device=call.device))

    states = {"complete": "complete", "partial": "interrupted, will continue", "new": "new"}
    call.reporter.table(
        "runs",
        ["method", "seed", "run", "state", "steps"],
        [
            [run.contender.label, str(run.seed), run.name, states[run.state], f"{run.contender.steps:,}"]
            for run in plan.runs
        ],
        text_columns=4,
    )
    side_by_side = max(1, min(jobs, len(plan.to_come)))
    seconds = plan.expected_seconds(measure) / side_by_side
    rows = {
        "runs to train": f"{len(plan.to_come)} of {len(plan.runs)}",
        "jobs": side_by_side,
        "estimated time": format_duration(seconds),
    }
    runs = [
        {"label": run.contender.label, "seed": run.seed, "name": run.name, "state": run.state,
         "steps": run.contender.steps}
        for run in plan.runs
    ]  # fmt: skip
    document = {"runs_to_train": len(plan.to_come), "jobs": side_by_side, "estimated_seconds": seconds, "runs": runs}
    call.show_plan("compare", plan.config, rows, document=document)
