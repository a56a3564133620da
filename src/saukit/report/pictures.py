"""Pictures that travel inside the page as data URIs: PNG, and JPEG for large ones of photos."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from saukit.core.documents import REMAKE
from saukit.core.errors import CorruptArtifactError
from saukit.core.files import reading
from saukit.data.types import Images

TILE = 44  # pixels of the page that an image is shown at, at least about this
LARGEST = 48  # pixels of a side above which an image is made smaller, so that the page stays small

LARGEST_PNG = 256 << 10  # bytes; a larger one holds photos, which JPEG makes a tenth as large


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and the pixels of the page it is shown at."""

    uri: str
    width: int
    height: int


def strip(images: Images) -> Picture | None:
    """Images uint8 [n, 3, h, w] beside each other, with transparent gaps; None without images."""
    if not len(images):
        return None
    tiles = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    if max(images.shape[2:]) > LARGEST:
        for tile in tiles:
            tile.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    width, height = tiles[0].size
    factor = max(1, round(TILE / max(width, height)))
    gap = max(1, round(4 / factor))
    canvas = Image.new("RGBA", (len(tiles) * (width + gap) - gap, height))
    for index, tile in enumerate(tiles):
        canvas.paste(tile, (index * (width + gap), 0))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return Picture(data_uri(buffer.getvalue()), canvas.width * factor, canvas.height * factor)


def framed(path: Path) -> Picture:
    """A PNG that was drawn at twice the size it is to be seen at. Raises: CorruptArtifactError for another file."""
    with reading(path, remedy=REMAKE, fault=CorruptArtifactError), Image.open(path, formats=["PNG"]) as image:
        png = path.read_bytes()
        width, height = image.size
        if len(png) <= LARGEST_PNG:
            return Picture(data_uri(png), width // 2, height // 2)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80, subsampling=0)
    return Picture(data_uri(buffer.getvalue(), "jpeg"), width // 2, height // 2)


def data_uri(image: bytes, kind: str = "png") -> str:
    """The bytes of an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
