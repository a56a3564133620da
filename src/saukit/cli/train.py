"""`saukit train`: train a network on the split, and on the synthetic cache if there is one."""

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
from saukit.training.config import Method, Noise, Schedule, TrainConfig

PRESET_FIELDS = ("backbone", "epochs", "steps", "batch_size", "drop_last", "lr", "weight_decay", "schedule", "warmup")
DISPLACES = {"preset": PRESET_FIELDS, "epochs": ("steps",), "steps": ("epochs",)}


def command(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Option(
            help="The run's name.",
            show_default="method, +synth, and prior, weight, finish and seed away from their defaults",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="What a step computes; mixup-cutmix and sau-aware are SAU with one branch off."),
    ] = TrainConfig.method,
    synthetic: Annotated[
        bool | None,
        typer.Option(
            "--synthetic/--no-synthetic", help="Train on the synthetic cache too.", show_default="if there is one"
        ),
    ] = TrainConfig.synthetic,
    preset: Annotated[
        Literal["auto", "paper", "ldam", "fast", "small"],
        typer.Option(
            help="Network and budget: paper is SAU's, ldam long-tail papers', fast for a GPU, small for a CPU."
        ),
    ] = TrainConfig.preset,
    backbone: Annotated[
        str | None,
        typer.Option(help="resnet32-w64, resnet32-w16, convnet-small or resnext50.", show_default="of the preset"),
    ] = TrainConfig.backbone,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the mixed training set.", show_default="of the preset")
    ] = TrainConfig.epochs,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimiser steps, however many images there are.", show_default="of the preset"),
    ] = TrainConfig.steps,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a batch.", show_default="of the preset")
    ] = TrainConfig.batch_size,
    drop_last: Annotated[
        bool | None,
        typer.Option(
            "--drop-last/--keep-last",
            help="Leave out an epoch's last batch if it is not whole.",
            show_default="of the preset",
        ),
    ] = TrainConfig.drop_last,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="of the preset")
    ] = TrainConfig.lr,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of SGD.", show_default="of the preset")
    ] = TrainConfig.weight_decay,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="Cosine by the epoch or by the step; step: x 0.01 at 80 and 90 %.", show_default="of the preset"
        ),
    ] = TrainConfig.schedule,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps with a rising rate.", show_default="of the preset")
    ] = TrainConfig.warmup,
    noise: Annotated[
        Noise, typer.Option(help="SAU: what becomes of synthetic images whose label is not trusted.")
    ] = TrainConfig.noise,
    temperature: Annotated[
        float, typer.Option(help="SAU: temperature of the contrastive loss.")
    ] = TrainConfig.temperature,
    prior_correction: Annotated[
        float | None,
        typer.Option(
            help="Add this times log(real images of a class) to the logits that the classification losses see; "
            "0 is none, 1 on real images alone is balanced softmax.",
            show_default="the method's own: none, or balanced softmax's",
        ),
    ] = TrainConfig.prior_correction,
    synthetic_weight: Annotated[
        float,
        typer.Option(help="Weight of a synthetic image in the classification losses, beside 1 of a real one."),
    ] = TrainConfig.synthetic_weight,
    real_finish: Annotated[
        float,
        typer.Option(help="Share of the steps, the last ones, whose batches hold real images alone."),
    ] = TrainConfig.real_finish,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror images at random.", show_default="by the data set"),
    ] = TrainConfig.flip,
    select: Annotated[
        Literal["last", "val"], typer.Option(help="Keep the last step, or the best on the validation part.")
    ] = TrainConfig.select,
    amp: Annotated[Amp, typer.Option(help="Arithmetic of the forward passes.")] = TrainConfig.amp,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Compile the network with torch.compile, a minute before the first step."
        ),
    ] = TrainConfig.compile,
    cuda_graph: Annotated[
        bool,
        typer.Option("--cuda-graph/--no-cuda-graph", help="Launch a whole step as one CUDA graph (bf16 or float32)."),
    ] = TrainConfig.cuda_graph,
    seed: Annotated[int, typer.Option(help="Training seed; it never changes the data.")] = TrainConfig.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, to the same bits.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events too (extra tensorboard).")
    ] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the dual-branch network (SAU) or a baseline.

    [bold]Examples[/bold]

      saukit train

      saukit train --method balanced-softmax --no-synthetic

      saukit train --method sau --prior-correction 1 --real-finish 0.5

      saukit train --config saukit_work/runs/ce/config.yaml --seed 1
    """
    reporter = Reporter(quiet=quiet, json_output=json)
    train_config = build_config(context, TrainConfig, config, displaces=DISPLACES)

    from saukit.cli.show import show_run
    from saukit.training.plan import plan_training
    from saukit.training.trainer import estimate_seconds, fit

    opened, where = open_workspace(workspace), open_device(device)
    if dry_run:
        plan = plan_training(train_config, opened, name=name, device=where)
        facts = {
            "name": plan.name,
            "training_images": plan.training_images,
            "steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "estimated_time": format_duration(estimate_seconds(plan)),
        }
        DryRun("train", plan.config, facts).show(reporter)
        return
    result = fit(
        train_config,
        opened,
        name=name,
        device=where,
        force=force,
        resume=resume,
        reporter=reporter,
        tensorboard=tensorboard,
    )
    show_run(result, reporter)
