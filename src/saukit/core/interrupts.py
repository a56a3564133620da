"""Ctrl-C and SIGTERM as a request that long work looks at between two batches, and the command that continues."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

from saukit.core.errors import Interrupted

_typed: list[str] = []  # the arguments of the command that runs; none where saukit is used as a library


@contextlib.contextmanager
def typed_command(arguments: Sequence[str]) -> Iterator[None]:
    """While entered, `continue_command` is the command with these arguments."""
    _typed[:] = arguments
    try:
        yield
    finally:
        _typed.clear()


def continue_command(library: str = "the same call") -> str:
    """What continues interrupted work: the command that was typed, with --resume where it needs that.

    `library` is the answer where no command was typed.
    """
    if not _typed:
        return library
    arguments = list(_typed)
    if arguments[0] in ("train", "synth"):
        # --force would start over.
        arguments = [argument for argument in arguments if argument not in ("--force", "--resume")]
        if not any(argument.startswith("--shard") for argument in arguments):
            arguments.append("--resume")
    return shlex.join(["saukit", *arguments])


class _Stopped(BaseException):
    """Ends work where it stands; no `except Exception` in it holds that up."""


class StopRequest:
    """While entered, a first SIGINT or SIGTERM is only noted; a second one ends the process at once.

    Long work asks `stop.requested` after each batch, saves, and raises `stop.interrupted()`.

    `at_once` is for work that loses nothing by ending anywhere, such as a row of stages whose writes are all atomic:
    the first signal leaves the block as Interrupted; the message names the command that was typed, or else `at_once`.
    A stage inside it may note signals with a StopRequest of its own; one that comes too late for the stage to heed is
    passed on at its end. Only the main thread gets signals: wait for other threads and processes there.
    """

    def __init__(self, *, at_once: str | None = None) -> None:
        self.signal_number: int | None = None
        self._at_once = at_once
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def interrupted(self, *library: str) -> Interrupted:
        """The error to raise once all is saved; it names the command that continues (`continue_command`)."""
        message = f"stopped and saved; continue with: {continue_command(*library)}"
        return Interrupted(message, self.signal_number or signal.SIGINT)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._at_once is not None and isinstance(error, _Stopped):
            raise self.interrupted(self._at_once) from None
        if self.signal_number is not None and error is None:
            outer = self._previous[self.signal_number]
            if isinstance(getattr(outer, "__self__", None), StopRequest):
                outer(self.signal_number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
        if self._at_once is not None:
            raise _Stopped
