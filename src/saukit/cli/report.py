"""`saukit report`: one page of HTML about a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.options import (
    DEFAULT_WORKSPACE,
    DebugOption,
    ForceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    open_workspace,
)
from saukit.core.console import Reporter
from saukit.core.errors import UsageError
from saukit.report.config import ReportConfig

FILE_NAME = "report.html"


def command(
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default=f"{FILE_NAME} in the workspace")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the page.", show_default="from the data set")
    ] = ReportConfig.title,
    comparison: Annotated[
        str | None, typer.Option(help="Name of the comparison.", show_default="the one completed last, if any")
    ] = ReportConfig.comparison,
    runs: Annotated[
        str | None, typer.Option(help="Names of the runs to show, with commas.", show_default="all evaluated ones")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write one HTML file about the workspace, to read, share and keep: data, samples, comparison, limits.

    [bold]Examples[/bold]

      saukit report

      saukit report --runs ce,sau+synth --out two-runs.html
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    names = None if runs is None else tuple(name for text in runs.split(",") if (name := text.strip()))
    if names == ():
        raise UsageError("--runs names no run: give names with commas between them, such as --runs ce,sau+synth")
    config = ReportConfig(title=title, comparison=comparison, runs=names)

    from saukit.cli.show import show_report
    from saukit.report.page import report

    opened = open_workspace(workspace)
    show_report(report(config, opened, out=out or opened.root / FILE_NAME, force=force), reporter)
