"""How saukit's trainer scales: images/s and peak memory over the number of training images, and over that of classes.

Each setting has a process of its own, and the processes take turns. Images/s hold the prototypes' share: their pass is
timed apart, and its seconds over the steps of an epoch are added to every step. `ratio` is images/s with 50,000
training images over images/s with 5,000, both of 10 classes. The images are always random, so that the peak of memory
holds nothing but training; --root plays no part.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from inputs import REAL_SHARE, SEED, load_pictures, mixed_plan, paper_config
from ladder import trainer_plans
from measure import (
    MIN_ROUNDS,
    Bar,
    Document,
    Timing,
    begin,
    describe_memory,
    finish,
    option_parser,
    peak_memory,
    timed,
)
from remote import Calls, Remote

from saukit.core.device import keep_freed_memory, resolve_amp
from saukit.core.seeding import torch_generator
from saukit.core.words import format_bytes
from saukit.training.context import class_prototypes
from saukit.training.trainer import Trainer

BACKBONE = "resnet32-w16"
PROTOTYPE_IMAGES = 2048


@dataclass(frozen=True)
class Setting:
    """A training set: how many images, and of how many classes."""

    images: int
    classes: int

    @property
    def name(self) -> str:
        """Such as `5,000 images, 10 classes`."""
        return f"{self.images:,} images, {self.classes} classes"


IMAGE_SETTINGS = (Setting(1_000, 10), Setting(5_000, 10), Setting(50_000, 10))
CLASS_SETTINGS = (Setting(5_000, 10), Setting(5_000, 100), Setting(5_000, 1_000))
SETTINGS = (*IMAGE_SETTINGS, *CLASS_SETTINGS[1:])


@dataclass(frozen=True)
class Job:
    """What a process is told: its setting, and how to train."""

    setting: Setting
    batch_size: int
    device: torch.device
    threads: int
    steps: int


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = option_parser(__doc__.splitlines()[0]).parse_args(arguments)
    device = begin(options)
    rounds = options.rounds or (MIN_ROUNDS if options.quick else 7)
    on_cpu = device.type == "cpu"
    batch_size = options.batch_size or (32 if options.quick and on_cpu else 128)
    steps = (2 if options.quick else 6) if on_cpu else (5 if options.quick else 40)
    smallest = min(setting.images for setting in SETTINGS)
    if smallest < 2 * batch_size:
        raise SystemExit(f"--batch-size must be at most {smallest // 2}, so that an epoch has two steps")
    print(
        f"scaling on {device}: {BACKBONE}, batch {batch_size}, random images, {REAL_SHARE:.0%} of them as real ones; "
        "milliseconds a step without prototypes"
    )
    results = _measure([Job(setting, batch_size, device, options.threads, steps) for setting in SETTINGS], rounds)
    for setting, result in results.items():
        print(
            f"{setting.name}: {result['images_per_second']:,.0f} images/s with the prototypes' share "
            f"({100 * result['prototype_share']:.1f} % of the time), {describe_memory(result['peak_memory'])}"
        )
    rates = {setting: result["images_per_second"] for setting, result in results.items()}
    small, large = (results[setting]["peak_memory"] for setting in IMAGE_SETTINGS[1:])
    kind = "process_bytes" if on_cpu else "gpu_bytes"
    return finish(
        "scaling",
        {
            "ratio": round(rates[IMAGE_SETTINGS[2]] / rates[IMAGE_SETTINGS[1]], 4),
            "ratio_1000_to_10_classes": round(rates[CLASS_SETTINGS[2]] / rates[CLASS_SETTINGS[0]], 4),
            "memory_ratio": round(large[kind] / small[kind], 4),
        },
        {
            "images": "random uint8 images of 32 x 32 pixels (seeded), made in each process",
            "real_share": REAL_SHARE,
            "backbone": BACKBONE,
            "batch_size": batch_size,
            "steps_a_round": steps,
            "settings": [
                {"images": setting.images, "classes": setting.classes, **result} for setting, result in results.items()
            ],
        },
        {
            f"images/s over training images, {BACKBONE}, batch {batch_size}, {device.type}": _bars(
                IMAGE_SETTINGS, results, kind
            ),
            "images/s over classes": _bars(CLASS_SETTINGS, results, kind),
        },
        options=options,
        arguments=arguments,
        device=device,
    )


def _bars(settings: Sequence[Setting], results: Mapping[Setting, Document], memory: str) -> list[Bar]:
    return [
        Bar(
            setting.name,
            results[setting]["images_per_second"],
            format_bytes(results[setting]["peak_memory"][memory]),
            "saukit",
        )
        for setting in settings
    ]


def _measure(jobs: Sequence[Job], rounds: int) -> dict[Setting, Document]:
    """Start the processes one after the other, let each have its turn in every round, and take their results."""
    with contextlib.ExitStack() as stack:
        remotes = {}
        for job in jobs:
            remotes[job] = stack.enter_context(Remote(_as_the_command, job))
            print(f"ready: {job.setting.name}", flush=True)
        seconds: dict[Job, list[float]] = {job: [] for job in jobs}
        for turn in range(rounds):
            for job in jobs if turn % 2 == 0 else reversed(jobs):
                seconds[job].append(remotes[job].call("step_seconds"))
            latest = "  ".join(f"{1e3 * values[-1]:.1f}" for values in seconds.values())
            print(f"round {turn + 1} of {rounds}: {latest} ms", flush=True)
        return {job.setting: _result(job, seconds[job], remotes[job]) for job in jobs}


def _result(job: Job, seconds: Sequence[float], remote: Remote) -> Document:
    timing = Timing(job.setting.name, tuple(seconds))
    prototype_seconds: float = remote.call("prototype_seconds")
    share = prototype_seconds / (job.setting.images // job.batch_size)
    return {
        "step_milliseconds": timing.spread,
        "prototype_seconds_an_epoch": round(prototype_seconds, 4),
        "prototype_share": round(share / (share + timing.median), 4),
        "images_per_second": round(job.batch_size / (share + timing.median), 2),
        "peak_memory": remote.call("memory"),
    }


def _as_the_command(job: Job) -> Calls:
    """In a process of its own: a trainer that has warmed up, with memory treated as `saukit train` has it."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    config = paper_config(BACKBONE, job.batch_size, resolve_amp("auto", job.device))
    # Made here rather than sent, so that the peak of memory is that of training.
    images = load_pictures(None, job.setting.images).images
    plan = mixed_plan(images, job.setting.classes, config, job.device)
    trainer = Trainer(list(trainer_plans(plan).values())[-1])
    for _ in range(2):
        trainer.advance()
    return {
        "step_seconds": lambda: _step_seconds(trainer, job),
        "prototype_seconds": lambda: _prototype_seconds(trainer, job.device),
        "memory": lambda: peak_memory(job.device),
    }


def _step_seconds(trainer: Trainer, job: Job) -> float:
    """Mean seconds of some steps of one epoch; the step that begins it, and computes prototypes, is not among them."""
    steps_per_epoch = trainer.plan.steps_per_epoch
    if trainer.step_count % steps_per_epoch == 0:
        trainer.advance()
    count = min(job.steps, steps_per_epoch - trainer.step_count % steps_per_epoch)
    return timed(trainer.advance, count, job.device) / count


def _prototype_seconds(trainer: Trainer, device: torch.device) -> float:
    """Seconds of a pass over all real images, scaled from one over the first of them where there are many."""
    real = trainer.training_set.real_count
    count = min(real, PROTOTYPE_IMAGES)

    def work() -> None:
        data, generator = trainer.training_set, torch_generator(SEED, "benchmark-prototypes", device=device)
        class_prototypes(data.images[:count], data.labels[:count], trainer.step.context, generator)

    work()
    return timed(work, 1, device) * real / count


if __name__ == "__main__":
    main()
