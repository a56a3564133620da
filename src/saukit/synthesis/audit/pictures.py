"""The two pictures of a cache: samples beside real images, and the pairs that are closest to a training image."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from saukit.core.plots import SCALE, Canvas, enlarge, styled
from saukit.core.plots import labels as short_names
from saukit.data.images import ImageStore
from saukit.data.types import Images, Integers
from saukit.synthesis.audit.document import Pair

COLUMNS, MAX_ROWS = 8, 20
PAIR_COLUMNS = 4
TILE, PAIR_TILE = 44 * SCALE, 64 * SCALE  # pixels an image is enlarged to, at most about this
MARGIN, GAP = 20 * SCALE, 2 * SCALE
LARGE, SMALL = 10, 8.5  # points

Picture = Callable[[int], Images]


@styled
def save_grid(
    path: Path,
    classes: Sequence[str],
    real_counts: Integers,
    synthetic_counts: Integers,
    real: Picture,
    synthetic: Picture,
) -> None:
    """Write the grid as PNG, one row per class.

    `real(c)` and `synthetic(c)` give images uint8 [n, 3, H, W] of class c; the first 8 are shown. Of more than 20
    classes, 20 are shown, spread evenly from the first to the last.
    """
    rows, names = shown_classes(len(classes)), short_names(classes)
    tiles = [[enlarge(images(c)[:COLUMNS], TILE) for images in (real, synthetic)] for c in rows]
    height, width = next(t.shape[1:3] for pair in tiles for t in pair if len(t))
    head, left, block = 44 * SCALE, 190 * SCALE, COLUMNS * (width + GAP)
    starts = (left, left + block + 24 * SCALE)
    step = max(height + 3 * GAP, 36 * SCALE)
    canvas = Canvas(starts[1] + block + MARGIN, head + len(rows) * step + MARGIN)
    for x, title in zip(starts, ("real", "synthetic"), strict=True):
        canvas.write(x, head - 10 * SCALE, title, LARGE, weight="bold")
    for row, (c, pair) in enumerate(zip(rows, tiles, strict=True)):
        middle = head + row * step + height // 2
        canvas.write(MARGIN, middle - SCALE, names[c], LARGE, weight="bold")
        note = f"{real_counts[c]:,} real + {synthetic_counts[c]:,} synthetic"
        canvas.write(MARGIN, middle + 14 * SCALE, note, SMALL, "soft")
        for x, images in zip(starts, pair, strict=True):
            for column, image in enumerate(images):
                canvas.paste(image, x + column * (width + GAP), head + row * step)
            if not len(images):
                canvas.write(x, middle + 4 * SCALE, "none", SMALL, "soft")
    canvas.save(path)


@styled
def save_closest_pairs(
    path: Path,
    pairs: Sequence[Pair],
    *,
    images: ImageStore,
    labels: Integers,
    real_images: ImageStore,
    real_labels: Integers,
    classes: Sequence[str],
    threshold: float,
) -> None:
    """Write the picture of the pairs as PNG: synthetic left, training image right, class and distance below.

    `threshold`: below it a pair is a copy, and its distance is red.
    """
    height, width = enlarge(real_images[:1], PAIR_TILE).shape[1:3]
    head, below = 64 * SCALE, 48 * SCALE
    block = max(2 * width + GAP, 140 * SCALE)
    columns, rows = PAIR_COLUMNS, max(1, math.ceil(len(pairs) / PAIR_COLUMNS))
    canvas = Canvas(2 * MARGIN + columns * block + (columns - 1) * MARGIN, head + rows * (height + below) + MARGIN)
    title = "synthetic images (left) and the closest training image (right)"
    canvas.write(MARGIN, 26 * SCALE, title, LARGE, weight="bold")
    note = f"distance: a copy below {threshold:.2f}, about 1 between unrelated images"
    canvas.write(MARGIN, 46 * SCALE, note if len(pairs) else "no synthetic images", SMALL, "soft")
    for position, pair in enumerate(pairs):
        row, column = divmod(position, columns)
        left, top = MARGIN + column * (block + MARGIN), head + row * (height + below)
        for x, image in ((left, images[pair.synthetic]), (left + width + GAP, real_images[pair.real])):
            canvas.paste(enlarge(image[None], PAIR_TILE)[0], x, top)
        both = dict.fromkeys((int(labels[pair.synthetic]), int(real_labels[pair.real])))
        names = short_names(classes, longest=18 // len(both))
        canvas.write(left, top + height + 17 * SCALE, " / ".join(names[c] for c in both), SMALL, weight="bold")
        text, ink = (f"{pair.distance:.3f} (copy)", "worse") if pair.is_copy else (f"{pair.distance:.3f}", "soft")
        canvas.write(left, top + height + 32 * SCALE, text, SMALL, ink)
    canvas.save(path)


def shown_classes(num_classes: int) -> list[int]:
    """The classes of the rows: all, or 20 spread evenly from the first to the last."""
    if num_classes <= MAX_ROWS:
        return list(range(num_classes))
    return [round(index) for index in np.linspace(0, num_classes - 1, MAX_ROWS).tolist()]
