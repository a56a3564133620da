"""Opening what others wrote: regular files alone, so that a pipe or a device is an error and no wait for ever."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from saukit.core.errors import DataError, EnvironmentFault, SaukitError, UsageError, is_out_of_memory
from saukit.core.words import first_line, format_bytes, shown

MOST_JSON_BYTES = 64 << 20
_OF_AN_ARTEFACT = ("manifest.json", "inputs.json")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFileError(OSError):
    """Something that is there under a file's name and is not a file, or not one of its size."""


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """A regular file, open for reading its bytes; links to one are followed.

    Raises: NotAFileError for a folder, pipe, socket or device, without waiting for a writer; OSError as `open`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if path.is_dir():  # which Windows cannot open
        raise NotAFileError(errno.EISDIR, "it is a folder, not a file", str(path))
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ENXIO:  # how a socket, or a device that is not there, answers
            raise
        raise NotAFileError(errno.EINVAL, "it is a socket or a device, not a file", str(path)) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "something else")
            raise NotAFileError(errno.EINVAL, f"it is {kind}, not a file", str(path))
        yield file


def read_regular(path: Path, most: int | None = None) -> bytes:
    """All bytes of a regular file, of `most` at most. Raises: as `open_regular`; NotAFileError for a larger one."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            reason = f"it has {format_bytes(size)}, and at most {format_bytes(most)} are read"
            raise NotAFileError(errno.EFBIG, reason, str(path))
        return file.read()


def check_regular(path: Path) -> None:
    """Raises: as `open_regular`, for a library that opens `path` by its name."""
    with open_regular(path):
        pass


def check_tree(folder: Path) -> None:
    """Raises: NotAFileError for what is neither a file nor a folder in `folder` and below, before a library waits for
    it, and for JSON of a size that fills memory."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            read_regular(path, MOST_JSON_BYTES)
        elif not path.is_dir():
            check_regular(path)


@contextlib.contextmanager
def reading(what: object, *, remedy: str, fault: type[SaukitError] = DataError) -> Iterator[None]:
    """While entered, other people's data are read by other people's code, whose every error is one of these data.

    Raises: `fault` that names `what`, the reason and the `remedy`; errors of saukit and a full memory as they are.
    """
    try:
        yield
    except SaukitError:
        raise
    except Exception as error:
        if is_out_of_memory(error) and not isinstance(error, MemoryError):  # which a header can ask for
            raise
        raise fault(f"{what} cannot be read ({first_line(error)}): {remedy}") from error


def remedy_of(error: OSError) -> str:
    """What a user can do about a file or folder that the system refuses."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files with `ulimit -n 4096`"
    return "check the folder, or give another one"


def write_fault(path: Path, error: OSError, *, into: bool = False) -> SaukitError:
    """The error of a system that does not let `path` be written, in words; `into`: a folder, for a file in it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(f"no space left to write {path}; free some space and run the command again")
    if error.errno == errno.ENAMETOOLONG:
        return name_too_long(path)
    what = f"to {path}" if into else path
    return EnvironmentFault(f"cannot write {what}: {_reason(path, error)}; {remedy_of(error)}")


def name_too_long(path: object) -> UsageError:
    """The error of a path that no file can have, or none beside which a temporary one can lie."""
    return UsageError(f"{shown(str(path))} is too long for a file's name: give another one")


def _reason(path: Path, error: OSError) -> str:
    """Why nothing can be written at `path`: what is in its way, where the system only says that something is."""
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP) and not there.is_dir():
        target = link_target(there)
        return f"{there} is not a folder" if target is None else f"{there} is a link to {target}, which is no folder"
    if error.errno == errno.ENOENT and there.is_dir():  # such as /proc
        return f"no file can be made in {there}"
    return error.strerror or str(error)


def check_out(out: Path) -> None:
    """See that `out`, which a user names, is absent or a file: a rename would put one in the place of anything else.

    Raises: UsageError for a link, a device, a pipe or a socket, such as /dev/stdout, which root would replace; and for
    a file of a split, cache, run or comparison.
    """
    if (target := link_target(out)) is not None:
        raise UsageError(f"{out} is a link to {target}, and would be replaced: give a file as --out")
    if out.exists() and not out.is_file():
        kind = next((name for test, name in _KINDS if test(out.stat().st_mode)), "something else")
        raise UsageError(f"{out} is {kind}, and would be replaced: give a file as --out")
    for folder in [*Path(os.path.realpath(out)).parents][:3] if out.exists() else ():
        if (folder / "config.yaml").is_file() and any((folder / name).is_file() for name in _OF_AN_ARTEFACT):
            raise UsageError(f"{out} lies in {folder}, which saukit wrote, and would be replaced: give another --out")


def link_target(path: Path) -> str | None:
    """Where the link `path` leads, as it is written; None for what is not a link."""
    try:
        return str(path.readlink())
    except OSError:
        return None
