"""Accuracy of bfloat16 against float32 at equal seeds: SAU on digits at ratio 50, real + synthetic images.

Everything but the arithmetic of the forward passes is the same, so the difference of a seed's two runs is what
bfloat16 does; the spread over seeds says how much chance does. The workspace is kept, and runs that are in it already
are not repeated.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Bar, Document, begin, device_parser, finish

from saukit.core.config import Amp
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.config import TrainConfig
from saukit.training.stage import fit

PRECISIONS: tuple[Amp, ...] = ("off", "bf16")
MEASURES = ("top1", "balanced_accuracy", "few")


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("saukit_precision"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds, from 0")
    parser.add_argument("--steps", type=int, help="optimiser steps of a run (400; 100 with --quick)")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, or there is no spread, got {options.seeds}")
    device = begin(options)
    steps = options.steps or (100 if options.quick else 400)

    workspace, reporter = Workspace(options.workspace), Reporter(quiet=True)
    make_split(SplitConfig(dataset="digits", imb=50.0), workspace, root=None, force=False, reporter=reporter)
    print("synthesising", flush=True)
    generator = SynthConfig(train_steps=50 if options.quick else None, preflight=0, audit=False)
    synthesize(generator, workspace, device=device, force=False, resume=True, reporter=reporter)
    runs: list[Document] = []
    for seed in range(options.seeds):
        for amp in PRECISIONS:
            config = TrainConfig(method="sau", synthetic=True, preset="small", steps=steps, amp=amp, seed=seed)
            run = fit(
                config,
                workspace,
                name=f"{amp}-{steps}-seed{seed}",
                device=device,
                force=False,
                resume=True,
                reporter=reporter,
            )
            found = evaluate(
                EvalConfig(run=run.name), workspace, device=device, force=False, reporter=reporter
            ).document
            few = found["groups"]["few"]["top1"]
            runs.append(
                {"seed": seed, "amp": amp, "top1": found["top1"], "balanced_accuracy": found["balanced_accuracy"]}
                | {"few": few, "images_per_second": run.manifest.summary["images_per_second"]}
            )
            print("  ".join(f"{name} {shown(value)}" for name, value in runs[-1].items()), flush=True)

    comparison = {measure: compare(runs, measure) for measure in MEASURES}
    for measure, row in comparison.items():
        print(f"{measure}: bf16 - float32 {row['mean_difference']:+.4f}, standard deviation {row['seed_std']:.4f}")
    look = {"off": ("float32", "reference"), "bf16": ("bf16", "saukit")}
    bars = [
        Bar(f"seed {run['seed']}, {look[run['amp']][0]}", 100 * run["top1"], f"{run['top1']:.4f}", look[run["amp"]][1])
        for run in runs
    ]
    return finish(
        "precision",
        {
            "difference": round(comparison["top1"]["mean_difference"], 6),
            "seed_std": round(comparison["top1"]["seed_std"], 6),
        },
        {"steps": steps, "runs": runs, "comparison": comparison},
        {f"top-1 in % of SAU on digits, {steps} steps": bars},
        options=options,
        arguments=arguments,
        device=device,
    )


def compare(runs: Sequence[dict[str, Any]], measure: str) -> dict[str, Any]:
    """bf16 minus float32 of each seed, its mean, and the standard deviation over seeds at one precision (pooled)."""
    values = {amp: [run[measure] for run in runs if run["amp"] == amp] for amp in PRECISIONS}
    differences = [half - full for full, half in zip(values["off"], values["bf16"], strict=True)]
    pooled = statistics.fmean(statistics.variance(values[amp]) for amp in PRECISIONS) ** 0.5
    return {
        "differences": [round(value, 6) for value in differences],
        "mean_difference": statistics.fmean(differences),
        "seed_std": pooled,
    }


def shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
