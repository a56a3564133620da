"""A process of a job for test_distributed.py and test_jobs.py: a stage with a checkpoint after each step, and a fault.

python rank_worker.py WORKSPACE NAME FAULT CONFIG trains the run NAME; synth makes the cache. FAULT is none,
stop:STEP or kill:STEP of the last process; a step of synth is one of training or a batch that the process samples.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saukit.core.console import Reporter
from saukit.core.errors import Interrupted
from saukit.core.ranks import job_rank, job_size, restarts
from saukit.core.workspace import Workspace
from saukit.models import dual_branch
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators import diffusion_training as generator_room
from saukit.synthesis.stage import synthesize
from saukit.training import trainer as room
from saukit.training.config import TrainConfig
from saukit.training.distributed import joined
from saukit.training.stage import fit

CPU = torch.device("cpu")


def fail_at(fault: str, room: Any, name: str, count: Callable[[Any], int]) -> None:
    """Have the method `name` of a class stop or kill the last process, once, when it has been called so often."""
    kind, _, step = fault.partition(":")
    work = getattr(room, name)

    def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
        if job_rank() == job_size() - 1 and step and count(self) == int(step) and not restarts():
            os.kill(os.getpid(), {"stop": signal.SIGTERM, "kill": signal.SIGKILL}[kind])
        return work(self, *arguments, **options)

    setattr(room, name, faulty)


def main(root: str, name: str, fault: str, config: str) -> int:
    dual_branch.PROJECTION_HIDDEN, dual_branch.PROJECTION_DIM = 32, 16
    room.CHECKPOINT_SECONDS = generator_room.CHECKPOINT_SECONDS = -1.0
    steps = itertools.count()
    fail_at(fault, room.Trainer, "advance", lambda trainer: trainer.step_count)
    for method in ("train_step", "sample"):
        fail_at(fault, generator_room.GeneratorTrainer, method, lambda _: next(steps))
    how: Any = {"device": CPU, "force": False, "resume": True, "reporter": Reporter(quiet=job_rank() > 0)}
    with joined(CPU):
        try:
            if name == "synth":
                synthesize(SynthConfig(**json.loads(config)), Workspace(Path(root)), **how)
            else:
                fit(TrainConfig(**json.loads(config)), Workspace(Path(root)), name=name, **how)
        except Interrupted as stopped:
            print(stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
