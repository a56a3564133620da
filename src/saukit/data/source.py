"""What a data source is: a row of the table in `sources/table.py`, and what opening it gives.

A `Source` knows its labels at once; its pixels are loaded only when a split is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from saukit.core.console import Reporter
    from saukit.data.fingerprints import Hashes
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Flags, Images, Integers

Channels = tuple[float, ...]  # red, green, blue
IMAGE_SIZES = (4, 1024)  # pixels per side that a split may have


@dataclass(frozen=True)
class Pixels:
    """The decoded images of a source.

    read(part, positions, size) returns uint8 [n, 3, size, size] for `part` "train", and "test" and "val" where there
    are such parts. ok: which images of each part could be read, bool [N]; bad: (file, reason) of those that could not.
    one_colour: files whose images have a single colour. fingerprints(part, positions): as `data.fingerprints` has them,
    where they are there without reading the images.
    """

    read: Callable[[str, Integers, int], Images]
    ok: Mapping[str, Flags]
    bad: tuple[tuple[str, str], ...] = ()
    one_colour: tuple[str, ...] = ()
    fingerprints: Callable[[str, Integers], tuple[Images, Hashes]] | None = None


@dataclass(frozen=True)
class Originals:
    """The image files of a source, to be decoded one by one.

    counts: how many each part has; open, name: what decoding reads, and the name for messages, of part and index;
    announce: says what lies there besides images; square_share: how much of a picture its centre square is, on average.
    """

    counts: Mapping[str, int]
    open: Callable[[str, int], Path | BinaryIO]
    name: Callable[[str, int], str]
    announce: Callable[[Reporter], None]
    square_share: float = 1.0

    def each(self) -> list[tuple[str, int]]:
        """Part and index of every image, in the source's order."""
        return [(part, index) for part, count in self.counts.items() for index in range(count)]

    def starts(self) -> dict[str, int]:
        """Where each part begins in that order."""
        return dict(zip(self.counts, itertools.accumulate(self.counts.values(), initial=0), strict=False))

    def pixels(
        self,
        read: Callable[[str, Integers, int], Images],
        bad: Mapping[int, str],
        one_colour: Sequence[int],
        fingerprints: Callable[[str, Integers], tuple[Images, Hashes]],
    ) -> Pixels:
        """What decoding found, by positions in that order."""
        import numpy as np

        each, starts = self.each(), self.starts()
        ok = np.ones(len(each), bool)
        ok[list(bad)] = False
        return Pixels(
            read,
            {part: ok[starts[part] : starts[part] + count] for part, count in self.counts.items()},
            tuple((self.name(*each[position]), reason) for position, reason in bad.items()),
            tuple(self.name(*each[position]) for position in one_colour if position not in bad),
            fingerprints,
        )


@dataclass(frozen=True)
class Source:
    """A data set before anything is chosen from it.

    train_labels int64 [N]; test_labels int64 [M], None if the source has no test set of its own; val_labels int64 [V],
    None if it has no validation part of its own. Each part has an order of its own.
    image_size: pixels per side that its images suggest, with the reason where that was a decision.
    fingerprint: identifies files that may change under the same name; None where the name says it all.
    load(image_size, reporter) gives the images of a source of arrays, None of one of files.
    files() names the files of each part ("train", "test", "val") relative to the root, in the part's order; None where
    images have no files. originals: the images as files, whatever holds them; None where they are arrays.
    groups: what each image of each part belongs to (a patient, a video), where a column says it.
    notes, warnings: what opening found, a line each, such as what each part is taken from.
    A label of -1 is an image of a class that is left out.
    """

    classes: tuple[str, ...]
    train_labels: Integers
    test_labels: Integers | None
    image_size: int
    load: Callable[[int, Reporter], Pixels] | None
    size_reason: str | None = None
    fingerprint: str | None = None
    val_labels: Integers | None = None
    files: Callable[[], Mapping[str, Sequence[str]]] | None = None
    originals: Originals | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def pool(self, part: str) -> tuple[str, Integers]:
        """The part of the source that `part` of a split is taken from, and its labels: the training part, where the
        source has no `part` of its own."""
        labels = {"test": self.test_labels, "val": self.val_labels}.get(part)
        return ("train", self.train_labels) if labels is None else (part, labels)


@dataclass(frozen=True)
class Known:
    """A row of the table of sources: what is known of one before it is opened.

    open(config, root): the source at `root` as `config` wants it; raises DataError if it
    cannot be read. `embedded`: it has none.
    image_size: pixels per side. test_set: whether it has a test set of its own. None: only opening it shows that.
    flip: whether a mirrored image keeps its class. mean, std: the customary ones, or None: computed from the split.
    own_files: image files of the user's, which may be damaged. imbalanced: kept as it is unless a profile is asked for.
    """

    open: Callable[[SourceConfig, Path], Source]
    image_size: int | None
    flip: bool
    mean: Channels | None = None
    std: Channels | None = None
    test_set: bool | None = True
    embedded: bool = False
    own_files: bool = False
    imbalanced: bool = False
