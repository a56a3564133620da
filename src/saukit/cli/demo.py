"""`saukit demo`: the whole pipeline on scikit-learn's digits, and one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.options import (
    COMMON,
    DebugOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    QuietOption,
    open_device,
    open_workspace,
)
from saukit.core.console import Reporter, format_duration
from saukit.data.config import SplitConfig
from saukit.synthesis.config import SynthConfig
from saukit.training.config import TrainConfig

DEMO_SPLIT = SplitConfig(dataset="digits", imb=50.0)
DEMO_STEPS = 400
JUDGE = TrainConfig(method="balanced-softmax", synthetic=False, preset="small", steps=DEMO_STEPS)
# Plain training on real images, the strongest simple remedy on real images, SAU on real + synthetic images, and that
# with a prior correction, which is saukit's own; all with the same network, batches and number of optimiser steps.
DEMO_RUNS = (
    TrainConfig(method="ce", synthetic=False, preset="small", steps=DEMO_STEPS),
    JUDGE,
    TrainConfig(method="sau", synthetic=True, preset="small", steps=DEMO_STEPS),
    TrainConfig(method="sau", synthetic=True, preset="small", steps=DEMO_STEPS, prior_correction=0.75),
)


def command(
    seed: Annotated[int, typer.Option(help="Training seed of the four networks.")] = TrainConfig.seed,
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="The demo's own workspace.", rich_help_panel=COMMON)
    ] = Path("saukit_demo"),
    device: DeviceOption = "auto",
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, embedded and real, and compare SAU with two baselines.

    [bold]Example[/bold]

      saukit demo
    """
    import dataclasses

    from saukit.cli.show import comparison_rows, show_split, show_synthesis
    from saukit.core.figures import GROUP_COLOURS
    from saukit.data.split import CHART_NAME, make_split
    from saukit.evaluation.config import EvalConfig
    from saukit.evaluation.evaluate import evaluate
    from saukit.synthesis.generate import synthesize
    from saukit.synthesis.worker import CLOSEST
    from saukit.training.trainer import fit

    started = time.monotonic()
    reporter, steps = Reporter(quiet=quiet, json_output=json), Reporter(quiet=quiet)
    if json:
        steps = Reporter(quiet=True)
    opened, where = open_workspace(workspace), open_device(device)

    reporter.say("1/4 make-lt: a long-tailed split of digits")
    split = make_split(DEMO_SPLIT, opened, root=None, force=force, reporter=reporter)
    show_split(split, opened.split, steps)
    reporter.say("2/4 synth: a diffusion model trained on that split fills the tail")

    def judge() -> str:
        """The classifier that looks at the synthetic images; its run is in the table too."""
        seeded = dataclasses.replace(JUDGE, seed=seed)
        return fit(seeded, opened, name=None, device=where, force=force, resume=True, reporter=reporter).name

    cache = synthesize(
        SynthConfig(),
        opened,
        device=where,
        force=force,
        resume=True,
        reporter=reporter,
        train_classifier=judge,
    )
    show_synthesis(cache, steps)
    documents, pictures = [], [opened.split / CHART_NAME, cache.samples, cache.folder / CLOSEST]
    for config in DEMO_RUNS:
        correction = "" if config.prior_correction is None else " with a prior correction"
        reporter.say(f"3/4 train and 4/4 eval: {config.method}{correction}")
        seeded = dataclasses.replace(config, seed=seed)
        anew = force and config is not JUDGE  # which was made anew above
        run = fit(seeded, opened, name=None, device=where, force=anew, resume=True, reporter=reporter)
        result = evaluate(EvalConfig(run=run.name), opened, device=where, force=force, reporter=reporter)
        documents.append(result.document)
        pictures += result.files[1:]

    reporter.table(
        f"digits at ratio 50, accuracy in % on {documents[0]['test_images']} test images "
        f"({documents[0]['groups_rule']}; one seed: differences of a few points are noise)",
        ["run", "top-1", "balanced", *GROUP_COLOURS],
        comparison_rows(documents),
    )
    reporter.result("look at:")
    for path in pictures:
        reporter.result(f"  {path}")
    reporter.result(f"finished in {format_duration(time.monotonic() - started)}")
    reporter.document({"runs": documents, "pictures": [str(path) for path in pictures]})
