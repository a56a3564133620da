"""The step alone, from the reference to saukit's trainer, one improvement at a time.

Every rung gets the same views as tensors that lie ready. `ratio` is the reference's median over that of the last rung,
for the width where it is smaller.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import torch
from inputs import SEED, Images, Pictures, load_pictures, mixed_plan, paper_config
from ladder import (
    KEPT_MEMORY,
    MaskedStep,
    in_layout,
    masked_rungs,
    prepared_views,
    random_prototypes,
    trainer_on_prepared_views,
    trainer_plans,
)
from measure import (
    MIN_ROUNDS,
    Candidate,
    Document,
    Work,
    begin,
    finish,
    ladder_bars,
    ladder_rows,
    measure,
    option_parser,
    print_rows,
    steady,
)
from reference import PreparedViews, ReferenceStep, ViewBatch, check_against_saukit
from remote import Calls, Remote

from saukit.core.device import keep_freed_memory, resolve_amp
from saukit.training.config import ResolvedTrainConfig
from saukit.training.losses import NOISE_STRATEGIES
from saukit.training.plan import TrainingPlan
from saukit.training.training_set import Batch, BatchOrder, build_training_set

# Steps that a trainer takes beyond the timed ones: warming up.
SPARE_STEPS = 8


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, choices=(64, 16), help="channels of ResNet-32's first stage (both)")
    options = parser.parse_args(arguments)
    device = begin(options)
    for noise in NOISE_STRATEGIES:
        check_against_saukit(noise, 10)
    print("reference and saukit compute the same losses and gradients (three noise strategies)")

    rounds = options.rounds or (MIN_ROUNDS if options.quick else 7)
    # A step on a processor is long enough to be timed by itself.
    units, warm_up = (1, 0) if device.type == "cpu" else (5 if options.quick else 20, 2)
    ladders, ratios, plots = {}, {}, {}
    for width in (options.width,) if options.width else (64, 16):
        batch_size = options.batch_size or _batch_size(width, device, quick=options.quick)
        pictures = load_pictures(options.root, batch_size * (rounds * (units + warm_up) + SPARE_STEPS))
        rows = _ladder(width, batch_size, pictures, rounds, units, warm_up, device)
        name = f"width_{width}"
        ladders[name] = {"batch_size": batch_size, "rungs": rows}
        ratios[f"ratio_{name}"] = rows[-1]["ratio_to_reference"]
        plots[f"images/s of the step, ResNet-32 width {width}, batch {batch_size}, {device.type}"] = ladder_bars(rows)
    return finish(
        "step",
        {"ratio": min(ratios.values()), **ratios},
        {"images": pictures.about, "steps_a_round": units, "ladders": ladders},
        plots,
        options=options,
        arguments=arguments,
        device=device,
    )


def _batch_size(width: int, device: torch.device, *, quick: bool) -> int:
    if device.type == "cuda":
        return 128
    return 16 if quick and width == 64 else 64


def _ladder(
    width: int, batch_size: int, pictures: Pictures, rounds: int, units: int, warm_up: int, device: torch.device
) -> list[Document]:
    """Time every rung at one width; a row each."""
    amp = resolve_amp("auto", device)
    config = paper_config(f"resnet32-w{width}", batch_size, amp)
    # The whole run lies in one epoch of these images, so no step holds a pass for prototypes.
    plan = mixed_plan(pictures.images, 10, config, device)
    batch, channels_last = _views(plan)
    default = in_layout(channels_last, torch.contiguous_format)
    prototypes = random_prototypes(plan)
    print(f"\nResNet-32 width {width}, batch {batch_size}, {amp} on {device}, {pictures.about}; milliseconds a step")

    reference = ReferenceStep(plan, prototypes)
    works: dict[str, Work] = {"reference": lambda: reference(default)}
    for rung in masked_rungs(amp):
        views = PreparedViews(channels_last if rung.channels_last else default)
        step = MaskedStep(rung, plan, views, prototypes)
        works[rung.name] = lambda step=step: step(batch)
    for name, rung_plan in trainer_plans(plan).items():
        works[name] = trainer_on_prepared_views(rung_plan, channels_last, prototypes).advance
    with contextlib.ExitStack() as stack:
        if device.type == "cpu":
            remote = stack.enter_context(Remote(_as_the_command, pictures.images, config, torch.get_num_threads()))
            works[KEPT_MEMORY] = lambda: remote.call("step")
        candidates = [Candidate(name, steady(work), units, warm_up) for name, work in works.items()]
        rows = ladder_rows(measure(candidates, rounds=rounds, device=device), batch_size)
    print_rows(rows)
    return rows


def _as_the_command(images: Images, config: ResolvedTrainConfig, threads: int) -> Calls:
    """In a process of its own: the trainer on the same views, with memory treated as `saukit train` has it."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    plan = mixed_plan(images, 10, config, torch.device("cpu"))
    trainer = trainer_on_prepared_views(plan, _views(plan)[1], random_prototypes(plan))
    return {"step": trainer.advance}


def _views(plan: TrainingPlan) -> tuple[Batch, ViewBatch]:
    """A batch and its views."""
    batch = BatchOrder(build_training_set(plan.split, plan.cache, plan.device), plan.batch_size, SEED).batch(0)
    return batch, prepared_views(plan, batch)


if __name__ == "__main__":
    main()
