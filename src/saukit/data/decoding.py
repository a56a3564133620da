"""Image files as 8-bit RGB, their EXIF rotation applied; of several frames the first counts:

    grey, 1-bit                  the grey value in all three channels
    palette                      the palette's colours
    any transparency             composited on the background, white by default
    CMYK, YCbCr, HSV             as Pillow converts them
    16-bit grey                  255 times the value / the white level, which is one for the whole set, rounded
    16-bit colour                the high byte, as Pillow reads it
    32-bit integer, float        by the range of the image's values: 0..1 (float only) times 255, 0..255 as it is,
                                 0..65535 / 257; anything else, NaN and infinity among it, counts as unreadable

Then it is made square (`Fitting`) and resized to the size asked for, bicubic with antialiasing (large JPEGs are first
reduced while they are decoded); an image that has that size stays as it is. Unreadable means that decoding the whole
file fails, or that it has too many pixels; a JPEG that lacks its end marker alone can be read.
"""

import importlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.extras import missing_packages
from saukit.core.machine import in_threads
from saukit.core.words import shortened
from saukit.data.image_files import is_regular
from saukit.data.source import Originals
from saukit.data.source_config import Fit, parse_colour
from saukit.data.types import Images

MOST_PIXELS = 100_000_000  # of a picture as it is decoded, after the reduction of large JPEGs
MOST_VALUE = 65535  # of 16 bits
WHITE_LEVELS = (255, 1023, 4095, 16383, MOST_VALUE)  # of 8, 10, 12, 14 and 16 bits
LOOKED_AT = 100  # images whose headers say whether a set has 16 bits
NOISES = (b"\xa5\x3c\x96\xe7" * 128, b"\x6d\xdb\xb6" * 170)
LFS = b"version https://git-lfs.github.com/spec/"
REDUCING_GAP = 2.0  # Pillow's own choice for thumbnails: reduce to this multiple of the size first, then filter


@dataclass(frozen=True)
class Fitting:
    """How pictures become squares, what lies behind transparent and padded ones, and which value of 16 bits is white;
    None is 65535."""

    fit: Fit = "crop"
    background: str = "white"
    white_level: int | None = None


CROP = Fitting()


def decode_image(file: Path | BinaryIO, size: int, fitting: Fitting = CROP) -> Images:
    """One image file as uint8 [3, size, size], as the table above says; raises whatever Pillow raises."""
    _prepare_pillow()
    try:
        picture = _decoded(file, size, fitting)
    except OSError as error:
        if "truncated" not in str(error):
            raise
        picture = _without_end_marker(file, size, fitting, error)
    return np.asarray(fitted(picture, size, fitting), np.uint8).transpose(2, 0, 1)


def fitted(picture: Image.Image, size: int, fitting: Fitting) -> Image.Image:
    """An RGB picture as a square of `size` pixels a side, resized bicubic with antialiasing.

    `crop` takes its centre, `pad` all of it in the middle of the background, `stretch` all of it out of proportion.
    """
    width, height = picture.size
    if picture.size == (size, size):
        return picture
    if fitting.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    target = (size, size)
    if fitting.fit == "pad":
        longer = max(width, height)
        target = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    picture = picture.resize(target, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    if target == (size, size):
        return picture
    square = Image.new("RGB", (size, size), parse_colour(fitting.background))
    square.paste(picture, ((size - target[0]) // 2, (size - target[1]) // 2))
    return square


def _decoded(file: Path | BinaryIO, size: int, fitting: Fitting) -> Image.Image:
    """The picture as RGB, upright; large JPEGs reduced."""
    with Image.open(file) as opened:
        width, height = opened.size
        least = round(REDUCING_GAP * size)
        longer_only = fitting.fit == "pad"  # the shorter side then becomes less than `size`
        wanted = [1 if longer_only and side < max(opened.size) else least for side in opened.size]
        opened.draft(None, (wanted[0], wanted[1]))  # only JPEG heeds it, and never goes below that size
        pixels = opened.size[0] * opened.size[1]
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"{width} x {height} are {pixels / 1e6:.0f} million pixels, above the limit of {MOST_PIXELS / 1e6:.0f} "
                f"million ({3 * MOST_PIXELS / 1e6:.0f} MB in each decoding thread): make it smaller"
            )
        opened.load()
        return _to_rgb(_upright(opened), fitting, has_16_bits=_has_16_bits(opened))


def _without_end_marker(file: Path | BinaryIO, size: int, fitting: Fitting, error: OSError) -> Image.Image:
    """A JPEG all of whose rows are there and only the end is not. Raises: `error` for any other.

    With an end marker appended the decoder fills up what is missing. Where something is, noise in front of the marker
    changes the picture.
    """
    if isinstance(file, Path):
        content = file.read_bytes()
    else:
        file.seek(0)
        content = file.read()
    if not content.startswith(b"\xff\xd8"):
        raise error
    content = content.removesuffix(b"\xff")
    picture, *others = (_decoded(io.BytesIO(content + end + b"\xff\xd9"), size, fitting) for end in (b"", *NOISES))
    if any(other.tobytes() != picture.tobytes() for other in others):
        raise error
    return picture


@lru_cache
def _prepare_pillow() -> None:
    """Have Pillow read HEIC, with the extra heif, and leave the limit of pixels to `MOST_PIXELS`."""
    Image.MAX_IMAGE_PIXELS = None
    if not missing_packages("heif"):
        importlib.import_module("pillow_heif").register_heif_opener()


def decode_or_reason(file: Path | BinaryIO, size: int, fitting: Fitting = CROP) -> Images | str:
    """As `decode_image`, or why the image cannot be read."""
    try:
        if isinstance(file, Path) and not is_regular(file):
            return "not a regular file"
        return decode_image(file, size, fitting)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's readers
        text = str(error).strip()
        if "cannot identify image file" in text:
            return _what_else(file)
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        return text or type(error).__name__


def _what_else(file: Path | BinaryIO) -> str:
    """What a file is that is no image."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(len(LFS))
    else:
        file.seek(0)
        head = file.read(len(LFS))
    if not head:
        return "an empty file"
    return "a pointer of Git LFS: fetch it with `git lfs pull`" if head == LFS else "unknown image format"


def refuse_or_warn(
    bad: Sequence[str], *, skip: bool, reporter: Reporter, where: str = "", written: str = "nothing was written"
) -> None:
    """List images that cannot be read: a warning if they are skipped, else an error. Raises: DataError."""
    if bad:
        count = f"{len(bad)} image{'s' if len(bad) > 1 else ''}{where} cannot be read"
        files = shortened(bad, "\n  ")
        if not skip:
            raise DataError(f"{count}; {written}. Fix or remove them, or skip them with --skip-bad:\n  {files}")
        reporter.warn(f"{count}, skipped:\n  {files}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return image


def _to_rgb(image: Image.Image, fitting: Fitting, *, has_16_bits: bool) -> Image.Image:
    if has_16_bits:  # an upright copy has lost its format
        return _from_values(np.asarray(image).astype(np.float64) * (255 / (fitting.white_level or MOST_VALUE)))
    if image.mode in ("I", "F"):
        return _from_values(_by_range(np.asarray(image).astype(np.float64), is_float=image.mode == "F"))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        behind = Image.new("RGBA", layered.size, parse_colour(fitting.background))
        return Image.alpha_composite(behind, layered).convert("RGB")
    return image.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def common_white_level(originals: Originals) -> int | None:
    """The white level of a set of 16-bit images: the first of `WHITE_LEVELS` that is not below any of their values.

    None where none of the images looked at, spread evenly, has 16 bits. Reads all images if one has.
    """
    each = originals.each()
    if not any(_largest_value(originals, *which, header=True) for which in each[:: max(1, len(each) // LOOKED_AT)]):
        return None
    largest = max(in_threads(lambda which: _largest_value(originals, *which), each))
    return next(level for level in WHITE_LEVELS if level >= largest)


def _largest_value(originals: Originals, part: str, index: int, *, header: bool = False) -> int:
    """The largest value of a 16-bit image, or 1 by its `header` alone; 0 for other images, and unreadable ones."""
    try:
        file = originals.open(part, index)
        if isinstance(file, Path) and not is_regular(file):
            return 0
        with Image.open(file) as opened:
            if not _has_16_bits(opened) or math.prod(opened.size) > MOST_PIXELS:
                return 0
            return 1 if header else int(np.asarray(opened).max())
    except MemoryError:
        raise
    except Exception:  # decoding will list it
        return 0


def _from_values(values: npt.NDArray[np.float64]) -> Image.Image:
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
