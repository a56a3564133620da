"""A disk that is full, broken, read-only or over its quota at any change: an error in words, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from injection import COMMANDS, Ended, forked, moments, started, untimed
from support import Cli, Count, tree

from saukit.core import artifacts, locks, writing
from saukit.core.writing import expected, write_text

ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS, "quota": errno.EDQUOT}


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(ERRORS)), ids=list(ERRORS))
@pytest.mark.parametrize("name", ["make-lt"])
def test_any_change_may_fail(record_property: Count, shared_work: Path, tmp_path: Path, name: str, turn: int) -> None:
    """A change of a command fails; the command says so, and works the next time."""
    whole = started(name, shared_work, tmp_path / "whole")
    undisturbed = forked(name, whole)
    assert undisturbed.code == 0, undisturbed.err
    good, made = untimed(tree(whole)), COMMANDS[name][2]
    fault = [*ERRORS.values()][turn]
    failed = 0
    tried = moments(undisturbed.changes, turn, len(ERRORS))
    record_property("cases", len(tried))
    for at in tried:
        work = started(name, shared_work, tmp_path / f"work{at}")
        before = {file: what for file, what in tree(work).items() if not file.startswith(made)}
        earlier = tree(work / made) if name in ("make-lt again", "export") else {}
        ended = forked(name, work, at=at, fault=fault)
        case = f"{name}, change {at} of {undisturbed.changes}: {ended.code} {ended.err}"
        assert ended.code in (0, 5) and "Traceback" not in ended.err, case
        now = tree(work)
        assert {file: what for file, what in now.items() if file in before} == before, case
        if ended.code == 5:
            failed += 1
            assert_told(ended, fault, case)
            assert not earlier or tree(work / made) in (earlier, tree(whole / made)), case
            again = forked(name, work, resume=True)
            assert again.code == 0, f"{case}; then {again.err}"
        left = untimed(tree(work))  # a fault while it tidied up is none of the command's, which the next one does
        assert {file: left[file] for file in left if ended.code or not file.startswith(".")} == good, case
        shutil.rmtree(work)
    assert failed or turn  # the first change opens the lock; some later ones may fail without harm


def assert_told(ended: Ended, fault: int, case: str) -> None:
    words = " ".join(ended.err.split())
    full = fault in (errno.ENOSPC, errno.EDQUOT)
    assert (
        ("no space left" in words or "the disk is full" in words or os.strerror(fault) in words)
        if full
        else (os.strerror(fault) in words)
    ), case
    assert "free some space" in words or "check the " in words, case


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    """A disk of 64 MiB."""
    return tmpfs("size=64m")


@pytest.mark.parametrize("name", ["make-lt", "synth", "train", "export"])
def test_a_disk_that_is_really_full(
    cli: Cli, shared_work: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work = started(name, shared_work, small_disk / "work")
    before = tree(work)
    plenty = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(artifacts, "shutil", plenty)  # or it would not begin
    left = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - 24_576)))
    outcome = cli(*(word.format(work=work) for word in COMMANDS[name][1]), "-w", work)
    assert outcome.code == 5 and "free some space" in outcome.error, outcome.err
    assert "Traceback" not in outcome.err
    assert {file: what for file, what in tree(work).items() if file in before} == before


# --- file systems that can do less --------------------------------------------------------------------------------


def no(number: int) -> object:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks(
    cli: Cli, shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", no(number))
    assert cli("make-lt", "--imb", "50", "-w", tmp_path / "work").code == 0
    assert untimed(tree(tmp_path / "work/split")) == untimed(tree(shared_work / "split"))
    assert not list((tmp_path / "work").glob(".*"))
    with locks.hold(tmp_path / "work/.split.lock", tmp_path / "work/split"):
        outcome = cli("make-lt", "--force", "-w", tmp_path / "work")
    assert outcome.code == 1 and "is being written by process" in outcome.error
    assert "its file system knows no locks" in outcome.error


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP])
def test_a_file_system_without_permissions(
    cli: Cli, shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, no(number))
    assert cli("make-lt", "--imb", "50", "-w", tmp_path / "work").code == 0
    assert untimed(tree(tmp_path / "work/split")) == untimed(tree(shared_work / "split"))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    flush = os.fsync

    def files_alone(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    write_text(tmp_path / "inputs.json", "{}")
    write_text(tmp_path / "file.txt", "all of it")
    assert (tmp_path / "file.txt").read_text() == "all of it" and expected(tmp_path / "file.txt")
    with writing.staged_folder(tmp_path / "made") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "made/x").read_text() == "x"
