"""How long `synth` will take, from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from saukit.synthesis.generators.diffusion_model import is_guided, solver_times
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.plan import SynthesisPlan


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds that the whole of `synth` takes from the beginning."""

    train_seconds: float
    sample_seconds: float

    @property
    def total_seconds(self) -> float:
        """Training and sampling."""
        return self.train_seconds + self.sample_seconds


def measure(plan: SynthesisPlan, trainer: GeneratorTrainer) -> TimeEstimate:
    """Measure three training steps and two short drawings of the first batch.

    It changes the weights: `trainer` must not be used for anything else.
    """
    step_seconds = _best_seconds(lambda: float(trainer.train_step()), 3)
    part = plan.rounds[0]
    first = next(part.batches(slice(0, part.total)))
    pass_seconds = (
        _best_seconds(lambda: trainer.draw(part.labels[first], part.seeds[first], steps=2, guidance=1.0), 2) / 2
    )
    guidance, steps = plan.config.guidance, plan.config.sampler_steps
    assert guidance is not None and steps is not None
    passes = sum(2 if is_guided(t, guidance) else 1 for t in solver_times(steps))
    images = plan.total / (first.stop - first.start)
    return TimeEstimate(step_seconds * trainer.total_steps, pass_seconds * passes * images)


def _best_seconds(work: Callable[[], object], times: int) -> float:
    """The quickest of `times` runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
