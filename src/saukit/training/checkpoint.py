"""A training run's whole state, so that a resumed run continues to the same bits."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import Tensor

from saukit.core.artifacts import atomic_path
from saukit.core.errors import CorruptArtifactError

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass
class TrainingState:
    """`step` steps are done. Learning rate, batch order and random streams are functions of it and need no state.

    `meters` are the sums since the last line of the log; `best` is the state chosen so far with `select: val`.
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    prototypes: tuple[Tensor, Tensor] | None
    meters: dict[str, Tensor]
    seconds: float
    best_accuracy: float | None = None
    best_step: int | None = None
    best_network: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Write the state, atomically."""
    with atomic_path(path) as temporary:
        torch.save(state.__dict__, temporary)


def load_checkpoint(path: Path, device: torch.device) -> TrainingState:
    """Read a state back onto `device`. Raises: CorruptArtifactError if the file is damaged."""
    try:
        # torch.load does not look at the checksums that torch.save wrote.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} fails its checksum")
        return TrainingState(**torch.load(path, map_location=device, weights_only=True))
    except (
        RuntimeError,
        TypeError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        PickleError,
    ) as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}): start the run over with --force") from None
