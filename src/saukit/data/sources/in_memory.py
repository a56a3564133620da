"""A source whose images are arrays already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saukit.data.source import Pixels, Source

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.types import Images, Integers


def source_of_arrays(
    classes: tuple[str, ...], train: tuple[Images, Integers], test: tuple[Images, Integers] | None
) -> Source:
    """A source of square images: grey [N, H, H], channels last [N, H, H, 3] or channels first [N, 3, H, H]."""
    import numpy as np

    parts = {"train": train[0]} if test is None else {"train": train[0], "test": test[0]}

    def read(part: str, positions: Integers, size: int) -> Images:
        chosen = parts[part][positions]
        if chosen.ndim == 3:
            chosen = np.repeat(chosen[:, None], 3, axis=1)
        elif chosen.shape[1] != 3:
            chosen = chosen.transpose(0, 3, 1, 2)
        return _resized(np.ascontiguousarray(chosen), size)

    def load(size: int, reporter: Reporter) -> Pixels:
        return Pixels(read, {part: np.ones(len(images), bool) for part, images in parts.items()})

    return Source(classes, train[1], None if test is None else test[1], train[0].shape[2], load)


def _resized(images: Images, size: int) -> Images:
    """Square images [N, 3, H, H] at `size` pixels per side; bicubic, antialiased when shrinking."""
    if images.shape[2] == size:
        return images
    import numpy as np
    from PIL import Image

    out = np.empty((len(images), 3, size, size), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[index] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return out
