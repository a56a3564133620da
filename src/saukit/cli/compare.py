"""`saukit compare`: several methods with several seeds on one workspace, and what differs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saukit.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    build_config,
    field_parameters,
    open_device,
    open_workspace,
    was_given,
)
from saukit.core.config import load_config, to_mapping, to_yaml
from saukit.core.console import Reporter
from saukit.core.words import format_duration
from saukit.evaluation.config import DEFAULT_COMPARISON, GRAMMAR, IN_A_SPEC, CompareConfig, overlay
from saukit.training.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from saukit.core.workspace import Workspace
    from saukit.evaluation.contenders import ComparisonPlan

SHARED = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.name not in (*IN_A_SPEC, "seed"))
PANEL = "Training, shared by all methods"


def _with_training_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` the options of `saukit train` that methods share, as they are declared there."""
    signature = inspect.signature(function, eval_str=True)
    shared = field_parameters(TrainConfig, SHARED, panel=PANEL)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    common = [parameter.name for parameter in own].index("workspace")  # from here on the panel of common options
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own[:common], *shared, *own[common:]]
    )
    return function


@_with_training_options
def command(
    context: typer.Context,
    methods: Annotated[
        str | None,
        typer.Option(help=f"{GRAMMAR}, with commas: methods of train; +synth: on synthetic images too."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method, with the seeds 0, 1, ...")] = CompareConfig.seeds,
    baseline: Annotated[
        str | None, typer.Option(help="The method that differences are to.", show_default="the first")
    ] = CompareConfig.baseline,
    name: Annotated[str, typer.Option(help="The comparison's name.")] = DEFAULT_COMPARISON,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    **training: Any,
) -> None:
    """Train several methods with several seeds, evaluate each run once, and tell what differs from the baseline.

    Runs that are there are used; --force replaces the comparison, never a run.

    Stopped, it goes on with the same command.

    [bold]Examples[/bold]

      saukit compare --methods ce,balanced-softmax,sau+synth --seeds 5

      saukit compare --methods balanced-softmax,sau+synth-prior0.75 --steps 400 --name short

      saukit compare --config sweep.yaml
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    given = {field: value for field, value in training.items() if was_given(context, field)}
    extra: dict[str, Any] = {}
    if methods is not None:
        extra["methods"] = [text.strip() for text in methods.split(",") if text.strip()]
    if given:
        base = CompareConfig() if config is None else load_config(CompareConfig, config)
        extra["train"] = overlay(base.train or {}, given)
    compare_config = build_config(context, CompareConfig, config, extra=extra)

    from saukit.cli.show import show_comparison
    from saukit.evaluation.compare import compare
    from saukit.evaluation.contenders import plan_comparison

    opened, where = open_workspace(workspace), open_device(device)
    if dry_run:
        _show_plan(plan_comparison(compare_config, opened, device=where), opened, where, reporter)
        return
    result = compare(
        compare_config,
        opened,
        name=name,
        device=where,
        force=force,
        reporter=reporter,
    )
    show_comparison(result, reporter)


def _show_plan(plan: ComparisonPlan, opened: Workspace, where: torch.device, reporter: Reporter) -> None:
    """The runs, which of them are there, and how long the others would take."""
    from saukit.training.estimate import estimate_seconds
    from saukit.training.plan import plan_training

    to_come = [run for run in plan.runs if run.state != "complete"]
    measured = dict(plan.seconds)
    for contender in {run.contender.label: run.contender for run in to_come}.values():
        if contender.label not in measured:
            measured[contender.label] = [
                estimate_seconds(plan_training(contender.config, opened, name=None, device=where))
            ]
    seconds = plan.expected_seconds([run.contender.label for run in to_come], measured)
    states = {"complete": "there", "partial": "interrupted, goes on", "new": "new"}
    reporter.result("compare would use this configuration; nothing is written:")
    reporter.result(to_yaml(plan.config).rstrip())
    reporter.table(
        "runs",
        ["method", "seed", "run", "state", "steps"],
        [
            [run.contender.label, str(run.seed), run.name, states[run.state], f"{run.contender.steps:,}"]
            for run in plan.runs
        ],
        text_columns=4,
    )
    time_left = format_duration(seconds or 0.0)
    reporter.result(f"{len(to_come)} of {len(plan.runs)} runs to train, estimated time: {time_left}")
    runs = [
        {"label": run.contender.label, "seed": run.seed, "name": run.name, "state": run.state,
         "steps": run.contender.steps}
        for run in plan.runs
    ]  # fmt: skip
    reporter.document({"dry_run": True, "config": to_mapping(plan.config), "runs": runs, "estimated_time": time_left})
