"""Several processes on one cache: which shards are whose, and who holds the cache's lock when."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from saukit.core.console import Reporter
from saukit.core.errors import LockHeldError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.words import shown
from saukit.core.workspace import Workspace
from saukit.synthesis.plan import Round

WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """One of several processes that sample the same plan: number `index` of `count`, counted from 0."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Job:
        """`text` such as "0/3". Raises: UsageError for anything else."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found or not int(found[1]) < int(found[2]):
            raise UsageError(f"shard must be i/n with i from 0 to n - 1, such as 0/3, got {shown(text)}")
        return Job(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """For locks."""
        return f"job-{self.index}-of-{self.count}"

    def shards(self, part: Round) -> list[int]:
        """The shards of a round that are this job's."""
        return [index for index in part.shards if index % self.count == self.index]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@contextlib.contextmanager
def cache_lock(workspace: Workspace, job: Job | None, *, stop: StopRequest, reporter: Reporter) -> Iterator[None]:
    """The cache's lock. A job waits for its turn: another one may be training the generator that all of them use.

    Raises: LockHeldError, where this is not a job, if another process writes the cache or samples for it.
    """
    folder = workspace.synth
    if job is None:
        with workspace.lock(folder):
            for path in workspace.root.glob(f".{folder.name}-job-*.lock"):
                name = path.name.removeprefix(f".{folder.name}-").removesuffix(".lock")
                with workspace.lock(folder / name, tidy=False):
                    pass
            yield
        return
    waiting = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(workspace.lock(folder, tidy=False))
            except LockHeldError as error:
                if not waiting:
                    reporter.say(f"waiting for another job to prepare: {error}")
                waiting = True
            else:
                yield
                return
        if stop.requested:
            raise stop.interrupted()
        time.sleep(WAIT_SECONDS)
