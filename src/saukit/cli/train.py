"""`saukit train`: train a network on the split, and on the synthetic cache if there is one."""

from dataclasses import asdict
from typing import Annotated

import typer

from saukit.cli.options import Call, stage_command
from saukit.core.errors import UsageError
from saukit.core.ranks import job_size
from saukit.core.words import format_bytes, format_duration
from saukit.training.config import TrainConfig
from saukit.training.trackers import TrackerName


@stage_command(TrainConfig, every_process=True)
def command(
    call: Call,
    name: Annotated[
        str | None, typer.Option(help="The run's name.", show_default="method, +synth, and the non-default options")
    ] = None,
    config: TrainConfig = TrainConfig(),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, to the same bits.")] = False,
    tracker: Annotated[
        TrackerName | None,
        typer.Option(help="Send the figures to a tracker too (extra of its name).", show_default="none"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: estimate the time from real steps.")
    ] = False,
) -> None:
    """Train the dual-branch network (SAU) or a baseline.

    Examples:

      saukit train

      saukit train --method balanced-softmax --no-synthetic

      saukit train --method sau --prior-correction 1 --real-finish 0.5

      saukit train --config saukit_work/runs/ce/config.yaml --seed 1

      torchrun --nproc-per-node 8 -m saukit train --sync-batchnorm
    """
    from saukit.cli.show import show_run
    from saukit.training.costs import run_costs
    from saukit.training.distributed import joined
    from saukit.training.estimate import estimate_seconds
    from saukit.training.methods import METHODS
    from saukit.training.plan import plan_training
    from saukit.training.stage import fit

    if measure and not call.dry_run:
        raise UsageError("--measure has no effect without --dry-run: add --dry-run, or leave --measure out")
    if call.dry_run:
        plan = plan_training(config, call.workspace, name=name, device=call.device)
        processes, seconds = job_size(), estimate_seconds(plan, measure=measure)
        costs = run_costs(plan, processes=processes)
        rows = {
            "run": plan.name,
            "training images": plan.training_images,
            "steps": f"{plan.total_steps:,}, {plan.steps_per_epoch:,} per epoch",
            "image passes": costs.image_passes,
            "operations": f"{costs.flops:.3g}",
            "images stored": format_bytes(costs.image_bytes),
            "memory per process": f"about {format_bytes(costs.memory_bytes)}",
            "disk": f"at most {format_bytes(costs.disk_bytes)}",
            "processes": processes,
            "estimated time": format_duration(seconds / processes),
        }
        document = {
            "name": plan.name,
            "training_images": plan.training_images,
            "steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "processes": processes,
            "costs": asdict(costs),
            "estimated_seconds": seconds / processes,
            "device_hours": seconds / 3600,
        }
        call.show_plan("train", plan.config, rows, document=document, tables={"method": METHODS})
        return
    with joined(call.device):
        result = fit(
            config,
            call.workspace,
            name=name,
            device=call.device,
            force=call.force,
            resume=resume,
            reporter=call.reporter,
            tracker=tracker,
            advise=call.file is None and not call.was_given("method"),
        )
    show_run(result, call.reporter)
