"""A folder of images as a source: one subfolder per class, either in `train/` and `test/`, or in one tree."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.machine import available_memory, in_threads
from saukit.core.words import format_bytes
from saukit.data.image_files import EXTENSIONS, KINDS, image_files, say_ignored, subfolders
from saukit.data.source import IMAGE_SIZES, Pixels, Source

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Images, Integers

VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev"})
DEFAULT_SIZE = 64
LARGEST_NATIVE_SIZE = 224
COPIES_IN_MEMORY = 3  # all decoded images, the part being written, and its serialised form


@dataclass(frozen=True)
class Tree:
    """The image files of one folder of class subfolders, in the order of classes and of their paths.

    ignored: how many files of each other extension lie in it.
    """

    files: tuple[Path, ...]
    labels: Integers
    classes: tuple[str, ...]
    ignored: Counter[str]


def open_folder(config: SourceConfig, root: Path) -> Source:
    """The images in `root` as a source; reads names and image sizes, decodes nothing yet.

    Raises: DataError for a folder that is not there, has fewer than two classes, or has empty
    ones, and for train and test parts with different classes.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder with one subfolder per class as --root")
    train, test = _layout(root)
    test_files = test.files if test else ()
    files = (*train.files, *test_files)
    size, reason = _suggested_size(files)
    ignored = train.ignored + (test.ignored if test else Counter())

    def load(image_size: int, reporter: Reporter) -> Pixels:
        say_ignored(ignored, reporter)
        return _decode_all(root, train.files, test_files, image_size, reporter)

    return Source(
        classes=train.classes,
        train_labels=train.labels,
        test_labels=test.labels if test else None,
        image_size=size,
        load=load,
        size_reason=reason,
        fingerprint=_fingerprint(root, files),
    )


def _layout(root: Path) -> tuple[Tree, Tree | None]:
    """The trees of training and test images; None for the latter if there is one tree alone."""
    folders = {path.name: path for path in subfolders(root)}
    split = {name for name in ("train", "test") if name in folders and _holds_classes(folders[name])}
    if split == {"train", "test"}:
        train, test = _scan(folders["train"], root), _scan(folders["test"], root)
        problems = [
            f"{', '.join(sorted(set(one.classes) - set(other.classes)))} only in {name}/"
            for name, one, other in (("train", train, test), ("test", test, train))
            if set(one.classes) - set(other.classes)
        ]
        if problems:
            raise DataError(f"train and test of {root} must have the same classes: {'; '.join(problems)}")
        return train, test
    if split and set(folders) <= {"train", "test"} | VALIDATION_NAMES:
        missing = "test" if "train" in split else "train"
        raise DataError(
            f"{root} has {', '.join(f'{name}/' for name in sorted(folders))} but no {missing}/ with class folders: "
            f"add or rename one, or give {root / next(iter(split))} as --root to split that with --test-fraction"
        )
    return _scan(root, root), None


def _scan(folder: Path, root: Path) -> Tree:
    class_folders = subfolders(folder)
    if len(class_folders) < 2:
        raise DataError(f"{folder} needs at least two subfolders, one per class; it has {len(class_folders)}")
    odd = [repr(path.name) for path in class_folders if path.name.encode("utf-8", "ignore").decode() != path.name]
    if odd:
        raise DataError(f"folder names that are not UTF-8 cannot name classes: {', '.join(odd)}; rename them")
    import numpy as np

    files: list[Path] = []
    labels: list[int] = []
    empty, ignored = [], Counter[str]()
    for label, class_folder in enumerate(class_folders):
        images, others = image_files(class_folder)
        ignored += others
        if not images:
            empty.append(class_folder.relative_to(root).as_posix())
        files += images
        labels += [label] * len(images)
    if empty:
        raise DataError(f"class folders of {root} without an image ({KINDS}): {', '.join(empty)}; fill or remove them")
    return Tree(tuple(files), np.array(labels, np.int64), tuple(path.name for path in class_folders), ignored)


def _holds_classes(folder: Path) -> bool:
    """Whether `folder` has subfolders and no image of its own; a class may well be called `train`."""
    own = any(path.suffix.lower() in EXTENSIONS and path.is_file() for path in folder.iterdir())
    return not own and bool(subfolders(folder))


def _suggested_size(files: Sequence[Path]) -> tuple[int, str | None]:
    """The size that all images share if they are square and not large, else `DEFAULT_SIZE` and why."""
    from PIL import Image

    first: tuple[int, int] | None = None
    for path in files:
        try:
            with Image.open(path) as file:
                size = file.size
        except Exception:  # decoding will list it
            continue
        first = first or size
        if size != first:
            return DEFAULT_SIZE, f"the images differ in size ({_times(first)}, {_times(size)} ...)"
    if first is None:
        return DEFAULT_SIZE, None
    width, height = first
    if width == height and IMAGE_SIZES[0] <= width <= LARGEST_NATIVE_SIZE:
        return width, None
    return DEFAULT_SIZE, f"the images are {_times(first)}"


def _fingerprint(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over the files' relative names and sizes: cheap, and the same in a copy of the folder."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.relative_to(root)) + b"\0%d\n" % path.stat().st_size)
    return digest.hexdigest()


def _decode_all(root: Path, train: Sequence[Path], test: Sequence[Path], size: int, reporter: Reporter) -> Pixels:
    import numpy as np

    from saukit.data.decoding import decode_or_reason

    files = (*train, *test)
    _check_memory(len(files), size)
    images = np.zeros((len(files), 3, size, size), np.uint8)

    def decode(index: int) -> str | None:
        image = decode_or_reason(files[index], size)
        if isinstance(image, str):
            return image
        images[index] = image
        return None

    with reporter.progress("decoding", len(files)) as line:
        reasons = in_threads(decode, range(len(files)), line.update)

    def read(part: str, positions: Integers, image_size: int) -> Images:
        assert image_size == size
        return images[positions if part == "train" else positions + len(train)]

    readable = np.array([reason is None for reason in reasons])
    bad = tuple(
        (file.relative_to(root).as_posix(), reason) for file, reason in zip(files, reasons, strict=True) if reason
    )
    return Pixels(read, readable[: len(train)], readable[len(train) :], bad)


def _check_memory(count: int, size: int) -> None:
    needed, available = COPIES_IN_MEMORY * count * 3 * size * size, available_memory()
    if available is not None and needed > available:
        raise EnvironmentFault(
            f"{count} images of {size} x {size} need about {format_bytes(needed)} of memory, but "
            f"{format_bytes(available)} are free: give a smaller --image-size, or a smaller folder"
        )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
