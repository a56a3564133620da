"""One writer for each artefact: a lock on a file, which goes with the process that holds it."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from saukit.core.errors import EnvironmentFault, LockHeldError
from saukit.core.files import write_fault

PATIENCE_SECONDS = 0.1  # for a holder that is just giving the lock back
# How a file system says that it knows no locks. There a file that names its writer stands for one.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(path: Path, artifact: Path) -> Iterator[None]:
    """Hold the lock file `path` as the one writer of `artifact`; the file goes when the lock is given back.

    If that leaves a folder empty which was not there before, it goes too.
    Raises: LockHeldError that names the process which holds it; EnvironmentFault if the lock file is a link or no
    file, or its folder cannot be written to; UsageError for a name too long.
    """
    created = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise EnvironmentFault(f"the lock file {path} is a symbolic link, which may lead anywhere: remove it")
        if path.exists() and not path.is_file():
            raise EnvironmentFault(f"{path} lies where a lock file belongs and is not a file: remove it")
        lock = _acquired(path, artifact)
    except OSError as error:
        too_long = error.errno == errno.ENAMETOOLONG  # which is the artefact's name, with what the lock's adds
        raise (write_fault(artifact, error) if too_long else write_fault(path.parent, error, into=True)) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it on release
            path.unlink(missing_ok=True)
        lock.release()
        if created:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _acquired(path: Path, artifact: Path) -> BaseFileLock:
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        _try_folder(path)
        raise LockHeldError(
            f"{artifact} is being written by {_holder(path)}: wait for it, or stop it ({path})"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        path.unlink(missing_ok=True)
        return _marked(path.with_name(f"{path.name}-marker"), artifact)
    with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n{socket.gethostname()}\n")
    return lock


def _marked(path: Path, artifact: Path) -> BaseFileLock:
    """A lock that is the file itself; one that a dead process of this machine left is taken over."""
    lock = SoftFileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise LockHeldError(
            f"{artifact} is being written by {_holder(path)}, says {path} (its file system knows no locks): "
            "wait for it, or remove that file if the process is gone"
        ) from None
    return lock


def _try_folder(path: Path) -> None:
    """Raises: OSError if no file can be made beside `path`, for which filelock waits as for another process."""
    probe = path.with_name(f"{path.name}.{os.getpid()}.partial")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    probe.unlink()


def _holder(path: Path) -> str:
    """The process that wrote the file: its id and its machine, a line each."""
    try:
        process, host = path.read_text(encoding="utf-8").splitlines()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
