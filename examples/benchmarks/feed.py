"""The feed of a step: PIL transforms in two DataLoaders against saukit's batched views on resident uint8 images.

A sample is an index of batch A with its partner in batch B, so b samples need 4 b views: v1, v2 and v3 of A, v1 of B.
The reference has as many worker processes as saukit has threads (at least one a loader). `ratio` is saukit's samples/s
over the reference's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from inputs import SEED, load_pictures, mixed_plan, paper_config, saukit_views
from ladder import make_views
from measure import MIN_ROUNDS, Bar, Candidate, Document, Work, begin, finish, measure, option_parser, steady
from reference import PREFETCH, pil_feed, pixels_of, worker_processes

from saukit.core.device import keep_freed_memory
from saukit.core.seeding import torch_generator
from saukit.training.training_set import BatchOrder, build_training_set

IMAGES = 10_000


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, help="batches of the reference that are timed in a round")
    options = parser.parse_args(arguments)
    device = begin(options)
    keep_freed_memory()  # as saukit's commands do; the reference's workers inherit it
    batch_size = options.batch_size or 128
    workers = worker_processes(options.threads)
    # Workers deliver in bunches, so a round has to hold many bunches.
    batches = options.batches or max(12 if options.quick else 60, 6 * workers[0])

    pictures = load_pictures(options.root, IMAGES)
    plan = mixed_plan(pictures.images, 10, paper_config("convnet-small", batch_size, "off"), device)
    pixels = pixels_of(plan)
    order = BatchOrder(build_training_set(plan.split, plan.cache, device), batch_size, SEED)
    views, generator = saukit_views(plan), torch_generator(SEED, "benchmark-feed", device=device)
    steps = iter(range(10**9))

    @contextmanager
    def pil() -> Iterator[Work]:
        with pil_feed(pixels, batch_size, options.threads, device) as feed:
            yield lambda: next(feed) and None

    def batched() -> None:
        make_views(order.batch(next(steps)), views, generator)

    # The first batches of each worker lie ready when the timing begins; they would flatter the reference.
    candidates = [
        Candidate("PIL in two DataLoaders", pil, units=batches, warm_up=2 * PREFETCH * workers[0]),
        Candidate("saukit's batched views", steady(batched), units=4 * batches, warm_up=2),
    ]
    print(
        f"feed on {device}: {batch_size} samples a batch, {pictures.about}; {workers[0]} + {workers[1]} worker "
        f"processes against {options.threads} threads; milliseconds a batch"
    )
    reference, saukit = measure(candidates, rounds=options.rounds or MIN_ROUNDS, device=device).values()
    rates = [batch_size / timing.median for timing in (reference, saukit)]
    ratio = rates[1] / rates[0]
    print(f"{reference.name}: {rates[0]:,.0f} samples/s; {saukit.name}: {rates[1]:,.0f} samples/s; {ratio:.2f} x")
    rows = [
        {"name": timing.name, "milliseconds_a_batch": timing.spread, "samples_per_second": round(rate, 1)}
        for timing, rate in zip((reference, saukit), rates, strict=True)
    ]
    bars = [
        Bar(reference.name, rates[0], "1.00 x", "reference"),
        Bar(saukit.name, rates[1], f"{ratio:.2f} x", "saukit"),
    ]
    return finish(
        "feed",
        {
            "ratio": round(ratio, 4),
            "saukit_samples_per_second": round(rates[1], 1),
            "reference_samples_per_second": round(rates[0], 1),
        },
        {
            "images": pictures.about,
            "batch_size": batch_size,
            "workers": {"loader_a": workers[0], "loader_b": workers[1]},
            "batches_a_round": {"reference": batches, "saukit": 4 * batches},
            "candidates": rows,
        },
        {f"samples/s, views 1, 1, 2, 3 at batch {batch_size}, {device.type}": bars},
        options=options,
        arguments=arguments,
        device=device,
    )


if __name__ == "__main__":
    main()
