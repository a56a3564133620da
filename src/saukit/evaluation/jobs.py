"""The runs of a comparison, each trained and evaluated: one after another here, or side by side in other processes.

A worker is a process that is sent one run after another and answers with what became of each. On a CPU it has one
thread, so a run has the bits that it has alone. Its standard input ends when the comparison stops, for whatever
reason: then it saves its run and ends too.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from saukit.core.console import ProgressLine, Reporter
from saukit.core.device import device_count, open_device, resolve_device, usable_cores
from saukit.core.errors import EnvironmentFault, Interrupted, LockHeldError, SaukitError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.ranks import job_size
from saukit.core.words import shown
from saukit.core.workspace import Workspace
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.contenders import Contender, PlannedRun, locate
from saukit.evaluation.evaluate import evaluate
from saukit.evaluation.summary import EvaluatedRun
from saukit.training.distributed import from_first
from saukit.training.stage import fit, read_complete

MOST_JOBS = 1024
PROGRESS_SECONDS = 0.5  # between two messages of a worker on how far it is

Listen = Callable[[PlannedRun, str | float], None]  # a warning, or the share of a run that is done


@dataclass(frozen=True)
class FinishedRun(EvaluatedRun):
    """A run of a comparison. `reused`: it was there before."""

    contender: Contender
    reused: bool


def job_devices(name: str, jobs: int | None = None) -> list[str]:
    """The names of the devices that `jobs` trainings side by side run on; the option --device says `name`.

    None is one for each usable core, on GPUs one for each GPU. Under torchrun the processes share each training.
    Raises: UsageError, as `resolve_device` too.
    """
    if job_size() > 1:
        if jobs is not None:
            raise UsageError("torchrun's processes share each training: leave --jobs out, or torchrun")
        return [str(resolve_device(name))]
    if jobs is not None and not 1 <= jobs <= MOST_JOBS:
        raise UsageError(f"jobs must be from 1 to {MOST_JOBS} (trainings side by side), got {shown(jobs)}")
    device = resolve_device(name)
    if device.type == "cpu":
        return ["cpu"] * (jobs or usable_cores())
    every = [f"{device.type}:{index}" for index in range(device_count(device.type))] if ":" not in name else [name]
    return [every[index % len(every)] for index in range(jobs or len(every))]


def finish_run(run: PlannedRun, workspace: Workspace, device: torch.device, listen: Listen) -> FinishedRun:
    """Train one run if it is not there, and evaluate it if it is not. Looks again: another process may be at work.

    Raises: the errors of `fit` and `evaluate`; messages begin with the run's title.
    """
    voice = _RunReporter(run, listen)
    name, state = run.name, run.state
    if state != "complete":
        name, state = from_first(lambda: locate(run.contender, run.seed, workspace))
    try:
        if state != "complete":
            config = run.contender.seeded(run.seed)
            if config.compile:
                torch.compiler.reset()  # or torch gives up on the same code after a few networks
            state = fit(config, workspace, name=name, device=device, force=False, resume=True, reporter=voice).state
        results = evaluate(EvalConfig(run=name), workspace, device=device, force=False, reporter=voice).document
    except (LockHeldError, Interrupted):
        raise
    except SaukitError as error:
        error.args = (f"{run.title}: {error}",)
        raise
    made = read_complete(workspace.run(name))
    return FinishedRun(name, run.seed, made, results, run.contender, reused=state == "complete")


class Jobs:
    """Finishes runs, one at a time for each device; use as a context manager. One device: in this process."""

    def __init__(self, workspace: Workspace, devices: Sequence[str]) -> None:
        self._workspace, self._devices = workspace, devices
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.wait()

    def finish(
        self, runs: Sequence[PlannedRun], listen: Listen
    ) -> Iterator[tuple[PlannedRun, FinishedRun | LockHeldError]]:
        """Each run with what became of it, in the order in which they are done; `listen` hears of them meanwhile.

        A run that another process is at comes with its error. Raises: any other error of a run; EnvironmentFault if a
        worker was killed.
        """
        if len(self._devices) == 1:
            device = torch.device(self._devices[0])
            for run in runs:
                yield run, _outcome(functools.partial(finish_run, run, self._workspace, device, listen))
            return
        for device_name in self._devices[len(self._workers) : len(runs)]:
            self._workers.append(_Worker(self._workspace, device_name))
            self._idle.put(self._workers[-1])
        pool = ThreadPoolExecutor(len(self._workers))
        try:
            made = {pool.submit(self._send, run, listen): run for run in runs}
            for future in as_completed(made):
                yield made[future], _outcome(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, run: PlannedRun, listen: Listen) -> FinishedRun:
        worker = self._idle.get()
        try:
            return worker.finish(run, listen)
        finally:
            self._idle.put(worker)


def work() -> None:
    """The life of a worker: finish the runs that come on standard input, until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    workspace, device_name = pickle.load(sys.stdin.buffer)
    tasks: queue.SimpleQueue[PlannedRun | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks,), daemon=True).start()
    said = 0.0

    def answer(content: FinishedRun | Exception | str | float) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: standard input ends too
            pickle.dump(content, answers)
            answers.flush()

    def listen(run: PlannedRun, news: str | float) -> None:
        nonlocal said
        if isinstance(news, str) or time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            answer(news)

    with contextlib.suppress(Interrupted), StopRequest(at_once=""):
        device = open_device(device_name)
        while (run := tasks.get()) is not None:
            try:
                answer(finish_run(run, workspace, device, listen))
            except Interrupted:
                raise
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer(error)


class _Worker:
    """A process that finishes one run at a time."""

    def __init__(self, workspace: Workspace, device_name: str) -> None:
        environment = dict(os.environ)
        if device_name == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        package = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the comparison, which ends standard input
        )
        self._send((workspace, device_name))

    def finish(self, run: PlannedRun, listen: Listen) -> FinishedRun:
        """The run, finished by the process; its errors are raised here."""
        try:
            self._send(run)
            while True:
                answer = pickle.load(self._pipe(self._process.stdout))
                if isinstance(answer, FinishedRun):
                    return answer
                if isinstance(answer, Exception):
                    raise answer
                listen(run, answer)
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            if code >= 0:
                raise SaukitError(f"{run.title}: its process ended with exit code {code}") from None
            raise EnvironmentFault(
                f"{run.title}: its process was killed (signal {-code}), as when memory runs out: give a smaller --jobs"
            ) from None

    def stop(self) -> None:
        """Have the process save what it is at, and end."""
        self._pipe(self._process.stdin).close()

    def wait(self) -> None:
        """Return when the process has ended."""
        self._process.wait()

    def _send(self, content: object) -> None:
        pipe = self._pipe(self._process.stdin)
        pickle.dump(content, pipe)
        pipe.flush()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None  # both were asked for
        return pipe


class _RunReporter(Reporter):
    """Passes a run's warnings and progress on, and says nothing else."""

    def __init__(self, run: PlannedRun, listen: Listen) -> None:
        super().__init__(quiet=True)
        self._listen = functools.partial(listen, run)

    def warn(self, text: str) -> None:
        self._listen(text)

    def progress(self, label: str, total: int, *, done: int = 0) -> ProgressLine:
        return _RunProgress(self._err, label, total, done=done, quiet=True, listen=self._listen)


class _RunProgress(ProgressLine):
    def __init__(self, *arguments: Any, listen: Callable[[float], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._listen = listen

    def update(self, done: float, note: str = "") -> None:
        super().update(done, note)
        self._listen(done / self._total)


def _outcome(finish: Callable[[], FinishedRun]) -> FinishedRun | LockHeldError:
    try:
        return finish()
    except LockHeldError as error:
        return error


def _receive(tasks: queue.SimpleQueue[PlannedRun | None]) -> None:
    """Pass on what comes on standard input; at its end stop what the main thread is at."""
    with contextlib.suppress(EOFError):
        while True:
            tasks.put(pickle.load(sys.stdin.buffer))
    tasks.put(None)
    _thread.interrupt_main(signal.SIGTERM)
