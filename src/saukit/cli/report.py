"""`saukit report`: one page of HTML about a workspace."""

from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.options import Call, stage_command
from saukit.report.config import ReportConfig

FILE_NAME = "report.html"


@stage_command(ReportConfig, without=("config", "device", "dry_run"))
def command(
    call: Call,
    config: ReportConfig,
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default=f"{FILE_NAME} in the workspace")
    ] = None,
) -> None:
    """Write one HTML file about the workspace, to read, share and keep: data, samples, comparison, limits.

    Examples:

      saukit report

      saukit report --runs ce,sau+synth --out two-runs.html
    """
    from saukit.cli.show import show_report
    from saukit.report.page import report

    result = report(config, call.workspace, out=out or call.workspace.root / FILE_NAME, force=call.force)
    show_report(result, call.reporter)
