"""The sample grid: real images beside synthetic ones, a row a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from saukit.core.artifacts import atomic_path

COLUMNS = 8
MAX_ROWS = 20
SCALE = 2  # drawn at twice the size, for sharp text on dense screens
TILE = 44 * SCALE  # pixels an image is enlarged to, at most about this
MARGIN, GAP, BETWEEN, HEAD = 20 * SCALE, 2 * SCALE, 26 * SCALE, 34 * SCALE
INK, PALE, PAPER = (38, 48, 58), (120, 130, 140), (255, 255, 255)

Pixels = npt.NDArray[np.uint8]
Picture = Callable[[int], Pixels]


def save_grid(
    path: Path,
    classes: tuple[str, ...],
    real_counts: npt.NDArray[np.int64],
    synthetic_counts: npt.NDArray[np.int64],
    real: Picture,
    synthetic: Picture,
) -> None:
    """Write the grid as PNG.

    `real(c)` and `synthetic(c)` give images uint8 [n, 3, H, W] of class c; the first 8 are shown. Of more than 20
    classes, 20 are shown, spread evenly from the first to the last.
    """
    rows = shown_classes(len(classes))
    tiles = [(enlarge(real(c)[:COLUMNS]), enlarge(synthetic(c)[:COLUMNS])) for c in rows]
    height, width = next(t.shape[1:3] for pair in tiles for t in pair if len(t))
    name_font, small_font = font(13, bold=True), font(10)
    names = [classes[c] if len(classes[c]) <= 28 else classes[c][:27] + "…" for c in rows]
    notes = [f"{real_counts[c]:,} real + {synthetic_counts[c]:,} synthetic" for c in rows]
    left = MARGIN + _widest(name_font, names, small_font, notes) + 16 * SCALE
    block = COLUMNS * (width + GAP) - GAP
    right = left + block + BETWEEN
    row_height = max(height + 3 * GAP, 34 * SCALE)
    canvas = Image.new("RGB", (right + block + MARGIN, HEAD + MARGIN + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, head in ((left, "real"), (right, "synthetic")):
        draw.text((x, HEAD - 8 * SCALE), head, INK, font(14, bold=True), anchor="ls")
    for row, (name, note, pair) in enumerate(zip(names, notes, tiles, strict=True)):
        top = HEAD + row * row_height
        middle = top + height // 2
        draw.text((MARGIN, middle - 1 * SCALE), name, INK, name_font, anchor="ls")
        draw.text((MARGIN, middle + 3 * SCALE), note, PALE, small_font, anchor="lt")
        for x, images in zip((left, right), pair, strict=True):
            for column, image in enumerate(images):
                canvas.paste(Image.fromarray(image), (x + column * (width + GAP), top))
            if not len(images):
                draw.text((x + width // 2, middle), "–", PALE, name_font, anchor="mm")  # noqa: RUF001
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def shown_classes(num_classes: int) -> list[int]:
    """The classes of the rows: all, or 20 spread evenly from the first to the last."""
    if num_classes <= MAX_ROWS:
        return list(range(num_classes))
    return [round(index) for index in np.linspace(0, num_classes - 1, MAX_ROWS).tolist()]


def enlarge(images: Pixels) -> Pixels:
    """uint8 [n, 3, h, w] to [n, H, W, 3], each pixel a block; images larger than a tile stay as they are."""
    factor = max(1, TILE // max(images.shape[2:]))
    return np.repeat(np.repeat(images.transpose(0, 2, 3, 1), factor, axis=1), factor, axis=2)


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which is there on every machine and knows most scripts' letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size * SCALE)


def _widest(
    name_font: ImageFont.FreeTypeFont, names: list[str], note_font: ImageFont.FreeTypeFont, notes: list[str]
) -> int:
    lengths = [name_font.getlength(text) for text in names] + [note_font.getlength(text) for text in notes]
    return round(max(lengths))
