"""Drawing and scoring the candidates of a round, shard by shard; what is there already is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saukit.core.artifacts import write_json
from saukit.core.console import ProgressLine, Reporter
from saukit.core.interrupts import StopRequest
from saukit.data.synthetic import Shard
from saukit.synthesis.cache import read_shard, write_shard
from saukit.synthesis.generators.table import ImageGenerator
from saukit.synthesis.judging.judges import Score
from saukit.synthesis.plan import Round, SynthesisPlan


@dataclass
class Filler:
    """One process that draws candidates and has them scored; without a `generator` it only scores what is there.

    `times` is the file that keeps this process's seconds of sampling, earlier runs of it included.
    """

    folder: Path
    plan: SynthesisPlan
    generator: ImageGenerator | None
    scores: tuple[Score, ...]
    stop: StopRequest
    reporter: Reporter
    resume_command: str
    times: Path
    _drawn: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)

    def fill(self, part: Round, wanted: Collection[int]) -> None:
        """Make those shards of `part` that are `wanted`, each written when it is whole.

        Raises: Interrupted after a signal, when the batch is finished; the shard it belongs to is lost.
        """
        shards = {index: there for index, there in part.shards.items() if index in wanted}
        total, done = sum(there.stop - there.start for there in shards.values()), 0
        with self.reporter.progress("drawing images", total) as progress:
            for index, there in shards.items():
                shard = self._there(part, index)
                if shard is None:
                    shard = self._draw(part, there, done, progress)
                    write_shard(self.folder, index, self._scored(shard), part)
                elif (scored := self._scored(shard)) is not shard:
                    write_shard(self.folder, index, scored, part)
                done += there.stop - there.start
                progress.update(done, self._rate())

    def _there(self, part: Round, index: int) -> Shard | None:
        digest = None if self.generator is None else self.generator.digest
        return read_shard(self.folder, index, part, self.plan.image_size, generator=digest)

    def _draw(self, part: Round, there: slice, done: int, progress: ProgressLine) -> Shard:
        if self.generator is None:
            raise RuntimeError("a shard is missing, and there is nothing to draw it with")
        images = []
        for batch in part.batches(there):
            if self.stop.requested:
                raise self.stop.interrupted(self.resume_command)
            began = time.monotonic()
            images.append(self.generator.draw(part.labels[batch], part.seeds[batch], part.ordinals[batch]))
            self._drawn += len(images[-1])
            self._seconds += time.monotonic() - began
            progress.update(done + batch.stop - there.start, self._rate())
        earlier = float(json.loads(self.times.read_text("utf-8"))["seconds"]) if self.times.exists() else 0.0
        write_json(self.times, {"seconds": earlier + self._seconds})
        self._seconds, self._drawn = 0.0, 0
        return Shard(np.concatenate(images), part.labels[there], part.seeds[there], self.generator.digest)

    def _scored(self, shard: Shard) -> Shard:
        """The shard with every score by its present judge; the same object if nothing was missing."""
        for score in self.scores:
            if shard.scored_by.get(score.name) != score.digest:
                shard = shard.scored(score.name, score.compute(shard.images, shard.labels), score.digest)
        return shard

    def _rate(self) -> str:
        return f"{self._drawn / self._seconds:.1f} images/s" if self._seconds else ""
