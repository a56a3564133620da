"""Finding image files: by their extensions, hidden and system folders left out, in the order of their paths."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.extras import missing_packages
from saukit.core.words import shortened

# Still images that Pillow reads without other programs.
# fmt: off
EXTENSIONS = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".ftc", ".ftu",
    ".gbr", ".gif", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
})
# fmt: on
HEIF_EXTENSIONS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})  # with the extra heif
RAW_EXTENSIONS = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
KINDS = "bmp gif jpeg jpg png ppm tif tiff webp ..."  # for messages
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__", "thumbs.db"}
)
TRIED_PER_KIND = 20  # files of another extension whose first bytes are read; all of them once one is an image
SNIFFED_BYTES = 16
MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"8BPS", b"qoif", b"\xff\x0a",
    b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ",
)  # fmt: skip
VISITS = 100  # of one folder, by links from others


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


@dataclass
class Folder:
    """A folder as it was read: its subfolders by name, and the files in it, those below left out."""

    path: Path
    folders: dict[str, Folder] = field(default_factory=dict)
    found: FoundFiles = field(default_factory=FoundFiles)

    @functools.cached_property
    def count(self) -> int:
        """How many images there are in it and below."""
        return sum(len(folder.found.images) for folder in self.walk())

    @functools.cached_property
    def filled(self) -> dict[str, Folder]:
        """The subfolders that have images, in them or below."""
        return {name: folder for name, folder in self.folders.items() if folder.count}

    def walk(self) -> Iterator[Folder]:
        """The folder itself and all folders below it."""
        ahead = [self]
        while ahead:
            folder = ahead.pop()
            yield folder
            ahead += folder.folders.values()

    def everything(self) -> FoundFiles:
        """The files in it and below."""
        found = FoundFiles()
        for folder in self.walk():
            found += folder.found
        found.images.sort()
        return found


def read_folder(root: Path) -> Folder:
    """`root` and all that is below it; links are followed, but never back to a folder on the way.

    A file with an image extension is an image here, whatever it turns out to be: decoding says more.
    Raises: DataError if a folder cannot be read, or if links lead to one again and again.
    """
    start, visits, others = Folder(root), Counter[str](), dict[str, list[tuple[Path, Folder]]]()
    real = os.path.realpath(root)
    ahead = [(start, frozenset({real, *map(str, Path(real).parents)}))]
    while ahead:
        folder, way = ahead.pop()
        for entry in _entries(folder.path):
            path = folder.path / entry.name
            if _is_folder(entry):
                inner = os.path.realpath(path)
                visits[inner] += 1
                if inner in way:
                    folder.found.loops.append(path)
                elif visits[inner] > VISITS:
                    raise DataError(f"links below {root} lead to {inner} again and again: remove some of them")
                else:
                    folder.folders[entry.name] = Folder(path)
                    ahead.append((folder.folders[entry.name], way | {inner}))
            elif is_image_name(path):
                folder.found.images.append(path)
            else:
                folder.found.ignored[path.suffix.lower()] += 1
                others.setdefault(path.suffix.lower(), []).append((path, folder))
    for files in others.values():
        tried = [_begins_as_image(path) for path, _ in files[:TRIED_PER_KIND]]
        tried += [any(tried) and _begins_as_image(path) for path, _ in files[TRIED_PER_KIND:]]
        for (path, folder), is_image in zip(files, tried, strict=True):
            if is_image and path.suffix.lower() not in HEIF_EXTENSIONS | RAW_EXTENSIONS:
                folder.found.misnamed.append(path)
    return start


def image_files(folder: Path) -> FoundFiles:
    """The image files in `folder` and below, as `read_folder` finds them. Raises: as that."""
    return read_folder(folder).everything()


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
    if HEIF_EXTENSIONS.intersection(found.ignored):
        reporter.warn("HEIC images are read with the extra heif: pip install 'saukit[heif]'")
    if raw := RAW_EXTENSIONS.intersection(found.ignored):
        reporter.warn(f"raw photos of cameras ({', '.join(sorted(raw))}) are not read: convert them to TIFF or JPEG")
    if found.loops:
        links = shortened(map(str, found.loops), limit=3)
        reporter.warn(f"links to a folder above them are not followed: {links}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, hidden and system ones left out, by name. Raises: DataError if it cannot be read."""
    return [folder / entry.name for entry in _entries(folder) if _is_folder(entry)]


def loose_images(folder: Path) -> list[Path]:
    """The image files in `folder` itself, by name. Raises: DataError if it cannot be read."""
    paths = [folder / entry.name for entry in _entries(folder) if not _is_folder(entry)]
    return [path for path in paths if is_image_name(path)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, hidden and system folders left out, by name."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [entry for entry in found if entry.name[0] != "." and entry.name.lower() not in SYSTEM_FOLDERS]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _begins_as_image(path: Path) -> bool:
    """Whether a file's first bytes are those of a common image format."""
    try:
        if not is_regular(path):
            return False
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError:
        return False
    return (
        head.startswith(MAGIC)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"))
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
    )
