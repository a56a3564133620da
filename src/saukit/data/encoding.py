"""The images of a split on their way to its shards: each is decoded, fitted and encoded once, none is kept in memory.

    .split.images/00000.safetensors ...    bytes, offsets (see `data.images`), moments int64 [n, 3, 2]

Files of the user's go through a folder beside the split, in the source's order, since only reading all of them shows
which can be read. A shard of it says what it was made from and has a digest of its own, so `make-lt` goes on behind
the last one after a kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import load_tensors
from saukit.core.console import ProgressLine, Reporter
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.machine import in_threads
from saukit.data.decoding import Fitting, decode_or_reason
from saukit.data.images import CHUNK, Encoded, EncodedImages, save_shard, stored_bytes
from saukit.data.source import Channels, Originals, Pixels
from saukit.data.types import Integers

FILES_PER_SHARD = 1024
VERSION = 1  # of what decoding and encoding make of a file


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
    for start in range(0, len(positions), CHUNK):
        yield from in_threads(Encoded.of, list(pixels.read(part, positions[start : start + CHUNK], size)))


class EncodedFiles:
    """All images of a source of files, encoded in the source's order in the folder `store`.

    ok: which images of each part could be read; bad: (file, reason) of those that could not.
    """

    def __init__(
        self, store: Path, originals: Originals, *, size: int, fitting: Fitting, fingerprint: str | None
    ) -> None:
        self._store, self._originals, self._size, self._fitting = store, originals, size, fitting
        self._each, self._starts = originals.each(), originals.starts()
        facts = [fingerprint, originals.counts, size, fitting.fit, fitting.background, VERSION]
        self._key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._images: EncodedImages | None = None
        self._moments = np.zeros((len(self._each), 3, 2), np.int64)
        self._reasons: dict[int, str] = {}

    def read(self, reporter: Reporter) -> Pixels:
        """Decode and encode what an earlier process has not."""
        self._originals.announce(reporter)
        starts = range(0, len(self._each), FILES_PER_SHARD)
        paths = [self._store / f"{number:05d}.safetensors" for number in range(len(starts))]
        for path in self._store.glob("*") if self._store.exists() else ():
            if path not in paths:
                path.unlink()
        kept = 0
        with reporter.progress("decoding", len(self._each)) as line:
            for path, start in zip(paths, starts, strict=True):
                rows = range(start, min(start + FILES_PER_SHARD, len(self._each)))
                if self._kept(path, rows):
                    kept = rows.stop
                else:
                    self._make(path, rows, line)
                line.update(rows.stop)
        if kept:
            reporter.say(f"{kept:,} of {len(self._each):,} images had been decoded before")
        self._images = EncodedImages(paths, (self._size, self._size))
        spread = self._moments[..., 1] * self._size**2 - self._moments[..., 0] ** 2
        return self._originals.pixels(
            lambda part, positions, size: self._stored[positions + self._starts[part]],
            self._reasons,
            np.flatnonzero((spread == 0).all(1)).tolist(),
        )

    def encoded(self, part: str, positions: Integers) -> Iterator[Encoded]:
        """The images at `positions` of a part, as they lie in the store."""
        for row in (positions + self._starts[part]).tolist():
            yield Encoded(self._stored.encoded(row), self._moments[row])

    @property
    def estimated_bytes(self) -> int:
        """About how much disk the folder needs."""
        return stored_bytes(len(self._each), self._size)

    def remove(self) -> None:
        """Remove the folder, when the split is written."""
        shutil.rmtree(self._store, ignore_errors=True)

    @property
    def _stored(self) -> EncodedImages:
        assert self._images is not None, "read comes first"
        return self._images

    def _make(self, path: Path, rows: range, line: ProgressLine) -> None:
        def one(row: int) -> Encoded | str:
            image = decode_or_reason(self._originals.open(*self._each[row]), self._size, self._fitting)
            return image if isinstance(image, str) else Encoded.of(image)

        found = in_threads(one, rows, lambda done: line.update(rows.start + done))
        bad = {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, str)}
        nothing = Encoded(b"", np.zeros((3, 2), np.int64))
        images = [nothing if isinstance(image, str) else image for image in found]
        files, moments = [image.file for image in images], np.stack([image.moments for image in images])
        sha = _digest(b"".join(files), np.cumsum([0, *map(len, files)], dtype=np.int64), moments)
        metadata = {"key": self._key, "bad": {str(row): reason for row, reason in bad.items()}, "sha256": sha}
        save_shard(path, files, metadata, moments=moments)
        self._moments[rows.start : rows.stop] = moments
        self._reasons |= bad

    def _kept(self, path: Path, rows: range) -> bool:
        """Whether `path` holds these images, made from the same files in the same way, and whole."""
        if not path.exists():
            return False
        try:
            tensors, metadata = load_tensors(path)
            arrays = [tensors[name] for name in ("bytes", "offsets", "moments")]
            if metadata["key"] != self._key or metadata["sha256"] != _digest(*arrays) or len(arrays[2]) != len(rows):
                return False
            self._reasons |= {int(row): str(reason) for row, reason in metadata["bad"].items()}
        except (CorruptArtifactError, DataError, KeyError, ValueError, AttributeError):
            return False
        self._moments[rows.start : rows.stop] = arrays[2]
        return True


def _digest(*arrays: npt.NDArray[Any] | bytes) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(array if isinstance(array, bytes) else array.tobytes())
    return sha.hexdigest()
