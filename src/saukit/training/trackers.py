"""Where a run's figures go besides metrics.jsonl. Another tracker is a function and a row of `TRACKERS`.

    tensorboard   runs/<name>/tensorboard/
    wandb         Weights & Biases, project saukit; with WANDB_MODE=offline or SAUKIT_OFFLINE=1 in runs/<name>/wandb/
    mlflow        experiment saukit at MLFLOW_TRACKING_URI, or else in mlflow.db of the workspace

None of it is part of the run: no manifest vouches for it. A run that goes on after a kill goes on there too, from its
last checkpoint.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from saukit.core.errors import EnvironmentFault, UsageError
from saukit.core.extras import is_offline, require_extra
from saukit.core.words import first_line

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "saukit"


@dataclass(frozen=True)
class Tracker:
    """`log` takes figures by their tags, and the step that they belong to."""

    log: Callable[[Mapping[str, float], int], object]
    flush: Callable[[], object]
    close: Callable[[], object]


def require_tracker(name: str) -> None:
    """Raises: UsageError for an unknown tracker, EnvironmentFault without its extra."""
    if name not in TRACKERS:
        raise UsageError(f"tracker must be one of {', '.join(get_args(TrackerName))}, got {name}")
    require_extra(name, purpose=f"--tracker {name}")


def open_tracker(name: TrackerName, folder: Path, config: Mapping[str, Any], *, keep_steps: int) -> Tracker:
    """The tracker of the run in `folder`, trained with `config`, of which the first `keep_steps` steps stand.

    Raises: as `require_tracker`; EnvironmentFault if it cannot be reached.
    """
    require_tracker(name)
    opened, remedy = TRACKERS[name]
    try:
        return opened(folder, config, keep_steps)
    except Exception as error:  # of any kind: each package and its transport have their own
        raise EnvironmentFault(
            f"{name} cannot be opened ({first_line(error)}): {remedy}, or leave --tracker out"
        ) from error


def _tensorboard(folder: Path, config: Mapping[str, Any], keep_steps: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter  # its import takes seconds

    events = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_steps + 1)

    def log(figures: Mapping[str, float], step: int) -> None:
        for tag, value in figures.items():
            events.add_scalar(tag, value, step)

    return Tracker(log, events.flush, events.close)


def _wandb(folder: Path, config: Mapping[str, Any], keep_steps: int) -> Tracker:
    import wandb

    run = wandb.init(
        project=PROJECT,
        name=folder.name,
        dir=folder,
        config=dict(config),
        mode="offline" if is_offline() else None,  # None: as WANDB_MODE says
        resume="auto" if keep_steps else None,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    return Tracker(lambda figures, step: run.log(dict(figures), step=step), lambda: None, run.finish)


def _mlflow(folder: Path, config: Mapping[str, Any], keep_steps: int) -> Tracker:
    import time

    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    store = folder.parents[1] / "mlflow.db"
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}")
    found = client.get_experiment_by_name(PROJECT)
    experiment = client.create_experiment(PROJECT) if found is None else found.experiment_id
    same = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    earlier = client.search_runs([experiment], f"tags.`saukit.run` = '{same}'", max_results=1) if keep_steps else []
    if earlier:
        run = earlier[0].info.run_id
        client.update_run(run, status="RUNNING")
    else:
        run = client.create_run(experiment, run_name=folder.name, tags={"saukit.run": same}).info.run_id
        params = [Param(name, str(value)) for name, value in config.items() if value is not None]
        client.log_batch(run, params=params)

    def log(figures: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        client.log_batch(run, metrics=[Metric(tag, value, now, step) for tag, value in figures.items()])

    return Tracker(log, lambda: None, lambda: client.set_terminated(run))


# How to open each, and what to do where that fails.
TRACKERS: dict[TrackerName, tuple[Callable[[Path, Mapping[str, Any], int], Tracker], str]] = {
    "tensorboard": (_tensorboard, "check the folder"),
    "wandb": (_wandb, "run `wandb login`, or set WANDB_MODE=offline"),
    "mlflow": (_mlflow, "check MLFLOW_TRACKING_URI"),
}
