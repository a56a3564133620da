import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

from saukit.core import locks
from saukit.core.errors import EnvironmentFault, LockHeldError, UsageError
from saukit.core.locks import hold

HOLDER = """
import sys
from pathlib import Path
import filelock
from saukit.core import locks

class NoLocks(filelock.FileLock):
    def _acquire(self):
        Path(self.lock_file).touch()
        raise OSError(int(sys.argv[2]), "not supported")

if sys.argv[2] != "0":
    locks.FileLock = NoLocks
with locks.hold(Path(sys.argv[1]), Path("split")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, error: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path), str(error)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def without_locks(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    class NoLocks(filelock.FileLock):  # type: ignore[misc, valid-type]
        def _acquire(self) -> None:
            Path(self.lock_file).touch()
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(locks, "FileLock", NoLocks)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    path, artifact = tmp_path / ".split.lock", tmp_path / "split"
    without_locks(monkeypatch, error)
    for _ in range(2):
        with hold(path, artifact):
            assert [file.name for file in tmp_path.iterdir()] == [".split.lock-marker"]
        assert not list(tmp_path.iterdir())
    with held(path, error) as process:
        with pytest.raises(LockHeldError) as caught, hold(path, artifact):
            pass
        text = str(caught.value)
        assert text.startswith(f"{artifact} is being written by process {process.pid} on {os.uname().nodename}")
        assert text.endswith(
            f", says {path}-marker (its file system knows no locks): "
            "wait for it, or remove that file if the process is gone"
        )
        process.kill()
        process.wait(timeout=20)
        with hold(path, artifact):  # what a killed process of this machine left
            pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_names_a_dead_holder_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".split.lock"
    without_locks(monkeypatch, errno.ENOSYS)
    marker = tmp_path / ".split.lock-marker"
    marker.write_text("7\nnode42\n")
    with pytest.raises(LockHeldError, match=r"process 7 on node42, says .* or remove that file"), hold(path, tmp_path):
        pass
    marker.unlink()  # as the message says
    with hold(path, tmp_path):
        pass


def test_another_error_of_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EROFS)
    message = f"^cannot write to {tmp_path}: Read-only file system; check the folder"
    with pytest.raises(EnvironmentFault, match=message), hold(tmp_path / ".split.lock", tmp_path / "split"):
        pass


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    target, path = tmp_path / "thesis.tex", tmp_path / ".split.lock"
    if there:
        target.write_text("years of work")
    path.symlink_to(target)
    message = rf"^the lock file {path} is a symbolic link, .*: remove it$"
    with pytest.raises(EnvironmentFault, match=message), hold(path, tmp_path / "split"):
        pass
    assert path.is_symlink() and target.exists() == there
    assert not there or target.read_text() == "years of work"


def test_a_lock_file_that_cannot_be_read_names_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".split.lock"
    with held(path, 0):
        path.write_bytes(b"\xff")
        with pytest.raises(LockHeldError, match="is being written by another process: wait"), hold(path, tmp_path):
            pass


def test_a_folder_that_takes_no_files_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """filelock waits where a file cannot be made, as for another process that removes it: /proc answers so."""
    opened = os.open

    def gone(path: object, flags: int, *arguments: int, **options: object) -> int:
        if flags & os.O_CREAT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return opened(path, flags, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", gone)
    message = f"^cannot write to {tmp_path}: no file can be made in {tmp_path}; check the folder"
    with pytest.raises(EnvironmentFault, match=message), hold(tmp_path / ".split.lock", tmp_path / "split"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_the_artefacts(tmp_path: Path) -> None:
    artifact = tmp_path / ("n" * 250)
    lock = artifact.with_name(f".{artifact.name}.lock")
    with pytest.raises(UsageError, match=r"n' is too long for a file's name: give another one$"), hold(lock, artifact):
        pass
