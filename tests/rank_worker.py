"""A process of a job for tests/training/test_distributed.py: `fit` with a checkpoint after each step, and a fault.

python rank_worker.py WORKSPACE NAME FAULT, where FAULT is none, stop:STEP or kill:STEP of the last process.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from saukit.core.console import Reporter
from saukit.core.errors import Interrupted
from saukit.core.ranks import job_rank, job_size, restarts
from saukit.core.workspace import Workspace
from saukit.models import dual_branch
from saukit.training import trainer as room
from saukit.training.config import TrainConfig
from saukit.training.distributed import joined
from saukit.training.stage import fit

CPU = torch.device("cpu")


def main(root: str, name: str, fault: str, config: str) -> int:
    dual_branch.PROJECTION_HIDDEN, dual_branch.PROJECTION_DIM = 32, 16
    room.CHECKPOINT_SECONDS = -1.0
    kind, _, step = fault.partition(":")
    advance = room.Trainer.advance

    def faulty(trainer: room.Trainer) -> None:
        if job_rank() == job_size() - 1 and step and trainer.step_count == int(step) and not restarts():
            os.kill(os.getpid(), {"stop": signal.SIGTERM, "kill": signal.SIGKILL}[kind])
        advance(trainer)

    room.Trainer.advance = faulty  # type: ignore[method-assign, assignment]
    with joined(CPU):
        try:
            fit(
                TrainConfig(**json.loads(config)),
                Workspace(Path(root)),
                name=name,
                device=CPU,
                force=False,
                resume=True,
                reporter=Reporter(quiet=job_rank() > 0),
            )
        except Interrupted as stopped:
            print(stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
