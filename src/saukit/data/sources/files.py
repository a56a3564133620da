"""A source of image files, whatever names them: a folder, lists, or a data set that holds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from saukit.core.errors import EnvironmentFault
from saukit.core.machine import available_memory, in_threads
from saukit.core.words import format_bytes
from saukit.data.image_files import FoundFiles, is_regular, say_ignored
from saukit.data.source import IMAGE_SIZES, Originals, Pixels, Source

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.types import Images, Integers

DEFAULT_SIZE, PHOTO_SIZE = 64, 224
LEAST_PHOTO = 128  # pixels of the shorter side from which images count as photos
SIZES_READ = 1000  # images of unequal sizes that are looked at, spread evenly
LARGEST_NATIVE_SIZE = 224
COPIES_IN_MEMORY = 3  # all decoded images, the part being written, and its serialised form


@dataclass(frozen=True)
class FilePart:
    """The image files of one part: their names, their labels int64 [N], and what decoding reads of each.

    Names are relative to the root, or say which image it is where `named` is False.
    """

    names: Sequence[str]
    labels: Integers
    open: Callable[[int], Path | BinaryIO]
    named: bool = True

    def __len__(self) -> int:
        return len(self.names)


def part_of_folder(root: Path, names: Sequence[str], labels: Integers) -> FilePart:
    """The files `names` in `root`, relative to it."""
    return FilePart(names, labels, lambda index: root / names[index])


def source_of_files(
    classes: tuple[str, ...],
    parts: Mapping[str, FilePart],
    *,
    fingerprint: str,
    passed_over: FoundFiles | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """The source of `parts` "train", and "test" and "val" where there are such parts; decodes nothing yet.

    passed_over: what lies there besides its images.
    """
    size, reason = _suggested_size(parts)

    def announce(reporter: Reporter) -> None:
        if passed_over is not None:
            say_ignored(passed_over, reporter)

    def load(image_size: int, reporter: Reporter) -> Pixels:
        announce(reporter)
        return _decode_all(parts, image_size, reporter)

    return Source(
        classes=classes,
        train_labels=parts["train"].labels,
        test_labels=parts["test"].labels if "test" in parts else None,
        image_size=size,
        load=load,
        size_reason=reason,
        fingerprint=fingerprint,
        val_labels=parts["val"].labels if "val" in parts else None,
        files=(lambda: {name: part.names for name, part in parts.items()}) if parts["train"].named else None,
        originals=Originals(
            counts={name: len(part) for name, part in parts.items()},
            open=lambda part, index: parts[part].open(index),
            name=lambda part, index: parts[part].names[index],
            announce=announce,
        ),
        groups=groups,
        notes=notes,
    )


def fingerprint_of(root: Path, names: Sequence[str], labels: Sequence[str] | None = None) -> str:
    """SHA-256 over the files' relative names, sizes and, where given, labels: cheap, the same in a copy of the folder.

    A file that is not there has no size.
    """
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        try:
            size = (root / name).stat().st_size
        except OSError:
            size = -1
        digest.update(os.fsencode(name) + b"\0%d\n" % size)
        if labels is not None:
            digest.update(labels[index].encode() + b"\n")
    return digest.hexdigest()


def _suggested_size(parts: Mapping[str, FilePart]) -> tuple[int, str | None]:
    """The size that all images share if they are square and not large; else that of photos where half of the images
    have as many pixels, or the default; and why."""
    each = [(part, index) for part in parts.values() for index in range(len(part))]
    first: tuple[int, int] | None = None
    other: tuple[int, int] | None = None
    for size in _sizes(each):
        first = first or size
        if size != first:
            other = size
            break
    if first is None:
        return DEFAULT_SIZE, None
    if other is None:
        if first[0] == first[1] and IMAGE_SIZES[0] <= first[0] <= LARGEST_NATIVE_SIZE:
            return first[0], None
        shorter, found = min(first), f"the images are {_times(first)}"
    else:
        sides = sorted(min(size) for size in _sizes(each[:: max(1, len(each) // SIZES_READ)]))
        shorter = sides[len(sides) // 2] if sides else min(first)
        found = f"the images differ in size ({_times(first)}, {_times(other)} ...)"
    return (PHOTO_SIZE if shorter >= LEAST_PHOTO else DEFAULT_SIZE), found


def _sizes(each: Sequence[tuple[FilePart, int]]) -> Iterator[tuple[int, int]]:
    """Width and height of the images that can be opened; decoding will list the others."""
    from PIL import Image

    for part, index in each:
        try:
            content = part.open(index)
            if isinstance(content, Path) and not is_regular(content):
                continue
            with Image.open(content) as file:
                size = file.size
        except Exception:
            continue
        yield size


def _decode_all(parts: Mapping[str, FilePart], size: int, reporter: Reporter) -> Pixels:
    import numpy as np

    from saukit.data.decoding import decode_or_reason

    each = [(part, index) for part in parts.values() for index in range(len(part))]
    ends = np.cumsum([len(part) for part in parts.values()]).tolist()
    starts: dict[str, int] = dict(zip(parts, [0, *ends[:-1]], strict=True))
    _check_memory(len(each), size)
    images = np.zeros((len(each), 3, size, size), np.uint8)

    def decode(position: int) -> str | None:
        part, index = each[position]
        image = decode_or_reason(part.open(index), size)
        if isinstance(image, str):
            return image
        images[position] = image
        return None

    with reporter.progress("decoding", len(each)) as line:
        reasons = in_threads(decode, range(len(each)), line.update)

    def read(part: str, positions: Integers, image_size: int) -> Images:
        assert image_size == size
        return images[positions + starts[part]]

    readable = np.array([reason is None for reason in reasons])
    bad = tuple((part.names[index], reason) for (part, index), reason in zip(each, reasons, strict=True) if reason)
    ok = {name: readable[starts[name] : starts[name] + len(part)] for name, part in parts.items()}
    return Pixels(read, ok, bad)


def _check_memory(count: int, size: int) -> None:
    needed, available = COPIES_IN_MEMORY * count * 3 * size * size, available_memory()
    if available is not None and needed > available:
        raise EnvironmentFault(
            f"{count} images of {size} x {size} need about {format_bytes(needed)} of memory, but "
            f"{format_bytes(available)} are free: give a smaller --image-size, or a smaller folder"
        )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
