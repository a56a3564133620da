"""What a training run says of itself, in words."""

from __future__ import annotations

from typing import Any

import torch

from saukit.core.console import format_duration
from saukit.core.device import describe_device
from saukit.training.config import TrainConfig


def describe_loss(config: TrainConfig) -> str:
    """The method, and what of its losses and batches is not as it usually is."""
    parts: list[str] = [config.method]
    if config.prior_correction is not None:
        parts.append(f"prior correction {config.prior_correction:g}")
    if config.synthetic_weight != 1:
        parts.append(f"synthetic weight {config.synthetic_weight:g}")
    if config.real_finish:
        parts.append(f"the last {100 * config.real_finish:g}% of the steps on real images alone")
    return ", ".join(parts)


def describe_line(line: dict[str, Any]) -> str:
    """The figures of a line of the log: losses, share of trusted synthetic images, validation accuracy."""
    parts = [f"{name} {value:.3f}" for name, value in line["losses"].items()]
    if line.get("trusted_share") is not None:
        parts.append(f"trusted {100 * line['trusted_share']:.0f}%")
    if "val_balanced_accuracy" in line:
        parts.append(f"val {100 * line['val_balanced_accuracy']:.1f}")
    return "  ".join(parts)


def long_run_warning(config: TrainConfig, device: torch.device, seconds: float) -> str:
    """What to do about a run that will take `seconds`."""
    advice = "`--preset small` trains a smaller network for a fixed number of steps"
    if config.preset == "small":
        advice = "give fewer --steps, or a GPU"
    return f"this run would take {format_duration(seconds)} on {describe_device(device)}: {advice}"
