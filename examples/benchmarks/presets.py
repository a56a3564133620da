"""Time of a whole run with the preset `fast` against one with `ldam`, on as many images as CIFAR-10-LT has.

Cross entropy, steps of both in turns, with the threads that saukit trains small images with; `ratio` is the time of
`ldam`'s 19,400 steps over that of `fast`'s 9,600. What both reach in that time: docs/results.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from inputs import SEED, mixed_plan, paper_config
from measure import MIN_ROUNDS, Bar, Candidate, Document, begin, finish, measure, option_parser, steady

from saukit.core.device import keep_freed_memory, resolve_amp, suited_threads, using_threads
from saukit.training.presets import PRESETS
from saukit.training.trainer import Trainer

REAL_IMAGES = 12_406
SIDE = 32


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = option_parser(__doc__.splitlines()[0]).parse_args(arguments)
    device = begin(options)
    keep_freed_memory()
    units, rounds = 2 if options.quick else 20, options.rounds or MIN_ROUNDS
    images = np.random.default_rng(SEED).integers(0, 256, (1024, 3, SIDE, SIDE), dtype=np.uint8)
    steps, candidates = {}, []
    for name in ("ldam", "fast"):
        preset = PRESETS[name]
        batch_size = options.batch_size or preset.batch_size
        assert preset.epochs is not None
        per_epoch = REAL_IMAGES // batch_size if preset.drop_last else -(-REAL_IMAGES // batch_size)
        steps[name] = preset.epochs * per_epoch
        config = replace(paper_config(preset.backbone, batch_size, resolve_amp("auto", device)), method="ce")
        trainer = Trainer(mixed_plan(images, 10, config, device))
        candidates.append(Candidate(name, steady(trainer.advance), units=units, warm_up=1))
    with using_threads(suited_threads((SIDE, SIDE), device)):
        timings = measure(candidates, rounds=rounds, device=device)
    hours = {name: timing.median * steps[name] / 3600 for name, timing in timings.items()}
    rows = [
        {"preset": name, "steps": steps[name], "hours": round(hours[name], 3), "milliseconds_a_step": timing.spread}
        for name, timing in timings.items()
    ]
    bars = {
        "minutes of a run": [
            Bar("ldam", 60 * hours["ldam"], "1.0 x", "reference"),
            Bar("fast", 60 * hours["fast"], f"{hours['ldam'] / hours['fast']:.1f} x", "saukit"),
        ]
    }
    summary = {"ratio": round(hours["ldam"] / hours["fast"], 3)}
    return finish("presets", summary, {"rows": rows}, bars, options=options, arguments=arguments, device=device)


if __name__ == "__main__":
    main()
