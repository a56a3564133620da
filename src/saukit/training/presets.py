"""The presets that fill in what `saukit train` was not told, and how a configuration is resolved. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from saukit.core.extras import TIMM
from saukit.core.options import check, resolved_as
from saukit.training.config import PresetName, ResolvedTrainConfig, Schedule, TrainConfig, Tune, ViewsName


@dataclass(frozen=True)
class Preset:
    """A row of the table of presets; exactly one of `epochs` and `steps` is set.

    `warmup` is the share of the steps in which the learning rate rises. `drop_last` leaves an epoch's last batch out
    where it is not a whole one. `weight_decay` None is `HEAD_PRIOR` / real training images.
    `steps` is a fixed number of optimizer steps however many images there are: more images are not more training.
    `views` None is by the size of the images.
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
    views: ViewsName | None = None
    as_published: bool = False


HEAD_PRIOR = 100.0  # 1 / C of scikit-learn's logistic regression, whose loss is a sum over the images, not a mean
PHOTO_SIDE = 64  # above it auto takes the preset for photos
SMALL_IMAGE_SIDE = 16  # up to here a ResNet's strides leave too little, and the small convolutional network is used

PRESETS: dict[PresetName, Preset] = {
    # SAU's own settings for CIFAR: no warm-up, the learning rate changes once an epoch.
    "paper": Preset("resnet32-w64", 200, None, 128, 0.01, 5e-3, "cosine-epoch", 0.0, as_published=True),
    # The customary settings of long-tail papers, those of LDAM-DRW (Cao et al. 2019): warm-up over five epochs.
    "ldam": Preset("resnet32-w16", 200, None, 128, 0.1, 2e-4, "step", 0.025, drop_last=False),
    # The accuracy of `ldam` in a sixth of its time, with another network and one cycle of the rate.
    "fast": Preset("resnet9-w16", 100, None, 128, 0.1, 5e-4, "cosine-step", 0.1),
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
# A preset's row where the backbone learns, if that is another one.
FINE_TUNED: dict[PresetName, Preset] = {
    "photo-small": Preset(
        "timm/tf_efficientnet_lite0",
        None,
        400,
        32,
        5e-4,
        0.05,
        "cosine-step",
        0.05,
        optimizer="adamw",
        head_share=0.15,
        layer_decay=0.8,
        freeze_bn=True,
        clip_norm=1.0,
        crop_scale=0.35,
        views="small",
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
    has_timm: bool,
    may_freeze: bool,
) -> ResolvedTrainConfig:
    """The configuration with nothing left open: what config.yaml holds, and what a run is repeated from.

    `methods` and `backbones` are the tables that its names are looked up in. `has_timm`: whether the extra timm is
    there. `may_freeze`: whether a preset may freeze its backbone where the method allows it.
    Raises: UsageError that lists every value that makes no sense.
    """
    tiny = image_side <= SMALL_IMAGE_SIDE
    single_view = [name for name, row in methods.items() if row.takes_features]
    suitable: PresetName = "small" if device_type == "cpu" or tiny else "fast"
    if image_side > PHOTO_SIDE and has_timm and (config.backbone or TIMM).startswith(TIMM) and config.weights != "none":
        side = backbones[config.backbone or PRESETS["photo"].backbone].image_side
        large = device_type == "cuda" and config.tune != "head" and side in (None, image_side)
        suitable = "photo" if large else "photo-small"
    preset = suitable if config.preset == "auto" else config.preset
    frozen = config.tune == "head" if config.tune else may_freeze and config.method in (None, *single_view)
    values = asdict(PRESETS[preset] if frozen else FINE_TUNED.get(preset, PRESETS[preset]))
    if values["weight_decay"] is None:
        values["weight_decay"] = HEAD_PRIOR / real_images
    if config.epochs is not None or config.steps is not None:
        del values["epochs"], values["steps"]
    if tiny and values["tune"] == "all":
        values["backbone"] = "convnet-small"
    values |= {"preset": suitable, "synthetic": cache_exists, "flip": default_flip, "amp": amp}
    values["views"] = values["views"] or ("photo" if image_side > PHOTO_SIDE else "small")
    config = replace(config, prior_correction=config.prior_correction or None)  # 0 is none: one run, one name
    name = config.backbone or values["backbone"]
    values["weights"] = "pretrained" if name.startswith(TIMM) else "none"
    tune = config.tune or values["tune"]
    pretrained = name.startswith(TIMM) and config.weights != "none"
    values["method"] = "balanced-softmax" if tune == "head" or pretrained else "sau"
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
