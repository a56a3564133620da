"""`saukit make-lt`: build a long-tailed split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    open_device,
    open_workspace,
)
from saukit.core.console import Reporter
from saukit.core.errors import UsageError
from saukit.data.config import Profile, SplitConfig, ratio

DISPLACES = {
    "counts": ("profile", "imb"),
    "profile": ("counts",),
    "dataset": ("counts", "image_size", "test_fraction"),
}


def command(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Option(help="digits, cifar10, cifar100, fashion-mnist, svhn, or folder.")
    ] = SplitConfig.dataset,
    root: Annotated[
        Path | None, typer.Option(envvar="SAUKIT_DATA", help="Folder that holds the data set.", show_default=False)
    ] = None,
    imb: Annotated[
        float | None,
        typer.Option(help="Largest / smallest class; 0.01 means 100. [dim]\\[default: 100][/dim]", show_default=False),
    ] = SplitConfig.imb,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="How counts fall; `none` keeps a folder as it is. [dim]\\[default: exp; folder: none][/dim]",
            show_default=False,
        ),
    ] = SplitConfig.profile,
    counts: Annotated[
        list[str] | None,
        typer.Option(help="Images of some classes: --counts cat=50 dog=7.", metavar="CLASS=N ...", show_default=False),
    ] = None,
    protocol: Annotated[
        Literal["ldam"], typer.Option(help="How images are drawn: ldam is LDAM-DRW's, the de-facto standard.")
    ] = SplitConfig.protocol,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels to resize and crop to.", show_default="the images' own")
    ] = SplitConfig.image_size,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Share of each class for testing, where there is no test set.", show_default="0.2"),
    ] = SplitConfig.test_fraction,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the real training images for validation.")
    ] = SplitConfig.val_fraction,
    groups: Annotated[
        str, typer.Option(help="Shot groups: auto, thresholds, thirds, or bounds like 100,20.")
    ] = SplitConfig.groups,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out, and count them.")
    ] = SplitConfig.skip_bad,
    seed: Annotated[int, typer.Option(help="Seed of the split; the training seed is another.")] = SplitConfig.seed,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a long-tailed split of a known data set, or take an imbalanced folder as it is.

    [bold]Examples[/bold]

      saukit make-lt --dataset cifar10 --imb 100

      saukit make-lt --dataset folder --root pictures --image-size 64

      saukit make-lt --dataset digits --counts 8=5 9=3
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    open_device(device)  # nothing here runs on it, but a device that is not there is an error in every command
    if context.args and not counts:
        raise UsageError(f"unexpected argument {context.args[0]!r}: class counts follow --counts")
    context.params["counts"] = parse_counts([*(counts or []), *context.args])
    if imb is not None:
        ratio(imb)  # it has the better words for NaN
    split_config = build_config(context, SplitConfig, config, displaces=DISPLACES)

    from saukit.cli.show import show_split, show_split_plan
    from saukit.data.split import make_split, plan_split

    if dry_run:
        show_split_plan(plan_split(split_config, root), reporter)
        return
    opened = open_workspace(workspace)
    result = make_split(split_config, opened, root=root, force=force, reporter=reporter)
    show_split(result, opened.split, reporter)


def parse_counts(items: list[str]) -> dict[str, int] | None:
    """`cat=50`, `dog=7` (or `cat=50,dog=7`) as a mapping. Raises: UsageError for anything else."""
    counts = {}
    for item in (piece for text in items for piece in text.split(",") if piece):
        name, equals, number = item.rpartition("=")
        if not equals or not name or not number.isdigit():
            raise UsageError(f"{item!r} is no count: write CLASS=N, such as --counts cat=50 dog=7")
        counts[name] = int(number)
    return counts or None
