"""A source whose images are arrays already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saukit.data.source import Pixels, Source

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.types import Images, Integers


@dataclass(frozen=True)
class Deferred:
    """Images that are read only when they are loaded, their shape known before."""

    shape: tuple[int, ...]
    read: Callable[[], Images]


def source_of_arrays(
    classes: tuple[str, ...],
    train: tuple[Images | Deferred, Integers],
    test: tuple[Images | Deferred, Integers] | None,
    val: tuple[Images | Deferred, Integers] | None = None,
    *,
    fingerprint: str | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """A source of square images: grey [N, H, H], channels last [N, H, H, 3] or channels first [N, 3, H, H]."""
    import numpy as np

    given = {name: part for name, part in (("train", train), ("test", test), ("val", val)) if part is not None}
    images: dict[str, Images] = {}

    def read(part: str, positions: Integers, size: int) -> Images:
        chosen = images[part][positions]
        if chosen.ndim == 3:
            chosen = np.repeat(chosen[:, None], 3, axis=1)
        elif chosen.shape[1] != 3:
            chosen = chosen.transpose(0, 3, 1, 2)
        return _resized(np.ascontiguousarray(chosen), size)

    def load(size: int, reporter: Reporter) -> Pixels:
        for name, (pixels, _) in given.items():
            images[name] = pixels.read() if isinstance(pixels, Deferred) else pixels
        return Pixels(read, {name: np.ones(len(labels), bool) for name, (_, labels) in given.items()})

    return Source(
        classes=classes,
        train_labels=train[1],
        test_labels=None if test is None else test[1],
        image_size=train[0].shape[2],
        load=load,
        fingerprint=fingerprint,
        val_labels=None if val is None else val[1],
        notes=notes,
    )


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
