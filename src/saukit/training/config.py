"""What `saukit train` can be told. Imports no torch."""

from dataclasses import dataclass
from typing import Any, Literal

from saukit.core.config import Amp
from saukit.core.options import Paths, option, options_of

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

# Panels of --help.
PRETRAINED, OPTIMISATION, VIEWS = "Pretrained backbones", "Optimisation", "Views of an image"
LOSS, SELECTION, SPEED = "Loss and label check", "Which step is kept", "Speed and precision"
LEARNING = {"tune": ("all", "lora")}  # a backbone that learns
BUDGET: dict[str, Any] = {"preset": True, "panel": OPTIMISATION}
OF_BACKBONE: dict[str, Any] = {"preset": True, "panel": PRETRAINED}
OF_SAU: dict[str, Any] = {"needs": {"method": ("sau", "sau-aware")}, "panel": LOSS}


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
        shown="sau; balanced-softmax on a pretrained backbone",
    )
    synthetic: bool | None = option(None, "Train on the synthetic cache too.", shown="if there is one")
    preset: Literal["auto", PresetName] = option(
        "auto",
        "Network and budget: paper is SAU's, ldam long-tail papers', fast for a GPU, small for a CPU, "
        "photo-small and photo a pretrained network for photos, on a CPU and on a GPU.",
    )
    backbone: str | None = option(
        None,
        "resnet32-w64, resnet32-w16, resnet9-w16, convnet-small, resnext50, or timm/NAME (extra timm).",
        preset=True,
    )
    weights: str | None = option(
        None,
        "What the backbone starts from: pretrained (timm's), a safetensors file, run:NAME or none.",
        shown="pretrained for timm/NAME, else none",
        path=True,
        panel=PRETRAINED,
    )
    tune: Tune | None = option(
        None,
        "Train the whole network, a linear head on the frozen backbone's features, or low-rank updates (extra lora).",
        **OF_BACKBONE,
    )
    head: Head | None = option(
        None,
        "A cosine classifier, from random weights or from the mean of each class's features.",
        shown="linear; cosine with ldam-drw",
        needs={"method.takes_cosine": True},
        panel=PRETRAINED,
    )
    lora_rank: int = option(8, "Rank of the low-rank updates.", least=1, needs={"tune": "lora"}, panel=PRETRAINED)
    multi_crop: bool | None = option(
        None,
        "Average the features of a frozen backbone over the image and its centre, and over both mirrored with --flip.",
        needs={"tune": "head"},
        flags=("--multi-crop/--single-crop",),
        **OF_BACKBONE,
    )
    epochs: int | None = option(None, "Passes over the training set.", least=1, excludes=("steps",), **BUDGET)
    steps: int | None = option(None, "Optimizer steps, however many images there are.", least=1, **BUDGET)
    batch_size: int | None = option(None, "Images per batch.", least=2, note="BatchNorm needs two images", **BUDGET)
    optimizer: Literal["sgd", "adamw"] | None = option(None, "SGD with momentum 0.9, or AdamW.", **BUDGET)
    drop_last: bool | None = option(
        None, "Leave out an epoch's last batch if it is not full.", flags=("--drop-last/--keep-last",), **BUDGET
    )
    lr: float | None = option(None, "Peak learning rate.", above=0, **BUDGET)
    weight_decay: float | None = option(None, "Weight decay; photo-small: 100 / real images.", least=0, **BUDGET)
    schedule: Schedule | None = option(
        None, "Cosine per epoch or per step; step: x 0.01 after 80 and 90 % of the epochs.", **BUDGET
    )
    head_share: float | None = option(
        None,
        "First share of the steps that trains the heads alone, on a backbone that waits.",
        off=0.0,
        least=0,
        below=1,
        needs=LEARNING,
        **OF_BACKBONE,
    )
    layer_decay: float | None = option(
        None,
        "Learning rate of a layer of a timm backbone, as a factor of the next layer's.",
        off=1.0,
        above=0,
        most=1,
        needs={"tune": "all"},
        **OF_BACKBONE,
    )
    freeze_bn: bool | None = option(
        None,
        "Keep BatchNorm's statistics in the backbone as they are.",
        needs=LEARNING,
        flags=("--freeze-bn/--train-bn",),
        **OF_BACKBONE,
    )
    clip_norm: float | None = option(None, "Clip the gradient's norm to this.", above=0, shown="none", **BUDGET)
    average: float | None = option(
        None, "Keep an average of the weights with this decay per step.", above=0, below=1, shown="none", **BUDGET
    )
    crop_scale: float | None = option(
        None,
        "Random crops keep at least this share of the image and are resized; none: pad by an eighth, then crop.",
        preset=True,
        above=0,
        most=1,
        needs=LEARNING,
        shown="none; 0.08 in views photo",
        panel=VIEWS,
    )
    views: ViewsName | None = option(
        None,
        "How images are augmented: SAU's views for small images, or its authors' for photos, with RandAugment.",
        preset=True,
        shown="photo above 64 pixels, else small; small in preset photo-small",
        needs=LEARNING,
        panel=VIEWS,
    )
    warmup: float | None = option(None, "Warm-up fraction: share of the steps.", least=0, below=1, **BUDGET)
    noise: Noise = option("pos_neg", "What happens to synthetic images whose label is not trusted.", **OF_SAU)
    check_after: float = option(
        0.0,
        "Share of the steps after which SAU checks labels; until then it trusts all.",
        least=0,
        below=1,
        **OF_SAU,
    )
    temperature: float = option(
        0.1, "Temperature of the contrastive loss.", above=0, needs={"method": ("sau", "sau-aware", "bcl")}, panel=LOSS
    )
    prior_correction: float | None = option(
        None,
        "Logit adjustment in the loss: add this times log(real images per class) to the logits; "
        "1 on real images alone is balanced softmax.",
        shown="none",
        least=0,
        needs={"method.takes_prior": True},
        tag="prior",
        panel=LOSS,
    )
    synthetic_weight: float = option(
        1.0,
        "Weight of a synthetic image in the classification losses; a real one has 1.",
        above=0,
        most=1,
        needs={"synthetic": True},
        tag="weight",
        panel=LOSS,
    )
    real_finish: float = option(
        0.0,
        "Last share of the steps that trains on real images alone.",
        least=0,
        below=1,
        needs=({"synthetic": True}, {"method.takes_real_finish": True}),
        tag="finish",
        panel=LOSS,
    )
    label_smoothing: float = option(
        0.0,
        "Label smoothing: this share of each label is spread over all classes.",
        least=0,
        below=1,
        needs={"method.takes_smoothing": True},
        tag="smooth",
        panel=LOSS,
    )
    as_published: bool | None = option(
        None,
        "SAU's details as in its authors' code: initialisation, blur, Cutout, AutoAugment, two mixing shares.",
        preset=True,
        panel=LOSS,
    )
    flip: bool | None = option(None, "Mirror images at random.", shown="as the data set allows", panel=VIEWS)
    select: Literal["last", "val"] = option(
        "last", "Keep the last step, or the best on the validation part.", panel=SELECTION
    )
    patience: int | None = option(
        None,
        "Early stopping: end after this many validations in a row without a new best.",
        least=1,
        needs={"select": "val"},
        shown="none",
        panel=SELECTION,
    )
    amp: Amp = option("auto", "Precision of the forward passes.", panel=SPEED)
    compile: bool = option(False, "Compile the network with torch.compile.", panel=SPEED)
    sync_batchnorm: bool = option(
        False,
        "Under torchrun: BatchNorm's statistics over the whole batch, as one process has them, not over each share.",
        needs=LEARNING,
        panel=SPEED,
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
        panel=SPEED,
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
