"""A source whose images are arrays already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saukit.core.errors import DataError
from saukit.core.words import shortened
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
    where: str,
    fingerprint: str | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """A source of square images: grey [N, H, H], channels last [N, H, H, 3] or channels first [N, 3, H, H].

    `where` they come from is for messages.
    Raises: DataError for arrays that are not that, or labels that do not fit them and the classes.
    """
    import numpy as np

    given = {name: part for name, part in (("train", train), ("test", test), ("val", val)) if part is not None}
    images: dict[str, Images] = {}
    for name, (pixels, labels) in given.items():
        _check(f"{name} images of {where}", pixels, labels, classes, every_class=name == "train")

    def read(part: str, positions: Integers, size: int) -> Images:
        chosen = images[part][positions]
        if chosen.ndim == 3:
            chosen = np.repeat(chosen[:, None], 3, axis=1)
        elif chosen.shape[1] != 3:
            chosen = chosen.transpose(0, 3, 1, 2)
        return _resized(np.ascontiguousarray(chosen), size)

    def load(size: int, reporter: Reporter) -> Pixels:
        for name, (pixels, labels) in given.items():
            images[name] = pixels.read() if isinstance(pixels, Deferred) else pixels
            _check(f"{name} images of {where}", images[name], labels, classes, every_class=name == "train")
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


def _check(
    what: str, images: Images | Deferred, labels: Integers, classes: tuple[str, ...], *, every_class: bool
) -> None:
    if problem := _problem(images, labels, classes, every_class=every_class):
        raise DataError(f"the {what} {problem}: the files are damaged or others; fetch them again")


def _problem(images: Images | Deferred, labels: Integers, classes: tuple[str, ...], *, every_class: bool) -> str | None:
    """What is wrong with the arrays of a part."""
    import numpy as np

    shape, count = images.shape, len(classes)
    dtype = np.dtype(np.uint8) if isinstance(images, Deferred) else images.dtype
    square = (
        len(shape) == 3 and shape[1] == shape[2],
        len(shape) == 4 and shape[3] in ((1, 3) if isinstance(images, Deferred) else (3,)) and shape[1] == shape[2],
        len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3],
    )
    if dtype != np.uint8 or not any(square) or 0 in shape:
        return f"are {dtype} of the shape {shape}, not square pictures of bytes"
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != shape[0]:
        return f"are {shape[0]}, with labels {labels.dtype} of the shape {labels.shape}"
    if labels.min() < 0 or labels.max() >= count:
        return f"have labels from {labels.min()} to {labels.max()}, for {count} classes"
    if every_class and (empty := [classes[c] for c in np.flatnonzero(np.bincount(labels, minlength=count) == 0)]):
        return f"show none of {shortened(empty)}"
    return None


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
