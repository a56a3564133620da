"""A training run's whole state, so that a resumed run continues to the same bits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saukit.core.artifacts import CONFIG_NAME, MANIFEST_NAME
from saukit.core.config import differences, from_mapping, load_saved, to_mapping, to_yaml
from saukit.core.console import Reporter
from saukit.core.documents import START_OVER
from saukit.core.errors import CorruptArtifactError, SaukitError, UsageError
from saukit.core.state import is_finite, load_state, save_state
from saukit.core.writing import write_text
from saukit.training.config import ResolvedTrainConfig as Resolved

CHECKPOINT_NAME = "checkpoint.pt"
KIND = "state of a training run"


@dataclass
class TrainingState:
    """`step` steps are done. Learning rate, batch order and random streams are functions of it and need no state.

    `meters` are the sums since the last line of the log; `average` is that of the averaged weights, and
    `best` the state chosen so far with `select: val`.
    `log_digest`: SHA-256 of the log so far. `lr`: the peak learning rate; `lowered`: (step, before, after) of each
    time that it was lowered.
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
    log_digest: str | None = None
    lr: float | None = None
    lowered: list[list[float]] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        """Whether weights, optimizer and losses are all numbers; fp16's scaler may be anything."""
        return is_finite([self.network, self.optimizer, self.prototypes, self.meters, self.average])


def made_from(config: object, inputs: Mapping[str, str]) -> dict[str, str]:
    """What a checkpoint of a run belongs to. The learning rate may be lowered from it, so it is not among that."""
    values = {name: repr(value) for name, value in to_mapping(config).items() if name != "lr"}
    return {"kind": KIND, **values, **inputs}


def lower_learning_rate(folder: Path, config: Resolved, reporter: Reporter) -> None:
    """Have an interrupted run in `folder` go on as `config` says, if that differs in nothing but a smaller `lr`.

    So a run whose loss left the finite numbers continues from its last finite state. Call it under the run's lock.
    """
    path = folder / CONFIG_NAME
    if not path.exists() or (folder / MANIFEST_NAME).exists():
        return
    there = load_saved(type(config), path)
    if config.lr < there.lr and not differences(replace(there, lr=config.lr), config):
        reporter.say(f"going on with the learning rate {config.lr:g} in place of {there.lr:g}, as config.yaml says now")
        write_text(path, to_yaml(config))


def not_finite(what: str, step: str, *, saved_step: int | None, lr: float) -> SaukitError:
    """The error for a run that has left the finite numbers, with the way on."""
    change = "start over with --force and a smaller --lr, or with --amp off"
    if saved_step is not None:
        change = f"its state of step {saved_step} is kept, go on from there with --resume --lr {lr / 10:g}; or {change}"
    return SaukitError(f"{what} is not finite at step {step}: {change}")


def save_checkpoint(path: Path, state: TrainingState, *, made_from: Mapping[str, str]) -> None:
    """Write the state, atomically, beside the one before."""
    save_state(path, vars(state), made_from=made_from)


def load_checkpoint(
    path: Path, device: torch.device, *, made_from: Mapping[str, str], warn: Callable[[str], None]
) -> TrainingState | None:
    """Read the last state back onto `device`, None if there is none. Raises: as `load_state`."""
    state = load_state(path, device, made_from=made_from, warn=warn)
    if state is None:
        return None
    try:
        return from_mapping(TrainingState, state, where="its fields")
    except UsageError as error:  # of another version
        raise CorruptArtifactError(f"{path} is damaged ({error}): {START_OVER}") from None
