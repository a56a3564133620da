"""What `saukit synth` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saukit.core.config import Amp


@dataclass(frozen=True)
class SynthConfig:
    """A cache of synthetic images. Every default of `synth` lives here; None is "from the preset"."""

    per_class_target: int | None = None
    preset: Literal["auto", "tiny", "small", "base"] = "auto"
    train_steps: int | None = None
    train_batch_size: int | None = None
    guidance: float | None = None
    sampler_steps: int | None = None
    sample_batch_size: int | None = None
    amp: Amp = "auto"
    seed: int = 0
