"""`saukit eval`: many-, medium- and few-shot accuracy of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from saukit.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DebugOption,
    DeviceOption,
    DryRun,
    DryRunOption,
    ForceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    build_config,
    open_device,
    open_workspace,
)
from saukit.core.console import Reporter
from saukit.evaluation.config import EvalConfig, Selection


def command(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Option(help="Name of the run.", show_default="the one completed last")
    ] = EvalConfig.run,
    split: Annotated[Selection, typer.Option(help="Which shot group to show.")] = EvalConfig.split,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate a run on the whole test set, per class and shot group.

    [bold]Examples[/bold]

      saukit eval --split few

      saukit eval --run ce --json
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    eval_config = build_config(context, EvalConfig, config)

    from saukit.cli.show import show_evaluation
    from saukit.evaluation.evaluate import choose_run, evaluate

    opened, where = open_workspace(workspace), open_device(device)
    if dry_run:
        name = choose_run(opened, eval_config.run)
        DryRun("eval", eval_config, {"run": name, "folder": str(opened.run(name))}).show(reporter)
        return
    result = evaluate(eval_config, opened, device=where, force=force, reporter=reporter)
    show_evaluation(result, eval_config.split, reporter)
