"""`saukit synth`: fill the tail with class-conditional synthetic images."""

from typing import Annotated

import typer

from saukit.cli.options import Call, build_config, stage_command
from saukit.core.errors import UsageError
from saukit.core.words import brief, format_bytes, format_duration, shortened
from saukit.synthesis.config import SELECTION, SynthConfig


@stage_command(SynthConfig, every_process=True)
def command(
    call: Call,
    config: SynthConfig = SynthConfig(),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted cache; finish it after the jobs of --shard.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="i/n: be one of n jobs that sample the same plan, counted from 0.")
    ] = None,
    refilter: Annotated[
        bool,
        typer.Option(
            "--refilter", help="Choose again from the candidates there are; sample none.", rich_help_panel=SELECTION
        ),
    ] = False,
) -> None:
    """Fill every class to one size with images from a diffusion model, a pretrained pipeline, a folder or CMO.

    Examples:

      saukit synth

      saukit synth --per-class-target 5000 --preset small

      saukit synth --generator pipeline --model stabilityai/sd-turbo --guidance 1 --sampler-steps 1

      saukit synth --generator folder --from made_elsewhere --filter classifier

      saukit synth --generator cmo

      saukit synth --refilter --filter classifier

      saukit synth --shard 0/3

      saukit synth --resume

      torchrun --nproc-per-node 4 -m saukit synth --train-parts 4
    """
    from saukit.cli.show import show_job, show_synthesis
    from saukit.core.artifacts import CONFIG_NAME
    from saukit.core.config import load_saved
    from saukit.synthesis.jobs import Job
    from saukit.synthesis.stage import preview, synthesize
    from saukit.synthesis.stage import refilter as choose_again
    from saukit.training.distributed import from_first, joined

    if refilter and (call.force or resume or shard is not None):
        raise UsageError("--refilter samples nothing: leave out --force, --resume and --shard")
    saved = call.workspace.synth / CONFIG_NAME
    if (resume or refilter) and call.file is None and saved.exists():
        config = build_config(SynthConfig, call.given(SynthConfig), saved, load=load_saved)
    if call.dry_run:
        plan, time = preview(config, call.workspace, device=call.device, reporter=call.reporter)
        per_class = dict(zip(plan.classes, plan.wanted.tolist(), strict=True))
        rows = {
            "images": int(plan.wanted.sum()),
            "images per class": shortened(f"{brief(name)} {count:,}" for name, count in per_class.items() if count),
            "candidates": plan.total,
            "disk": f"at least {format_bytes(plan.bytes)}",
            "estimated time": f"{format_duration(time.total_seconds)} ({time})",
        }
        document = {
            "images": int(plan.wanted.sum()),
            "images_per_class": per_class,
            "candidates": plan.total,
            "bytes": plan.bytes,
            "estimated_seconds": time.total_seconds,
        }
        call.show_plan("synth", plan.config, rows, document=document)
        return
    job = None if shard is None else Job.parse(shard)
    with joined(call.device):
        if refilter:
            result = from_first(
                lambda: choose_again(config, call.workspace, device=call.device, reporter=call.reporter)
            )
        else:
            result = synthesize(
                config,
                call.workspace,
                device=call.device,
                force=call.force,
                resume=resume,
                reporter=call.reporter,
                job=job,
            )
    if job is not None and result.manifest is None:
        show_job(result, job, call.reporter)
    else:
        show_synthesis(result, call.reporter)
