"""How long a training run will take, before it is begun; nothing is written."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import suited_threads, synchronise
from saukit.models import dual_branch
from saukit.training.features import images_features
from saukit.training.plan import TrainingPlan
from saukit.training.step import StepBatch, TrainingStep, build_step
from saukit.training.trainer import Trainer
from saukit.training.training_set import Batch

TRIAL_SECONDS = 0.25  # a step that takes as long has enough images to judge a whole batch by
MEASURED_STEPS = 3


def estimate_seconds(plan: TrainingPlan, *, measure: bool = False) -> float:
    """Seconds of the whole run on a machine as busy as it is now.

    By default within a factor of 1.5 and in about a second: the method's step is timed on a few random images, on a
    GPU on a whole batch, and nothing is compiled. `measure` times real steps after one to warm up, on the real images.
    """
    with suited_threads(plan.split.image_size, plan.device):
        # On a frozen backbone both are the same: what counts are the features, which are timed on real images.
        return _measured(plan) if measure and plan.config.tune == "all" else _estimated(plan)


def _estimated(plan: TrainingPlan) -> float:
    config = replace(plan.config, compile=False, cuda_graph=False, weights="none")
    step = build_step(replace(plan, config=config, weights_path=None))
    images = plan.batch_size if plan.device.type == "cuda" else min(2, plan.batch_size)
    _time_step(step, _random_batch(plan, step, images))  # a process's first step also prepares kernels
    while (seconds := _time_step(step, _random_batch(plan, step, images))) < TRIAL_SECONDS and images < plan.batch_size:
        images = min(plan.batch_size, 4 * images)
    once = _feature_seconds(plan, step) if config.tune == "head" else 0.0
    views = plan.method.views_per_step * plan.images_of(plan.total_steps)
    if (
        plan.method.prototypes
    ):  # two views of each real image in every epoch; forward is a third of forward and backward
        views += math.ceil(plan.total_steps / plan.steps_per_epoch) * 2 * len(plan.split.train.labels) // 3
    return once + seconds / (images * plan.method.views_per_step) * views


def _feature_seconds(plan: TrainingPlan, step: TrainingStep) -> float:
    """Seconds that the features of all images take, from a few."""
    images = plan.split.train.images[: 2 if plan.device.type == "cpu" else plan.batch_size]
    images_features(plan, step.network, images)  # prepares kernels
    started = time.perf_counter()
    images_features(plan, step.network, images)
    return (time.perf_counter() - started) / len(images) * plan.training_images


def _time_step(step: TrainingStep, batch: StepBatch) -> float:
    device = batch.samples.labels.device
    synchronise(device)
    started = time.perf_counter()
    step(batch, 0.0)
    synchronise(device)
    return time.perf_counter() - started


def _random_batch(plan: TrainingPlan, step: TrainingStep, images: int) -> StepBatch:
    head = plan.config.tune == "head"
    shape = (step.network.classifier.in_features,) if head else (3, *plan.split.image_size)
    generator = torch.Generator().manual_seed(0)

    def samples() -> list[Tensor]:
        pixels = torch.randint(256, (images, *shape), dtype=torch.uint8, generator=generator)
        if head:
            pixels = pixels.float()
        labels = torch.randint(plan.split.num_classes, (images,), generator=generator)
        return [tensor.to(plan.device) for tensor in (pixels, labels, labels % 2 == 0)]

    rows = torch.randn(2, plan.split.num_classes, dual_branch.PROJECTION_DIM, generator=generator).to(plan.device)
    z2, z3 = F.normalize(rows, dim=2)
    return StepBatch(Batch(*samples(), *samples()), (z2, z3) if plan.method.prototypes else None, seed=0)


def _measured(plan: TrainingPlan) -> float:
    trainer = Trainer(plan)
    preparation = trainer.prepare()
    trainer.advance()
    synchronise(plan.device)
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        trainer.advance()
    synchronise(plan.device)
    return preparation + (time.perf_counter() - started) / MEASURED_STEPS * plan.total_steps
