"""Processes of their own that begin where `python WORDS` is after four seconds: with torch and saukit loaded.

They are forked from a server that has loaded them and never computes. A fork of the process of the tests would not do:
once one of them has trained there, autograd's threads are missing in its children. What depends on how an interpreter
starts or ends needs one of its own: `support.program`, `support.torchrun`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch.distributed.launcher.api", "matplotlib.pyplot", "diffusers.models.unets.unet_2d",
     "diffusers.schedulers.scheduling_dpmsolver_multistep", "diffusers.training_utils", "sklearn.datasets",
     "saukit.cli.main", "saukit.deploy.predict", "saukit.evaluation.compare", "saukit.synthesis.stage"]
)  # fmt: skip


class Begun:
    """`python WORDS`, where WORDS are -c CODE, -m MODULE or a script, and arguments; with one thread.

    Under torch's agent, which starts them again after a failure, if there are several processes.
    """

    def __init__(self, *words: str | Path, processes: int = 1, restarts: int = 0, session: bool = False) -> None:
        self._said = tempfile.TemporaryDirectory()
        self._files = [Path(self._said.name, name) for name in ("out", "err")]
        for file in self._files:
            file.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        how = (list(map(str, words)), processes, restarts, session)
        self._process = SERVER.Process(target=_become, args=(*how, environment, Path.cwd(), self._files))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, minus the signal for one that was killed; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Have it killed unless it has ended."""
        self._process.kill()

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """How it ended, and what it said. Raises: subprocess.TimeoutExpired, and it is killed."""
        self._process.join(seconds)
        if (code := self.poll()) is None:
            self.kill()
            raise subprocess.TimeoutExpired("python", seconds)
        out, err = (file.read_text() for file in self._files)
        self._said.cleanup()
        return subprocess.CompletedProcess((), code, out, err)


def _become(
    words: list[str], processes: int, restarts: int, session: bool, environment: dict[str, str], folder: Path,
    files: list[Path],
) -> None:  # fmt: skip
    import torch

    if session:
        os.setsid()
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if processes == 1:
        _python(words)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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


def _rank(words: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # those of the agent
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _python(words)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise  # what is returned in its place is a success


def _python(words: list[str]) -> None:
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
