"""A training run's whole state, so that a resumed run continues to the same bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saukit.core.errors import CorruptArtifactError
from saukit.core.state import load_state, save_state

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass
class TrainingState:
    """`step` steps are done. Learning rate, batch order and random streams are functions of it and need no state.

    `meters` are the sums since the last line of the log; `average` is that of the averaged weights, and
    `best` the state chosen so far with `select: val`.
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    prototypes: tuple[Tensor, Tensor] | None
    meters: dict[str, Tensor]
    seconds: float
    average: dict[str, Tensor] = field(default_factory=dict)
    best_accuracy: float | None = None
    best_step: int | None = None
    best_network: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Write the state, atomically."""
    save_state(path, state.__dict__)


def load_checkpoint(path: Path, device: torch.device) -> TrainingState:
    """Read a state back onto `device`. Raises: CorruptArtifactError if the file is damaged."""
    state = load_state(path, device)
    try:
        return TrainingState(**state)
    except TypeError as error:  # the state of something else
        raise CorruptArtifactError(f"{path} is damaged ({error}): start over with --force") from None
