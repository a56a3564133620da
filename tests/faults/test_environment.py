"""Links, files in the place of folders, terminals and folders that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli, tree

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
    assert outcome.code == 2 and "exists but saukit did not write it: give another --out" in outcome.error


@pytest.mark.parametrize(("rank", "size"), [("5", "2"), ("x", "²"), ("9" * 5000, "9" * 5000)])
def test_what_torchrun_would_not_set(
    cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    outcome = cli(*TRAIN, "--name", "a", "-w", split_work)
    assert outcome.code == 0 and "training a: " in outcome.error, outcome


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
    assert outcome.code == 5 and f"cannot write to {tmp_path / 'file' / 'below'}: Not a directory" in outcome.error
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
