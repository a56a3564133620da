"""The one family of errors that saukit raises for what a user can fix; each carries its exit code.

`saukit.cli.main` is the one place that catches them. Anything else that reaches it is a bug and keeps its traceback.
"""


class SaukitError(Exception):
    """A failed run: the message says what happened and what to do about it (exit code 1)."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library reports that there is no memory left, of the machine or a device."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


class LockHeldError(SaukitError):
    """Another process is writing the same artefact."""


class UsageError(SaukitError):
    """An option, or a combination of options, that makes no sense (exit code 2)."""

    exit_code = 2


class DataError(SaukitError):
    """Data that is missing, unreadable or does not fit (exit code 3)."""

    exit_code = 3


class CorruptArtifactError(SaukitError):
    """A file of the workspace is damaged, or was changed after it was written (exit code 4)."""

    exit_code = 4


class EnvironmentFault(SaukitError):
    """The machine lacks something: disk, memory, a device, an extra, the network (exit code 5)."""

    exit_code = 5


class Interrupted(SaukitError):
    """A signal stopped the work after it was saved; exit code 128 + signal number (130 for Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
