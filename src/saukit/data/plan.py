"""From a configuration and a source to the images of each part of a split; nothing is decoded or written here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from saukit.core.errors import DataError
from saukit.core.words import shortened
from saukit.data.config import ResolvedSplitConfig, SplitConfig, resolve, settled
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
from saukit.data.types import Integers

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
    """What `make_split` would write: `config` with every field resolved, and images of each class and part."""

    config: ResolvedSplitConfig
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    groups: ShotGroups
    bytes: int
    notes: tuple[str, ...]
    choice: Choice = field(compare=False)

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
    """What `make_split` would write; opens the source but decodes no image and writes nothing.

    Raises: UsageError or DataError, as `make_split` would, except for images that only decoding shows to be bad.
    """
    config = settled(config)
    source = open_source(config, root)
    resolved = resolved_for(config, source)
    return plan_of(resolved, source)


def resolved_for(config: SplitConfig, source: Source) -> ResolvedSplitConfig:
    """The settled `config` with what only the source shows, and counts by the names of its classes, in their order."""
    if config.counts is not None:
        found = named_classes(config.counts, source.classes)
        named = {source.classes[index]: config.counts[key] for key, index in sorted(found.items(), key=lambda i: i[1])}
        config = replace(config, counts=named)
    return resolve(
        config,
        image_size=source.image_size,
        test_set=source.test_labels is not None,
        val_set=source.val_labels is not None,
    )


def choose(config: ResolvedSplitConfig, source: Source, pixels: Pixels | None = None) -> Choice:
    """Which images go where, among those that can be read (all, while `pixels` is None)."""
    num_classes = len(source.classes)

    def readable(part: str, labels: Integers) -> Integers:
        return np.arange(len(labels)) if pixels is None else np.flatnonzero(pixels.ok[part])

    keys = group_keys(source, config.group_by)

    def parted(positions: Integers, fraction: float, purpose: str) -> tuple[Integers, Integers]:
        labels = source.train_labels[positions]
        if keys is None:
            rest, part = stratified_part(labels, fraction, num_classes, seed=config.seed, purpose=purpose)
        else:
            of_group = [keys["train"][position] for position in positions]
            rest, part = grouped_part(labels, of_group, fraction, num_classes, seed=config.seed, purpose=purpose)
        return positions[rest], positions[part]

    pool = readable("train", source.train_labels)
    _need_images(source.classes, source.train_labels[pool])
    if source.test_labels is None:
        labels = source.train_labels[pool]
        assert config.test_fraction is not None
        pool, test = parted(pool, config.test_fraction, "test part")
        if keys is not None:
            _need_groups(source.classes, source.train_labels, pool, test)
    else:
        test = readable("test", source.test_labels)
    if not len(test):
        raise DataError("no class has two readable images, so none can give one to the test set: add images")
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
    val = train[:0] if source.val_labels is None else readable("val", source.val_labels)
    if config.val_fraction > 0:
        train, val = parted(train, config.val_fraction, "val part")
        if not len(val):
            of = "images" if keys is None else "groups"
            raise DataError(f"no class has two {of}, so none can give one to the validation part: leave it out")
        if keys is not None:
            _need_images(source.classes, source.train_labels[train])  # whole groups went to the validation part
    return Choice(train, val, test)


def _need_images(classes: tuple[str, ...], labels: Integers) -> None:
    counts = class_counts(labels, len(classes))
    if short := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(
            f"each class needs at least 1 readable image to train on; none in: {shortened(short)}; "
            "add images, or remove these classes"
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
    choice = choose(config, source, pixels)
    counts = [
        tuple(class_counts(source.pool(part)[1][positions], len(source.classes)).tolist())
        for part, positions in (("train", choice.train), ("val", choice.val), ("test", choice.test))
    ]
    images, notes = sum(map(sum, counts)), source.notes
    if untested := [name for name, count in zip(source.classes, counts[2], strict=True) if not count]:
        notes += (f"classes without a test image, whose accuracy will be absent: {shortened(untested)}",)
    share = 1.0 if source.originals is None or config.fit != "crop" else source.originals.square_share
    if share < SQUARE_SHARE_SAID:
        notes += (
            f"the centre square keeps {100 * share:.0f} % of the pictures on average; --fit pad keeps all of them",
        )
    if (keys := group_keys(source, config.group_by)) is not None:
        notes += (f"{len(set().union(*keys.values()))} groups, each in one part",)
    return SplitPlan(
        config=config,
        classes=source.classes,
        train_counts=counts[0],
        val_counts=counts[1],
        test_counts=counts[2],
        groups=shot_groups(counts[0], config.groups),
        bytes=images * 16 + stored_bytes(images, config.image_size) + BYTES_BESIDE_IMAGES,
        notes=notes,
        choice=choice,
    )
