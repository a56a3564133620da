"""How long `synth` will take, from a few measured steps; nothing is written."""

import time
from dataclasses import dataclass

import torch

from saukit.core.ranks import job_size
from saukit.core.words import format_duration
from saukit.core.workspace import Workspace
from saukit.synthesis.generators.protocol import ImageGenerator, Trainable
from saukit.synthesis.judging.judges import judge_to_train
from saukit.synthesis.plan import SynthesisPlan
from saukit.training.estimate import estimate_seconds as training_seconds


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of the parts of `synth` from the beginning; 0 for a part that is not needed."""

    judge_seconds: float
    train_seconds: float
    sample_seconds: float

    @property
    def total_seconds(self) -> float:
        """All parts together."""
        return self.judge_seconds + self.train_seconds + self.sample_seconds

    def __str__(self) -> str:
        parts = {
            "training the judge": self.judge_seconds,
            "training the generator": self.train_seconds,
            "sampling": self.sample_seconds,
        }
        return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in parts.items() if seconds)


def estimate(
    plan: SynthesisPlan, generator: ImageGenerator | Trainable, workspace: Workspace, device: torch.device
) -> TimeEstimate:
    """Measure a few training steps of the judge and the generator, if they are to be trained, and one batch.

    Several processes share the sampling, and the training as far as a batch has parts; exchanges are not counted.
    """
    judge = judge_to_train(plan.config, workspace, device)
    judge_seconds = 0.0 if judge is None else training_seconds(judge)
    part = plan.rounds[0]
    first = next(part.batches(slice(0, part.total)))
    labels, seeds, ordinals = part.labels[first], part.seeds[first], part.ordinals[first]
    train_seconds = 0.0
    if isinstance(generator, Trainable):
        train_seconds, batch_seconds = generator.estimate_seconds(labels, seeds)
    else:
        began = time.perf_counter()
        generator.sample(labels, seeds, ordinals)
        batch_seconds = time.perf_counter() - began
    processes = job_size()
    sample_seconds = batch_seconds * plan.total / len(labels) / processes
    return TimeEstimate(judge_seconds, train_seconds / min(processes, plan.config.train_parts), sample_seconds)
