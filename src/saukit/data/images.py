"""Images of a part of a split: an array in memory, or encoded in shards on disk. Both are indexed by rows.

    train-00000.safetensors ...    bytes uint8 [total], the images' JPEG files one after the other
                                   offsets int64 [n + 1], where each begins, and the end

Images of at most `RAW_UP_TO` pixels a side stay raw, bit for bit. An encoded image is read from its shard when it is
asked for, so memory does not grow with their number.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from saukit.core.artifacts import save_tensors
from saukit.core.documents import MIB, parse_json
from saukit.core.errors import CorruptArtifactError
from saukit.core.files import open_regular
from saukit.core.machine import in_threads, slices
from saukit.core.words import shown
from saukit.data.types import Images, Integers

RAW_UP_TO = 64
JPEG = {"quality": 95, "subsampling": 0}  # as Pillow's save takes it; all colours at full size
SHARD_BYTES = 64 << 20  # of encoded images; three times as much is held while a shard is written
KINDS: dict[str, Any] = {"U8": np.uint8, "I64": np.dtype("<i8")}  # of arrays in a safetensors file
READ_CHUNK = 4  # images that a thread decodes at once
CHUNK = 512  # images that work on a whole part holds at a time
BYTES_PER_PIXEL = 0.5  # of an encoded photo, for estimates: 0.47 on average on the photos of the docs


class ImageStore(Protocol):
    """Images uint8 [n, 3, H, W]. A numpy array is one; `images[rows]`, a slice or an array, is an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 3, H, W)."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Images: ...


class RowsOf:
    """Some rows of other images, a slice or positions, that are read when they are asked for."""

    def __init__(self, images: ImageStore, rows: slice | Integers) -> None:
        self._images, self._rows = images, np.arange(len(images))[rows]
        self.shape = (len(self._rows), *images.shape[1:])
        self.nbytes = images.nbytes * len(self._rows) // max(1, len(images))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any, /) -> Images:
        return self._images[self._rows[rows]]


class EncodedImages:
    """Images in the shards of a part, decoded when they are asked for, in threads; it may be used by several threads.

    sizes: bytes of each encoded image, int64 [n].

    Raises: CorruptArtifactError for a shard that is damaged, also later, when an image of it is decoded.
    """

    def __init__(self, shards: Sequence[Path], size: tuple[int, int]) -> None:
        self._shards, self._size = [Shard.of(path) for path in shards], size
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(shard.offsets) for shard in self._shards)])
        self.nbytes = int(self.sizes.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 3, H, W)."""
        return (len(self), 3, *self._size)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self[:].astype(dtype or np.uint8, copy=False)

    def __getitem__(self, rows: Any, /) -> Images:
        """The images of `rows` (a slice, positions, flags, or one position as an array has them), uint8.

        The colours of a pixel lie beside each other, as decoders have them: [..., 3, H, W] is a view.
        """
        chosen = np.arange(len(self))[rows]
        images = np.empty((chosen.size, *self._size, 3), np.uint8)

        def decode(at: int) -> None:
            images[at] = self._decoded(int(chosen.flat[at]))

        in_threads(decode, range(chosen.size), chunk=READ_CHUNK, kept=True)
        return np.moveaxis(images.reshape(*chosen.shape, *self._size, 3), -1, -3)

    def encoded(self, row: int) -> bytes:
        """The file of one image."""
        shard, within = self._find(row)
        return shard.read(within)

    def _find(self, row: int) -> tuple[Shard, int]:
        index = int(np.searchsorted(self._ends, row, side="right"))
        shard = self._shards[index]
        return shard, row - int(self._ends[index]) + len(shard)

    def _decoded(self, row: int) -> Images:
        """[H, W, 3]."""
        try:
            pixels = _pixels(self.encoded(row), self._size)
        except (OSError, ValueError, SyntaxError) as error:
            shard, within = self._find(row)
            raise CorruptArtifactError(f"image {within} of {shard.path} cannot be decoded: {error}") from None
        return pixels


def as_stored(image: Images) -> Images:
    """The pixels uint8 [3, H, W] that a split keeps of an image: its own, or above `RAW_UP_TO` those of its JPEG."""
    if max(image.shape[1:]) <= RAW_UP_TO:
        return image
    return _pixels(Encoded.of(image).file, image.shape[1:]).transpose(2, 0, 1)


def _pixels(file: bytes, size: tuple[int, ...]) -> Images:
    """The colours [H, W, 3] of a JPEG. Raises: ValueError for one of another size, before it is decoded."""
    with Image.open(io.BytesIO(file), formats=("JPEG",)) as opened:
        if (opened.height, opened.width) != size or opened.mode != "RGB":
            raise ValueError(f"it is {opened.mode} of {opened.width} x {opened.height} pixels")
        return np.asarray(opened, np.uint8)


def chunks(images: ImageStore | Integers) -> Iterator[Any]:
    """All images, or their positions, a few hundred at a time."""
    for part in slices(len(images), CHUNK):
        yield images[part]


def stored_bytes(count: int, size: int) -> int:
    """About how many bytes `count` images of `size` pixels a side take on disk."""
    return round(count * size**2 * (3 if size <= RAW_UP_TO else BYTES_PER_PIXEL))


@dataclass(frozen=True)
class Encoded:
    """An encoded image, and of each channel the sum of its values and of their squares, int64 [3, 2]."""

    file: bytes
    moments: Integers

    @classmethod
    def of(cls, image: Images) -> Encoded:
        """uint8 [3, H, W], encoded."""
        file = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(file, "JPEG", **JPEG)
        return cls(file.getvalue(), moments_of(picture))


def moments_of(picture: Image.Image) -> Integers:
    """Of each channel of an RGB picture the sum of its values and of their squares, int64 [3, 2]."""
    values = np.arange(256)
    return np.array(picture.histogram(), np.int64).reshape(3, 256) @ np.stack([values, values**2], axis=1)


def save_shard(path: Path, files: Sequence[bytes], metadata: dict[str, Any], **others: np.ndarray[Any, Any]) -> None:
    """Write encoded images, and what else belongs to them, as one shard."""
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    save_tensors(path, {"bytes": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, **others}, metadata)


def shard_paths(folder: Path, part: str) -> list[Path]:
    """The shards of a part that are there, in their order."""
    return sorted(folder.glob(f"{part}-[0-9]*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2]))


def write_shards(folder: Path, part: str, images: Iterable[Encoded]) -> Integers:
    """Write the images of a part in shards of about `SHARD_BYTES`; returns their moments, int64 [n, 3, 2]."""
    moments = [np.zeros((0, 3, 2), np.int64)]
    for index, some in enumerate(_grouped(images)):
        save_shard(folder / f"{part}-{index:05d}.safetensors", [image.file for image in some], {"part": part})
        moments.append(np.stack([image.moments for image in some]))
    return np.concatenate(moments)


@dataclass(frozen=True)
class Shard:
    """Where the images of a shard lie in its file: `offsets` int64 [n + 1] from `start` on."""

    path: Path
    start: int
    offsets: Integers

    @classmethod
    def of(cls, path: Path) -> Shard:
        """The shard at `path`. Raises: CorruptArtifactError."""
        offsets = mapped(path, "offsets", "I64").astype(np.int64)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] < 0 or (np.diff(offsets) < 0).any():
            raise CorruptArtifactError(f"{path} is not a shard of images: its offsets do not rise")
        return cls(path, _place(path, "bytes", "U8")[0], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, row: int) -> bytes:
        """The file of one image. It is read, not mapped: a map's pages would count as this process's memory."""
        begin, end = self.offsets[row : row + 2].tolist()
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + begin)
            return file.read(end - begin)


def mapped(path: Path, name: str, kind: Literal["U8", "I64"] = "U8") -> np.ndarray[Any, Any]:
    """An array of a file, in memory that all processes of a machine share: it is read when it is looked at.

    Raises: CorruptArtifactError, also for one of another `kind`.
    """
    start, shape = _place(path, name, kind)
    try:
        if not math.prod(shape):  # which cannot be mapped
            return np.zeros(shape, KINDS[kind])
        # Copied where it is written to, which nobody does: torch warns of an array that cannot be written to.
        return np.asarray(np.memmap(path, KINDS[kind], "c", start, tuple(shape)))
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise CorruptArtifactError(f"{path} is not a shard of images: {error}") from None


def _place(path: Path, name: str, kind: str) -> tuple[int, list[int]]:
    """Where an array of a shard begins in its file and its shape, as the header says; `kind`: its only right type."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, MIB)).decode(), where="its header")
            if kind != header[name]["dtype"]:
                raise ValueError(f"its {name} are {shown(header[name]['dtype'])}, not {kind}")
            shape = [int(side) for side in header[name]["shape"]]
            return 8 + length + int(header[name]["data_offsets"][0]), shape
    except (OSError, CorruptArtifactError, ValueError, LookupError, TypeError, MemoryError, OverflowError) as error:
        raise CorruptArtifactError(f"{path} is not a shard of images: {error}") from None


def _grouped(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    some: list[Encoded] = []
    size = 0
    for image in images:
        some.append(image)
        size += len(image.file)
        if size >= SHARD_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
