"""A run's mistakes on the test images, the most confident first: as errors.csv, and the first of them as errors.png.

A confident mistake is often no mistake of the network: a wrong label, two classes on one picture, a copy of a training
image under another label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from saukit.core.plots import SCALE, Canvas, drawable, enlarge, labels, styled
from saukit.core.writing import csv_text, write_text
from saukit.data.types import Images, Integers

ERRORS_NAME, ERRORS_PICTURE = "errors.csv", "errors.png"
COLUMNS = ("index", "file", "true", "predicted", "confidence", "probability_of_true")
ACROSS, MOST_SHOWN = 4, 24
TILE, BLOCK, GAP, BELOW = 150 * SCALE, 164 * SCALE, 12 * SCALE, 54 * SCALE  # pixels


@dataclass(frozen=True)
class Mistakes:
    """Misclassified test images, the most confident first; equals in their own order.

    Shapes: rows, true and predicted int64 [n]; confidence and probability_of_true float [n].
    """

    rows: Integers
    true: Integers
    predicted: Integers
    confidence: npt.NDArray[np.floating[Any]]
    probability_of_true: npt.NDArray[np.floating[Any]]

    @property
    def shown(self) -> Integers:
        """The rows of those that the picture shows."""
        return self.rows[:MOST_SHOWN]


def mistakes(probabilities: npt.NDArray[np.floating[Any]], truth: Integers) -> Mistakes:
    """The mistakes among n test images. Shapes: probabilities [n, K]; truth [n]."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != truth)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return Mistakes(rows, truth[rows], predicted[rows], confidence[rows], probabilities[rows, truth[rows]])


def write_errors(path: Path, found: Mistakes, classes: Sequence[str], files: Sequence[str] | None) -> None:
    """Write a row per mistake; `files` names the file of each test image, if they have any."""
    rows = []
    for row, true, predicted, *shares in _entries(found):
        file = "" if files is None else files[row]
        rows.append((row, file, classes[true], classes[predicted], *(f"{share:.6f}" for share in shares)))
    write_text(path, csv_text([COLUMNS, *rows]))


@styled
def save_errors(
    path: Path, found: Mistakes, images: Images, classes: Sequence[str], files: Sequence[str] | None, *, title: str
) -> None:
    """Write the picture of the first mistakes: predicted class, true class and file of each.

    `images`: uint8 [n, 3, H, W], those of `found.shown`.
    """
    shown = [_tile(image) for image in images]
    height = max((tile.shape[0] for tile in shown), default=0)
    head = 56 * SCALE
    step = height + BELOW
    rows = math.ceil(len(shown) / ACROSS)
    canvas = Canvas(GAP + ACROSS * (BLOCK + GAP), head + rows * step + GAP)
    canvas.write(GAP, 24 * SCALE, title, 10, weight="bold")
    note = "the most confident first: predicted and true class, each with its predicted probability"
    canvas.write(GAP, 42 * SCALE, note if shown else "no test image is misclassified", 8.5, "soft")
    short = labels(classes, longest=16)
    for place, (tile, entry) in enumerate(zip(shown, _entries(found), strict=False)):
        row, true, predicted, confidence, of_true = entry
        x, y = GAP + place % ACROSS * (BLOCK + GAP), head + place // ACROSS * step
        canvas.paste(tile, x, y)
        for line, (text, size, ink) in enumerate(
            (
                (f"{short[predicted]}: {100 * confidence:.0f} %", 8.5, "worse"),
                (f"true {short[true]}: {100 * of_true:.0f} %", 8.5, "ink"),
                (_file(files[row] if files else None, row), 7, "soft"),
            )
        ):
            canvas.write(x, y + height + (13 + 13 * line) * SCALE, text, size, ink, weight="normal" if line else "bold")
    canvas.save(path)


def _entries(found: Mistakes) -> list[tuple[int, int, int, float, float]]:
    columns = (found.rows, found.true, found.predicted, found.confidence, found.probability_of_true)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _file(name: str | None, row: int) -> str:
    """The end of a file's name, or the number of the test image."""
    number = f"test image {row}"
    return number if name is None else drawable(name.rsplit("/", 1)[-1], number, longest=29)


def _tile(image: Images) -> Images:
    """uint8 [3, h, w] as [H, W, 3], no larger than a tile."""
    if max(image.shape[1:]) <= TILE:
        return np.squeeze(enlarge(image[None], TILE), 0)
    picture = Image.fromarray(image.transpose(1, 2, 0))
    picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
