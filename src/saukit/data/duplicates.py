"""Copies among the images of a split: of test images in training, and in training under two labels.

Exact copies have the same pixels. Near ones, of images of at least 32 pixels a side (smaller drawings are alike without
being copies), have a `pair_distance` below 0.2, mirrored too where mirroring keeps the class. Between CIFAR-10's
training and test sets there are 72 such pairs, and a person takes every one for the same photograph; of 149 pairs
between 0.2 and 0.25 about one in seven are different ships and planes.

Of each image 200 bytes are kept: a hash, and the means of 8 x 8 cells. These, less their mean and over their contrast,
are projected to their first 24 principal directions, where a tree finds what lies within the radius (a projection
brings points closer, never apart); what is within it in all directions is read again and compared.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.console import Reporter
from saukit.core.machine import usable_cores
from saukit.core.words import shortened
from saukit.core.writing import write_text
from saukit.data.part_files import encodable
from saukit.data.types import Flags, Images, Integers

DUPLICATES_NAME = "duplicates.csv"
COLUMNS = (
    "kind",
    "part",
    "index",
    "label",
    "file",
    "other_part",
    "other_index",
    "other_label",
    "other_file",
    "distance",
)
OF_TEST, TWO_LABELS = "copy of a test image", "copy under another label"
SMALLEST_SIDE, NEAR = 32, 0.2
CELLS, DIRECTIONS, NEIGHBOURS = 8, 24, 16
CONTRAST_FLOOR = 0.1
CHUNK, FIRST_NAMES, SAMPLE = 512, 3, 10_000

Floats = npt.NDArray[np.float32]
Read = Callable[[Integers], Images]


@dataclass(frozen=True)
class Pool:
    """Images of one or more parts of a split, the parts one after the other.

    read(rows) gives images uint8 [n, 3, H, H]. Shapes: parts, rows, labels of length n: the part of each image, its
    row there, its label; files: their names, if they have any.
    """

    parts: Sequence[str]
    rows: Sequence[int]
    labels: Integers
    read: Read
    files: Sequence[str] | None = None

    def name(self, index: int) -> str:
        """What a message calls an image."""
        return self.files[index] if self.files is not None else f"{self.parts[index]} image {self.rows[index]}"


@dataclass(frozen=True)
class Copies:
    """For each image of a pool that has a copy: which, its closest copy in the other pool, and how far that is.

    Shapes: index, other int64 [n]; distance float32 [n], 0 for the same pixels.
    """

    index: Integers
    other: Integers
    distance: Floats

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found: copies of test images, and training images that lie there under another label."""

    training: Pool
    test: Pool
    of_test: Copies
    two_labels: Copies

    @property
    def kept(self) -> Flags:
        """The training images that are neither, bool [n]."""
        kept = np.full(len(self.training.labels), True)
        kept[self.of_test.index] = kept[self.two_labels.index] = False
        return kept

    @property
    def summary(self) -> dict[str, int]:
        """How many of each."""
        return {"of_test": len(self.of_test), "two_labels": len(self.two_labels)}

    def sentences(self, classes: Sequence[str]) -> list[str]:
        """A line for each kind that there is."""
        found = []
        for copies, other, text in (
            (self.of_test, self.test, "training images are copies of test images"),
            (self.two_labels, self.training, "training images have a copy under another label"),
        ):
            if len(copies):
                first = [
                    f"{self.training.name(i)} ({classes[self.training.labels[i]]}) = "
                    f"{other.name(j)} ({classes[other.labels[j]]})"
                    for i, j in zip(copies.index[:FIRST_NAMES].tolist(), copies.other.tolist(), strict=False)
                ]
                exact = int((copies.distance == 0).sum())
                found.append(f"{len(copies):,} {text}, {exact:,} of them exactly: {shortened(first, '; ')}")
        return found


def find_duplicates(training: Pool, test: Pool, *, flip: bool, reporter: Reporter) -> Duplicates:
    """Look for copies; `flip`: mirrored copies are copies too."""
    with reporter.progress("looking for copies", len(training.labels) + len(test.labels)) as line:
        ours = _Fingerprints.of(training, line.update)
        theirs = _Fingerprints.of(test, lambda done: line.update(done + len(training.labels)))
    of_test = _same_pixels(ours.hashes, theirs.hashes)
    two_labels = _same_pixels_other_label(ours.hashes, training.labels)
    if ours.cells is not None and theirs.cells is not None:
        every = np.arange(len(training.labels))
        directions = _directions(np.concatenate([ours.sample, theirs.sample]))
        near = _near(ours.cells, every, theirs.cells, directions, flip=flip)
        of_test = _closest([of_test, _checked(near, training.read, test.read)])
        once = np.sort(np.unique(ours.hashes, return_index=True)[1])
        near = _near(ours.cells, once, ours.cells[once], directions, flip=flip)
        near = _Candidates(near.index, once[near.other], near.mirrored)
        near = near.where(training.labels[near.index] != training.labels[near.other])
        two_labels = _closest([two_labels, _checked(near, training.read, training.read)])
    return Duplicates(training, test, of_test, two_labels)


def write_duplicates(folder: Path, found: Duplicates, classes: Sequence[str], *, dropped: bool) -> None:
    """Write duplicates.csv: a row per copy. Rows of the split have their index there, dropped ones none."""
    kept = found.kept if dropped else np.full(len(found.training.labels), True)
    places: dict[str, int] = {}
    numbers = []
    for part, stays in zip(found.training.parts, kept.tolist(), strict=True):
        numbers.append(str(places.get(part, 0)) if stays else "")
        places[part] = places.get(part, 0) + stays

    def cells(pool: Pool, index: int) -> list[Any]:
        number = numbers[index] if pool is found.training else pool.rows[index]
        file = "" if pool.files is None else encodable(pool.files[index])
        return [pool.parts[index], number, classes[pool.labels[index]], file]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind, copies, other in ((OF_TEST, found.of_test, found.test), (TWO_LABELS, found.two_labels, found.training)):
        for i, j, distance in zip(*(c.tolist() for c in (copies.index, copies.other, copies.distance)), strict=True):
            writer.writerow([kind, *cells(found.training, i), *cells(other, j), f"{distance:.4f}"])
    write_text(folder / DUPLICATES_NAME, text.getvalue())


@dataclass(frozen=True)
class _Fingerprints:
    """hashes uint64 [n]; cells uint8 [n, 3, 8, 8], None for small images."""

    hashes: npt.NDArray[np.uint64]
    cells: Images | None

    @classmethod
    def of(cls, pool: Pool, listen: Callable[[int], None]) -> _Fingerprints:
        count = len(pool.labels)
        hashes, cells = np.empty(count, np.uint64), None
        for rows in _chunks(np.arange(count)):
            images = pool.read(rows)
            for row, image in zip(rows.tolist(), images, strict=True):
                digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
                hashes[row] = int.from_bytes(digest, "little")
            if images.shape[2] >= SMALLEST_SIDE:
                cells = np.empty((count, 3, CELLS, CELLS), np.uint8) if cells is None else cells
                cells[rows] = _cells(images)
            listen(int(rows[-1]) + 1)
        return cls(hashes, cells)

    @property
    def sample(self) -> Images:
        assert self.cells is not None
        return self.cells[:: len(self.cells) // SAMPLE + 1]


@dataclass(frozen=True)
class _Candidates:
    """Pairs that may be copies: index, other int64 [n]; mirrored bool [n], the other one is."""

    index: Integers
    other: Integers
    mirrored: Flags

    def where(self, chosen: Flags) -> _Candidates:
        return _Candidates(self.index[chosen], self.other[chosen], self.mirrored[chosen])


def _cells(images: Images) -> Images:
    """Means over a grid of 8 x 8 cells of images uint8 [n, 3, H, H]; a cell is as many whole pixels as it has."""
    edges = np.linspace(0, images.shape[2], CELLS + 1).astype(int)
    sums = np.add.reduceat(images.astype(np.uint32), edges[:-1], axis=2)
    sums = np.add.reduceat(sums, edges[:-1], axis=3)
    sizes = np.diff(edges)
    means: Images = np.round(sums / (sizes[:, None] * sizes)).astype(np.uint8)
    return means


def _described(cells: Images) -> Floats:
    """Cells [n, 3, 8, 8] less each channel's mean, over the contrast; their distance is an RMS. float32 [n, 192]."""
    values = cells.reshape(len(cells), 3, -1).astype(np.float32) / 255
    flat = (values - values.mean(2, keepdims=True)).reshape(len(cells), -1)
    contrast = np.sqrt((flat**2).mean(1, keepdims=True))
    described: Floats = flat / ((contrast + CONTRAST_FLOOR) * np.sqrt(np.float32(flat.shape[1])))
    return described


def _directions(cells: Images) -> Floats:
    """The first principal directions of some images' descriptors, float32 [192, 24]: orthonormal."""
    described = _described(cells)
    _, directions = np.linalg.eigh(described.T @ described)
    first: Floats = directions[:, ::-1][:, :DIRECTIONS].astype(np.float32)
    return first


def _near(cells: Images, asked: Integers, others: Images, directions: Floats, *, flip: bool) -> _Candidates:
    """Pairs of an image of `asked` and one of `others` whose descriptors are near; of each image the 16 nearest."""
    from scipy.spatial import cKDTree

    described = np.concatenate([_described(others[rows]) for rows in _chunks(np.arange(len(others)))])
    tree = cKDTree(described @ directions, leafsize=32)
    found = []
    for rows in _chunks(asked):
        for mirrored in (False, True) if flip else (False,):
            ours = _described(cells[rows][..., ::-1] if mirrored else cells[rows])
            near = tree.query(ours @ directions, k=NEIGHBOURS, distance_upper_bound=NEAR, workers=usable_cores())
            at, place = np.nonzero(np.isfinite(near[0]))
            other = near[1][at, place]
            close = ((ours[at] - described[other]) ** 2).sum(1) < NEAR**2
            found.append(_Candidates(rows[at[close]], other[close], np.full(int(close.sum()), mirrored)))
    index, other, flags = zip(*((it.index, it.other, it.mirrored) for it in found), strict=True)
    return _Candidates(np.concatenate(index), np.concatenate(other).astype(np.int64), np.concatenate(flags))


def _checked(near: _Candidates, ours: Read, theirs: Read) -> Copies:
    """The candidates that are copies by all their pixels."""
    import torch

    from saukit.data.pair_distance import as_compared, pair_distance

    distances = [np.empty(0, np.float32)]
    for rows in _chunks(np.arange(len(near.index))):
        a, b = (
            as_compared(read(at[rows]), torch.device("cpu")) for read, at in ((ours, near.index), (theirs, near.other))
        )
        mirrored = torch.from_numpy(near.mirrored[rows])[:, None, None, None]
        distances.append(pair_distance(a, torch.where(mirrored, b.flip(3), b)).numpy())
    distance = np.concatenate(distances)
    close = distance < NEAR
    return Copies(near.index[close], near.other[close], distance[close])


def _same_pixels(hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> Copies:
    """The images that are among the others too, each with the first such."""
    order = np.argsort(others, kind="stable")
    place = np.minimum(np.searchsorted(others[order], hashes), len(others) - 1)
    index = np.flatnonzero(others[order][place] == hashes)
    return Copies(index, order[place[index]], np.zeros(len(index), np.float32))


def _same_pixels_other_label(hashes: npt.NDArray[np.uint64], labels: Integers) -> Copies:
    """The images that are there under another label too, each with the first such."""
    groups: dict[int, dict[int, int]] = {}  # hash -> label -> the first image
    for row, (value, label) in enumerate(zip(hashes.tolist(), labels.tolist(), strict=True)):
        groups.setdefault(value, {}).setdefault(label, row)
    pairs = [
        (row, next(first for other, first in group.items() if other != label))
        for row, (value, label) in enumerate(zip(hashes.tolist(), labels.tolist(), strict=True))
        if len(group := groups[value]) > 1
    ]
    index, other = np.array(pairs, np.int64).reshape(-1, 2).T
    return Copies(index, other, np.zeros(len(index), np.float32))


def _closest(several: Sequence[Copies]) -> Copies:
    """One copy for each image, the closest."""
    index, other, distance = (
        np.concatenate([getattr(copies, name) for copies in several]) for name in ("index", "other", "distance")
    )
    order = np.lexsort((other, distance, index))
    first = order[np.flatnonzero(np.diff(index[order], prepend=-1))]
    return Copies(index[first], other[first], distance[first])


def _chunks(rows: Integers) -> Iterator[Integers]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
