"""What `saukit synth` can be told, and what its presets stand for. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from saukit.core.config import Amp
from saukit.core.errors import UsageError

PresetName = Literal["tiny", "small", "base"]
# Least and largest value of a field, and a word on it.
LIMITS: dict[str, tuple[int, int | None, str]] = {
    "per_class_target": (1, None, " (real + synthetic images of a class)"),
    "train_steps": (1, None, ""),
    "train_batch_size": (1, 65536, ""),
    "guidance": (1, 20, " (1 is no guidance)"),
    "sampler_steps": (2, 999, ""),
    "sample_batch_size": (1, 65536, ""),
}


@dataclass(frozen=True)
class SynthConfig:
    """A cache of synthetic images. Every default of `synth` lives here; None is "from the preset".

    `per_class_target` counts real and synthetic images of a class together; None is the size of the largest class.
    """

    per_class_target: int | None = None
    preset: Literal["auto", "tiny", "small", "base"] = "auto"
    train_steps: int | None = None
    train_batch_size: int | None = None
    guidance: float | None = None
    sampler_steps: int | None = None
    sample_batch_size: int | None = None
    amp: Amp = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """One line of the table: a UNet and the budget of its training and sampling.

    `patch` folds patch x patch pixels into channels before the UNet (space to depth), which divides the cost of its
    first stage by patch^2; `channels` has one entry a stage, each stage at half the resolution of the one before;
    `attention` says in which stages there is self-attention.
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


# By preset, and by the longer side of the image: up to 16 px, up to 48 px, and larger.
SIZE_LIMITS = (16, 48)
PRESETS: dict[PresetName, tuple[Preset, Preset, Preset]] = {
    # On two CPU cores: about a minute at 8 px, half an hour for CIFAR-10 at ratio 100.
    "tiny": (
        Preset(1, (48, 96), (False, False), 1, 1000, 64, 2e-3, 0.999, 1.5, 12, 64),
        Preset(2, (64, 128, 128), (False, False, True), 1, 1700, 64, 1e-3, 0.999, 1.5, 12, 64),
        Preset(4, (64, 128, 128), (False, False, True), 1, 1700, 64, 1e-3, 0.999, 1.5, 12, 64),
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


def resolve_config(
    config: SynthConfig,
    *,
    image_size: tuple[int, int],
    largest_class: int,
    device_type: str,
    amp: Literal["bf16", "fp16", "off"],
) -> SynthConfig:
    """`config` with each "auto" and each None replaced by its value; resolving it again changes nothing.

    Raises: UsageError that lists every value out of its limits.
    """
    name = auto_preset(image_size, device_type) if config.preset == "auto" else config.preset
    preset = preset_values(name, image_size)
    given = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    defaults = {
        field: getattr(preset, field)
        for field in ("train_steps", "train_batch_size", "guidance", "sampler_steps", "sample_batch_size")
    }
    resolved = SynthConfig(**{**defaults, "per_class_target": largest_class, **given, "preset": name, "amp": amp})
    problems = [
        f"{field} must be {f'at least {low}' if high is None else f'from {low} to {high}'}{note}, got {value}"
        for field, (low, high, note) in LIMITS.items()
        if not low <= (value := getattr(resolved, field)) or (high is not None and value > high)
    ]
    if problems:
        raise UsageError("; ".join(problems))
    return resolved
