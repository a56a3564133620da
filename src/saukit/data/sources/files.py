"""A source of image files, whatever names them: a folder, lists, or a data set that holds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from saukit.data.image_files import FoundFiles, is_regular, say_ignored
from saukit.data.source import IMAGE_SIZES, Originals, Source

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.types import Integers

DEFAULT_SIZE, PHOTO_SIZE = 64, 224
LEAST_PHOTO = 128  # pixels of the shorter side from which images count as photos
SIZES_READ = 1000  # images of unequal sizes that are looked at, spread evenly
LARGEST_NATIVE_SIZE = 224


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
    warnings: tuple[str, ...] = (),
) -> Source:
    """The source of `parts` "train", and "test" and "val" where there are such parts; decodes nothing yet.

    passed_over: what lies there besides its images.
    """
    size, reason, square_share = _suggested_size(parts)

    def announce(reporter: Reporter) -> None:
        if passed_over is not None:
            say_ignored(passed_over, reporter)

    originals = Originals(
        counts={name: len(part) for name, part in parts.items()},
        open=lambda part, index: parts[part].open(index),
        name=lambda part, index: parts[part].names[index],
        announce=announce,
        square_share=square_share,
    )
    return Source(
        classes=classes,
        train_labels=parts["train"].labels,
        test_labels=parts["test"].labels if "test" in parts else None,
        image_size=size,
        load=None,
        size_reason=reason,
        fingerprint=fingerprint,
        val_labels=parts["val"].labels if "val" in parts else None,
        files=(lambda: {name: part.names for name, part in parts.items()}) if parts["train"].named else None,
        originals=originals,
        groups=groups,
        notes=notes,
        warnings=warnings,
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


def _suggested_size(parts: Mapping[str, FilePart]) -> tuple[int, str | None, float]:
    """The size that all images share if they are square and not large; else that of photos where half of the images
    have as many pixels, or the default; and why. Then the share of a picture that its centre square is, on average."""
    each = [(part, index) for part in parts.values() for index in range(len(part))]
    sizes = _sizes(each)
    first = next(sizes, None)
    if first is None:
        return DEFAULT_SIZE, None, 1.0
    other = next((size for size in sizes if size != first), None)
    some = [first] if other is None else [*_sizes(each[:: max(1, len(each) // SIZES_READ)])] or [first]
    square_share = sum(min(size) / max(size) for size in some) / len(some)
    if other is None and first[0] == first[1] and IMAGE_SIZES[0] <= first[0] <= LARGEST_NATIVE_SIZE:
        return first[0], None, square_share
    found = f"are {_times(first)}" if other is None else f"differ in size ({_times(first)}, {_times(other)} ...)"
    shorter = sorted(min(size) for size in some)[len(some) // 2]
    return (PHOTO_SIZE if shorter >= LEAST_PHOTO else DEFAULT_SIZE), f"the images {found}", square_share


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


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
