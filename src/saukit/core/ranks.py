"""What torchrun says to a process of a job, in its environment, and which of the processes speaks.

Loads no torch: the command line asks before anything else is there.
"""

import contextlib
import os
import time
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(seconds=5)  # of a silent process, for the one that speaks

_store: Any = None  # the job's key-value store, from `meet` on


def job_size() -> int:
    """Processes of this job; 1 without torchrun, which sets RANK and WORLD_SIZE to numbers that fit."""
    size = _number("WORLD_SIZE", 1)
    return size if _number("RANK", 0) < size else 1


def job_rank() -> int:
    """This process's number in its job, from 0."""
    return _number("RANK", 0) if job_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those of the job on its machine, from 0."""
    return _number("LOCAL_RANK", job_rank()) if job_size() > 1 else 0


def restarts() -> int:
    """How often torchrun has started this job again after one of its processes ended (`--max-restarts`)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) if job_size() > 1 else 0


def is_one_machine() -> bool:
    """Whether all processes of this job are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 0) == job_size()


def meet(store: Any) -> None:
    """Have the processes agree through `store`, a torch.distributed.Store, on the one that speaks of a failure."""
    global _store
    _store = store


def may_speak(exit_code: int) -> bool:
    """Whether this process is the one that says why the job fails: the first that asks."""
    if _store is None:
        return job_rank() == 0
    try:
        first = bool(_store.add("failures", 1) == 1)
        if first:
            _store.set("exit code", str(exit_code))
    except Exception:  # the store went with its process
        return job_rank() == 0
    return first


def has_spoken() -> None:
    """Let the silent processes end: torchrun stops the others when the first one does."""
    if _store is not None:
        with contextlib.suppress(Exception):
            _store.set("said", "")


def exit_code_of_job(otherwise: int) -> int:
    """The exit code of the process that speaks, once it has; `otherwise` where none did.

    Before the processes have met, nothing says when: a silent one waits for torchrun, which stops it once the first one
    has failed. If it ended sooner, torchrun would stop the first one before its message.
    """
    if _store is None:
        time.sleep(PATIENCE.total_seconds())
        return otherwise
    with contextlib.suppress(Exception):
        _store.wait(["said"], PATIENCE)
        return int(_store.get("exit code"))
    return otherwise


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
