"""The look of saukit's pictures, and the one way to write one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUP_COLOURS = {"many": "#2f6db3", "medium": "#e0912f", "few": "#b8374a"}
INK = "#26303a"


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches with one pair of axes in saukit's look; needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "saukit"})


def save_picture(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write pixels uint8 [H, W, 3] as PNG, atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
