"""Processes that begin as copies of this one: what a test needs a process for, without seconds of imports in each.

What depends on how an interpreter starts or ends needs one of its own: `support.program`, `support.torchrun`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any


def become(work: Callable[[], object], out: int, err: int) -> None:
    """In a forked process: do the work with these descriptors as stdout and stderr, and end."""
    code = 1
    try:
        for stream, descriptor in ((1, out), (2, err)):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Forked:
    """A process that does some work, and ends with an exit code as a program does."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            become(work, *(file.fileno() for file in self._files))

    def poll(self) -> int | None:
        """The exit code, minus the signal for one that was killed; None while it runs."""
        if self._code is None:
            child, status = os.waitpid(self._child, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if child else None
        return self._code

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send it a signal unless it has ended; to its whole process group, of which it is the leader."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self._child, number)

    def kill(self) -> None:
        """Have it killed unless it has ended."""
        self.send(signal.SIGKILL)

    def wait(self, seconds: float = 300) -> CompletedProcess[str]:
        """How it ended, and what it said."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.002)
        said = []
        for file in self._files:
            file.seek(0)
            said.append(file.read().decode())
            file.close()
        return CompletedProcess((), code, *said)


def forked_job(*command: str | Path, processes: int, restarts: int) -> CompletedProcess[str]:
    """A script, or a module after -m, in one process or in several under torchrun's agent; all of them are forked."""
    words = list(map(str, command))
    if processes == 1:
        return Forked(lambda: script(words)).wait()
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def agent() -> None:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=restarts,
            start_method="fork",
        )
        elastic_launch(config, _rank)(words)

    return Forked(agent).wait()


def _rank(words: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # those of the agent
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        script(words)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise  # what is returned in its place is a success


def script(words: list[str]) -> None:
    """Be `python WORDS` with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def command(*arguments: str | Path, below: str = "", touch: int = 0) -> None:
    """Be saukit, killed from within at its n-th opening, renaming or removing of a path that begins with `below`."""
    from saukit.cli.main import run

    touched = 0

    def count(event: str, details: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in ("open", "os.rename", "os.remove") and str(details[0]).startswith(below):
            touched += 1
            if touched == touch:
                os.kill(os.getpid(), signal.SIGKILL)

    os.environ["OMP_NUM_THREADS"] = "1"
    if touch:
        sys.addaudithook(count)
    sys.argv = ["saukit", *map(str, arguments)]
    run()


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    """Do some work in a process, kill it after so many seconds, and give its exit code."""
    process = Forked(work)
    time.sleep(seconds)
    process.kill()
    return process.wait().returncode
