"""Copies among the images of a split: of test images in training, and in training under two labels.

Exact copies have the same pixels. Near ones, of images of at least 32 pixels a side (smaller drawings are alike without
being copies), have a `pair_distance` below 0.2, mirrored too where mirroring keeps the class. Between CIFAR-10's
training and test sets there are 72 such pairs, and a person takes every one for the same photograph; of 149 pairs
between 0.2 and 0.25 about one in seven are different ships and planes.

Of each image 300 bytes are in memory: a hash, and the means of 8 x 8 cells. These, less their mean and over their
contrast, are projected to their first 24 principal directions (a projection brings points closer, never apart). All
pairs are compared there in blocks, of images that are in order by their first direction, so that blocks too far apart
there are left out; of what is near, the small images (`data.fingerprints`) are read and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.console import Reporter
from saukit.core.words import shortened
from saukit.core.writing import csv_text, write_text
from saukit.data.fingerprints import Hashes
from saukit.data.images import chunks
from saukit.data.part_files import encodable
from saukit.data.types import Flags, Floats, Images, Integers

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
CONTRAST_FLOOR, BRIGHTNESS_SLACK = 0.1, 0.1  # see `data.pair_distance`
FIRST_NAMES, SAMPLE = 3, 10_000
BLOCK = 2048  # images that are compared with a chunk of others at once
SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))

Read = Callable[[Integers], tuple[Images, Hashes]]


@dataclass(frozen=True)
class Pool:
    """Images of one or more parts of a split, the parts one after the other.

    read(rows) gives their fingerprints: small images uint8 [n, 3, h, h], hashes uint64 [n]. Shapes: parts, rows, labels
    of length n: the part of each image, its row there, its label; files: their names, if they have any.
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
    ours, theirs = _Fingerprints.of(training), _Fingerprints.of(test)
    of_test = _same_pixels(ours.hashes, theirs.hashes)
    two_labels = _same_pixels_other_label(ours.hashes, training.labels)
    if ours.cells is not None and theirs.cells is not None:
        directions = _directions(np.concatenate([ours.sample, theirs.sample]))
        with reporter.progress("looking for copies", 2 * len(training.labels)) as line:
            near = _near(ours, theirs, directions, line.update, flip=flip)
            of_test = _closest([of_test, _checked(near, training.read, test.read)])

            def further(done: int) -> None:
                line.update(len(training.labels) + done)

            near = _near(ours, ours, directions, further, flip=flip, labels=training.labels)
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

    kinds = (OF_TEST, found.of_test, found.test), (TWO_LABELS, found.two_labels, found.training)
    rows = [
        [kind, *cells(found.training, i), *cells(other, j), f"{distance:.4f}"]
        for kind, copies, other in kinds
        for i, j, distance in zip(*(c.tolist() for c in (copies.index, copies.other, copies.distance)), strict=True)
    ]
    write_text(folder / DUPLICATES_NAME, csv_text([COLUMNS, *rows]))


@dataclass(frozen=True)
class _Fingerprints:
    """hashes uint64 [n]; cells uint8 [n, 3, 8, 8], None for small images."""

    hashes: npt.NDArray[np.uint64]
    cells: Images | None

    @classmethod
    def of(cls, pool: Pool) -> _Fingerprints:
        count = len(pool.labels)
        hashes, cells = np.empty(count, np.uint64), None
        for rows in chunks(np.arange(count)):
            images, hashes[rows] = pool.read(rows)
            if images.shape[2] >= SMALLEST_SIDE:
                cells = np.empty((count, 3, CELLS, CELLS), np.uint8) if cells is None else cells
                cells[rows] = _cells(images)
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
    values = cells.reshape(len(cells), 3, CELLS**2).astype(np.float32) / 255
    flat = (values - values.mean(2, keepdims=True)).reshape(len(cells), 3 * CELLS**2)
    contrast = np.sqrt((flat**2).mean(1, keepdims=True))
    described: Floats = flat / ((contrast + CONTRAST_FLOOR) * np.sqrt(np.float32(flat.shape[1])))
    return described


def _directions(cells: Images) -> Floats:
    """The first principal directions of some images' descriptors, float32 [192, 24]: orthonormal."""
    described = _described(cells)
    _, directions = np.linalg.eigh(described.T @ described)
    return directions[:, ::-1][:, :DIRECTIONS].astype(np.float32)


def _near(
    ours: _Fingerprints,
    theirs: _Fingerprints,
    directions: Floats,
    listen: Callable[[int], None],
    *,
    flip: bool,
    labels: Integers | None = None,
) -> _Candidates:
    """Pairs whose descriptors are near; of each of `ours` the nearest 16, or so many under other `labels` than its own.

    Of images with the same pixels (and label) the first stands for all.
    """
    assert ours.cells is not None and theirs.cells is not None
    keys = [theirs.hashes] if labels is None else [theirs.hashes, labels.astype(np.uint64)]
    others = np.unique(np.stack(keys, axis=1), axis=0, return_index=True)[1]
    points = _points(theirs.cells, others, directions)
    order = np.argsort(points[:, 0])
    others, points = others[order], points[order]
    squares = (points**2).sum(1)
    found = [_Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))]
    done = 0
    for mirrored in (False, True) if flip else (False,):
        cells = ours.cells[..., ::-1] if mirrored else ours.cells
        first = _points(cells, np.arange(len(cells)), directions[:, :1])[:, 0]
        for rows in chunks(np.argsort(first)):
            asked = _points(cells, rows, directions)
            pairs = np.empty((3, 0))  # the place in `rows`, in `others`, and the distance
            start, stop = np.searchsorted(points[:, 0], [asked[0, 0] - NEAR, asked[-1, 0] + NEAR])
            for begin in range(start, stop, BLOCK):
                block = slice(begin, min(begin + BLOCK, stop))
                distances = asked @ (-2 * points[block].T)
                distances += (asked**2).sum(1)[:, None] + squares[block]
                if labels is not None:
                    distances[labels[rows][:, None] == labels[others[block]]] = np.inf
                at, place = np.divmod(np.flatnonzero(distances.ravel() < NEAR**2), distances.shape[1])
                pairs = np.concatenate([pairs, [at, place + begin, distances[at, place]]], axis=1)
                pairs = _nearest(pairs)
            at, place = pairs[:2].astype(np.int64)
            index, other = rows[at], others[place]
            close = ((_described(cells[index]) - _described(theirs.cells[other])) ** 2).sum(1) < NEAR**2
            found.append(_Candidates(index[close], other[close], np.full(int(close.sum()), mirrored)))
            done += len(rows)
            listen(done // (2 if flip else 1))
    index, other, flags = zip(*((it.index, it.other, it.mirrored) for it in found), strict=True)
    return _Candidates(np.concatenate(index), np.concatenate(other), np.concatenate(flags))


def _points(cells: Images, rows: Integers, directions: Floats) -> Floats:
    """The projected descriptors of some images, float32 [n, 24]."""
    return np.concatenate([_described(cells[some]) @ directions for some in chunks(rows)])


def _nearest(pairs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of pairs [3, n] (image, other, distance) the 16 nearest of each image."""
    pairs = pairs[:, np.lexsort((pairs[2], pairs[0]))]
    begins = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    ranks = np.arange(pairs.shape[1]) - np.repeat(begins, np.diff(begins, append=pairs.shape[1]))
    return pairs[:, ranks < NEIGHBOURS]


def _checked(near: _Candidates, ours: Read, theirs: Read) -> Copies:
    """The candidates that are copies by all their pixels."""
    distances = [np.empty(0, np.float32)]
    for rows in chunks(np.arange(len(near.index))):
        pixels = (read(at[rows])[0].astype(np.float32) for read, at in ((ours, near.index), (theirs, near.other)))
        a, b = (images / np.float32(255) for images in pixels)
        distances.append(_pair_distance(a, np.where(near.mirrored[rows, None, None, None], b[..., ::-1], b)))
    distance = np.concatenate(distances)
    close = distance < NEAR
    return Copies(near.index[close], near.other[close], distance[close])


def _pair_distance(a: Floats, b: Floats) -> Floats:
    """As `data.pair_distance` has it, without torch, whose import takes more memory than all the rest of `make-lt`."""
    side = a.shape[2]
    best = np.full(len(a), np.inf, np.float32)
    for down, right in SHIFTS:
        ours = a[:, :, max(down, 0) : side + min(down, 0), max(right, 0) : side + min(right, 0)]
        theirs = b[:, :, max(-down, 0) : side + min(-down, 0), max(-right, 0) : side + min(-right, 0)]
        difference = ours - theirs
        change = np.maximum(np.abs(difference.mean((2, 3))) - BRIGHTNESS_SLACK, 0)
        best = np.minimum(best, (difference.var((2, 3)) + change**2).mean(1))
    contrast = np.sqrt((a.var((2, 3)).mean(1) + b.var((2, 3)).mean(1)) / 2)
    distance: Floats = np.sqrt(best) / (contrast + CONTRAST_FLOOR)
    return distance


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
