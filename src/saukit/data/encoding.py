"""The images of a split on their way to it: each file is decoded, fitted and encoded once, none is kept in memory.

    .split.images/00000.safetensors ...    small uint8 [n, 3, h, w], hashes uint64 [n] (see `data.fingerprints`),
                                           moments int64 [n, 3, 2]; bytes, offsets (see `data.images`)

Files of the user's go through a folder beside the split, in the source's order, since only reading all of them shows
which can be read. Images that stay raw are `small` themselves, and have no bytes. A shard of it says what it was made
from and has a digest of its own, so `make-lt` goes on behind the last one after a kill.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from saukit.core.artifacts import load_tensors
from saukit.core.console import ProgressLine, Reporter
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.machine import in_threads
from saukit.data.decoding import Fitting, decode_or_reason
from saukit.data.fingerprints import Hashes, compared_size, fingerprint
from saukit.data.images import (
    RAW_UP_TO,
    Encoded,
    EncodedImages,
    chunks,
    mapped,
    moments_of,
    save_shard,
    stored_bytes,
)
from saukit.data.source import Channels, Originals, Pixels
from saukit.data.types import Images, Integers

FILES_PER_SHARD = 1024
VERSION = 2  # of what decoding and encoding make of a file


def statistics_of(moments: Integers, pixels: int) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel for values in [0, 1], exact up to the last division.

    Shapes: moments int64 [n, 3, 2] of n images of `pixels` pixels.
    """
    count = len(moments) * pixels
    means, deviations = [], []
    for total, squares in moments.sum(0).tolist():  # Python's integers: the square of a sum may pass 64 bits
        means.append(total / (255 * count))
        variance = (count * squares - total**2) / (255 * count) ** 2
        deviations.append(variance**0.5 if variance > 0 else 1.0)  # a channel of one value: leave its scale alone
    return tuple(means), tuple(deviations)


def encoded_arrays(pixels: Pixels, part: str, positions: Integers, size: int) -> Iterator[Encoded]:
    """The images at `positions` of a source that holds arrays, a few hundred at a time."""
    for some in chunks(positions):
        yield from in_threads(Encoded.of, list(pixels.read(part, some, size)))


class Kept(NamedTuple):
    """What is kept of a file's image."""

    encoded: Encoded
    small: Images
    hash: int


class StoredFiles:
    """All images of a source of files in the folder `store`, in the source's order: encoded, or raw if small."""

    def __init__(
        self, store: Path, originals: Originals, *, size: int, fitting: Fitting, fingerprint: str | None
    ) -> None:
        self._store, self._originals, self._size, self._fitting = store, originals, size, fitting
        self._each, self._starts = originals.each(), originals.starts()
        facts = [fingerprint, originals.counts, size, fitting.fit, fitting.background, fitting.white_level, VERSION]
        self._key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._paths = [store / f"{number:05d}.safetensors" for number in range(-(-len(self._each) // FILES_PER_SHARD))]
        self._stored: EncodedImages | None = None
        self._moments = np.zeros((len(self._each), 3, 2), np.int64)
        self._hashes: Hashes = np.zeros(len(self._each), np.uint64)
        self._reasons: dict[int, str] = {}

    def read(self, reporter: Reporter) -> Pixels:
        """Decode and encode what an earlier process has not."""
        self._originals.announce(reporter)
        for path in self._store.glob("*") if self._store.exists() else ():
            if path not in self._paths:
                path.unlink()
        kept = 0
        with reporter.progress("decoding", len(self._each)) as line:
            for number, path in enumerate(self._paths):
                rows = range(number * FILES_PER_SHARD, min((number + 1) * FILES_PER_SHARD, len(self._each)))
                if self._kept(path, rows):
                    kept = rows.stop
                else:
                    self._make(path, rows, line)
                line.update(rows.stop)
        if kept:
            reporter.say(f"{kept:,} of {len(self._each):,} images had been decoded before")
        if self._size > RAW_UP_TO:
            self._stored = EncodedImages(self._paths, (self._size, self._size))
        spread = self._moments[..., 1] * self._size**2 - self._moments[..., 0] ** 2
        return self._originals.pixels(
            self._read,
            self._reasons,
            np.flatnonzero((spread == 0).all(1)).tolist(),
            lambda part, positions: self._fingerprints(positions + self._starts[part]),
        )

    def encoded(self, part: str, positions: Integers) -> Iterator[Encoded]:
        """The images at `positions` of a part, as they lie in the store."""
        assert self._stored is not None
        for row in (positions + self._starts[part]).tolist():
            yield Encoded(self._stored.encoded(row), self._moments[row])

    @property
    def estimated_bytes(self) -> int:
        """About how much disk the folder needs."""
        small = math.prod(compared_size(self._size, self._size)) * 3 if self._size > RAW_UP_TO else 0
        return stored_bytes(len(self._each), self._size) + len(self._each) * small

    def _read(self, part: str, positions: Integers, size: int) -> Images:
        assert size == self._size
        rows = positions + self._starts[part]
        return self._fingerprints(rows)[0] if self._stored is None else self._stored[rows]

    def _fingerprints(self, rows: Integers) -> tuple[Images, Hashes]:
        images = np.empty((len(rows), 3, *compared_size(self._size, self._size)), np.uint8)
        shards = rows // FILES_PER_SHARD
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            images[mine] = mapped(self._paths[shard], "small")[rows[mine] - shard * FILES_PER_SHARD]
        return images, self._hashes[rows]

    def _one(self, row: int) -> Kept | str:
        image = decode_or_reason(self._originals.open(*self._each[row]), self._size, self._fitting)
        if isinstance(image, str):
            return image
        if self._size > RAW_UP_TO:
            encoded = Encoded.of(image)
        else:
            encoded = Encoded(b"", moments_of(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))))
        return Kept(encoded, *fingerprint(image))

    def _make(self, path: Path, rows: range, line: ProgressLine) -> None:
        found = in_threads(self._one, rows, lambda done: line.update(rows.start + done))
        bad = {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, str)}
        blank = np.zeros((3, *compared_size(self._size, self._size)), np.uint8)
        nothing = Kept(Encoded(b"", np.zeros((3, 2), np.int64)), blank, 0)
        images = [nothing if isinstance(image, str) else image for image in found]
        files = [image.encoded.file for image in images]
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "moments": np.stack([image.encoded.moments for image in images]),
            "small": np.stack([image.small for image in images]),
            "hashes": np.array([image.hash for image in images], np.uint64),
        }
        sha = _digest(b"".join(files), np.cumsum([0, *map(len, files)], dtype=np.int64), *arrays.values())
        metadata = {"key": self._key, "bad": {str(row): reason for row, reason in bad.items()}, "sha256": sha}
        save_shard(path, files, metadata, **arrays)
        self._moments[rows.start : rows.stop] = arrays["moments"]
        self._hashes[rows.start : rows.stop] = arrays["hashes"]
        self._reasons |= bad

    def _kept(self, path: Path, rows: range) -> bool:
        """Whether `path` holds these images, made from the same files in the same way, and whole."""
        if not path.exists():
            return False
        try:
            tensors, metadata = load_tensors(path)
            arrays = [tensors[name] for name in ("bytes", "offsets", "moments", "small", "hashes")]
            if metadata["key"] != self._key or metadata["sha256"] != _digest(*arrays) or len(arrays[2]) != len(rows):
                return False
            self._reasons |= {int(row): str(reason) for row, reason in metadata["bad"].items()}
        except (CorruptArtifactError, DataError, KeyError, ValueError, AttributeError):
            return False
        self._moments[rows.start : rows.stop] = tensors["moments"]
        self._hashes[rows.start : rows.stop] = tensors["hashes"]
        return True


def _digest(*arrays: npt.NDArray[Any] | bytes) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).data)
    return sha.hexdigest()
