"""`saukit make-lt`: build a long-tailed split."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.options import Call, stage_command
from saukit.core.errors import UsageError
from saukit.data.config import SplitConfig, parse_counts


@stage_command(SplitConfig)
def command(
    call: Call,
    config: SplitConfig = SplitConfig(),
    root: Annotated[
        Path | None,
        typer.Option(envvar="SAUKIT_DATA", help="Where the data set is.", show_default=False),
    ] = None,
) -> None:
    """Build a long-tailed split of a known data set, or take an imbalanced folder as it is.

    Examples:

      saukit make-lt --dataset cifar10 --imb 100

      saukit make-lt --dataset folder --root pictures --image-size 64

      saukit make-lt --dataset digits --counts 8=5 9=3
    """
    from saukit.cli.show import show_classes, show_split
    from saukit.data.plan import plan_split
    from saukit.data.sources.table import TABLE
    from saukit.data.split import make_split

    if call.device_name not in ("auto", "cpu"):
        _ = call.device  # nothing here runs on it and needs torch, but one that is not there is an error everywhere
    if call.context.args and not call.was_given("counts"):
        raise UsageError(f"unexpected argument {call.context.args[0]!r}: class counts follow --counts")
    if call.context.args:
        config = replace(config, counts={**(config.counts or {}), **parse_counts(call.context.args)})
    if call.dry_run:
        plan = plan_split(config, root)
        plan.tell(call.reporter)
        call.show_plan("make-lt", plan.config, {}, document=plan.summary, tables={"dataset": TABLE})
        show_classes(plan.summary, plan.groups, call.reporter)
        return
    result = make_split(config, call.workspace, root=root, force=call.force, reporter=call.reporter)
    show_split(result, call.workspace.split, call.reporter)
