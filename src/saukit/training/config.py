"""What `saukit train` can be told, and the presets that fill in what it was not told. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from saukit.core.config import Amp
from saukit.core.extras import TIMM
from saukit.core.options import Paths, check, option, options_of, resolved_as

Method = Literal[
    "sau",
    "sau-aware",
    "mixup-cutmix",
    "ce",
    "focal",
    "class-weights",
    "class-balanced",
    "balanced-softmax",
    "logit-adjustment",
    "ldam-drw",
    "crt",
    "cmo",
    "synaug",
    "bcl",
    "glmc",
]
Noise = Literal["pos_neg", "neg_only", "drop"]
Schedule = Literal["cosine-epoch", "cosine-step", "step"]
Tune = Literal["all", "head", "lora"]
ViewsName = Literal["small", "photo"]
Head = Literal["cosine", "class-means"]
PresetName = Literal["paper", "ldam", "fast", "small", "photo-small", "photo"]

LEARNING = {"tune": ("all", "lora")}  # a backbone that learns
SAU = {"method": ("sau", "sau-aware")}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Paths):
    """A training run. Every default of `train` lives here; None is "from the preset" or "from the data".

    `prior_correction` is the tau of logit adjustment (Menon et al. 2021, Eq. 10): the classification losses see
    logits_k + tau log(n_k), n_k the real training images of class k. None is none, as 0.
    `synthetic_weight` weighs the losses of synthetic images in weighted means, sum(w loss) / sum(w). Neither touches
    SAU's contrastive loss, nor how a trained model predicts.
    """

    method: Method | None = option(
        None,
        "Loss and batches; mixup-cutmix and sau-aware are SAU with one branch off.",
        shown="sau; balanced-softmax with --tune head",
    )
    synthetic: bool | None = option(None, "Train on the synthetic cache too.", shown="if there is one")
    preset: Literal["auto", PresetName] = option(
        "auto",
        "Network and budget: paper is SAU's, ldam long-tail papers', fast for a GPU, small for a CPU, "
        "photo-small a frozen pretrained network, photo a fine-tuned one.",
    )
    backbone: str | None = option(
        None, "resnet32-w64, resnet32-w16, convnet-small, resnext50, or timm/NAME (extra timm).", preset=True
    )
    weights: str | None = option(
        None,
        "What the backbone starts from: pretrained (timm's), a safetensors file, run:NAME or none.",
        shown="pretrained for timm/NAME, else none",
        path=True,
    )
    tune: Tune | None = option(
        None,
        "Train the whole network, a linear head on the frozen backbone's features, or low-rank updates (extra lora).",
        preset=True,
    )
    head: Head | None = option(
        None,
        "A cosine classifier, from random weights or from the mean of each class's features.",
        shown="linear; cosine with ldam-drw",
        needs={"method.takes_cosine": True},
    )
    lora_rank: int = option(8, "Rank of the low-rank updates.", least=1, needs={"tune": "lora"})
    multi_crop: bool | None = option(
        None,
        "Average the features of a frozen backbone over the image and its centre, and over both mirrored with --flip.",
        preset=True,
        needs={"tune": "head"},
        flags=("--multi-crop/--single-crop",),
    )
    epochs: int | None = option(None, "Passes over the training set.", preset=True, least=1, excludes=("steps",))
    steps: int | None = option(None, "Optimizer steps, however many images there are.", preset=True, least=1)
    batch_size: int | None = option(None, "Images per batch.", preset=True, least=2, note="BatchNorm needs two images")
    optimizer: Literal["sgd", "adamw"] | None = option(None, "SGD with momentum 0.9, or AdamW.", preset=True)
    drop_last: bool | None = option(
        None, "Leave out an epoch's last batch if it is not full.", preset=True, flags=("--drop-last/--keep-last",)
    )
    lr: float | None = option(None, "Peak learning rate.", preset=True, above=0)
    weight_decay: float | None = option(None, "Weight decay; photo-small: 100 / real images.", preset=True, least=0)
    schedule: Schedule | None = option(
        None, "Cosine per epoch or per step; step: x 0.01 after 80 and 90 % of the epochs.", preset=True
    )
    head_share: float | None = option(
        None,
        "First share of the steps that trains the heads alone, on a backbone that waits.",
        preset=True,
        off=0.0,
        least=0,
        below=1,
        needs=LEARNING,
    )
    layer_decay: float | None = option(
        None,
        "Learning rate of a layer of a timm backbone, as a factor of the next layer's.",
        preset=True,
        off=1.0,
        above=0,
        most=1,
        needs={"tune": "all"},
    )
    freeze_bn: bool | None = option(
        None,
        "Keep BatchNorm's statistics in the backbone as they are.",
        preset=True,
        needs=LEARNING,
        flags=("--freeze-bn/--train-bn",),
    )
    clip_norm: float | None = option(None, "Clip the gradient's norm to this.", preset=True, above=0, shown="none")
    average: float | None = option(
        None, "Keep an average of the weights with this decay per step.", preset=True, above=0, below=1, shown="none"
    )
    crop_scale: float | None = option(
        None,
        "Random crops keep at least this share of the image and are resized; none: pad by an eighth, then crop.",
        preset=True,
        above=0,
        most=1,
        needs=LEARNING,
        shown="none; 0.08 in views photo",
    )
    views: ViewsName | None = option(
        None,
        "How images are augmented: SAU's views for small images, or its authors' for photos, with RandAugment.",
        shown="photo above 64 pixels, else small",
        needs=LEARNING,
    )
    warmup: float | None = option(None, "Warm-up fraction: share of the steps.", preset=True, least=0, below=1)
    noise: Noise = option("pos_neg", "What happens to synthetic images whose label is not trusted.", needs=SAU)
    check_after: float = option(
        0.0, "Share of the steps after which SAU checks labels; until then it trusts all.", least=0, below=1, needs=SAU
    )
    temperature: float = option(
        0.1, "Temperature of the contrastive loss.", above=0, needs={"method": ("sau", "sau-aware", "bcl")}
    )
    prior_correction: float | None = option(
        None,
        "Logit adjustment in the loss: add this times log(real images per class) to the logits; "
        "1 on real images alone is balanced softmax.",
        shown="none",
        least=0,
        needs={"method.takes_prior": True},
        tag="prior",
    )
    synthetic_weight: float = option(
        1.0,
        "Weight of a synthetic image in the classification losses; a real one has 1.",
        above=0,
        most=1,
        needs={"synthetic": True},
        tag="weight",
    )
    real_finish: float = option(
        0.0,
        "Last share of the steps that trains on real images alone.",
        least=0,
        below=1,
        needs=({"synthetic": True}, {"method.takes_real_finish": True}),
        tag="finish",
    )
    label_smoothing: float = option(
        0.0,
        "Label smoothing: this share of each label is spread over all classes.",
        least=0,
        below=1,
        needs={"method.takes_smoothing": True},
        tag="smooth",
    )
    as_published: bool | None = option(
        None,
        "SAU's details as in its authors' code: initialisation, blur, Cutout, AutoAugment, two mixing shares.",
        preset=True,
    )
    flip: bool | None = option(None, "Mirror images at random.", shown="as the data set allows")
    select: Literal["last", "val"] = option("last", "Keep the last step, or the best on the validation part.")
    patience: int | None = option(
        None,
        "Early stopping: end after this many validations in a row without a new best.",
        least=1,
        needs={"select": "val"},
        shown="none",
    )
    amp: Amp = option("auto", "Precision of the forward passes.")
    compile: bool = option(False, "Compile the network with torch.compile.")
    sync_batchnorm: bool = option(
        False,
        "Under torchrun: BatchNorm's statistics over the whole batch, as one process has them, not over each share.",
        needs=LEARNING,
    )
    cuda_graph: bool = option(
        False,
        "Launch a whole step as one CUDA graph.",
        needs=(
            {"method.second_stage": None},
            {"amp": ("auto", "bf16", "off")},
            {"drop_last": (True, None)},
            {"head_share": (None, 0.0)},
        ),
    )
    seed: int = option(0, "Training seed; it never changes the data.")


@dataclass(frozen=True, kw_only=True)
class ResolvedTrainConfig(TrainConfig):
    """A training run with nothing left open: what config.yaml holds. Exactly one of `epochs` and `steps` is set."""

    method: Method
    synthetic: bool
    preset: PresetName
    backbone: str
    weights: str
    tune: Tune
    multi_crop: bool
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    drop_last: bool
    lr: float
    weight_decay: float
    head_share: float
    layer_decay: float
    freeze_bn: bool
    views: ViewsName = "small"
    schedule: Schedule
    warmup: float
    as_published: bool
    flip: bool
    amp: Literal["bf16", "fp16", "off"]


@dataclass(frozen=True)
class Preset:
    """A row of the table of presets; exactly one of `epochs` and `steps` is set.

    `warmup` is the share of the steps in which the learning rate rises. `drop_last` leaves an epoch's last batch out
    where it is not a whole one. `weight_decay` None is `HEAD_PRIOR` / real training images.
    `steps` is a fixed number of optimizer steps however many images there are: more images are not more training.
    """

    backbone: str
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    weight_decay: float | None
    schedule: Schedule
    warmup: float
    drop_last: bool = True
    tune: Tune = "all"
    multi_crop: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    head_share: float = 0.0
    layer_decay: float = 1.0
    freeze_bn: bool = False
    clip_norm: float | None = None
    average: float | None = None
    crop_scale: float | None = None
    as_published: bool = False


HEAD_PRIOR = 100.0  # 1 / C of scikit-learn's logistic regression, whose loss is a sum over the images, not a mean
PHOTO_SIDE = 64  # above it auto takes the preset for photos
SMALL_IMAGE_SIDE = 16  # up to here a ResNet's strides leave too little, and the small convolutional network is used

PRESETS: dict[PresetName, Preset] = {
    # SAU's own settings for CIFAR: no warm-up, the learning rate changes once an epoch.
    "paper": Preset("resnet32-w64", 200, None, 128, 0.01, 5e-3, "cosine-epoch", 0.0, as_published=True),
    # The customary settings of long-tail papers, those of LDAM-DRW (Cao et al. 2019): warm-up over five epochs.
    "ldam": Preset("resnet32-w16", 200, None, 128, 0.1, 2e-4, "step", 0.025, drop_last=False),
    "fast": Preset("resnet32-w64", 50, None, 128, 0.05, 1e-3, "cosine-step", 0.05),
    # A budget for a processor; minutes, not days.
    "small": Preset("resnet32-w16", None, 1000, 128, 0.05, 5e-4, "cosine-step", 0.05),
    # Photos in minutes on a CPU: the weight decay is what regularises a linear head on standardised features.
    "photo-small": Preset(
        "timm/tf_efficientnet_lite0", None, 1000, 256, 0.01, None, "cosine-step", 0.05, tune="head", multi_crop=True
    ),
    # Fine-tuning on a GPU, of the network that long-tail papers fine-tune besides CLIP's (LIFT, Shi et al. 2024).
    "photo": Preset(
        "timm/vit_base_patch16_224.augreg_in21k",
        10,
        None,
        128,
        2e-4,
        0.05,
        "cosine-step",
        0.1,
        optimizer="adamw",
        head_share=0.1,
        layer_decay=0.75,
        clip_norm=1.0,
        crop_scale=0.35,
    ),
}


def resolve(
    config: TrainConfig,
    *,
    methods: Mapping[Any, Any],
    backbones: Mapping[str, Any],
    cache_exists: bool,
    image_side: int,
    real_images: int,
    default_flip: bool,
    device_type: str,
    amp: Literal["bf16", "fp16", "off"],
    may_freeze: bool,
) -> ResolvedTrainConfig:
    """The configuration with nothing left open: what config.yaml holds, and what a run is repeated from.

    `methods` and `backbones` are the tables that its names are looked up in. `may_freeze`: whether preset auto may be
    that of a frozen backbone, which the extra timm brings.
    Raises: UsageError that lists every value that makes no sense.
    """
    tiny = image_side <= SMALL_IMAGE_SIDE
    single_view = [name for name, row in methods.items() if row.takes_features]
    suitable: PresetName = "small" if device_type == "cpu" or tiny else "fast"
    freezable = config.method in (None, *single_view) and (config.backbone or TIMM).startswith(TIMM)
    if (
        image_side > PHOTO_SIDE
        and may_freeze
        and freezable
        and config.tune in (None, "head")
        and config.weights != "none"
    ):
        suitable = "photo-small"
    values = asdict(PRESETS[suitable if config.preset == "auto" else config.preset])
    if values["weight_decay"] is None:
        values["weight_decay"] = HEAD_PRIOR / real_images
    if config.epochs is not None or config.steps is not None:
        del values["epochs"], values["steps"]
    if tiny and values["tune"] == "all":
        values["backbone"] = "convnet-small"
    values |= {"preset": suitable, "synthetic": cache_exists, "flip": default_flip, "amp": amp}
    values["views"] = "photo" if image_side > PHOTO_SIDE else "small"
    config = replace(config, prior_correction=config.prior_correction or None)  # 0 is none: one run, one name
    name = config.backbone or values["backbone"]
    values["weights"] = "pretrained" if name.startswith(TIMM) else "none"
    tune = config.tune or values["tune"]
    values["method"] = "balanced-softmax" if tune == "head" else "sau"
    if tune == "head":
        values |= {"views": "small", "head_share": 0.0, "layer_decay": 1.0, "freeze_bn": False, "crop_scale": None}
    else:
        values["multi_crop"] = False
    if tune == "lora":
        values["layer_decay"] = 1.0
    resolved = resolved_as(ResolvedTrainConfig, config, values)
    if resolved.head == methods[resolved.method].classifier:
        resolved = replace(resolved, head=None)  # the method's own: one run, one configuration
    problems = []
    if resolved.head == "class-means" and resolved.weights == "none":
        problems.append("head class-means starts from features, and weights none has learned nothing: give --weights")
    if resolved.weights == "pretrained" and not resolved.backbone.startswith(TIMM):
        problems.append(f"{resolved.backbone} has no pretrained weights: use --weights none, a file or run:NAME")
    if resolved.tune == "head" and resolved.method not in single_view:
        problems.append(
            f"tune head trains on features of one view per image, and {resolved.method} needs other views: "
            f"use method {', '.join(single_view)}, or tune all"
        )
    if resolved.tune != "all" and resolved.weights == "none":
        problems.append(
            f"tune {resolved.tune} trains on a frozen backbone, and weights none has learned nothing: give --weights"
        )
    if resolved.layer_decay != 1 and not resolved.backbone.startswith(TIMM):
        problems.append(f"layer_decay needs a backbone of timm, got {resolved.backbone}: use timm/NAME, or omit it")
    if resolved.backbone not in backbones:
        problems.append(f"unknown backbone {resolved.backbone!r}: use one of {', '.join(backbones)}")
    if resolved.cuda_graph and device_type != "cuda":
        problems.append(f"cuda_graph needs a CUDA device, this is {device_type}: use --no-cuda-graph")
    check(resolved, *problems, tables={"method": methods})
    return resolved


def default_run_name(config: TrainConfig) -> str:
    """The name of a resolved configuration's run: `ce`, `ce-seed1`, `sau+synth-prior0.75-weight0.5-finish0.5`."""
    name = (config.method or "sau") + ("+synth" if config.synthetic else "")
    for field, tag in tags().items():
        value = getattr(config, field)
        if value != getattr(TrainConfig, field):
            name += f"-{tag}{str(float(value)).removesuffix('.0')}"  # all digits: two numbers never have one name
    return name if config.seed == TrainConfig.seed else f"{name}-seed{config.seed}"


def tags() -> dict[str, str]:
    """The fields that a run's name says, and the word before each one's number."""
    return {name: entry.tag for name, entry in options_of(TrainConfig).items() if entry.tag is not None}
