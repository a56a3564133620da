"""Which image of which class has which seed, in which shard and batch: fixed before the first image is made.

Bit-equal images across batch sizes do not exist, even with a random generator per image: a resumed run makes the same
images only if it makes the same batches. Candidates are sampled in rounds: the first is a pure function of the
configuration and of the split's class counts, a later one replaces what the filters rejected and is a pure function of
the scores before it. `plan.json` records the rounds as they were begun.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import check_document, write_json
from saukit.core.documents import START_OVER, read_json
from saukit.core.errors import DataError, UsageError
from saukit.core.machine import slices
from saukit.core.options import check, resolved_as
from saukit.core.seeding import derive_seed
from saukit.core.shapes import COUNT, SOME, Rows, all_of
from saukit.data.images import stored_bytes
from saukit.data.split import Split
from saukit.data.types import Flags, Integers
from saukit.synthesis.config import MOST_TRIES, ResolvedSynthConfig, SynthConfig
from saukit.synthesis.generators.table import find_generator
from saukit.synthesis.judging.selection import first_round

PLAN_NAME = "plan.json"
# A shard is what a stop can cost: half a minute of a CPU's work. Large caches have larger shards, not thousands.
MIN_SHARD_IMAGES, MIN_SHARDS, MAX_SHARDS = 512, 8, 256
HEADER_BYTES = 4096
_SHAPE = {**all_of("batch_images shard_images", SOME), "closed": bool, "rounds": Rows("rounds", Rows("K", COUNT))}
SCORE_BYTES = 4 * 3


@dataclass(frozen=True)
class Round:
    """Candidates that are sampled together; n in all.

    `labels`, `seeds` and `ordinals` int64 [n] are in the order of the cache: class by class; an ordinal is the
    candidate's number within its class, over all rounds. `shard_images` is a multiple of the batch, the last shard may
    be shorter.
    """

    labels: Integers
    seeds: Integers
    ordinals: Integers
    first_shard: int
    batch_images: int
    shard_images: int

    @property
    def total(self) -> int:
        """Candidates of the round."""
        return len(self.labels)

    @property
    def shards(self) -> dict[int, slice]:
        """The candidates of each shard, by the shard's number in the cache."""
        return dict(enumerate(slices(self.total, self.shard_images), self.first_shard))

    def batches(self, shard: slice) -> Iterator[slice]:
        """The candidates of each batch of `shard`; the last batch may be shorter."""
        for at in range(shard.start, shard.stop, self.batch_images):
            yield slice(at, min(at + self.batch_images, shard.stop))

    @property
    def digest(self) -> str:
        """SHA-256 of labels, seeds and batches: two rounds with the same digest hold the same images."""
        sha = hashlib.sha256(f"{self.first_shard} {self.batch_images} {self.shard_images}".encode())
        for values in (self.labels, self.seeds, self.ordinals):
            sha.update(values.astype("<i8").tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class SynthesisPlan:
    """What `synth` will make; K classes.

    `real_counts` and `wanted` (synthetic images per class) int64 [K]. `closed`: no round comes after the last one,
    whatever it leaves missing.
    """

    config: ResolvedSynthConfig
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    real_counts: Integers
    wanted: Integers
    batch_images: int
    shard_images: int
    rounds: tuple[Round, ...] = ()
    closed: bool = False

    @property
    def total(self) -> int:
        """Candidates of all rounds so far."""
        return sum(part.total for part in self.rounds)

    @property
    def labels(self) -> Integers:
        """The class of every candidate, int64 [total], in the order of the cache."""
        return np.concatenate([part.labels for part in self.rounds])

    @property
    def generated(self) -> Integers:
        """Candidates of each class so far, int64 [K]."""
        return self.count(np.ones(self.total, np.bool_))

    def count(self, chosen: Flags) -> Integers:
        """How many of the `chosen` candidates [total] are of each class, int64 [K]."""
        return np.bincount(self.labels[chosen], minlength=len(self.classes)).astype(np.int64)

    @property
    def shard_count(self) -> int:
        """Shards of all rounds so far."""
        return sum(len(part.shards) for part in self.rounds)

    @property
    def bytes(self) -> int:
        """Size of all shards so far on disk, headers included."""
        images = stored_bytes(self.total, max(self.image_size))
        return images + self.total * (16 + SCORE_BYTES) + HEADER_BYTES * self.shard_count

    def with_round(self, counts: Integers) -> SynthesisPlan:
        """The plan with one more round of `counts` [K] candidates."""
        before = self.generated if self.rounds else np.zeros(len(self.classes), dtype=np.int64)
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        ordinals = np.concatenate([before[c] + np.arange(n, dtype=np.int64) for c, n in enumerate(counts)])
        seeds = [
            derive_seed(self.config.seed, "image", c, i)
            for c, i in zip(labels.tolist(), ordinals.tolist(), strict=True)
        ]
        new = Round(
            labels, np.array(seeds, dtype=np.int64), ordinals, self.shard_count, self.batch_images, self.shard_images
        )
        return dataclasses.replace(self, rounds=(*self.rounds, new))

    def save(self, folder: Path) -> None:
        """Write plan.json, atomically."""
        counts = [np.bincount(part.labels, minlength=len(self.classes)).tolist() for part in self.rounds]
        write_json(
            folder / PLAN_NAME,
            {
                "batch_images": self.batch_images,
                "shard_images": self.shard_images,
                "rounds": counts,
                "closed": self.closed,
            },
        )


def load_plan(folder: Path, plan: SynthesisPlan) -> SynthesisPlan:
    """The outline `plan` with the rounds that plan.json in `folder` records.

    Raises: CorruptArtifactError if the file is not there or does not fit the configuration beside it.
    """
    path = folder / PLAN_NAME
    document = read_json(path, remedy=START_OVER)

    def too_many(document: dict[str, Any]) -> Iterator[str]:
        candidates = np.sum(document["rounds"], axis=0)
        if not candidates.any() or (candidates > MOST_TRIES * plan.wanted).any():
            yield f"its rounds have {candidates.tolist()} candidates for {plan.wanted.tolist()} images"

    check_document(document, _SHAPE, path, remedy=START_OVER, known={"K": plan.classes}, also=too_many)
    batch_images, shard_images, closed = (document[name] for name in ("batch_images", "shard_images", "closed"))
    frozen = dataclasses.replace(plan, batch_images=batch_images, shard_images=shard_images, rounds=(), closed=closed)
    for counts in document["rounds"]:
        frozen = frozen.with_round(np.array(counts, np.int64))
    return frozen


def resolve(config: SynthConfig, split: Split, device: torch.device) -> ResolvedSynthConfig:
    """`config` with nothing left open for `split` on `device`; resolving again changes nothing.

    Raises: UsageError that lists every value out of its limits, every option without effect and what is missing.
    """
    generator = find_generator(config.generator)
    problems = [*generator.problems(config)]
    if config.filter == "aid" and config.min_distance >= config.max_distance:
        problems.append(f"min_distance must be below max_distance {config.max_distance:g}, got {config.min_distance:g}")
    check(config, *problems)
    values = {"per_class_target": int(split.class_counts.max()), **generator.settle(config, split, device)}
    return resolved_as(generator.resolved, config, values)


def outline(config: ResolvedSynthConfig, split: Split) -> SynthesisPlan:
    """What is to be made for `split`, and no round yet: real + synthetic images are to reach the target.

    Raises: UsageError for a target that needs no image, DataError for a class without a real image to learn from.
    """
    wanted = np.maximum(config.per_class_target - split.class_counts, 0).astype(np.int64)
    _check_counts(config.per_class_target, split.class_counts, wanted, split.classes)
    return SynthesisPlan(
        config=config,
        classes=split.classes,
        image_size=split.image_size,
        real_counts=split.class_counts.astype(np.int64),
        wanted=wanted,
        batch_images=config.sample_batch_size,
        shard_images=_shard_images(int(wanted.sum()), config.sample_batch_size),
    )


def begin(plan: SynthesisPlan, *, capacity: Integers | None = None) -> SynthesisPlan:
    """An outline with its first round; `capacity` [K]: images that there are of each class, None for no limit.

    Raises: DataError if there are none.
    """
    counts = first_round(plan.wanted, capacity=capacity)
    if not counts.any():
        needy = [name for name, count in zip(plan.classes, plan.wanted, strict=True) if count]
        raise DataError(f"the folder holds no image of a class that needs one ({', '.join(needy)})")
    return plan.with_round(counts)


def _shard_images(total: int, batch: int) -> int:
    """A multiple of `batch`: about 512, less if that gave under 8 shards, more if it gave over 256."""
    small = max(1, round(min(MIN_SHARD_IMAGES, total / MIN_SHARDS) / batch))
    return batch * max(small, math.ceil(total / MAX_SHARDS / batch))


def _check_counts(target: int, real: Integers, wanted: Integers, classes: Sequence[str]) -> None:
    empty = [name for name, count in zip(classes, real, strict=True) if count == 0]
    if empty:
        raise DataError(f"no real training image of {', '.join(empty)}: a generator cannot learn a class it never saw")
    if not wanted.any():
        smallest, largest = int(real.min()), int(real.max())
        there = (
            f"every class has {largest} real images"
            if smallest == largest
            else f"the smallest class has {smallest} real images already, the largest {largest}"
        )
        raise UsageError(
            f"per_class_target {target} needs no synthetic image: {there}; "
            f"give a --per-class-target above {max(smallest, 1) if smallest < largest else largest}"
        )
