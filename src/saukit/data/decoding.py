"""Image files as 8-bit RGB, their EXIF rotation applied; of several frames the first counts:

    grey, 1-bit                  the grey value in all three channels
    palette                      the palette's colours
    any transparency             composited on white
    CMYK, YCbCr, HSV             as Pillow converts them
    16-bit grey                  value / 257, rounded (0..65535 to 0..255), never clipped
    16-bit colour                the high byte, as Pillow reads it
    32-bit integer, float        by the range of the image's values: 0..1 (float only) times 255, 0..255 as it is,
                                 0..65535 / 257; anything else, NaN and infinity among it, counts as unreadable

Then the centre square is resized to the size asked for, bicubic with antialiasing (large JPEGs are first reduced while
they are decoded); an image that has that size stays as it is. Unreadable means that decoding the whole file fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.extras import missing_packages
from saukit.core.words import shortened
from saukit.data.image_files import is_regular
from saukit.data.types import Images

if TYPE_CHECKING:
    from PIL import Image

REDUCING_GAP = 2.0  # Pillow's own choice for thumbnails: reduce to this multiple of the size first, then filter


def decode_image(file: Path | BinaryIO, size: int) -> Images:
    """One image file as uint8 [3, size, size], as the table above says; raises whatever Pillow raises."""
    from PIL import Image

    _register_heif()
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


@lru_cache
def _register_heif() -> None:
    """Have Pillow read HEIC, with the extra heif."""
    if not missing_packages("heif"):
        importlib.import_module("pillow_heif").register_heif_opener()


def decode_or_reason(file: Path | BinaryIO, size: int) -> Images | str:
    """As `decode_image`, or why the image cannot be read."""
    try:
        if isinstance(file, Path) and not is_regular(file):
            return "not a regular file"
        return decode_image(file, size)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's readers
        text = str(error).strip()
        if "cannot identify image file" in text:
            return "unknown image format"
        return text or type(error).__name__


def refuse_or_warn(bad: Sequence[str], *, skip: bool, reporter: Reporter, where: str = "") -> None:
    """List images that cannot be read: a warning if they are skipped, else an error. Raises: DataError."""
    if bad:
        count = f"{len(bad)} image{'s' if len(bad) > 1 else ''}{where} cannot be read"
        files = shortened(bad, "\n  ")
        if not skip:
            raise DataError(
                f"{count}; nothing was written. Fix or remove them, or skip them with --skip-bad:\n  {files}"
            )
        reporter.warn(f"{count}, skipped:\n  {files}")


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
