"""`saukit synth`: fill the tail with class-conditional synthetic images."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from saukit.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DebugOption,
    DeviceOption,
    DryRun,
    DryRunOption,
    ForceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    build_config,
    open_device,
    open_workspace,
)
from saukit.core.config import Amp
from saukit.core.console import Reporter, format_duration
from saukit.synthesis.config import SynthConfig

DISPLACES = {"preset": ("train_steps", "train_batch_size", "guidance", "sampler_steps", "sample_batch_size")}


def command(
    context: typer.Context,
    per_class_target: Annotated[
        int | None,
        typer.Option(help="Real + synthetic images of each class.", show_default="the largest class"),
    ] = SynthConfig.per_class_target,
    preset: Annotated[
        Literal["auto", "tiny", "small", "base"],
        typer.Option(help="Size and budget of the diffusion model: tiny for a processor, base for a GPU."),
    ] = SynthConfig.preset,
    train_steps: Annotated[
        int | None, typer.Option(help="Training steps of the generator.", show_default="of the preset")
    ] = SynthConfig.train_steps,
    train_batch_size: Annotated[
        int | None, typer.Option(help="Images a training step.", show_default="of the preset")
    ] = SynthConfig.train_batch_size,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none.", show_default="of the preset")
    ] = SynthConfig.guidance,
    sampler_steps: Annotated[
        int | None, typer.Option(help="Steps of DPM-Solver++ an image.", show_default="of the preset")
    ] = SynthConfig.sampler_steps,
    sample_batch_size: Annotated[
        int | None, typer.Option(help="Images sampled at once.", show_default="of the preset")
    ] = SynthConfig.sample_batch_size,
    amp: Annotated[Amp, typer.Option(help="Arithmetic of the forward passes.")] = SynthConfig.amp,
    seed: Annotated[int, typer.Option(help="Seed of the generator and of every image.")] = SynthConfig.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after an interruption, to the same bits.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a class-conditional diffusion model on the split's real images and fill every class to one size.

    [bold]Examples[/bold]

      saukit synth

      saukit synth --per-class-target 5000 --preset small

      saukit synth --resume
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    synth_config = build_config(context, SynthConfig, config, displaces=DISPLACES)

    from saukit.cli.show import show_synthesis
    from saukit.data.split import load_split
    from saukit.synthesis.generate import estimate_seconds, synthesize
    from saukit.synthesis.plan import plan_synthesis

    opened, where = open_workspace(workspace), open_device(device)
    if dry_run:
        split = load_split(opened)
        plan = plan_synthesis(synth_config, split, where)
        counts = dict(zip(plan.classes, plan.synthetic_counts.tolist(), strict=True))
        facts = {
            "images": plan.total,
            "images_per_class": counts,
            "bytes": plan.bytes,
            "estimated_time": format_duration(estimate_seconds(plan, split, where)),
        }
        DryRun("synth", plan.config, facts).show(reporter)
        return
    result = synthesize(synth_config, opened, device=where, force=force, resume=resume, reporter=reporter)
    show_synthesis(result, reporter)
