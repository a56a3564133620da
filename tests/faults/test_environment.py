"""Links, files in the place of folders, terminals and folders that are gone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Cli, tree

from saukit.core.workspace import Workspace

MAKE = ("make-lt", "--imb", "50", "--force")
TRAIN = ("train", "--method", "ce", "--steps", "2", "--batch-size", "16", "--amp", "off", "--no-synthetic")


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize(
    ("link", "command"),
    [
        ("split", MAKE),
        ("synth", ("synth", "--force", "--per-class-target", "20")),
        ("runs", (*TRAIN, "--name", "a")),
        ("runs/ce", (*TRAIN, "--name", "ce", "--force")),
    ],
)
def test_a_linked_artefact_is_refused_before_anything_is_deleted(
    cli: Cli, work: Path, tmp_path: Path, link: str, command: tuple[str, ...], dangling: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (work / link).rename(elsewhere)
    (work / link).symlink_to("nowhere" if dangling else elsewhere)
    before, inside = tree(elsewhere), tree(work)
    outcome = cli(*command, "-w", work)
    assert tree(elsewhere) == before and tree(work) == inside
    target = "nowhere" if dangling else elsewhere
    assert outcome.code == 5 and f"{link} is a link to {target}, and saukit writes only inside" in outcome.error


def test_a_workspace_may_be_a_link(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(split_work)
    assert cli(*TRAIN, "--name", "a", "-w", tmp_path / "link").code == 0
    assert (split_work / "runs/a/manifest.json").exists()


@pytest.mark.parametrize("name", [".split.lock", ".runs-a.lock"])
def test_a_linked_lock_changes_nothing(cli: Cli, split_work: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("precious")
    (split_work / name).symlink_to(tmp_path / "victim")
    outcome = cli(*(MAKE if "split" in name else (*TRAIN, "--name", "a")), "-w", split_work)
    assert outcome.code == 5 and "is a symbolic link" in outcome.error
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_lock_file_is_named(cli: Cli, split_work: Path, make: Callable[[Path], None]) -> None:
    make(split_work / ".split.lock")
    outcome = cli(*MAKE, "-w", split_work)
    assert outcome.code == 5 and f"{split_work / '.split.lock'} lies where a lock file belongs" in outcome.error


@pytest.mark.parametrize("text", ["", "{", "x: 1", "- 1", "\x00"])
@pytest.mark.parametrize("option", ["--resume", "--refilter"])
def test_a_damaged_configuration_of_a_cache(cli: Cli, work: Path, option: str, text: str) -> None:
    (work / "synth/config.yaml").write_text(text)
    outcome = cli("synth", option, "-w", work)
    assert outcome.code == 4 and "synth/config.yaml" in outcome.error and "--force" in outcome.error, outcome


def test_a_report_is_not_read_from_a_pipe(cli: Cli, work: Path) -> None:
    os.mkfifo(work / "report.html")
    outcome = cli("report", "-w", work)
    assert outcome.code == 2 and f"{work / 'report.html'} is a pipe, and would be replaced: give a" in outcome.error


@pytest.mark.parametrize(("rank", "size"), [("5", "2"), ("x", "²"), ("9" * 5000, "9" * 5000)])
def test_what_torchrun_would_not_set(
    cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    outcome = cli(*TRAIN, "--name", "a", "-w", split_work)
    assert outcome.code == 0 and "training a: " in outcome.error, outcome


NOT_TEXT = os.fsdecode(b"\xff\xfe")


def test_a_workspace_whose_name_is_not_utf_8(cli: Cli, work: Path, tmp_path: Path) -> None:
    odd = work.rename(tmp_path / NOT_TEXT)
    for command in (
        ("make-lt", "--imb", "50"),
        (*TRAIN, "--name", "a"),
        ("eval", "--run", "a"),
        ("report", "--runs", "a"),
        ("predict", "a", odd / "split/counts.png", "--out", odd / "p.csv"),
    ):
        outcome = cli(*command, "-w", odd)
        assert outcome.code == 0, outcome.error
    assert r"\xff\xfe" in (odd / "report.html").read_text()


def test_images_in_a_folder_whose_name_is_not_utf_8(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / NOT_TEXT
    for name in "ab":
        for index in range(4):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    command = ("make-lt", "--dataset", "folder", "--root", root, "--image-size", "8", "--test-fraction", "0.5")
    assert cli(*command, "-w", tmp_path / "work").code == 0
    again = cli(*command, "-w", tmp_path / "work")
    assert again.code == 0 and "nothing to do" in again.out


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (("synth", "--force", "--generator", "folder", "--from", "{odd}"), 2, "as config.yaml has to be: rename it"),
        (("train", "--name", "a", "--weights", "{odd}"), 2, "as config.yaml has to be: rename it"),
        (("make-lt", "--force", "--dataset", "list", "--root", ".", "--train-list", "{odd}"), 2, "rename it"),
        (("export", "ce", "--to", "{odd}/new"), 2, "as safetensors and torch need it: give another folder"),
        (("predict", "{odd}", "{work}/split/counts.png"), 3, "as safetensors needs it: rename it"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_name_that_is_not_utf_8_and_has_to_be(
    cli: Cli, work: Path, tmp_path: Path, command: tuple[str, ...], code: int, told: str
) -> None:
    odd = tmp_path / NOT_TEXT
    assert cli("export", "ce", "--to", tmp_path / "exported", "-w", work).code == 0
    (tmp_path / "exported").rename(odd)
    before = tree(work)
    outcome = cli(*(word.format(odd=odd, work=work) for word in command), "-w", work)
    assert outcome.code == code and "is not UTF-8" in outcome.error and told in outcome.error, outcome
    assert "Traceback" not in outcome.err and tree(work) == before


@pytest.mark.parametrize("name", [NOT_TEXT, "a\nb", "a b", ".hidden"], ids=ascii)
def test_a_renamed_run_is_no_obstacle(cli: Cli, work: Path, name: str) -> None:
    """One that is not UTF-8 is none: no file could mention it."""
    shutil.copytree(work / "runs/ce", work / "runs" / name)
    (work / "comparisons" / name).mkdir(parents=True)
    (work / "comparisons" / name / "manifest.json").touch()
    assert Workspace(work).run_names() == ["sau", *([] if name == NOT_TEXT else [name]), "ce"]
    assert cli("report", "-w", work).code == 0
    assert cli("eval", "-w", work).code == 0


class Refused:
    """As a folder or file of another user answers: the tests may run as root, whom nothing refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        for name in ("lstat", "stat", "open", "scandir", "listdir"):
            monkeypatch.setattr(os, name, self.refusing(getattr(os, name), folder))

    @staticmethod
    def refusing(function: Callable[..., object], folder: Path) -> Callable[..., object]:
        def refused(path: object = ".", *arguments: object, **options: object) -> object:
            inside = isinstance(path, str | Path) and folder in (Path(path), *Path(path).parents)
            if inside and (path != folder or function.__name__ in ("scandir", "listdir")):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **options)

        return refused


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("split", ("train", "--name", "a")),
        ("split", ("report",)),
        ("runs", ("eval",)),
        ("runs", ("eval", "--run", "ce")),
        ("runs", ("report",)),
        ("runs", ("predict", "nothing", "{work}/split/counts.png")),
        ("comparisons", ("report",)),
    ],
)
def test_a_folder_of_somebody_else_is_not_taken_for_an_empty_one(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, folder: str, command: tuple[str, ...]
) -> None:
    (work / "comparisons").mkdir()
    Refused(monkeypatch, work / folder)
    outcome = cli(*(word.format(work=work) for word in command), "-w", work)
    monkeypatch.undo()
    assert outcome.code == 5 and "Permission denied" in outcome.error, outcome
    assert str(work / folder) in outcome.error and "check " in outcome.error


def test_no_place_for_temporary_files(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*arguments: object, **options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("saukit.report.page.report", nowhere)
    outcome = cli("report", "-w", work)
    assert outcome.code == 5 and "No usable temporary directory" in outcome.error
    assert "set TMPDIR to a folder that can be written to" in outcome.error


LONG = "/".join(["d" * 200] * 30)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("predict", "ce", LONG), 2),
        (("predict", LONG, "x.png"), 2),
        (("export", "ce", "--to", LONG), 2),
        (("train", "--config", LONG), 2),
        (("make-lt", "-w", LONG), 2),
        (("export", "ce", "--to", "loop"), 5),
        (("synth", "--prompts", "a\0b", "--generator", "pipeline", "--model", "x"), 2),
        (("make-lt", "-w", "loop"), 5),
        (("synth", "--model", LONG), 2),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_paths_that_no_system_takes(cli: Cli, shared_work: Path, command: tuple[str, ...], code: int) -> None:
    Path("loop").symlink_to("loop")
    outcome = cli(*command, *(() if "-w" in command else ("-w", shared_work)))
    assert outcome.code == code and "Traceback" not in outcome.err, outcome
    named = "loop" if "loop" in command else "dddd" if LONG in command else r"a\x00b"
    assert named in outcome.error and len(outcome.error) < 8200


def test_a_file_in_the_place_of_a_folder(cli: Cli, tmp_path: Path, split_work: Path) -> None:
    (tmp_path / "file").touch()
    assert cli("make-lt", "-w", tmp_path / "file").code == 2
    outcome = cli("make-lt", "-w", tmp_path / "file" / "below")
    told = f"cannot write to {tmp_path / 'file' / 'below'}: {tmp_path / 'file'} is not a folder; check the folder"
    assert outcome.code == 5 and told in outcome.error
    (split_work / "runs").touch()
    outcome = cli(*TRAIN, "--name", "a", "-w", split_work)
    assert outcome.code == 5 and "runs" in outcome.error and "Traceback" not in outcome.err


def started(*arguments: str, cwd: Path | None = None, code: str = "") -> subprocess.Popen[str]:
    line = f"{code}\nimport sys, runpy; sys.argv[0] = 'saukit'; runpy.run_module('saukit', run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", line, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd
    )


LOADING = """
import os, signal, sys
class CtrlC:
    def find_spec(self, name, path, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
"""


STOPPED = "error: stopped and saved; continue with: saukit make-lt -w work\n"


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        *((name, "") for name in ("saukit.cli.main", "typer", "rich.console", "saukit.cli.train")),
        ("saukit.data.split", STOPPED),
    ],
)
def test_ctrl_c_while_the_program_loads_is_130_without_a_traceback(tmp_path: Path, moment: str, told: str) -> None:
    """As each of these is imported, the last one by the command itself."""
    process = started("make-lt", "-w", "work", cwd=tmp_path, code=LOADING.format(moment=moment))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", told)
    assert not (tmp_path / "work").exists()


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    process = started("train", cwd=tmp_path / "gone", code="import os; os.rmdir(os.getcwd())")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5 and err.startswith("error: the working folder is gone: change to one that is there")


def test_a_pipe_in_the_place_of_a_configuration_is_no_wait(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    outcome = cli("train", "--config", tmp_path / "pipe.yaml")
    assert outcome.code == 2 and "it is a pipe, not a file" in outcome.error
