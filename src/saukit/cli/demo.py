"""`saukit demo`: the whole pipeline on scikit-learn's digits, one table and one page."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from saukit.cli.compare import JobsOption
from saukit.cli.options import Call, stage_command
from saukit.cli.report import FILE_NAME
from saukit.core.console import Reporter
from saukit.core.words import format_duration
from saukit.data.config import SplitConfig
from saukit.evaluation.config import DEFAULT_COMPARISON, CompareConfig
from saukit.report.config import ReportConfig
from saukit.synthesis.config import SynthConfig

DEMO_SPLIT = SplitConfig(dataset="digits", imb=50.0)
DEMO_SYNTH = SynthConfig()
# Plain training, two strong remedies on real images alone, SAU on real + synthetic images, and saukit's own recipe: a
# prior correction and a finish on real images. All with the same network, batches and number of optimiser steps.
DEMO_COMPARISON = CompareConfig(
    methods=("ce", "balanced-softmax", "mixup-cutmix-prior1", "sau+synth", "sau+synth-prior1-finish0.5"),
    seeds=3,
    baseline="balanced-softmax",
    train={"preset": "small", "steps": 200, "batch_size": 32},
)


@stage_command(without=("workspace", "config", "dry_run", "force"))
def command(
    call: Call,
    seeds: Annotated[int, typer.Option(help="Training seeds of each method, from 0.")] = DEMO_COMPARISON.seeds,
    jobs: JobsOption = None,
    folder: Annotated[Path, typer.Option("--workspace", "-w", help="The demo's own workspace.")] = Path("saukit_demo"),
) -> None:
    """Run the whole pipeline on scikit-learn's digits, embedded and real, and compare SAU with baselines.

    Stopped, the same command continues.

    Example:

      saukit demo
    """
    from saukit.cli.show import show_comparison, show_split, show_synthesis
    from saukit.data.split import make_split
    from saukit.evaluation.compare import compare
    from saukit.evaluation.contenders import plan_comparison
    from saukit.evaluation.jobs import job_devices
    from saukit.report.page import report
    from saukit.synthesis.stage import synthesize
    from saukit.training.stage import fit

    started = time.monotonic()
    call = dataclasses.replace(call, workspace_path=folder)
    reporter, steps = call.reporter, Reporter(quiet=call.quiet or call.json)
    opened, where, devices = call.workspace, call.device, job_devices(call.device_name, jobs)
    comparison = dataclasses.replace(DEMO_COMPARISON, seeds=seeds)

    reporter.say("1/4 make-lt: a long-tailed split of digits")
    split = make_split(DEMO_SPLIT, opened, root=None, force=False, reporter=reporter)
    show_split(split, opened.split, steps)

    reporter.say("2/4 synth: a diffusion model trained on that split fills the tail")
    # Its judge is the baseline's first run, which the table needs anyway.
    alone = dataclasses.replace(comparison, methods=("balanced-softmax",), seeds=1)
    judge = plan_comparison(alone, opened, device=where).runs[0]
    judge_config = judge.contender.seeded(judge.seed)
    fit(judge_config, opened, name=judge.name, device=where, force=False, resume=True, reporter=reporter)
    synth = dataclasses.replace(DEMO_SYNTH, classifier=judge.name)
    cache = synthesize(synth, opened, device=where, force=False, resume=True, reporter=reporter)
    show_synthesis(cache, steps)

    reporter.say(f"3/4 compare: {len(comparison.methods)} methods x {seeds} seeds, trained and evaluated")
    # By force, so that another number of seeds makes another table; runs that are there are used all the same.
    result = compare(comparison, opened, name=DEFAULT_COMPARISON, devices=devices, force=True, reporter=reporter)
    show_comparison(result, steps)

    reporter.say("4/4 report: one page with all of it")
    page = report(ReportConfig(), opened, out=opened.root / FILE_NAME, force=False)
    reporter.result(f"open {page.path} in a browser; finished in {format_duration(time.monotonic() - started)}")
    reporter.document({"comparison": result.document, "report": str(page.path)})
