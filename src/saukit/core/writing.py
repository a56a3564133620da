"""Files that are written whole or not at all, and the hashes of those that belong to unfinished work.

A write goes to a temporary sibling, is flushed to disk, and is renamed into place. In an artefact in the making, which
`inputs.json` marks, the hash of all its bytes lies beside each file as `.NAME.sha256`, until a manifest vouches for it.
It is noted before the file takes its place, beside that of the file before: a kill in between leaves a file that fits.

File systems that know no permissions, or cannot flush (network drives, FAT), stop nothing; a write that fails does.
Nothing is written through a link: a rename replaces the link itself.
"""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from saukit.core.errors import CorruptArtifactError
from saukit.core.files import open_regular, write_fault

INPUTS_NAME = "inputs.json"  # what an artefact in the making is made from; then the manifest says it
HASHED_SUFFIXES = (".safetensors", ".yaml", ".json", ".png", ".csv", ".md")
# What an artefact of a kind may hold beside what its manifest or a hash names, and what is hidden.
_COMMON = r"config\.yaml|manifest\.json|inputs\.json"
_NAMES = {
    "split": r"(train|test|val)(-\d+)?\.safetensors|counts\.png|(files|duplicates)\.csv",
    "synth": r"shard-\d+\.safetensors|(plan|source|preflight|audit)\.json|selection\.safetensors|(samples|closest)\.png"
    r"|generator/(checkpoint(\.previous)?\.pt|(unet|scheduler)/\w+\.(json|safetensors))",
    "run": r"checkpoint(\.previous)?\.pt|metrics\.jsonl|model\.safetensors|results\.json|(errors|suspects)\.csv"
    r"|(per_class|confusion|errors)\.png|(tensorboard|wandb)/.+",
    "comparison": r"compare\.(json|csv|md|png)",
}
_DEPTH = 3  # of an artefact's folders
_NOTED = 8  # hashes: the file's own is the last, or, after a kill, one before it
_TEMPORARY = re.compile(r"^\..+\.\d+\.partial$")
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def atomic_path(path: Path, *, hashed: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; rename it to `path` if the block succeeds, else remove it.

    `hashed` False: no hash is kept beside it in unfinished work, since the file has one of its own, or grows.
    Raises: EnvironmentFault if the disk is full or the folder cannot be written to, UsageError for a name too long;
    `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link there may lead anywhere
        _remove_remains(path)
        yield temporary
        _settle(temporary)
        if hashed and _in_the_making(path):
            expect(path, sha256_file(temporary))
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_fault(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a parent that is a file would hide the error above
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path, *, kind: str | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; it takes the place of `folder` if the block succeeds, else it is removed.

    The earlier folder goes once the new one is in its place; of an artefact of `kind`, what saukit did not write moves
    into the new one. Call it under the artefact's lock.
    Raises: EnvironmentFault if the disk is full or a folder cannot be written to; `folder` is then as it was.
    """
    recover_folder(folder, kind=kind)
    new, old = _beside(folder)
    try:
        new.mkdir(parents=True)
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                _settle(path)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise write_fault(folder, error) from error
    finally:
        recover_folder(folder, kind=kind)


def recover_folder(folder: Path, *, kind: str | None = None) -> None:
    """Undo, or finish, what a process left that was killed in `staged_folder`: call it only under its lock."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in strangers(old, kind) if kind is not None and not old.is_symlink() else ():
        there = folder / path.relative_to(old)
        there.parent.mkdir(parents=True, exist_ok=True)
        path.rename(there)
    for remains in (old, new):
        if remains.is_symlink():
            remains.unlink()
        shutil.rmtree(remains, ignore_errors=True)


def write_text(path: Path, text: str, *, hashed: bool = True) -> None:
    """Write `text` as UTF-8, atomically; `hashed` as `atomic_path`."""
    with atomic_path(path, hashed=hashed) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The text of a CSV file with these rows, the first of them its header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and below; call it only under the artefact's lock."""
    for path in folder.rglob(".*.partial"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a killed process left half-written."""
    return _TEMPORARY.match(path.name) is not None


def expect(path: Path, digest: str) -> None:
    """Note the hash that the file `path` is about to have, beside those of the files before it."""
    noted = [line for line in expected(path) if line != digest][1 - _NOTED :]
    write_text(_hash_path(path), "".join(f"{line}\n" for line in [*noted, digest]), hashed=False)


def expected(path: Path) -> list[str]:
    """The hashes that `path` may have, the newest last; none where none was noted."""
    try:
        with open_regular(_hash_path(path)) as file:
            return file.read(1000).decode("ascii", errors="replace").split()
    except OSError:
        return []


def intact(path: Path) -> bool:
    """Whether a file of unfinished work has a hash that was noted for it. It may be written meanwhile."""
    try:
        digest = sha256_file(path)  # first: the note is written before the file
    except OSError:
        return False
    return digest in expected(path)


def strangers(folder: Path, kind: str, recorded: Collection[str] = ()) -> list[Path]:
    """What lies in an artefact of `kind` and is not saukit's by its name, its hash or as one of `recorded`: such as a
    user's notes, which no command removes."""

    def is_own(path: Path) -> bool:
        names = [path.relative_to(folder), *path.relative_to(folder).parents][:-1]
        known = any(name.as_posix() in recorded or own.fullmatch(name.as_posix()) for name in names)
        return known or is_temporary(path) or is_hash(path) or path.name == ".verified.json" or bool(expected(path))

    own = re.compile(f"{_COMMON}|{_NAMES[kind]}")
    return [path for path in folder.rglob("*") if (path.is_symlink() or not path.is_dir()) and not is_own(path)]


def sweep(folder: Path, *, kind: str, keep: Collection[str]) -> list[str]:
    """Remove the files of unfinished work of `kind` that are not as they were written, so that they are made again;
    their names.

    Raises: CorruptArtifactError for one of those called `keep`, which cannot be made again.
    """
    damaged, others = [], {*strangers(folder, kind)}
    for path in sorted({*folder.rglob("[!.]*")} - others):
        if path.is_dir() and not path.is_symlink():
            # Else it lies where a file belongs.
            if path.suffix not in (*HASHED_SUFFIXES, ".pt") or any(path in other.parents for other in others):
                continue
        elif path.suffix not in HASHED_SUFFIXES or intact(path):
            continue
        name = path.relative_to(folder).as_posix()
        if name in keep:
            raise CorruptArtifactError(f"{path} was changed after it was written: start over with --force")
        damaged.append(name)
    for path in (folder / name for name in damaged):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    return damaged


def forget_hashes(folder: Path) -> None:
    """Remove the hashes of unfinished work, once a manifest vouches for it."""
    for path in folder.rglob(".*.sha256"):
        path.unlink(missing_ok=True)


def is_hash(path: Path) -> bool:
    """Whether `path` is where a hash of unfinished work lies."""
    return path.name.startswith(".") and path.suffix == ".sha256"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk where that can be done, so that a rename survives a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_remains(path: Path) -> None:
    """Remove what processes that are gone left half-written of the file `path`: a report lies under no lock."""
    for remains in path.parent.iterdir():
        mine = remains.name.startswith(f".{path.name}.") and is_temporary(remains)
        if mine and not _runs(int(remains.name.split(".")[-2])):
            with contextlib.suppress(OSError):
                remains.unlink()


def _runs(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _in_the_making(path: Path) -> bool:
    return path.name == INPUTS_NAME or any((parent / INPUTS_NAME).exists() for parent in list(path.parents)[:_DEPTH])


def _hash_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _settle(path: Path) -> None:
    """Flush a new file to disk, and give it the permissions of one (safetensors leaves 0600)."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~mask)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the next version of `folder` is made, and where the earlier one waits until that is in its place."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
