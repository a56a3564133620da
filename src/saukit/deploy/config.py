"""The configurations of `saukit predict` and `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["torch", "onnx", "hub"]


@dataclass(frozen=True)
class PredictConfig:
    """Predictions. `top` is how many of the most probable classes are told of each image."""

    top: int = 1
    batch_size: int = 64
    skip_bad: bool = False


@dataclass(frozen=True)
class ExportConfig:
    """An export.

    torch: model.pt2, a program of torch.export. onnx: model.onnx, for ONNX runtimes (extra `onnx`).
    hub: config.json, model.safetensors and README.md, a Hugging Face model that saukit reads too.
    """

    formats: tuple[Format, ...] = ("hub",)
