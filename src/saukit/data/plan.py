"""From a configuration and a source to the images of each part of a split; nothing is decoded or written here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.words import shortened
from saukit.data.config import ResolvedSplitConfig, SplitConfig, resolve, settled
from saukit.data.decoding import common_white_level
from saukit.data.groups import KEEP_APART, group_keys, grouped_part
from saukit.data.images import stored_bytes
from saukit.data.long_tail import (
    class_counts,
    fitting_counts,
    named_classes,
    named_counts,
    select_ldam,
    stratified_part,
)
from saukit.data.shots import ShotGroups, shot_groups
from saukit.data.source import Pixels, Source
from saukit.data.sources.table import open_source
from saukit.data.types import Flags, Integers

SQUARE_SHARE_SAID = 0.8  # below it a person should know what is cut off
BYTES_BESIDE_IMAGES = 1 << 20  # chart, configuration, headers


@dataclass(frozen=True)
class Choice:
    """Positions in the source: each part in the order of the part of the source that it is taken from."""

    train: Integers
    val: Integers
    test: Integers


@dataclass(frozen=True)
class SplitPlan:
    """What `make_split` would write: `config` with every field resolved, and images of each class and part.

    source: without the classes that are left out. notes, warnings: a line each.
    """

    config: ResolvedSplitConfig
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    groups: ShotGroups
    bytes: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    source: Source = field(compare=False, repr=False)
    choice: Choice = field(compare=False)

    def tell(self, reporter: Reporter, *, told: SplitPlan | None = None) -> None:
        """Say what the source and the choice are like, but for what `told` said."""
        for note in self.notes:
            if told is None or note not in told.notes:
                reporter.say(note)
        for warning in self.warnings:
            if told is None or warning not in told.warnings:
                reporter.warn(warning)

    @property
    def summary(self) -> dict[str, Any]:
        """The plan as a JSON-able document; it stands in the manifest too."""
        return {
            "source": self.config.dataset,
            "image_size": self.config.image_size,
            "classes": list(self.classes),
            "counts": list(self.train_counts),
            "train_images": sum(self.train_counts),
            "val_images": sum(self.val_counts),
            "test_images": sum(self.test_counts),
            "imb_reached": max(self.train_counts) / min(self.train_counts),
            "groups_rule": self.groups.rule,
            "groups": {name: [self.classes[i] for i in members] for name, members in self.groups.members.items()},
            "bytes": self.bytes,
        }


def plan_split(config: SplitConfig, root: Path | None) -> SplitPlan:
    """What `make_split` would write; opens the source, decodes no image but those of 16 bits, and writes nothing.

    Raises: UsageError or DataError, as `make_split` would, except for images that only decoding shows to be bad.
    """
    config = settled(config)
    source = open_source(config, root)
    return plan_of(resolved_for(config, source), source)


def resolved_for(config: SplitConfig, source: Source) -> ResolvedSplitConfig:
    """The settled `config` with what only the source shows, and counts by the names of its classes, in their order."""
    if config.counts is not None:
        found = named_classes(config.counts, source.classes)
        named = {source.classes[index]: config.counts[key] for key, index in sorted(found.items(), key=lambda i: i[1])}
        config = replace(config, counts=named)
    if config.white_level is None and source.originals is not None:
        config = replace(config, white_level=common_white_level(source.originals))
    return resolve(
        config,
        image_size=source.image_size,
        test_set=source.test_labels is not None,
        val_set=source.val_labels is not None,
    )


def without_small_classes(source: Source, least: int, pixels: Pixels | None = None) -> tuple[Source, list[str]]:
    """`source` without the classes that have fewer than `least` training images that can be read, and their names with
    these numbers. Raises: DataError if fewer than two classes are left."""
    readable = _readable("train", source.train_labels, pixels)
    counts = class_counts(source.train_labels[readable], len(source.classes))
    kept = np.flatnonzero(counts >= least)
    if len(kept) < 2:
        raise DataError(
            f"min_images {least} leaves {len(kept)} of {len(source.classes)} classes, and there have to be two: "
            f"the second largest has {np.sort(counts)[-2]} images"
        )
    to = np.full(len(source.classes), -1, np.int64)
    to[kept] = np.arange(len(kept))
    gone = [f"{name} ({count})" for name, count in zip(source.classes, counts, strict=True) if count < least]
    reduced = replace(
        source,
        classes=tuple(source.classes[index] for index in kept),
        train_labels=to[source.train_labels],
        test_labels=None if source.test_labels is None else to[source.test_labels],
        val_labels=None if source.val_labels is None else to[source.val_labels],
    )
    return reduced, gone


def choose(config: ResolvedSplitConfig, source: Source, pixels: Pixels | None = None) -> Choice:
    """Which images go where, among those that can be read (all, while `pixels` is None)."""
    num_classes = len(source.classes)
    keys = group_keys(source, config.group_by)

    def parted(positions: Integers, fraction: float, purpose: str) -> tuple[Integers, Integers]:
        labels = source.train_labels[positions]
        if keys is None:
            rest, part = stratified_part(labels, fraction, num_classes, seed=config.seed, purpose=purpose)
        else:
            of_group = [keys["train"][position] for position in positions]
            rest, part = grouped_part(labels, of_group, fraction, num_classes, seed=config.seed, purpose=purpose)
        return positions[rest], positions[part]

    pool = _readable("train", source.train_labels, pixels)
    _need_images(source.classes, source.train_labels[pool])
    if source.test_labels is None:
        labels = source.train_labels[pool]
        assert config.test_fraction is not None
        pool, test = parted(pool, config.test_fraction, "test part")
        if keys is not None:
            _need_groups(source.classes, source.train_labels, pool, test)
    else:
        test = _readable("test", source.test_labels, pixels)
    if not len(test):
        raise DataError("there is no test image: no class has two images, or none of the test set can be read")
    labels = source.train_labels[pool]
    available = class_counts(labels, num_classes)
    if config.profile == "none":
        train = pool
    else:
        if config.counts is not None:
            counts = named_counts(config.counts, source.classes, available)
        else:
            assert config.imb is not None
            counts = fitting_counts(config.profile, config.imb, available)
        train = pool[select_ldam(labels, counts, config.seed)]
    val = train[:0] if source.val_labels is None else _readable("val", source.val_labels, pixels)
    if config.val_fraction > 0:
        train, val = parted(train, config.val_fraction, "val part")
        if not len(val):
            of = "images" if keys is None else "groups"
            raise DataError(f"no class has two {of}, so none can give one to the validation part: leave it out")
        if keys is not None:
            _need_images(source.classes, source.train_labels[train])  # whole groups went to the validation part
    return Choice(train, val, test)


def _readable(part: str, labels: Integers, pixels: Pixels | None) -> Integers:
    """Positions of the images of a part that can be read and whose class is not left out."""
    there = labels >= 0
    return np.flatnonzero(there if pixels is None else there & pixels.ok[part])


def _need_images(classes: tuple[str, ...], labels: Integers) -> None:
    counts = class_counts(labels, len(classes))
    if short := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(
            f"each class needs at least 1 readable image to train on; none in: {shortened(short)}; "
            "add images, or leave such classes out with --min-images 1"
        )


def _need_groups(classes: tuple[str, ...], labels: Integers, train: Integers, test: Integers) -> None:
    """Raises: DataError if a class has images on one side only."""
    counts = [class_counts(labels[part], len(classes)) for part in (train, test)]
    if short := [
        f"{name} ({a} and {b})" for name, a, b in zip(classes, *counts, strict=True) if not a or (not b and a > 1)
    ]:
        raise DataError(
            "groups cannot be kept on one side with images of each class to train on and to test on; with the nearest "
            f"shares these have: {shortened(short)}; add groups to these classes, or {KEEP_APART}"
        )


def plan_of(config: ResolvedSplitConfig, source: Source, pixels: Pixels | None = None) -> SplitPlan:
    """The plan for the images that can be read."""
    notes, warnings = [*source.notes], [*source.warnings]
    if config.min_images:
        source, gone = without_small_classes(source, config.min_images, pixels)
        if gone:
            notes.append(f"classes with fewer than {config.min_images} training images are left out: {shortened(gone)}")
    choice = choose(config, source, pixels)
    train, val, test = _counts(source, choice)
    images = sum((*train, *val, *test))
    if untested := [name for name, count in zip(source.classes, test, strict=True) if not count]:
        warnings.append(f"classes without a test image, whose accuracy will be absent: {shortened(untested)}")
    share = 1.0 if source.originals is None or config.fit != "crop" else source.originals.square_share
    if share < SQUARE_SHARE_SAID:
        notes.append(
            f"the centre square keeps {100 * share:.0f} % of the pictures on average; --fit pad keeps all of them"
        )
    if config.white_level is not None:
        notes.append(f"16-bit images: {config.white_level:,} is white in all of them; --white-level sets another value")
    if (keys := group_keys(source, config.group_by)) is not None:
        notes += (f"{len(set().union(*keys.values()))} groups, each in one part",)
    return SplitPlan(
        config=config,
        classes=source.classes,
        train_counts=train,
        val_counts=val,
        test_counts=test,
        groups=shot_groups(train, config.groups),
        bytes=images * 16 + stored_bytes(images, config.image_size) + BYTES_BESIDE_IMAGES,
        notes=tuple(notes),
        warnings=tuple(warnings),
        source=source,
        choice=choice,
    )


def _counts(source: Source, choice: Choice) -> list[tuple[int, ...]]:
    """The images of each class in the training, validation and test part."""
    return [
        tuple(class_counts(source.pool(part)[1][positions], len(source.classes)).tolist())
        for part, positions in vars(choice).items()
    ]


def without(plan: SplitPlan, kept: Flags) -> SplitPlan:
    """The plan with those of its training images alone, the validation part after them, that are `kept`, bool [n].

    Raises: DataError if a class has none left to train on.
    """
    count, source = len(plan.choice.train), plan.source
    choice = replace(plan.choice, train=plan.choice.train[kept[:count]], val=plan.choice.val[kept[count:]])
    train, val, _ = _counts(source, choice)
    if gone := [name for name, left in zip(source.classes, train, strict=True) if not left]:
        raise DataError(
            f"drop_duplicates leaves no training image of: {shortened(gone)}; fix the labels, or leave it out"
        )
    groups = shot_groups(train, plan.config.groups)
    return replace(plan, choice=choice, train_counts=train, val_counts=val, groups=groups)
