"""Finding image files: by their extensions, hidden ones left out, in the order of their paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from saukit.core.errors import DataError

if TYPE_CHECKING:
    from saukit.core.console import Reporter

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})
KINDS = " ".join(sorted(extension[1:] for extension in EXTENSIONS))  # for messages


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images in `folder` and below, and how many files of each other extension there are.

    Raises: DataError if a folder cannot be read.
    """
    found = sorted(_visible_files(folder))
    others = Counter(suffix for path in found if (suffix := path.suffix.lower()) not in EXTENSIONS)
    return [path for path in found if path.suffix.lower() in EXTENSIONS], others


def say_ignored(others: Counter[str], reporter: Reporter, *, where: str = "") -> None:
    """Say how many files of other extensions there are, if any; `where` is such as " in pictures"."""
    if others:
        kinds = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in others.most_common(5))
        reporter.say(f"files{where} without an image extension are ignored: {kinds}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, hidden ones left out, by name. Raises: DataError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
