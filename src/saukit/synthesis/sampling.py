"""Sampling and scoring the candidates of a plan, shard by shard, and choosing among them; what is there is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saukit.core.console import Reporter
from saukit.core.interrupts import StopRequest
from saukit.data.images import RAW_UP_TO
from saukit.data.synthetic import Shard
from saukit.data.types import Images
from saukit.synthesis.cache import load_scores, read_shard, write_shard
from saukit.synthesis.generators.protocol import ImageGenerator
from saukit.synthesis.jobs import Job
from saukit.synthesis.judging.judges import COPY_DISTANCE, Judges, Score, rules_of
from saukit.synthesis.judging.selection import Selection, more_candidates, select
from saukit.synthesis.plan import Round, SynthesisPlan
from saukit.training.distributed import is_first, rank, size, total, wait_for_all

LEAST_GAIN = 1.05  # doubling the batch has to raise images/s by a twentieth, or it only costs memory
FIRST, LARGEST = 8, 1024


@dataclass
class Rate:
    """How fast this process samples."""

    images: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float | None:
        """None before the first batch."""
        return self.images / self.seconds if self.seconds else None

    def of_all(self) -> Rate:
        """The images of all processes in this one's time."""
        if size() == 1:
            return self
        return Rate(int(total(torch.tensor(self.images))), self.seconds)

    def __str__(self) -> str:
        return f"{self.images / self.seconds:.1f} images/s" if self.seconds else ""


def sample_rounds(
    folder: Path,
    plan: SynthesisPlan,
    generator: ImageGenerator,
    judges: Judges,
    *,
    rate: Rate,
    stop: StopRequest,
    reporter: Reporter,
) -> tuple[SynthesisPlan, Selection]:
    """Sample, score and choose, round by round, until the target is met or `max_tries` is reached.

    Of several processes each makes its shards, which are whole batches: the bits of an image depend on its batch.
    Returns the plan with all its rounds, and what became of their candidates.
    """
    job = Job(rank(), size())
    while True:
        for part in plan.rounds:
            shards = job.shards(part)
            sample_shards(folder, plan, part, shards, generator, judges.scores, rate, stop=stop, reporter=reporter)
        wait_for_all()
        selection = choose(folder, plan, judges)
        kept = plan.count(selection.kept)
        further = more_candidates(
            plan.wanted, plan.generated, kept, max_tries=plan.config.max_tries, capacity=generator.capacity
        )
        if not further.any():
            return plan, selection
        reporter.say(
            f"{plan.total - int(kept.sum()):,} of {plan.total:,} images rejected; sampling {further.sum():,} more"
        )
        plan = plan.with_round(further)
        if is_first():
            plan.save(folder)


def sample_shards(
    folder: Path,
    plan: SynthesisPlan,
    part: Round,
    indices: Collection[int],
    generator: ImageGenerator,
    scores: Sequence[Score],
    rate: Rate,
    *,
    stop: StopRequest,
    reporter: Reporter,
) -> None:
    """Make those shards of the round `part` that are among `indices`, each written when it is whole.

    Raises: Interrupted after a signal, when the batch is finished; the shard it belongs to is lost.
    """
    shards = {index: there for index, there in part.shards.items() if index in indices}
    total, done = sum(there.stop - there.start for there in shards.values()), 0
    with reporter.progress("sampling images", total) as progress:
        for index, there in shards.items():
            found = shard = read_shard(folder, index, part, plan.image_size, generator=generator.digest)
            if shard is None:
                images = []
                for batch in part.batches(there):
                    if stop.requested:
                        raise stop.interrupted()
                    began = time.monotonic()
                    images.append(generator.sample(part.labels[batch], part.seeds[batch], part.ordinals[batch]))
                    rate.seconds += time.monotonic() - began
                    rate.images += len(images[-1])
                    progress.update(done + batch.stop - there.start, str(rate))
                shard = Shard(np.concatenate(images), part.labels[there], part.seeds[there], generator.digest)
                if max(plan.image_size) > RAW_UP_TO:  # judged as they are kept: decoded again
                    write_shard(folder, index, shard, part)
                    found = shard = read_shard(folder, index, part, plan.image_size, generator=generator.digest)
                    assert shard is not None
            if (scored := _scored(shard, scores)) is not found:
                write_shard(folder, index, scored, part)
            done += there.stop - there.start
            progress.update(done, str(rate))


def score_shards(folder: Path, plan: SynthesisPlan, scores: Sequence[Score]) -> list[int]:
    """Score the shards that are there; returns the numbers of those that are not, or are damaged."""
    missing = []
    for part in plan.rounds:
        for index in part.shards:
            shard = read_shard(folder, index, part, plan.image_size, generator=None)
            if shard is None:
                missing.append(index)
            elif (scored := _scored(shard, scores)) is not shard:
                write_shard(folder, index, scored, part)
    return missing


def choose(folder: Path, plan: SynthesisPlan, judges: Judges) -> Selection:
    """Which candidates of the plan are kept, by the rules of its configuration."""
    rules = rules_of(plan.config)
    scores = load_scores(folder, plan, [*rules.needed_scores, *([COPY_DISTANCE] if rules.reject_copies else [])])
    is_copy = scores[COPY_DISTANCE] < judges.copies.threshold if rules.reject_copies else None
    return select(plan.labels, plan.wanted, scores, rules, is_copy=is_copy)


def _scored(shard: Shard, scores: Sequence[Score]) -> Shard:
    """The shard with every score by its present judge; the same object if nothing was missing."""
    images: Images | None = None
    for score in scores:
        if shard.scored_by.get(score.name) != score.digest:
            images = np.asarray(shard.images) if images is None else images
            shard = shard.scored(score.name, score.compute(images, shard.labels), score.digest)
    return shard


def find_batch_size(seconds: Callable[[int], float], *, first: int = FIRST, largest: int = LARGEST) -> int:
    """The batch beyond which images/s hardly rise or memory does not suffice: `first`, doubled as often as it pays.

    `seconds(n)` samples a batch of n images, twice if the first time warms up, and returns how long the last one took.
    Raises: torch.OutOfMemoryError if not even one image fits.
    """
    best, rate = None, 0.0
    size = first
    while size <= largest:
        try:
            found = size / seconds(size)
        except torch.OutOfMemoryError:
            if best is not None or size == 1:
                break
            size = largest = size // 2  # not even the first fits: look downwards
            continue
        if best is not None and found < LEAST_GAIN * rate:
            break
        best, rate = size, found
        size *= 2
    if best is None:
        raise torch.OutOfMemoryError("not even one image at a time fits into the device's memory")
    return best
