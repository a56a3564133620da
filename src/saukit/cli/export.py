"""`saukit export`: a trained model as files for other programs."""

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
    open_device,
    open_workspace,
)
from saukit.core.config import from_mapping
from saukit.core.console import Reporter
from saukit.deploy.config import ExportConfig


def command(
    model: Annotated[
        str, typer.Argument(help="A run of the workspace, its folder, a model.safetensors, or an exported folder.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to make.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(help="Of hub (Hugging Face), torch (torch.export) and onnx (extra onnx), with commas between."),
    ] = ",".join(ExportConfig.formats),
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a trained model for other programs, normalisation inside, each file checked against the model.

    [bold]Examples[/bold]

      saukit export sau+synth --to exported

      saukit export ce --to exported --format torch,onnx,hub
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    names = [name.strip() for name in format.split(",") if name.strip()]
    config = from_mapping(ExportConfig, {"formats": names}, where="options")

    from saukit.cli.show import show_export
    from saukit.deploy.export import export

    open_device("cpu")
    show_export(export(config, model, to, open_workspace(workspace), force=force, reporter=reporter), reporter)
