"""Training small images with one thread and with one for each core, on the machine as it is and with all cores busy.

`busy` is one process per core that does nothing but compute. `ratio` is the images/s of one thread over those of all
threads; `core.device.suited_threads` chooses by this table.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from inputs import SEED, mixed_plan, paper_config
from measure import MIN_ROUNDS, Bar, Candidate, Document, Work, begin, finish, measure, option_parser

from saukit.core.device import keep_freed_memory, resolve_amp, using_threads
from saukit.core.machine import usable_cores
from saukit.training.trainer import Trainer

SETTINGS = (
    (8, "convnet-small"),
    (16, "convnet-small"),
    (16, "resnet32-w16"),
    (32, "resnet32-w16"),
    (64, "resnet32-w16"),
)


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = option_parser(__doc__.splitlines()[0]).parse_args(arguments)
    device = begin(options)
    keep_freed_memory()
    batch_size, rounds = options.batch_size or 64, options.rounds or MIN_ROUNDS
    rows: list[Document] = []
    for state, busy in (("as found", 0), ("all cores busy", usable_cores())):
        with _busy_processes(busy):
            for side, backbone in SETTINGS[:1] if options.quick else SETTINGS:
                print(f"\n{state}: {side} pixels, {backbone}, batch {batch_size}; milliseconds a step")
                rows.append({"state": state, **_compare(side, backbone, batch_size, options.threads, rounds, device)})
    bars = {
        f"images/s, {row['state']}: {row['pixels']} px, {row['backbone']}": [
            Bar(f"{options.threads} threads", row["all_threads"], "1.00 x", "reference"),
            Bar("1 thread", row["one_thread"], f"{row['ratio']:.2f} x", "saukit"),
        ]
        for row in rows
    }
    worst, best = (choose(row["ratio"] for row in rows) for choose in (min, max))
    summary = {"smallest_ratio": worst, "largest_ratio": best}
    details = {"batch_size": batch_size, "method": "ce", "rows": rows}
    return finish("threads", summary, details, bars, options=options, arguments=arguments, device=device)


def _compare(side: int, backbone: str, batch_size: int, threads: int, rounds: int, device: torch.device) -> Document:
    """Images/s of cross-entropy's step with one thread and with all."""
    images = np.random.default_rng(SEED).integers(0, 256, (8 * batch_size, 3, side, side), dtype=np.uint8)
    config = replace(paper_config(backbone, batch_size, resolve_amp("auto", device)), method="ce")
    trainer = Trainer(mixed_plan(images, 10, config, device))
    candidates = [
        Candidate(name, functools.partial(_with_threads, count, trainer.advance), units=1, warm_up=0)
        for name, count in (("one thread", 1), ("all threads", threads))
    ]
    one, several = measure(candidates, rounds=rounds, device=device).values()
    rates = [batch_size / timing.median for timing in (one, several)]
    return {
        "pixels": side,
        "backbone": backbone,
        "one_thread": round(rates[0], 1),
        "all_threads": round(rates[1], 1),
        "ratio": round(rates[0] / rates[1], 3),
        "milliseconds": {"one_thread": one.spread, "all_threads": several.spread},
    }


@contextlib.contextmanager
def _with_threads(count: int, work: Work) -> Iterator[Work]:
    with using_threads(count):
        yield work


@contextlib.contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """While entered, `count` processes compute without end."""
    processes = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compute() -> None:
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    main()
