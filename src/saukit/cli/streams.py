"""stdout and stderr as a shell expects them of a program such as cat."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from saukit.core.errors import EnvironmentFault
from saukit.core.ranks import job_rank

_voice: list[TextIO | None] = []


class _ReaderGone(BaseException):
    """Nobody reads the pipe any more; not an Exception, so that no library makes an exit code of its own of it."""


class _Stream:
    """A text stream; None is one that was closed before the program began.

    What cannot be written is an EnvironmentFault, once; what is left in the buffer then goes nowhere.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        if self._stream is None:
            raise EnvironmentFault(f"cannot write to {self._name}: it is closed; redirect it to a file")
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._told():
                self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
                raise _ReaderGone from None
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            reason = f"cannot write to {self._name}: {error.strerror or error}"
            raise EnvironmentFault(f"{reason}; check where it is redirected to") from None


@contextlib.contextmanager
def shell_streams() -> Iterator[None]:
    """While entered, a character that a terminal cannot show becomes its number, and a closed pipe ends the process.

    That is by SIGPIPE, with exit code 141 in the shell, as it ends cat. Of the processes of a job the first one speaks,
    and the others only of a failure (`voice`).
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, _Stream(sys.stdout, "stdout"))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, _Stream(sys.stderr, "stderr"))
    _voice[:] = [sys.stderr]
    if job_rank() > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    try:
        try:
            yield
        finally:
            with contextlib.suppress(EnvironmentFault):
                sys.stdout.flush()
    except _ReaderGone:
        _end()
    finally:
        sys.stdout, sys.stderr = before


def voice() -> TextIO:
    """Where the message of a failure goes, also from a process that is silent otherwise."""
    return (_voice[0] if _voice else None) or sys.stderr


def _end() -> NoReturn:
    """End as a process whose reader is gone; what is left in the buffers goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
    sys.exit(141)
