"""The configuration of the split's own diffusion model, and the presets that fill it. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from saukit.synthesis.config import PresetName, ResolvedSynthConfig

LEAST_STEPS = 150


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(ResolvedSynthConfig):
    """A cache of the split's own diffusion model; with another workspace's `model` there is no training."""

    preset: PresetName
    amp: Literal["bf16", "fp16", "off"]
    guidance: float
    sampler_steps: int


@dataclass(frozen=True)
class Preset:
    """A row of the table: a UNet and the budget of its training and sampling.

    `patch` folds patch x patch pixels into channels before the UNet (space to depth), which divides the cost of its
    first stage by patch^2; `channels` has one entry per stage, each stage at half the resolution of the one before;
    `attention` says in which stages there is self-attention.
    `train_steps` are at most `max_epochs` passes over the training images, and at least `LEAST_STEPS`: a small set is
    memorised beyond that, and its synthetic images are copies then.
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
LARGEST_DRAWN_SIDE = 64  # pixels; larger images are drawn at this size and enlarged
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


def drawn_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the network draws for images of `image_size`: theirs, or 64 pixels on the longer side."""
    longest = max(image_size)
    if longest <= LARGEST_DRAWN_SIDE:
        return image_size
    height, width = (max(1, round(side * LARGEST_DRAWN_SIDE / longest)) for side in image_size)
    return height, width


def auto_preset(image_size: tuple[int, int], device_type: str) -> PresetName:
    """The preset that suits a device: tiny on a CPU; on a GPU small up to 16 px, and base above."""
    if device_type == "cpu":
        return "tiny"
    return "small" if max(image_size) <= SIZE_LIMITS[0] else "base"


def preset_values(preset: PresetName, image_size: tuple[int, int]) -> Preset:
    """The row of the table for a preset and an image size."""
    return PRESETS[preset][sum(max(image_size) > limit for limit in SIZE_LIMITS)]


def default_steps(preset: Preset, training_images: int, batch_size: int | None) -> int:
    """Training steps of a preset for a set of `training_images`, in batches of `batch_size` (None: the preset's)."""
    if preset.max_epochs is None:
        return preset.train_steps
    steps = math.ceil(preset.max_epochs * training_images / (batch_size or preset.train_batch_size))
    return min(preset.train_steps, max(LEAST_STEPS, steps))
