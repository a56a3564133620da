"""From a uint8 data set to updated weights: the reference against saukit's trainer, one improvement at a time.

CIFAR-10-LT at ratio 50, ResNet-32 width 16, real images and images that stand in for synthetic ones, up to 5,000 a
class. Prototypes are computed at each epoch's start: their pass is timed apart, and its seconds over the steps of an
epoch are added to every step. `ratio` is the reference's time a step over saukit's.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from inputs import SEED, Labels, as_synthetic, load_pictures, paper_config, saukit_views, split_in_memory
from ladder import KEPT_MEMORY, MaskedStep, NchwViews, Rung, make_views, masked_rungs, random_prototypes, trainer_plans
from measure import (
    MIN_ROUNDS,
    Candidate,
    Document,
    Timing,
    Work,
    begin,
    describe_memory,
    finish,
    ladder_bars,
    ladder_rows,
    measure,
    option_parser,
    peak_memory,
    print_rows,
    steady,
    timed,
)
from reference import (
    PREFETCH,
    PROTOTYPE_BATCH,
    ReferenceStep,
    check_against_saukit,
    pil_feed,
    pil_prototype_views,
    pixels_of,
    worker_processes,
)
from reference import class_prototypes as reference_prototypes
from remote import Calls, Remote
from torch import Tensor

from saukit.core.console import Reporter
from saukit.core.device import keep_freed_memory, resolve_amp
from saukit.core.seeding import numpy_generator, torch_generator
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.long_tail import profile_counts
from saukit.data.split import Split, load_split, make_split
from saukit.training.context import StepContext, class_prototypes
from saukit.training.losses import NOISE_STRATEGIES
from saukit.training.plan import TrainingPlan
from saukit.training.trainer import Trainer
from saukit.training.training_set import BatchOrder, TrainingSet, build_training_set

BACKBONE = "resnet32-w16"
IMB = 50
PER_CLASS = 5000
PROTOTYPE_IMAGES, QUICK_PROTOTYPE_IMAGES = 2048, 768
MEMORY_STEPS = 3


@dataclass(frozen=True)
class Place:
    """What every process needs to know; `workspace` holds the split, or there is none and the images are random."""

    workspace: Path | None
    batch_size: int
    device: torch.device
    threads: int


@dataclass(frozen=True)
class Contender:
    """A way to train: a session of single steps, and the pass for prototypes over the rows it is given."""

    name: str
    session: Callable[[], AbstractContextManager[Work]]
    prototypes: Callable[[slice], object]


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = option_parser(__doc__.splitlines()[0]).parse_args(arguments)
    device = begin(options)
    for noise in NOISE_STRATEGIES:
        check_against_saukit(noise, 10)
    print("reference and saukit compute the same losses and gradients (three noise strategies)")

    batch_size = options.batch_size or (64 if options.quick and device.type == "cpu" else 128)
    rounds = options.rounds or MIN_ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) if options.root else None
        about = _make_split(options.root, workspace)
        place = Place(workspace, batch_size, device, options.threads)
        plan = _plan(place)
        real = len(plan.split.train.labels)
        stand_ins = plan.training_images - real
        print(
            f"end to end on {device}: {BACKBONE}, batch {batch_size}, {plan.config.amp}, {plan.training_images:,} "
            f"images. {real:,} real ones ({about}); repeated real ones stand in for {stand_ins:,} synthetic ones"
        )
        results = _climb(place, plan, rounds, quick=options.quick)
        results["peak_memory"] = {}
        for name, build in (("reference", _as_published), ("saukit", _as_the_command)):
            memory = _memory_of(build, place, _real_rows(plan, quick=options.quick))
            print(f"peak memory, {name}: {describe_memory(memory)}")
            results["peak_memory"][name] = memory
    rows = results["rungs"]
    title = f"images/s end to end, CIFAR-10-LT ratio {IMB}, {BACKBONE}, batch {batch_size}, {device.type}"
    return finish(
        "end_to_end",
        {
            "ratio": rows[-1]["ratio_to_reference"],
            "saukit_samples_per_second": rows[-1]["images_per_second"],
            "reference_samples_per_second": rows[0]["images_per_second"],
        },
        {
            "images": about,
            "stand_ins": "repeated real images of the same class, in the place of synthetic ones",
            "real_images": real,
            "stand_in_images": stand_ins,
            "backbone": BACKBONE,
            "batch_size": batch_size,
            "steps_per_epoch": plan.steps_per_epoch,
            **results,
        },
        {title: ladder_bars(rows)},
        options=options,
        arguments=arguments,
        device=device,
    )


def _climb(place: Place, plan: TrainingPlan, rounds: int, *, quick: bool) -> Document:
    """Time every rung: its pass for prototypes, then its steps."""
    device, real = plan.device, len(plan.split.train.labels)
    timed_rows = _real_rows(plan, quick=quick)
    count = len(range(*timed_rows.indices(real)))
    with contextlib.ExitStack() as stack:
        contenders = _contenders(plan, place.threads)
        if device.type == "cpu":
            contenders.append(_remote(stack.enter_context(Remote(_as_the_command, place))))
        print(f"prototypes over {count:,} of {real:,} real images; milliseconds a pass")
        passes = _time_passes(contenders, timed_rows, device, quick=quick)
        print("steps; milliseconds a step without prototypes")
        candidates = _candidates(contenders, plan, rounds, place.threads, quick=quick)
        timings = measure(candidates, rounds=rounds, device=device)
        epochs = _whole_epochs(contenders, plan) if device.type == "cuda" and not quick else None
    seconds = {name: timing.median * real / count for name, timing in passes.items()}
    share = {name: value / plan.steps_per_epoch for name, value in seconds.items()}
    rows = ladder_rows(timings, plan.batch_size, extra=share)
    print_rows(rows)
    print(
        f"(with the prototypes' share: their pass over {count:,} of {real:,} real images, scaled to all of them and "
        f"divided by the {plan.steps_per_epoch} steps of an epoch)"
    )
    return {
        "prototype_pass": {
            "images_timed": count,
            "seconds_for_all": {name: round(value, 4) for name, value in seconds.items()},
        },
        "rungs": rows,
        "whole_epoch_seconds": epochs,
    }


# --- data ---------------------------------------------------------------------------------------------------------


def _make_split(root: Path | None, workspace: Path | None) -> str:
    """Write CIFAR-10's split to the workspace, if there is a root; what the images are, in words."""
    if root is None or workspace is None:
        return "random uint8 images of 32 x 32 pixels (seeded), in CIFAR-10-LT's numbers"
    config = SplitConfig(dataset="cifar10", imb=IMB)
    make_split(config, Workspace(workspace), root=root, force=False, reporter=Reporter(quiet=True))
    return f"CIFAR-10-LT, ratio {IMB}"


def _plan(place: Place) -> TrainingPlan:
    split = _random_split() if place.workspace is None else load_split(Workspace(place.workspace))
    rows = _stand_in_rows(split.train.labels, split.class_counts)
    cache = as_synthetic(split.train.images[rows], split.train.labels[rows])
    config = paper_config(BACKBONE, place.batch_size, resolve_amp("auto", place.device))
    return TrainingPlan(config, "benchmark", split, cache, place.device, {})


def _random_split() -> Split:
    labels = np.repeat(np.arange(10), profile_counts("exp", PER_CLASS, IMB, 10))
    return split_in_memory(load_pictures(None, len(labels)).images, labels, 10)


def _stand_in_rows(labels: Labels, counts: Labels) -> Labels:
    """Which real images are repeated, class by class, until each class has 5,000."""
    generator = numpy_generator(SEED, "benchmark-stand-ins")
    rows = [generator.choice(np.flatnonzero(labels == k), max(0, PER_CLASS - count)) for k, count in enumerate(counts)]
    return np.concatenate(rows)


# --- the rungs ----------------------------------------------------------------------------------------------------


def _contenders(plan: TrainingPlan, threads: int) -> list[Contender]:
    """The reference, the rungs between, and saukit's trainer."""
    order = BatchOrder(build_training_set(plan.split, plan.cache, plan.device), plan.batch_size, SEED)
    rungs = [_masked(rung, plan, order) for rung in masked_rungs(plan.config.amp)]
    trainers = [_trained(name, rung_plan) for name, rung_plan in trainer_plans(plan).items()]
    return [_reference(plan, threads), _batched_views(plan, order), *rungs, *trainers]


def _reference(plan: TrainingPlan, threads: int) -> Contender:
    step, pixels = ReferenceStep(plan, random_prototypes(plan)), pixels_of(plan)

    @contextmanager
    def session() -> Iterator[Work]:
        with pil_feed(pixels, plan.batch_size, threads, plan.device) as feed:
            yield lambda: step(next(feed))

    def prototypes(rows: slice) -> None:
        views = pil_prototype_views(pixels.rows(rows), threads)
        step.prototypes = reference_prototypes(step.network, views, plan.split.num_classes, plan.device)

    return Contender("reference", session, prototypes)


def _batched_views(plan: TrainingPlan, order: BatchOrder) -> Contender:
    """The reference's step on views that saukit makes, in the layout that the reference has."""
    step, views = ReferenceStep(plan, random_prototypes(plan)), NchwViews(saukit_views(plan))
    generator, steps = torch_generator(SEED, "benchmark-views", device=plan.device), iter(range(10**9))

    def chunks(rows: slice) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        data = order.training_set
        for images, labels in zip(
            data.images[rows].split(PROTOTYPE_BATCH), data.labels[rows].split(PROTOTYPE_BATCH), strict=True
        ):
            yield views.autoaugment(images, generator), views.simclr(images, generator), labels

    def prototypes(rows: slice) -> None:
        step.prototypes = reference_prototypes(step.network, chunks(rows), plan.split.num_classes, plan.device)

    return Contender(
        "batched views", steady(lambda: step(make_views(order.batch(next(steps)), views, generator))), prototypes
    )


def _masked(rung: Rung, plan: TrainingPlan, order: BatchOrder) -> Contender:
    views = saukit_views(plan) if rung.channels_last else NchwViews(saukit_views(plan))
    step, steps = MaskedStep(rung, plan, views, random_prototypes(plan)), iter(range(10**9))

    def prototypes(rows: slice) -> None:
        step.prototypes = _saukit_prototypes(step.context(), order.training_set, rows)

    return Contender(rung.name, steady(lambda: step(order.batch(next(steps)))), prototypes)


def _trained(name: str, plan: TrainingPlan) -> Contender:
    trainer = Trainer(plan)
    # Its epoch has begun: the prototypes are those of the pass that is timed apart.
    trainer.step_count = 1

    def prototypes(rows: slice) -> None:
        trainer.prototypes = _saukit_prototypes(trainer.step.context, trainer.training_set, rows)

    return Contender(name, steady(trainer.advance), prototypes)


def _remote(remote: Remote) -> Contender:
    return Contender(KEPT_MEMORY, steady(lambda: remote.call("step")), lambda rows: remote.call("prototypes", rows))


def _as_the_command(place: Place) -> Calls:
    """In a process of its own: the last of saukit's trainers, with memory treated as `saukit train` has it."""
    keep_freed_memory()
    torch.set_num_threads(place.threads)
    name, plan = list(trainer_plans(_plan(place)).items())[-1]
    return _calls(_trained(name, plan), plan)


def _as_published(place: Place) -> Calls:
    """In a process of its own: the reference."""
    torch.set_num_threads(place.threads)
    plan = _plan(place)
    return _calls(_reference(plan, place.threads), plan)


def _calls(contender: Contender, plan: TrainingPlan) -> Calls:
    session = contextlib.ExitStack()
    return {
        "step": session.enter_context(contender.session()),
        "prototypes": contender.prototypes,
        "memory": lambda: peak_memory(plan.device),
        "close": session.close,
    }


def _saukit_prototypes(context: StepContext, data: TrainingSet, rows: slice) -> tuple[Tensor, Tensor]:
    generator = torch_generator(SEED, "benchmark-prototypes", device=data.device)
    return class_prototypes(data.images[rows], data.labels[rows], context, generator)


# --- measuring ----------------------------------------------------------------------------------------------------


def _real_rows(plan: TrainingPlan, *, quick: bool) -> slice:
    """The real images whose prototypes are timed: on a GPU all, otherwise an even choice that holds every class."""
    real = len(plan.split.train.labels)
    wanted = QUICK_PROTOTYPE_IMAGES if quick else real if plan.device.type == "cuda" else PROTOTYPE_IMAGES
    return slice(0, real, max(1, real // wanted))


def _time_passes(
    contenders: Sequence[Contender], rows: slice, device: torch.device, *, quick: bool
) -> dict[str, Timing]:
    """A pass for prototypes by each contender, after one that warms up."""
    candidates = [
        Candidate(one.name, steady(lambda one=one: one.prototypes(rows)), units=1, warm_up=0) for one in contenders
    ]
    return measure(candidates, rounds=1 if quick else 3, device=device)


def _candidates(
    contenders: Sequence[Contender], plan: TrainingPlan, rounds: int, threads: int, *, quick: bool
) -> list[Candidate]:
    """All steps of a candidate lie in its trainer's first epoch, so that no timed step holds a pass for prototypes."""
    if plan.device.type == "cuda":
        units, warm_up = (5 if quick else 40), 5
    else:
        units, warm_up = (2 if quick else 4), (1 if quick else 2)
    most = (plan.steps_per_epoch - 2 * warm_up) // rounds - warm_up
    if most < 1:
        raise SystemExit(f"{plan.steps_per_epoch} steps an epoch are too few for {rounds} rounds: give fewer --rounds")
    # Where steps are short, the batches that the workers hold ready when the timing begins would flatter the reference.
    ready = 2 * PREFETCH * worker_processes(threads)[0] if plan.device.type == "cuda" else warm_up
    return [
        Candidate(one.name, one.session, min(units, most), max(warm_up, ready) if one is contenders[0] else warm_up)
        for one in contenders
    ]


def _whole_epochs(contenders: Sequence[Contender], plan: TrainingPlan) -> dict[str, float]:
    """Seconds of a whole epoch, prototypes included, of the reference and of the last rung."""
    reference, saukit = contenders[0], contenders[-1]
    seconds = {}
    with reference.session() as work:
        every_row = slice(0, len(plan.split.train.labels))
        prototypes = timed(lambda: reference.prototypes(every_row), 1, plan.device)
        seconds[reference.name] = prototypes + timed(work, plan.steps_per_epoch, plan.device)
    with saukit.session() as work:
        # Among as many steps as an epoch has, the trainer computes prototypes once by itself.
        seconds[saukit.name] = timed(work, plan.steps_per_epoch, plan.device)
    for name, value in seconds.items():
        print(f"whole epoch, {name}: {value:.1f} s", flush=True)
    return {name: round(value, 3) for name, value in seconds.items()}


def _memory_of(build: Callable[[Place], Calls], place: Place, rows: slice) -> Document:
    """Peak memory of a process that does nothing but train: prototypes and a few steps."""
    with Remote(build, place) as remote:
        remote.call("prototypes", rows)
        for _ in range(MEMORY_STEPS):
            remote.call("step")
        memory: Document = remote.call("memory")
        remote.call("close")
    return memory


if __name__ == "__main__":
    main()
