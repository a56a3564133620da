"""`saukit predict`: classify image files with a trained model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from saukit.cli.options import Call, stage_command
from saukit.core.console import Reporter
from saukit.core.errors import UsageError
from saukit.core.files import check_out
from saukit.core.ranks import job_rank
from saukit.deploy.config import PredictConfig

Format = Literal["csv", "json"]
ModelArgument = Annotated[
    str, typer.Argument(help="A run of the workspace, its folder, a model.safetensors, or an exported folder.")
]


@stage_command(PredictConfig, without=("config", "dry_run", "force"), every_process=True)
def command(
    call: Call,
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them at any depth.")],
    config: PredictConfig,
    format: Annotated[
        Format | None, typer.Option(help="csv or json.", show_default="by the name of --out, else csv")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, replaced if there.", show_default="standard output")
    ] = None,
) -> None:
    """Classify images with a trained model: one line per image, with its class and how probable that is.

    Examples:

      saukit predict sau+synth pictures/

      saukit predict ce a.jpg b.png --top 3 --format json

      saukit predict exported/ pictures/ --out predictions.csv --skip-bad

      saukit predict ce pictures/ --min-accuracy 0.95
    """
    as_json = _format(format, out, json=call.json) == "json"
    if out is not None and out.exists() and any(path.exists() and out.samefile(path) for path in images):
        raise UsageError(f"--out {out} is one of the images, and would be replaced: give another file")

    from saukit.cli.show import show_predictions
    from saukit.core.artifacts import write_json, write_text
    from saukit.deploy.predict import predict
    from saukit.training.distributed import joined

    with joined(call.device):
        result = predict(config, model, images, call.workspace, device=call.device, reporter=call.reporter)
    if job_rank() > 0:
        return
    if out is not None and as_json:
        write_json(out, result.document())
    elif out is not None:
        write_text(out, result.csv())
    elif as_json:
        Reporter(json_output=True).document(result.document())
        return
    else:
        sys.stdout.write(result.csv())
        return
    show_predictions(result, out, call.reporter)


def _format(asked: Format | None, out: Path | None, *, json: bool) -> Format:
    """csv or json. Raises: UsageError if options contradict each other, or nothing says which."""
    if out is None:
        if json and asked == "csv":
            raise UsageError("--json prints a JSON document, --format csv lines: leave one out, or give --out FILE")
        return asked or ("json" if json else "csv")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give a file, such as {out / 'predictions.csv'}")
    check_out(out)
    suffix = out.suffix.lower().removeprefix(".")
    if asked is None and suffix not in ("csv", "json"):
        raise UsageError(f"--out {out} ends neither in .csv nor in .json: give --format csv or --format json")
    return asked or ("json" if suffix == "json" else "csv")
