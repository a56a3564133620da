"""What `saukit synth` can be told, and what its presets stand for. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from saukit.core.config import Amp
from saukit.core.errors import UsageError

PresetName = Literal["tiny", "small", "base"]
GeneratorName = Literal["diffusion", "pipeline", "folder"]
Sampler = Literal["dpm++", "unipc"]
FilterName = Literal["none", "classifier", "clip", "classifier+clip"]
# Least and largest value of a field, and a word on it.
LIMITS: dict[str, tuple[float, float | None, str]] = {
    "per_class_target": (1, None, " (real + synthetic images of a class)"),
    "balance": (0, 1, " (0 draws all images, 1 all classes with equal probability)"),
    "augment": (0, 1, " (probability of a warp)"),
    "variation": (0.05, 1, " (the share of noise)"),
    "train_steps": (1, None, ""),
    "train_batch_size": (1, 65536, ""),
    "guidance": (1, 20, " (1 is no guidance)"),
    "sampler_steps": (2, 999, ""),
    "sample_batch_size": (1, 65536, ""),
    "draw_size": (16, 4096, " (pixels)"),
    "lora_scale": (0, 10, ""),
    "min_confidence": (0, 1, " (a probability)"),
    "min_clip": (-1, 1, " (a cosine)"),
    "max_tries": (1, 100, " (candidates for an image that is wanted)"),
    "preflight": (0, 1000, " (images a class; 0 is none)"),
}


@dataclass(frozen=True)
class SynthConfig:
    """A cache of synthetic images. Every default of `synth` lives here; None is "from the preset", or off.

    `per_class_target` counts real and synthetic images of a class together; None is the size of the largest class.
    """

    per_class_target: int | None = None
    generator: GeneratorName = "diffusion"
    model: str | None = None
    from_folder: str | None = None
    # The diffusion model of one's own.
    preset: Literal["auto", "tiny", "small", "base"] = "auto"
    balance: float = 1.0
    tail: Literal["none", "cbdm"] = "none"
    augment: float = 0.0
    variation: float | None = None
    sampler: Sampler = "dpm++"
    train_steps: int | None = None
    train_batch_size: int | None = None
    amp: Amp = "auto"
    # Pretrained pipelines.
    prompts: str | None = None
    descriptions: str | None = None
    templates: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    class_ids: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    draw_size: int | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    # Both.
    guidance: float | None = None
    sampler_steps: int | None = None
    sample_batch_size: int | None = None
    seed: int = 0
    # Images from a folder.
    skip_bad: bool = False
    # What is kept.
    filter: FilterName = "none"
    classifier: str | None = None
    clip_model: str = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    min_confidence: float = 0.5
    min_clip: float = 0.2
    reject_copies: bool = False
    max_tries: float = 4.0
    # What is looked at.
    preflight: int = 8
    audit: bool = True
    inception: str | None = None

    @property
    def filters(self) -> tuple[str, ...]:
        """The scores that images have to pass: of ("classifier", "clip")."""
        return () if self.filter == "none" else tuple(self.filter.split("+"))

    @property
    def needs_classifier(self) -> bool:
        """Whether a classifier of the split's real images is asked for an opinion."""
        judged_by_clip = "clip" in self.filters
        return "classifier" in self.filters or self.audit or bool(self.preflight and not judged_by_clip)

    @property
    def rejects(self) -> bool:
        """Whether a candidate may be rejected, so that others are drawn in its place."""
        return bool(self.filters) or self.reject_copies


# Distilled pipelines take one step and guidance 0.
PIPELINE_LIMITS: dict[str, tuple[float, float | None, str]] = {
    **LIMITS,
    "guidance": (0, 50, ""),
    "sampler_steps": (1, 999, ""),
}
# What a cache can be given anew without drawing its images again (and max_tries, once nothing rejects any more).
SELECTION_FIELDS = (
    "filter",
    "classifier",
    "clip_model",
    "min_confidence",
    "min_clip",
    "reject_copies",
    "audit",
    "inception",
)
# Fields that mean something to these generators only; given to another one they are refused, not ignored. So are the
# fields of NEEDS without what they need.
_OF_DIFFUSION = ("preset", "balance", "tail", "augment", "variation", "sampler", "train_steps",
                 "train_batch_size", "amp")  # fmt: skip
_OF_PIPELINES = (
    "prompts",
    "descriptions",
    "templates",
    "negative_prompt",
    "class_ids",
    "lora",
    "lora_scale",
    "draw_size",
    "dtype",
)
GENERATOR_FIELDS: dict[str, tuple[GeneratorName, ...]] = {
    **dict.fromkeys(_OF_DIFFUSION, ("diffusion",)),
    **dict.fromkeys(_OF_PIPELINES, ("pipeline",)),
    **dict.fromkeys(("model", "guidance", "sampler_steps"), ("diffusion", "pipeline")),
    **dict.fromkeys(("from_folder", "skip_bad"), ("folder",)),
}
_TRAINED_ALREADY = "is of a training, and --model is trained already: leave it out"
# What a field away from its default needs to have an effect, and what to tell where that is not there.
NEEDS: dict[str, tuple[Callable[[SynthConfig], bool], str]] = {
    **dict.fromkeys(
        ("balance", "tail", "train_steps", "train_batch_size"), (lambda config: config.model is None, _TRAINED_ALREADY)
    ),
    "lora_scale": (
        lambda config: config.lora is not None,
        "scales --lora weights, and there are none: add --lora, or leave it out",
    ),
    "classifier": (
        lambda config: config.needs_classifier,
        "names a judge, and nothing is judged by one: add --filter classifier, --audit or --preflight, or leave it out",
    ),
    "min_confidence": (
        lambda config: "classifier" in config.filters,
        "is a bound of the filter classifier: add --filter classifier, or leave it out",
    ),
    **dict.fromkeys(
        ("clip_model", "min_clip"),
        (lambda config: "clip" in config.filters, "is of the filter clip: add --filter clip, or leave it out"),
    ),
    "max_tries": (
        lambda config: config.rejects,
        "limits the images sampled for rejected ones, and nothing is rejected: add --filter or --reject-copies, or "
        "leave it out",
    ),
    "inception": (lambda config: config.audit, "adds distances to the audit: add --audit, or leave it out"),
}
LEAST_STEPS = 150
PIPELINE_BATCH = 4  # images at once on a CPU, where larger batches are no quicker


@dataclass(frozen=True)
class Preset:
    """One line of the table: a UNet and the budget of its training and sampling.

    `patch` folds patch x patch pixels into channels before the UNet (space to depth), which divides the cost of its
    first stage by patch^2; `channels` has one entry a stage, each stage at half the resolution of the one before;
    `attention` says in which stages there is self-attention.
    `train_steps` are at most `max_epochs` passes over the training images, and at least `LEAST_STEPS`: a small set is
    learned by heart beyond that, and its synthetic images are copies then.
    """

    patch: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers_per_block: int
    train_steps: int
    train_batch_size: int
    learning_rate: float
    ema_decay: float
    guidance: float
    sampler_steps: int
    sample_batch_size: int
    dropout: float = 0.0
    max_epochs: int | None = None


# By preset, and by the longer side of the image: up to 16 px, up to 48 px, and larger.
SIZE_LIMITS = (16, 48)
PRESETS: dict[PresetName, tuple[Preset, Preset, Preset]] = {
    # On two CPU cores: about a minute at 8 px, half an hour for CIFAR-10 at ratio 100.
    "tiny": (
        Preset(1, (48, 96), (False, False), 1, 1000, 64, 2e-3, 0.999, 1.5, 12, 64, max_epochs=25),
        Preset(2, (64, 128, 128), (False, False, True), 1, 1700, 64, 1e-3, 0.999, 1.5, 12, 64, max_epochs=25),
        Preset(4, (64, 128, 128), (False, False, True), 1, 1700, 64, 1e-3, 0.999, 1.5, 12, 64, max_epochs=25),
    ),
    # Minutes to half an hour on a GPU, a night on a CPU.
    "small": (
        Preset(1, (64, 128), (False, True), 2, 10_000, 128, 1e-3, 0.9995, 1.5, 18, 256),
        Preset(1, (64, 128, 192), (False, True, True), 2, 30_000, 128, 5e-4, 0.9995, 1.5, 18, 256, 0.1),
        Preset(2, (96, 192, 256), (False, True, True), 2, 40_000, 128, 5e-4, 0.9995, 1.5, 18, 256, 0.1),
    ),
    # Hours on a GPU.
    "base": (
        Preset(1, (96, 192), (False, True), 2, 20_000, 128, 5e-4, 0.9995, 1.5, 18, 512, 0.1),
        Preset(1, (128, 256, 256, 256), (False, True, False, False), 2, 150_000, 128, 2e-4, 0.9999, 1.5, 24, 512, 0.15),
        Preset(1, (96, 192, 288, 384), (False, False, True, True), 2, 200_000, 128, 2e-4, 0.9999, 1.5, 24, 256, 0.1),
    ),
}


def smaller_preset(preset: PresetName) -> PresetName | None:
    """The next cheaper preset; None for the smallest."""
    names = list(PRESETS)
    position = names.index(preset)
    return names[position - 1] if position else None


def auto_preset(image_size: tuple[int, int], device_type: str) -> PresetName:
    """The preset that suits a device: tiny on a CPU; on a GPU small up to 16 px, and base above."""
    if device_type == "cpu":
        return "tiny"
    return "small" if max(image_size) <= SIZE_LIMITS[0] else "base"


def preset_values(preset: PresetName, image_size: tuple[int, int]) -> Preset:
    """The line of the table for a preset and an image size."""
    return PRESETS[preset][sum(max(image_size) > limit for limit in SIZE_LIMITS)]


def default_steps(preset: Preset, training_images: int, batch_size: int | None) -> int:
    """Training steps of a preset for a set of `training_images`, in batches of `batch_size` (None: the preset's)."""
    if preset.max_epochs is None:
        return preset.train_steps
    steps = math.ceil(preset.max_epochs * training_images / (batch_size or preset.train_batch_size))
    return min(preset.train_steps, max(LEAST_STEPS, steps))


def resolve_config(
    config: SynthConfig,
    *,
    image_size: tuple[int, int],
    largest_class: int,
    training_images: int,
    device_type: str,
    amp: Literal["bf16", "fp16", "off"],
) -> SynthConfig:
    """`config` with each "auto" and each None that a preset fills replaced by its value; again changes nothing.

    Raises: UsageError that lists every value out of its limits, every field that is missing and every one that would
    have no effect.
    """
    values: dict[str, object] = {"per_class_target": largest_class}
    if config.generator == "diffusion":
        name = auto_preset(image_size, device_type) if config.preset == "auto" else config.preset
        preset = preset_values(name, image_size)
        fields = ["guidance", "sampler_steps", "sample_batch_size"]
        if config.model is None:  # else there is no training
            fields.append("train_batch_size")
            values["train_steps"] = default_steps(preset, training_images, config.train_batch_size)
        values |= {"preset": name, "amp": amp} | {field: getattr(preset, field) for field in fields}
    else:
        values |= {"sample_batch_size": PIPELINE_BATCH if config.generator == "pipeline" else 64}
    open_fields = {name: value for name, value in values.items() if getattr(config, name) in (None, "auto")}
    resolved = dataclasses.replace(config, **open_fields)  # type: ignore[arg-type]
    problems = [*_out_of_limits(resolved), *idle_fields(config).values(), *_contradictions(config)]
    if problems:
        raise UsageError("; ".join(problems))
    return resolved


def _out_of_limits(config: SynthConfig) -> list[str]:
    limits = PIPELINE_LIMITS if config.generator == "pipeline" else LIMITS
    return [
        f"{field} must be {f'at least {low}' if high is None else f'from {low} to {high}'}{note}, got {value}"
        for field, (low, high, note) in limits.items()
        if (value := getattr(config, field)) is not None and (not low <= value or (high is not None and value > high))
    ]


def idle_fields(config: SynthConfig) -> dict[str, str]:
    """The fields away from their defaults that would have no effect beside the others: why, and the remedy."""
    default, idle = SynthConfig(), {}
    for field in dataclasses.fields(config):
        name = field.name
        if getattr(config, name) == getattr(default, name):
            continue
        known = GENERATOR_FIELDS.get(name, (config.generator,))
        if config.generator not in known:
            idle[name] = f"{name} is for --generator {' and '.join(known)}, not for {config.generator}: leave it out"
        elif name in NEEDS and not NEEDS[name][0](config):
            idle[name] = f"{name} {NEEDS[name][1]}"
    return idle


def _contradictions(config: SynthConfig) -> list[str]:
    problems = []
    if config.generator == "pipeline" and config.model is None:
        problems.append("--generator pipeline needs a --model: a folder, or the name of a model on the Hub")
    if config.generator == "folder" and config.from_folder is None:
        problems.append("--generator folder needs --from: a folder of images, one sub-folder a class")
    return problems


def as_options(config: SynthConfig) -> list[str]:
    """The options of `saukit synth` that say the same as `config`; what is at its default is left out."""
    default, words = SynthConfig(), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == getattr(default, field.name):
            continue
        option = {"from_folder": "from", "templates": "template"}.get(field.name, field.name.replace("_", "-"))
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            for item in value if isinstance(value, tuple) else (value,):
                words += [f"--{option}", str(item)]
    return words
