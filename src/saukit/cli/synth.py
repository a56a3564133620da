"""`saukit synth`: fill the tail with class-conditional synthetic images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

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
    was_given,
)
from saukit.core.config import Amp, load_config
from saukit.core.console import Reporter
from saukit.core.words import format_duration
from saukit.synthesis.config import FilterName, GeneratorName, Sampler, SynthConfig, idle_fields

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from saukit.core.workspace import Workspace

DISPLACES = {"preset": ("train_steps", "train_batch_size", "guidance", "sampler_steps", "sample_batch_size")}
OF_A_GENERATOR = ("model", "guidance", "sampler_steps", "sample_batch_size")  # another one has its own
OWN, PIPELINE, FOLDER = "The diffusion model of the split", "Pretrained pipelines", "Images made elsewhere"
KEEP, SCALE = "What is kept, and what is looked at", "Several machines"


def command(
    context: typer.Context,
    per_class_target: Annotated[
        int | None,
        typer.Option(help="Real + synthetic images of each class.", show_default="the largest class"),
    ] = SynthConfig.per_class_target,
    generator: Annotated[
        GeneratorName,
        typer.Option(help="diffusion: trained on the split; pipeline: pretrained; folder: images made elsewhere."),
    ] = SynthConfig.generator,
    model: Annotated[
        str | None,
        typer.Option(
            help="The pipeline, a folder or a name on the Hub; or another workspace's synth/generator, which is then "
            "not trained."
        ),
    ] = SynthConfig.model,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none.", show_default="of preset or pipeline")
    ] = SynthConfig.guidance,
    sampler_steps: Annotated[
        int | None, typer.Option(help="Solver steps an image.", show_default="of preset or pipeline")
    ] = SynthConfig.sampler_steps,
    sample_batch_size: Annotated[
        int | None,
        typer.Option(help="Images sampled at once.", show_default="of the preset; on a GPU found by trying"),
    ] = SynthConfig.sample_batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the generator and of every image.")] = SynthConfig.seed,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted cache, or finish what the jobs of --shard sampled."),
    ] = False,
    preset: Annotated[
        Literal["auto", "tiny", "small", "base"],
        typer.Option(help="Size and budget: tiny for a processor, base for a GPU.", rich_help_panel=OWN),
    ] = SynthConfig.preset,
    balance: Annotated[
        float,
        typer.Option(help="Classes in training: 1 equally often, 0 as often as they are.", rich_help_panel=OWN),
    ] = SynthConfig.balance,
    tail: Annotated[
        Literal["none", "cbdm"],
        typer.Option(help="Remedy for the tail: class-balancing regulariser (CBDM).", rich_help_panel=OWN),
    ] = SynthConfig.tail,
    augment: Annotated[
        float,
        typer.Option(help="Share of training images that are warped; none of it is drawn.", rich_help_panel=OWN),
    ] = SynthConfig.augment,
    variation: Annotated[
        float | None,
        typer.Option(
            help="Start from a real image of the class with this share of noise (SDEdit), up to 1; more is further "
            "from it.",
            show_default="off: from noise alone",
            rich_help_panel=OWN,
        ),
    ] = SynthConfig.variation,
    sampler: Annotated[
        Sampler, typer.Option(help="DPM-Solver++ 2M or UniPC.", rich_help_panel=OWN)
    ] = SynthConfig.sampler,
    train_steps: Annotated[
        int | None,
        typer.Option(help="Training steps of the generator.", show_default="of the preset", rich_help_panel=OWN),
    ] = SynthConfig.train_steps,
    train_batch_size: Annotated[
        int | None, typer.Option(help="Images a training step.", show_default="of the preset", rich_help_panel=OWN)
    ] = SynthConfig.train_batch_size,
    amp: Annotated[Amp, typer.Option(help="Arithmetic of the forward passes.", rich_help_panel=OWN)] = SynthConfig.amp,
    prompts: Annotated[
        str | None,
        typer.Option(help="YAML or JSON file: prompts of each class, as many as you like.", rich_help_panel=PIPELINE),
    ] = SynthConfig.prompts,
    descriptions: Annotated[
        str | None,
        typer.Option(
            help="YAML or JSON file: what a class is, where its name does not tell.", rich_help_panel=PIPELINE
        ),
    ] = SynthConfig.descriptions,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt with {class} in it; several may be given, and are used in turn. For classes without "
            "--prompts.",
            show_default="a photo of a {class}, and others",
            rich_help_panel=PIPELINE,
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the images are not to show.", rich_help_panel=PIPELINE)
    ] = SynthConfig.negative_prompt,
    class_ids: Annotated[
        str | None,
        typer.Option(help="YAML or JSON file: a class-conditional model's own numbers.", rich_help_panel=PIPELINE),
    ] = SynthConfig.class_ids,
    lora: Annotated[
        str | None, typer.Option(help="LoRA weights: a file or a folder.", rich_help_panel=PIPELINE)
    ] = SynthConfig.lora,
    lora_scale: Annotated[
        float, typer.Option(help="How much of the --lora weights; 0 is none.", rich_help_panel=PIPELINE)
    ] = SynthConfig.lora_scale,
    draw_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels that the pipeline draws at.", show_default="its own", rich_help_panel=PIPELINE
        ),
    ] = SynthConfig.draw_size,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(help="Arithmetic of the pipeline.", rich_help_panel=PIPELINE),
    ] = SynthConfig.dtype,
    from_folder: Annotated[
        str | None,
        typer.Option("--from", help="Folder of images, one sub-folder a class.", rich_help_panel=FOLDER),
    ] = SynthConfig.from_folder,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.", rich_help_panel=FOLDER)
    ] = SynthConfig.skip_bad,
    filter: Annotated[
        FilterName,
        typer.Option(help="What images have to pass: a classifier of the real images, CLIP.", rich_help_panel=KEEP),
    ] = SynthConfig.filter,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="A run on real images that judges, for --filter classifier, --audit and --preflight.",
            show_default="balanced-softmax, trained if it is not there",
            rich_help_panel=KEEP,
        ),
    ] = SynthConfig.classifier,
    clip_model: Annotated[
        str,
        typer.Option(help="CLIP for --filter clip, a folder or a name on the Hub (extra clip).", rich_help_panel=KEEP),
    ] = SynthConfig.clip_model,
    min_confidence: Annotated[
        float,
        typer.Option(help="Least probability of its own class, for --filter classifier.", rich_help_panel=KEEP),
    ] = SynthConfig.min_confidence,
    min_clip: Annotated[
        float, typer.Option(help="Least cosine to the class's prompts, for --filter clip.", rich_help_panel=KEEP)
    ] = SynthConfig.min_clip,
    reject_copies: Annotated[
        bool, typer.Option(help="Reject near-duplicates of real training images.", rich_help_panel=KEEP)
    ] = SynthConfig.reject_copies,
    max_tries: Annotated[
        float,
        typer.Option(
            help="Candidates for each image wanted, before a class is given up. Needs --filter or --reject-copies.",
            rich_help_panel=KEEP,
        ),
    ] = SynthConfig.max_tries,
    preflight: Annotated[
        int, typer.Option(help="Images a class to look at before the long run; 0 is none.", rich_help_panel=KEEP)
    ] = SynthConfig.preflight,
    audit: Annotated[
        bool, typer.Option(help="Look at what is kept: audit.json, closest.png.", rich_help_panel=KEEP)
    ] = SynthConfig.audit,
    inception: Annotated[
        str | None,
        typer.Option(
            help="Inception-v3 weights, for distances in its features too. Needs --audit.", rich_help_panel=KEEP
        ),
    ] = SynthConfig.inception,
    refilter: Annotated[
        bool,
        typer.Option("--refilter", help="Choose anew from the images there are; draws none.", rich_help_panel=KEEP),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: be one of n jobs that draw the same plan, counted from 0.", rich_help_panel=SCALE),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Fill every class to one size with images from a diffusion model, a pretrained pipeline or a folder.

    [bold]Examples[/bold]

      saukit synth

      saukit synth --per-class-target 5000 --preset small

      saukit synth --generator pipeline --model stabilityai/sd-turbo --guidance 1 --sampler-steps 1

      saukit synth --generator folder --from made_elsewhere --filter classifier

      saukit synth --refilter --filter classifier

      saukit synth --shard 0/3

      saukit synth --resume
    """
    from saukit.core.errors import UsageError

    reporter = Reporter(quiet=quiet, json_output=json)
    opened = open_workspace(workspace)
    if (resume or refilter) and config is None and (opened.synth / "config.yaml").exists():
        config = opened.synth / "config.yaml"
    synth_config = _options(context, config, template)
    if refilter and (force or resume or shard is not None):
        raise UsageError("--refilter goes without --force, --resume and --shard: leave them out")

    from saukit.api import classifier_training
    from saukit.cli.show import show_job, show_synthesis
    from saukit.synthesis import stage as generate
    from saukit.synthesis.worker import Job

    where = open_device(device)
    if dry_run:
        _dry_run(synth_config, opened, where, reporter).show(reporter)
        return
    train_classifier = classifier_training(opened, where, reporter)
    if refilter:
        result = generate.refilter(
            synth_config, opened, device=where, reporter=reporter, train_classifier=train_classifier
        )
    else:
        job = None if shard is None else Job.parse(shard)
        result = generate.synthesize(
            synth_config,
            opened,
            device=where,
            force=force,
            resume=resume,
            reporter=reporter,
            train_classifier=train_classifier,
            job=job,
        )
        if job is not None and result.manifest is None:
            show_job(result, job, reporter)
            return
    show_synthesis(result, reporter)


def _options(context: typer.Context, file: Path | None, template: list[str] | None) -> SynthConfig:
    """The configuration, without what the options given leave of `file` without effect.

    `--filter none` takes its bounds along, another `--generator` all of the first.
    """
    saved = SynthConfig() if file is None else load_config(SynthConfig, file)
    displaces: dict[str, tuple[str, ...]] = dict(DISPLACES)
    if context.params["generator"] != saved.generator:
        displaces["generator"] = OF_A_GENERATOR
    extra = {} if template is None else {"templates": template}
    config = build_config(context, SynthConfig, file, displaces=displaces, extra=extra)
    idle = idle_fields(config).keys() - idle_fields(saved).keys()
    gone = {name for name in idle if name not in extra and not was_given(context, name)}
    return dataclasses.replace(config, **{name: getattr(SynthConfig, name) for name in gone})


def _dry_run(config: SynthConfig, opened: Workspace, where: torch.device, reporter: Reporter) -> DryRun:
    """What would be made. It does not count what filters reject."""
    from saukit.data.split import load_split
    from saukit.synthesis.plan import begin, outline
    from saukit.synthesis.stage import estimate_seconds

    split = load_split(opened)
    planned = outline(config, split, where)
    plan = begin(planned)
    facts = {
        "images": int(plan.wanted.sum()),
        "images_per_class": dict(zip(plan.classes, plan.wanted.tolist(), strict=True)),
        "candidates": plan.total,
        "bytes": plan.bytes,
    }
    facts["estimated_time"] = format_duration(estimate_seconds(planned, split, where, reporter))
    return DryRun("synth", plan.config, facts)
