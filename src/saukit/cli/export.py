"""`saukit export`: a trained model as files for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.options import Call, stage_command
from saukit.cli.predict import ModelArgument
from saukit.deploy.config import ExportConfig


@stage_command(ExportConfig, without=("config", "device", "dry_run"))
def command(
    call: Call,
    model: ModelArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder to make.", show_default=False)],
    config: ExportConfig,
) -> None:
    """Write a trained model for other programs, normalisation inside, each file checked against the model.

    Examples:

      saukit export sau+synth --to exported

      saukit export ce --to exported --format torch,onnx,hub
    """
    from saukit.cli.show import show_export
    from saukit.deploy.export import export

    result = export(config, model, to, call.workspace, force=call.force, reporter=call.reporter)
    show_export(result, call.reporter)
