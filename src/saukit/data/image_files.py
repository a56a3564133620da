"""Finding image files: by their extensions, hidden and system folders left out, in the order of their paths."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saukit.core.errors import DataError
from saukit.core.extras import missing_packages
from saukit.core.words import shortened

if TYPE_CHECKING:
    from saukit.core.console import Reporter

# Still images that Pillow reads without other programs.
# fmt: off
EXTENSIONS = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dds", ".dib", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k",
    ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcx", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".psd", ".qoi", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
    ".xbm", ".xpm",
})
# fmt: on
HEIF_EXTENSIONS = frozenset({".heic", ".heif"})  # with the extra heif
KINDS = "bmp gif jpeg jpg png ppm tif tiff webp ..."  # for messages
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__", "thumbs.db"}
)
MOST_SNIFFED = 1000  # files without an image extension whose first bytes are looked at
SNIFFED_BYTES = 16


@dataclass
class FoundFiles:
    """The image files of a folder and below, and what else lies there.

    images: in the order of their paths. ignored: how many files of each other extension. misnamed: those among them
    that are images by their first bytes. loops: linked folders that lead back to a folder above them.
    """

    images: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    misnamed: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)

    def __iadd__(self, other: FoundFiles) -> FoundFiles:
        self.images += other.images
        self.ignored += other.ignored
        self.misnamed += other.misnamed
        self.loops += other.loops
        return self


def image_files(folder: Path) -> FoundFiles:
    """The image files in `folder` and below; links are followed, but never in a circle.

    Raises: DataError if a folder cannot be read.
    """
    found = FoundFiles()
    sniffed = 0
    for path in sorted(_visible_files(folder, found.loops)):
        if is_image_name(path):
            found.images.append(path)
            continue
        found.ignored[path.suffix.lower()] += 1
        if sniffed < MOST_SNIFFED and path.is_file():
            sniffed += 1
            if _begins_as_image(path):
                found.misnamed.append(path)
    return found


def is_image_name(path: Path) -> bool:
    """Whether a file is an image by its extension."""
    suffix = path.suffix.lower()
    return suffix in EXTENSIONS or (suffix in HEIF_EXTENSIONS and not missing_packages("heif"))


def is_regular(path: Path) -> bool:
    """Whether a path is a file that ends: a FIFO would be read for ever. Raises: OSError for a link that is broken."""
    return stat.S_ISREG(path.stat().st_mode)


def say_ignored(found: FoundFiles, reporter: Reporter, *, where: str = "") -> None:
    """Say what was passed over, if anything; `where` is such as " in pictures"."""
    if found.ignored:
        kinds = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in found.ignored.most_common(5))
        reporter.say(f"files{where} without an image extension are ignored: {kinds}")
    if found.misnamed:
        names = shortened(map(str, found.misnamed), limit=3)
        count = f"{len(found.misnamed)} of them {'are images' if len(found.misnamed) > 1 else 'is an image'}"
        reporter.warn(f"{count} by the first bytes: {names}; give them the extension of their format")
    if any(suffix in HEIF_EXTENSIONS for suffix in found.ignored):
        reporter.warn("HEIC images are read with the extra heif: pip install 'saukit[heif]'")
    if found.loops:
        links = shortened(map(str, found.loops), limit=3)
        reporter.warn(f"links to a folder above them are not followed: {links}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, hidden and system ones left out, by name. Raises: DataError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and _is_visible(path.name))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def loose_images(folder: Path) -> list[Path]:
    """The image files in `folder` itself, by name. Raises: DataError if it cannot be read."""
    try:
        return sorted(
            path for path in folder.iterdir() if _is_visible(path.name) and is_image_name(path) and path.is_file()
        )
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS


def _visible_files(folder: Path, loops: list[Path]) -> Iterator[Path]:
    """The files in `folder` and below, in no order. Links to a folder above them are put into `loops`."""
    above: list[tuple[Path, frozenset[str]]] = [(folder, frozenset())]
    while above:
        parent, seen = above.pop()
        seen |= {os.path.realpath(parent)}
        try:
            entries = list(os.scandir(parent))
        except OSError as error:
            raise DataError(f"cannot read the folder {parent}: {error.strerror}") from error
        for entry in entries:
            if not _is_visible(entry.name):
                continue
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.is_symlink() and os.path.realpath(entry.path) in seen:
                loops.append(Path(entry.path))
            else:
                above.append((Path(entry.path), seen))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _begins_as_image(path: Path) -> bool:
    """Whether a file's first bytes are those of a common image format."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError:
        return False
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    heif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    return head.startswith(starts) or riff or heif
