"""How long a training run will take, before it is begun; nothing is written."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import Precision, suited_threads, synchronise, using_threads
from saukit.models import dual_branch
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import backbone_features, images_per_batch
from saukit.training.context import StepContext
from saukit.training.plan import TrainingPlan
from saukit.training.step import StepBatch, TrainingStep, build_context
from saukit.training.trainer import Trainer
from saukit.training.training_set import Batch

TRIAL_SECONDS = 0.3  # a step that takes as long has enough images to judge a whole batch by
THREAD_GAIN = 0.9  # n threads are n ** 0.9 times as fast as one, on a quiet processor
WARM_UP_STEPS, MEASURED_STEPS = 2, 6
FEATURE_TRIAL, FEATURE_SECONDS = 16, 1.5  # least images and most seconds of a frozen backbone's trial


def estimate_seconds(plan: TrainingPlan, *, measure: bool = False) -> float:
    """Seconds of the whole run.

    By default those on an otherwise idle machine, within a factor of 1.5 and in about a second: the method's step is
    timed on a few random images, on a CPU by the time that one thread computes, on a GPU on a whole batch; nothing is
    compiled. `measure` times real steps of the run, as busy as the machine is, after two to warm up.
    """
    threads = suited_threads(plan.split.image_size, plan.device)
    measure = measure and plan.config.tune == "all"  # of a frozen backbone the features count, timed on real images
    if measure or plan.device.type != "cpu":
        with using_threads(threads):
            return _measured(plan) if measure else sum(_estimated(plan, plan.batch_size))
    head = suited_threads((1, 1), plan.device) if plan.config.tune == "head" else threads  # features are small
    with using_threads(1):
        once, steps = _estimated(plan, min(2, plan.batch_size))
    return once / float(threads**THREAD_GAIN) + steps / float(head**THREAD_GAIN)


def _estimated(plan: TrainingPlan, images: int) -> tuple[float, float]:
    """Seconds of a frozen backbone's features and of all steps, from steps on `images` and more images."""
    config = replace(plan.config, compile=False, cuda_graph=False, weights="none")
    context = build_context(replace(plan, config=config, weights_path=None))
    batch_size, limit = plan.batch_size, 3 * TRIAL_SECONDS
    seconds = _time_step(plan, context, images)
    if seconds < limit:  # a process's first step also prepares kernels
        seconds = _time_step(plan, context, images)
    per_image = seconds / images
    while images < batch_size and seconds < limit:
        more = max(2 * images, min(4 * images, int(images * TRIAL_SECONDS / seconds)))
        more = batch_size if 2 * more > batch_size else more
        before, seconds, limit = seconds, _time_step(plan, context, more), TRIAL_SECONDS
        # A step costs something besides its images, so what an image costs shows in the growth.
        per_image = max(0.3 * seconds / more, min(seconds / more, (seconds - before) / (more - images)))
        images = more
    step_seconds = seconds + per_image * (batch_size - images)
    once = _feature_seconds(plan, context.network) if config.tune == "head" else 0.0
    views = plan.method.views_per_step * plan.images_of(plan.total_steps)
    if plan.method.prototypes:  # in every epoch two views of each real image, forward: a third of forward and backward
        views += math.ceil(plan.total_steps / plan.steps_per_epoch) * 2 * len(plan.split.train.labels) // 3
    return once, step_seconds / (batch_size * plan.method.views_per_step) * views


def _feature_seconds(plan: TrainingPlan, network: DualBranchNet) -> float:
    """Seconds that the features of all images take, from one batch of them or a part of it."""
    train, val, device = plan.split.train.images, plan.split.val, plan.device
    precision = Precision(plan.config.amp, device.type)

    def seconds_of(count: int) -> float:
        images = train[:count]
        return _time(
            device, lambda: backbone_features(network, plan.model_spec, images, device=device, precision=precision)
        )

    seconds_of(2)  # prepares kernels
    affordable = max(FEATURE_TRIAL, int(2 * FEATURE_SECONDS / seconds_of(2)))
    # Few images would stay in a CPU's cache, and in memory that need not be mapped again; a whole batch does not.
    count = min(len(train), images_per_batch(train.shape), affordable)
    return seconds_of(count) / count * (plan.training_images + (0 if val is None else len(val.labels)))


def _time_step(plan: TrainingPlan, context: StepContext, images: int) -> float:
    samples, prototypes = _random_batch(plan, context.network, images)
    context = replace(context, prototypes=prototypes)
    if plan.config.tune == "head":  # so small that the optimizer's update counts
        step, batch = TrainingStep(plan.method, context), StepBatch(samples, prototypes, seed=0)
        step(batch, plan.config.lr)  # prepares the optimizer
        return _time(plan.device, lambda: step(batch, plan.config.lr))

    def passes() -> None:  # all but the optimizer's update, whose import alone takes a second
        for _, loss in plan.method.step(samples, context):
            loss.backward()  # type: ignore[no-untyped-call]
        context.network.zero_grad(set_to_none=True)

    context.network.train()
    return _time(plan.device, passes)


def _time(device: torch.device, work: Callable[[], object]) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # without the turns of other processes
    synchronise(device)
    started = clock()
    work()
    synchronise(device)
    return clock() - started


def _random_batch(
    plan: TrainingPlan, network: DualBranchNet, images: int
) -> tuple[Batch, tuple[Tensor, Tensor] | None]:
    head = plan.config.tune == "head"
    shape = (network.classifier.in_features,) if head else (3, *plan.split.image_size)
    generator = torch.Generator().manual_seed(0)

    def samples() -> list[Tensor]:
        pixels = torch.randint(256, (images, *shape), dtype=torch.uint8, generator=generator)
        if head:
            pixels = pixels.float()
        labels = torch.randint(plan.split.num_classes, (images,), generator=generator)
        return [tensor.to(plan.device) for tensor in (pixels, labels, labels % 2 == 0)]

    rows = torch.randn(2, plan.split.num_classes, dual_branch.PROJECTION_DIM, generator=generator).to(plan.device)
    z2, z3 = F.normalize(rows, dim=2)
    return Batch(*samples(), *samples()), (z2, z3) if plan.method.prototypes else None


def _measured(plan: TrainingPlan) -> float:
    trainer = Trainer(plan)
    preparation = trainer.prepare()
    warm_up = min(WARM_UP_STEPS, plan.total_steps - 1)
    count = min(MEASURED_STEPS, plan.total_steps - warm_up)
    for _ in range(warm_up):
        trainer.advance()
    together = 1 if plan.device.type == "cpu" else count  # a GPU is still at a step when the host begins the next
    seconds = []
    for _ in range(count // together):
        synchronise(plan.device)
        started = time.perf_counter()
        for _ in range(together):
            trainer.advance()
        synchronise(plan.device)
        seconds.append((time.perf_counter() - started) / together)
    # The median, which other work on the machine seldom changes; the mean where an epoch's start is among so few steps.
    typical = statistics.fmean if plan.steps_per_epoch <= len(seconds) else statistics.median
    return preparation + typical(seconds) * plan.total_steps
