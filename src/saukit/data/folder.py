"""A folder of images as a source: a subfolder a class, either in `train/` and `test/`, or in one tree.

Every image becomes 8-bit RGB, its EXIF rotation applied; of several frames the first counts:

    grey, 1-bit                  the grey value in all three channels
    palette                      the palette's colours
    any transparency             composited on white
    CMYK, YCbCr, HSV             as Pillow converts them
    16-bit grey                  value / 257, rounded (0..65535 to 0..255), never clipped
    16-bit colour                the high byte, as Pillow reads it
    32-bit integer, float        by the range of the image's values: 0..1 (float only) times 255, 0..255 as it is,
                                 0..65535 / 257; anything else, NaN and infinity among it, counts as unreadable

Then the centre square is resized to `image_size`, bicubic with antialiasing (large JPEGs are first reduced while they
are decoded); an image that has that size stays as it is. Unreadable means that decoding the whole file fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import format_bytes
from saukit.core.console import Reporter
from saukit.core.errors import DataError, EnvironmentFault
from saukit.data.config import IMAGE_SIZES
from saukit.data.sources import Images, Integers, Pixels, Source

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})
VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev"})
DEFAULT_SIZE = 64
LARGEST_NATIVE_SIZE = 224
REDUCING_GAP = 2.0  # Pillow's own choice for thumbnails: reduce to this multiple of the size first, then filter
COPIES_IN_MEMORY = 3  # all decoded images, the part being written, and its serialised form
CHUNK = 32


@dataclass(frozen=True)
class Tree:
    """The image files of one folder of class subfolders, in the order of classes and of their paths.

    ignored: how many files of each other extension lie in it.
    """

    files: tuple[Path, ...]
    labels: Integers
    classes: tuple[str, ...]
    ignored: Counter[str]


def open_folder(root: Path) -> Source:
    """The images in `root` as a source; reads names and image sizes, decodes nothing yet.

    Raises: DataError for a folder that is not there, has no two classes, or has empty
    ones, and for train and test parts with different classes.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder with one subfolder a class as --root")
    train, test = _layout(root)
    files = (*train.files, *(test.files if test else ()))
    size, reason = _suggested_size(files)
    ignored = train.ignored + (test.ignored if test else Counter())

    def load(image_size: int, reporter: Reporter) -> Pixels:
        if ignored:
            kinds = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in ignored.most_common(5))
            reporter.say(f"files that are no images by their names are ignored: {kinds}")
        return _decode_all(root, train.files, test.files if test else (), image_size, reporter)

    return Source(
        name="folder",
        classes=train.classes,
        train_labels=train.labels,
        test_labels=test.labels if test else None,
        image_size=size,
        size_reason=reason,
        mean=None,
        std=None,
        flip=True,
        fingerprint=_fingerprint(root, files),
        load=load,
    )


def decode_image(file: Path | BinaryIO, size: int) -> Images:
    """One image file as uint8 [3, size, size], as the table above says; raises whatever Pillow raises."""
    from PIL import Image

    with Image.open(file) as opened:
        opened.draft(None, (round(REDUCING_GAP * size),) * 2)  # only JPEG heeds it, and never goes below that size
        opened.load()
        picture = _to_rgb(_upright(opened))
    if picture.size != (size, size):
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    return np.asarray(picture, np.uint8).transpose(2, 0, 1)


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images in `folder` and below by their names, hidden ones left out, in the order of their paths; and how many
    files of each other extension there are.

    Raises: DataError if a folder cannot be read.
    """
    found = sorted(_visible_files(folder))
    images = [path for path in found if path.suffix.lower() in EXTENSIONS]
    return images, Counter(path.suffix.lower() for path in found if path.suffix.lower() not in EXTENSIONS)


def available_memory() -> int | None:
    """Bytes of memory that are free for this process, by the kernel and by its control group; None if unknown."""
    known = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        known.append(limit - used)
    if not known:
        with contextlib.suppress(OSError, ValueError):
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(min(known), 0) if known else None


def _layout(root: Path) -> tuple[Tree, Tree | None]:
    """The trees of training and test images; None for the latter if there is but one tree."""
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
        raise DataError(f"{folder} needs at least two subfolders, one a class; it has {len(class_folders)}")
    odd = [path.name for path in class_folders if not _is_text(path.name)]
    if odd:
        raise DataError(f"folder names that are no UTF-8 cannot name classes: {', '.join(map(repr, odd))}; rename them")
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
        kinds = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"class folders of {root} without an image ({kinds}): {', '.join(empty)}; fill or remove them")
    return Tree(tuple(files), np.array(labels, np.int64), tuple(path.name for path in class_folders), ignored)


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, hidden ones left out, by name. Raises: DataError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _holds_classes(folder: Path) -> bool:
    """Whether `folder` has subfolders and no image of its own; a class may well be called `train`."""
    own = any(path.suffix.lower() in EXTENSIONS and path.is_file() for path in folder.iterdir())
    return not own and bool(subfolders(folder))


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _suggested_size(files: Sequence[Path]) -> tuple[int, str | None]:
    """The size that all images share if they are square and not large, else `DEFAULT_SIZE` and why."""
    from PIL import Image

    first: tuple[int, int] | None = None
    for path in files:
        try:
            with Image.open(path) as file:
                size = file.size
        except Exception:  # decoding will tell, and list it
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
    files = (*train, *test)
    _check_memory(len(files), size)
    images = np.zeros((len(files), 3, size, size), np.uint8)
    readable = np.ones(len(files), bool)
    reasons: dict[int, str] = {}

    def decode(start: int) -> int:
        for index in range(start, min(start + CHUNK, len(files))):
            try:
                images[index] = decode_image(files[index], size)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file can raise nearly anything in Pillow's readers
                readable[index] = False
                reasons[index] = why_unreadable(error)
        return min(start + CHUNK, len(files))

    with reporter.progress("decoding", len(files)) as line, ThreadPoolExecutor(_workers()) as pool:
        try:
            for done in pool.map(decode, range(0, len(files), CHUNK)):
                line.update(done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

    def read(part: str, positions: Integers, image_size: int) -> Images:
        assert image_size == size
        return images[positions if part == "train" else positions + len(train)]

    bad = tuple((files[index].relative_to(root).as_posix(), reasons[index]) for index in sorted(reasons))
    return Pixels(read, readable[: len(train)], readable[len(train) :], bad)


def _check_memory(count: int, size: int) -> None:
    needed, available = COPIES_IN_MEMORY * count * 3 * size * size, available_memory()
    if available is not None and needed > available:
        raise EnvironmentFault(
            f"{count} images of {size} x {size} need about {format_bytes(needed)} of memory, but "
            f"{format_bytes(available)} are free: give a smaller --image-size, or a smaller folder"
        )


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_values(np.asarray(image).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        return _from_values(_by_range(np.asarray(image).astype(np.float64), is_float=image.mode == "F"))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _from_values(values: npt.NDArray[np.float64]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8)).convert("RGB")


def _by_range(values: npt.NDArray[np.float64], *, is_float: bool) -> npt.NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values are from {low:g} to {high:g}, expected 0..1, 0..255 or 0..65535")
    if is_float and high <= 1:
        return values * 255
    return values if high <= 255 else values / 257


def why_unreadable(error: Exception) -> str:
    """What a person is told of an image that `decode_image` could not read."""
    text = str(error).strip()
    if "cannot identify image file" in text:
        return "no image that Pillow knows"
    return text or type(error).__name__


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
