"""The configurations of `saukit predict` and `export`."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from saukit.core.options import option, split_commas

Format = Literal["torch", "onnx", "hub", "transformers"]
SHARE: dict[str, Any] = {"least": 0, "most": 1, "shown": "none"}


def _check_formats(formats: tuple[str, ...]) -> list[str]:
    known = get_args(Format)
    if formats and len(set(formats).intersection(known)) == len(formats):
        return []
    return [f"formats must be one or more of {', '.join(known)}, each once, got {', '.join(formats) or 'none'}"]


@dataclass(frozen=True)
class PredictConfig:
    """Predictions. `top` is how many of the most probable classes each image gets.

    `min_confidence` rejects images: those whose most probable class is less probable get no class. `min_accuracy`
    chooses it on the validation part of the run's split, see `deploy.rejection`.
    """

    top: int = option(1, "How many of the most probable classes to show per image.", least=1)
    min_confidence: float | None = option(
        None,
        "Give no class to images whose most probable class is less probable than this.",
        excludes=("min_accuracy",),
        **SHARE,
    )
    min_accuracy: float | None = option(
        None,
        "Choose --min-confidence on the validation part: the lowest with which this share of its classes is right.",
        **SHARE,
    )
    batch_size: int = option(64, "Images per batch.", least=1)
    skip_bad: bool = option(False, "Skip images that cannot be read, and list them.", flags=("--skip-bad",))


@dataclass(frozen=True)
class ExportConfig:
    """An export.

    torch: model.pt2, a program of torch.export. onnx: model.onnx, for ONNX runtimes (extra `onnx`).
    hub: config.json, model.safetensors and README.md, a Hugging Face model that saukit reads too.
    transformers: transformers/, a timm checkpoint that `transformers.pipeline` and timm load.
    """

    formats: tuple[Format, ...] = option(
        ("hub",),
        "hub (Hugging Face), torch (torch.export), onnx (extra onnx) or transformers (a timm backbone's); several "
        "separated by commas.",
        flags=("--format",),
        cli_type=str,
        parse=split_commas,
        shown="hub",
        check=_check_formats,
    )
