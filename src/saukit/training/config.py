"""What `saukit train` can be told, and the presets that fill in what it was not told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from saukit.core.config import Amp
from saukit.core.errors import UsageError

Method = Literal[
    "sau",
    "sau-aware",
    "mixup-cutmix",
    "ce",
    "class-balanced",
    "balanced-softmax",
    "logit-adjustment",
    "ldam-drw",
    "crt",
    "bcl",
]
Noise = Literal["pos_neg", "neg_only", "drop"]
Schedule = Literal["cosine-epoch", "cosine-step", "step"]
PresetName = Literal["paper", "ldam", "fast", "small"]
T = TypeVar("T")

# The others have a remedy for the imbalance of their own, by their definition from the mixed training set.
TAKES_PRIOR: tuple[Method, ...] = ("sau", "sau-aware", "mixup-cutmix", "ce")
TAKES_REAL_FINISH: tuple[Method, ...] = (*TAKES_PRIOR, "class-balanced")  # the others count the mixed training set
TWO_STAGES: tuple[Method, ...] = ("ldam-drw", "crt")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Every default of `train` lives here; None is "from the preset" or "from the data".

    `prior_correction` is the tau of logit adjustment (Menon et al. 2021, Eq. 10): the classification losses see
    logits_k + tau log(n_k), n_k the real training images of class k. None is none, as 0; methods that have a remedy of
    their own for the imbalance take no other.
    `synthetic_weight` is what a synthetic image weighs in the classification losses, a real one weighing 1: those are
    weighted means, sum(w loss) / sum(w). Neither touches SAU's contrastive loss, nor how a trained model predicts.
    `real_finish` is the share of the steps, the last ones, whose batches hold real images alone.
    """

    method: Method = "sau"
    synthetic: bool | None = None
    preset: Literal["auto", "paper", "ldam", "fast", "small"] = "auto"
    backbone: str | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    drop_last: bool | None = None
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None
    warmup: float | None = None
    noise: Noise = "pos_neg"
    temperature: float = 0.1
    prior_correction: float | None = None
    synthetic_weight: float = 1.0
    real_finish: float = 0.0
    flip: bool | None = None
    select: Literal["last", "val"] = "last"
    amp: Amp = "auto"
    compile: bool = False
    cuda_graph: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """A row of the table of presets; exactly one of `epochs` and `steps` is set.

    `warmup` is the share of the steps in which the learning rate rises. `drop_last` leaves an epoch's last batch out
    where it is not a whole one.
    `steps` is a fixed number of optimiser steps however many images there are: more images are not more training.
    """

    backbone: str
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    drop_last: bool = True


SMALL_IMAGE_SIDE = 16  # up to here a ResNet's strides leave too little, and the small convolutional network is used

PRESETS: dict[PresetName, Preset] = {
    # SAU's own settings for CIFAR: no warm-up, the learning rate changes once an epoch.
    "paper": Preset("resnet32-w64", 200, None, 128, 0.01, 5e-3, "cosine-epoch", 0.0),
    # The customary settings of long-tail papers, those of LDAM-DRW (Cao et al. 2019): warm-up over five epochs.
    "ldam": Preset("resnet32-w16", 200, None, 128, 0.1, 2e-4, "step", 0.025, drop_last=False),
    "fast": Preset("resnet32-w64", 50, None, 128, 0.05, 1e-3, "cosine-step", 0.05),
    # A budget for a processor; minutes, not days.
    "small": Preset("resnet32-w16", None, 1000, 128, 0.05, 5e-4, "cosine-step", 0.05),
}


def resolve(
    config: TrainConfig, *, cache_exists: bool, image_side: int, default_flip: bool, device_type: str, amp: Amp
) -> TrainConfig:
    """The configuration with nothing left open: what config.yaml holds, and what a run is repeated from.

    Raises: UsageError that lists every value that makes no sense.
    """
    synthetic = cache_exists if config.synthetic is None else config.synthetic
    _check(config, synthetic=synthetic, device_type=device_type, amp=amp)
    tiny = image_side <= SMALL_IMAGE_SIDE
    suitable: PresetName = "small" if device_type == "cpu" or tiny else "fast"
    name = suitable if config.preset == "auto" else config.preset
    preset = PRESETS[name]
    lengths_given = config.epochs is not None or config.steps is not None
    return replace(
        config,
        preset=name,
        synthetic=synthetic,
        backbone=config.backbone or ("convnet-small" if tiny else preset.backbone),
        epochs=config.epochs if lengths_given else preset.epochs,
        steps=config.steps if lengths_given else preset.steps,
        batch_size=_or(config.batch_size, preset.batch_size),
        drop_last=_or(config.drop_last, preset.drop_last),
        lr=_or(config.lr, preset.lr),
        weight_decay=_or(config.weight_decay, preset.weight_decay),
        schedule=config.schedule or preset.schedule,
        warmup=_or(config.warmup, preset.warmup),
        prior_correction=config.prior_correction or None,  # 0 and none are one run, so they have one name
        flip=_or(config.flip, default_flip),
        amp=amp,
    )


def default_run_name(config: TrainConfig) -> str:
    """The name of a resolved configuration's run: `ce`, `ce-seed1`, `sau+synth-prior0.75-weight0.5-finish0.5`."""
    name = config.method + ("+synth" if config.synthetic else "")
    if config.prior_correction is not None:
        name += f"-prior{_brief(config.prior_correction)}"
    if config.synthetic_weight != TrainConfig.synthetic_weight:
        name += f"-weight{_brief(config.synthetic_weight)}"
    if config.real_finish != TrainConfig.real_finish:
        name += f"-finish{_brief(config.real_finish)}"
    if config.seed != TrainConfig.seed:
        name += f"-seed{config.seed}"
    return name


def _brief(number: float) -> str:
    """All its digits, so that two numbers never have one name: 1, 0.75."""
    return str(float(number)).removesuffix(".0")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _check(config: TrainConfig, *, synthetic: bool, device_type: str, amp: Amp) -> None:
    from saukit.models.backbones import BACKBONES

    problems = []
    if config.epochs is not None and config.steps is not None:
        problems.append("epochs and steps both say how long to train: give one of them")
    for field in ("epochs", "steps", "batch_size"):
        value = getattr(config, field)
        if value is not None and value < 1:
            problems.append(f"{field} must be at least 1, got {value}")
    if config.batch_size == 1:
        problems.append("batch_size must be at least 2 (BatchNorm needs two images), got 1")
    for field in ("lr", "temperature"):
        value = getattr(config, field)
        if value is not None and not 0 < value < float("inf"):
            problems.append(f"{field} must be positive, got {value}")
    if config.weight_decay is not None and not 0 <= config.weight_decay < float("inf"):
        problems.append(f"weight_decay must be at least 0, got {config.weight_decay}")
    if config.warmup is not None and not 0 <= config.warmup < 1:
        problems.append(f"warmup must be a share of the steps, at least 0 and below 1, got {config.warmup}")
    tau, weight = config.prior_correction, config.synthetic_weight
    if tau is not None and not 0 <= tau < float("inf"):
        problems.append(f"prior_correction must be at least 0 (times the log of a class's real images), got {tau}")
    elif tau is not None and config.method not in TAKES_PRIOR:
        problems.append(
            f"{config.method} has a remedy of its own for the imbalance and takes no prior_correction, "
            f"got {tau}: use --method ce --prior-correction {_brief(tau)}"
        )
    if not 0 < weight <= 1:
        problems.append(f"synthetic_weight must be above 0 and at most 1 (a real image's weight), got {weight}")
    elif weight != 1 and not synthetic:
        problems.append(
            f"synthetic_weight {weight} weighs synthetic images, and this run has none: "
            "use --synthetic, or --synthetic-weight 1"
        )
    finish = config.real_finish
    if not 0 <= finish < 1:
        problems.append(f"real_finish must be a share of the steps, at least 0 and below 1, got {finish}")
    elif finish and not synthetic:
        problems.append(
            f"real_finish {finish} leaves synthetic images out of the last steps, and this run has none: "
            "use --synthetic, or --real-finish 0"
        )
    elif finish and config.method not in TAKES_REAL_FINISH:
        problems.append(
            f"{config.method} counts the mixed training set to the end and takes no real_finish, got {finish}: "
            f"use one of {', '.join(TAKES_REAL_FINISH)}"
        )
    if config.backbone is not None and config.backbone not in BACKBONES:
        problems.append(f"unknown backbone {config.backbone!r}: one of {', '.join(BACKBONES)}")
    if config.cuda_graph and device_type != "cuda":
        problems.append(f"cuda_graph needs a CUDA device, this is {device_type}: use --no-cuda-graph")
    elif config.cuda_graph and amp == "fp16":
        problems.append("cuda_graph works with bf16 and off, not with fp16: use --no-cuda-graph")
    elif config.cuda_graph and (config.drop_last is False or (config.drop_last is None and config.preset == "ldam")):
        problems.append("cuda_graph needs batches of one size: use --drop-last or --no-cuda-graph")
    elif config.cuda_graph and config.method in TWO_STAGES:
        problems.append(f"cuda_graph records one kind of step, and {config.method} has two: use --no-cuda-graph")
    if problems:
        raise UsageError("; ".join(problems))
