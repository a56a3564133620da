"""Ctrl-C and SIGTERM as a wish that long work looks at between two batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from saukit.core.errors import Interrupted


class StopRequest:
    """While entered, a first SIGINT or SIGTERM is only noted; a second one ends the process at once.

    Long work asks `stop.requested` after each batch, saves, and raises `stop.interrupted(...)`.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def interrupted(self, resume_command: str) -> Interrupted:
        """The error to raise once all is saved; it tells the command that continues."""
        return Interrupted(f"stopped and saved; continue with: {resume_command}", self.signal_number or signal.SIGINT)

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
