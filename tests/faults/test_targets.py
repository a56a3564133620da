"""Where a command writes: places that take no files, and what is there already and is none of saukit's to replace.

No target lies in /dev or outside a test's own folder, but for /proc and /sys, which take no files: what is tested here
is whether something is taken away.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from injection import CACHE, KILL, RUN
from injection import begun as begin
from support import Cli, tree

from saukit.core.writing import recover_folder, strangers

EXPORT = ("export", "ce", "--format", "hub", "-w", "{work}", "--to", "{at}")
REPORT = ("report", "-w", "{work}", "--out", "{at}")
PREDICT = ("predict", "ce", "{work}/split/counts.png", "--format", "csv", "-w", "{work}", "--out", "{at}")
MAKE = ("make-lt", "--imb", "50", "-w", "{at}")
WRITING = pytest.mark.parametrize("command", [EXPORT, REPORT, PREDICT, MAKE], ids=lambda command: command[0])
FORCE = pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])


def words(command: tuple[str, ...], work: Path, at: object = "") -> list[str]:
    return [word.format(work=work, at=at) for word in command]


# --- places that take no files ------------------------------------------------------------------------------------


@WRITING
@pytest.mark.parametrize("at", ["/proc/x", "/proc/self/x", "/sys/x", "/sys/kernel/x"])
def test_a_file_system_of_the_kernel(cli: Cli, shared_work: Path, command: tuple[str, ...], at: str) -> None:
    if not Path(at).parent.is_dir():
        pytest.skip(f"needs {Path(at).parent}")
    outcome = cli(*words(command, shared_work, at))
    assert outcome.code == 5 and "cannot write " in outcome.error and at[:4] in outcome.error, outcome
    assert "check the folder, or give another one" in outcome.error and "another process" not in outcome.error
    if at.startswith("/proc") and os.geteuid() == 0:
        assert "no file can be made in /proc" in outcome.error


@pytest.fixture
def read_only(tmpfs: Callable[[str], Path]) -> Path:
    """A disk that is mounted read-only."""
    return tmpfs("ro")


@WRITING
def test_a_disk_that_is_read_only(cli: Cli, shared_work: Path, read_only: Path, command: tuple[str, ...]) -> None:
    outcome = cli(*words(command, shared_work, read_only / "x"))
    assert outcome.code == 5 and f"{read_only}" in outcome.error and "Read-only file system; check" in outcome.error


@WRITING
def test_a_folder_of_somebody_else(
    cli: Cli, shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """It answers as one without the right to write: the tests may run as root, whom nothing refuses."""
    (theirs := tmp_path / "theirs").mkdir()

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and theirs in Path(path).parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **options)

        return refused

    for module, name in ((os, "open"), (os, "mkdir"), (io, "open")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    outcome = cli(*words(command, shared_work, theirs / "x"))
    monkeypatch.undo()
    assert outcome.code == 5 and f"{theirs}" in outcome.error and "Permission denied; check" in outcome.error


@WRITING
@pytest.mark.parametrize("link", [False, True])
def test_below_what_is_no_folder(
    cli: Cli, shared_work: Path, tmp_path: Path, command: tuple[str, ...], link: bool
) -> None:
    there = tmp_path / "there"
    if link:
        there.symlink_to("there")
    else:
        there.write_text("precious")
    outcome = cli(*words(command, shared_work, there / "x" / "y"))
    told = f"{there} is a link to there, which is no folder; check" if link else f"{there} is not a folder; check"
    assert outcome.code == 5 and told in outcome.error, outcome
    assert link or there.read_text() == "precious"


@pytest.mark.parametrize("command", [EXPORT, REPORT, PREDICT], ids=lambda command: command[0])
@pytest.mark.parametrize("length", [250, 255, 256])
def test_a_name_that_leaves_no_room_for_a_temporary_one(
    cli: Cli, shared_work: Path, tmp_path: Path, command: tuple[str, ...], length: int
) -> None:
    outcome = cli(*words(command, shared_work, tmp_path / "x" / ("n" * length)))
    assert outcome.code == 2 and "nnnn" in outcome.error, outcome
    assert "is too long for a file's name: give another one" in outcome.error
    assert not [path for path in (tmp_path / "x").rglob("*") if path.is_file()]


# --- what is there and is no file, or no folder -------------------------------------------------------------------


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # an address has 107 bytes at most
        server.bind(path.name)
        os.chdir(here)


def device(path: Path) -> None:
    """A second /dev/null."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make a device")


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "a pipe"),
    "socket": (bound, "a socket"),
    "device": (device, "a device"),
    "link": (link_to("other.txt"), "a link to other.txt"),
    "broken link": (link_to("nowhere"), "a link to nowhere"),
    "loop": (link_to("at"), "a link to at"),
    "link to stdout": (link_to("/proc/self/fd/1"), "a link to /proc/self/fd/1"),
}


@pytest.mark.parametrize(
    "command", [REPORT, (*REPORT, "--force"), PREDICT], ids=["report", "report --force", "predict"]
)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_not_replaced_by_one(
    cli: Cli, shared_work: Path, tmp_path: Path, command: tuple[str, ...], kind: str
) -> None:
    make, told = ODD[kind]
    at = tmp_path / "at"
    (tmp_path / "other.txt").write_text("precious")
    make(at)
    before = at.lstat()
    outcome = cli(*words(command, shared_work, at))
    assert outcome.code == 2 and f"{at} is {told}, and would be replaced: give a file as --out" in outcome.error
    assert "--force" not in outcome.error
    assert (at.lstat().st_ino, at.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "other.txt").read_text() == "precious"


@FORCE
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("command", [EXPORT, MAKE], ids=["export", "make-lt"])
def test_what_is_no_folder_is_not_replaced_by_one(
    cli: Cli, shared_work: Path, tmp_path: Path, command: tuple[str, ...], kind: str, force: tuple[str, ...]
) -> None:
    ODD[kind][0](tmp_path / "at")
    before = (tmp_path / "at").lstat()
    outcome = cli(*words(command, shared_work, tmp_path / "at"), *force)
    assert outcome.code == 2 and "at is not a folder: give a folder as --" in outcome.error, outcome
    assert (tmp_path / "at").lstat().st_ino == before.st_ino


def test_an_export_does_not_swap_the_working_folder(cli: Cli, shared_work: Path) -> None:
    for at in (".", str(Path.cwd())):
        outcome = cli(*words(EXPORT, shared_work, at))
        assert outcome.code == 2 and "is the working folder, or holds it: give another folder" in outcome.error
    assert not list(Path.cwd().iterdir())


# --- a folder of something else -----------------------------------------------------------------------------------


def foreign(path: Path, **files: str) -> None:
    path.mkdir(parents=True)
    for name, text in {"thesis.tex": "years of work", **files}.items():
        (path / name).write_text(text)


def filed(path: Path) -> None:
    path.write_text("precious")


def copied(name: str) -> Callable[[Path, Path], None]:
    return lambda path, work: shutil.copytree(work / name, path)  # type: ignore[return-value]


def begun(path: Path, work: Path) -> None:
    """An unfinished run."""
    from saukit.core.writing import write_text

    write_text(path / "inputs.json", "{}")
    write_text(path / "config.yaml", (work / "runs/ce/config.yaml").read_text())


ELSE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "file": (lambda path, work: filed(path), "exists but saukit did not write it"),
    "folder": (lambda path, work: foreign(path), "exists but saukit did not write it"),
    "their config": (lambda path, work: foreign(path, **{"config.yaml": "theirs: 1\n"}), "saukit did not write it"),
    "their manifest": (
        lambda path, work: foreign(path, **{"manifest.json": '{"name": "app"}'}), "saukit did not write it"
    ),
    "both of theirs": (
        lambda path, work: foreign(path, **{"manifest.json": "[]", "config.yaml": "[]"}), "saukit did not write it"
    ),
    "split": (copied("split"), "holds a split, not a "),
    "cache": (copied("synth"), "holds a synth, not a "),
    "run": (copied("runs/ce"), "holds a run, not a "),
    "begun run": (begun, "holds an unfinished artefact that is no "),
}  # fmt: skip
PLACES = {
    "split": ((), ("make-lt", "--imb", "20")),
    "synth": (("split",), CACHE),
    "runs/new": (("split",), ("train", "--name", "new", "--method", "ce", "--no-synthetic", *RUN)),
    "comparisons/main": (("split", "runs"), ("compare", "--methods", "ce", "--seeds", "1", "--jobs", "1", *RUN)),
}
OWN = [("split", "split"), ("synth", "cache"), ("runs/new", "run"), ("runs/new", "begun run")]


@FORCE
@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place in PLACES for kind in ELSE if (place, kind) not in OWN]
)
def test_an_artefact_takes_nothing_elses_place(
    cli: Cli, shared_work: Path, tmp_path: Path, place: str, kind: str, force: tuple[str, ...]
) -> None:
    """Neither with --force nor by a message that advises it."""
    work = tmp_path / "work"
    needed, command = PLACES[place]
    for name in needed:
        shutil.copytree(shared_work / name, work / name)
    (work / place).parent.mkdir(parents=True, exist_ok=True)
    make, told = ELSE[kind]
    make(work / place, shared_work)
    before = tree(work)
    outcome = cli(*command, *force, "-w", work)
    assert outcome.code == 2 and f"{work / place} " in outcome.error and told in outcome.error, outcome
    assert "move it away, or give another --" in outcome.error and "--force" not in outcome.error
    assert tree(work) == before


@FORCE
@pytest.mark.parametrize("kind", [*ELSE, "workspace"])
def test_an_export_takes_nothing_elses_place(
    cli: Cli, shared_work: Path, tmp_path: Path, kind: str, force: tuple[str, ...]
) -> None:
    if kind == "workspace":
        shutil.copytree(shared_work, tmp_path / "at")
    else:
        ELSE[kind][0](tmp_path / "at", shared_work)
    before = tree(tmp_path)
    outcome = cli(*words(EXPORT, shared_work, tmp_path / "at"), *force)
    told = "is a file: give a folder as --to" if kind == "file" else "did not write: give another folder as --to"
    assert outcome.code == 2 and told in outcome.error and "--force" not in outcome.error, outcome
    assert tree(tmp_path) == before


@pytest.mark.parametrize("inside", ["split", "synth", "runs/ce"])
def test_a_workspace_is_not_begun_inside_an_artefact(cli: Cli, work: Path, inside: str) -> None:
    before = tree(work)
    for command in (("make-lt", "--imb", "50", "--force"), ("train",), ("eval",)):
        outcome = cli(*command, "-w", work / inside)
        assert outcome.code == 2 and f"the workspace {work / inside} is a split, cache, run or " in outcome.error
        assert "give the one it lies in" in outcome.error
    assert tree(work) == before


@pytest.mark.parametrize("kind", ["split", "synth"])
@pytest.mark.parametrize(
    "command",
    [("export", "{at}", "--to", "new"), ("predict", "{at}", "{work}/split/counts.png"), ("eval", "--run", "ce")],
    ids=lambda command: command[0],
)
def test_another_artefact_is_no_damaged_run(cli: Cli, work: Path, command: tuple[str, ...], kind: str) -> None:
    shutil.rmtree(work / "runs/ce")
    shutil.copytree(work / kind, work / "runs/ce")
    outcome = cli(*words(command, work, work / "runs/ce"), "-w", work)
    told = f"describes a '{kind}' artefact where a 'run' one belongs; move it away, or give another folder"
    assert outcome.code == 4 and told in outcome.error and "--force" not in outcome.error


# --- what is a user's own in saukit's folders ----------------------------------------------------------------------


MINE = {
    "notes.txt": "years of work",
    "notes.md": "# why this run",
    "table.csv": "a,b",
    "my.png": "a picture",
    "weights.safetensors": "of another program",
    ".DS_Store": "of a Mac",
    "samples/notes.json": "{}",
    "generator/notes.yaml": "theirs: 1",
}
AGAIN = {
    "split": ("make-lt", "--imb", "20"),
    "synth": (*CACHE, "--seed", "1"),
    "runs/ce": ("train", "--name", "ce", "--method", "ce", "--no-synthetic", *RUN, "--seed", "1"),
    "comparisons/main": ("compare", "--methods", "ce", "--seeds", "1", "--jobs", "1", *RUN),
}


def put(folder: Path, outside: Path) -> dict[str, str]:
    """A user's files, folders of them, and links to `outside`, which holds one; what is to stay of them."""
    outside.mkdir()
    (outside / "thesis.tex").write_text("precious")
    before = {*tree(folder)}
    for name, text in MINE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "best").symlink_to(outside)
    (folder / "gone.png").symlink_to("nowhere")
    return {name: what for name, what in tree(folder).items() if name not in before}


def stays(folder: Path, mine: dict[str, str], outside: Path) -> None:
    there = tree(folder)
    assert {name: there.get(name) for name in mine} == mine
    assert str((folder / "gone.png").readlink()) == "nowhere" and (outside / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("place", AGAIN)
def test_force_leaves_what_saukit_did_not_write(
    cli: Cli, work: Path, tmp_path: Path, place: str, damaged: bool, without_pictures: None
) -> None:
    if place.startswith("comparisons"):
        assert cli(*AGAIN[place], "-w", work, "-q").code == 0
    mine = put(work / place, tmp_path / "outside")
    if damaged:
        (work / place / "manifest.json").write_text("{")
    outcome = cli(*AGAIN[place], "--force", "-w", work, "-q")
    assert outcome.code == 0, outcome
    stays(work / place, mine, tmp_path / "outside")
    made = {*tree(work / place)} - {*mine}
    shutil.rmtree(work / place)
    assert cli(*AGAIN[place], "-w", work, "-q").code == 0
    assert made == {*tree(work / place)}  # nothing of the earlier one is left
    assert not strangers(work / place, {"split": "split", "synth": "synth"}.get(place, place.split("s/")[0]))


@pytest.mark.parametrize("at", range(1, 30, 4))
@pytest.mark.parametrize("name", ["make-lt again", "train"])
def test_a_kill_while_it_is_replaced_loses_none_of_it(shared_work: Path, tmp_path: Path, name: str, at: int) -> None:
    work, place = tmp_path / "work", "split" if name == "make-lt again" else "runs/new"
    for part in ("split",):
        shutil.copytree(shared_work / part, work / part)
    if name == "train":
        shutil.copytree(shared_work / "runs/ce", work / place)
    mine = put(work / place, tmp_path / "outside")
    force = () if "again" in name else ("--force",)
    assert begin(name, work, at=at, fault=KILL, more=force, trains=name == "train").wait().code in (0, -9)
    left = work / place if (work / place).exists() else work / ".split.old"
    stays(left, mine, tmp_path / "outside")
    assert begin(name, work, more=force, trains=name == "train").wait().code == 0
    stays(work / place, mine, tmp_path / "outside")


def test_resume_leaves_them(cli: Cli, shared_work: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(shared_work / "split", work / "split")
    assert begin("synth", work, at=40, fault=KILL, trains=True).wait().code == -9
    mine = put(work / "synth", tmp_path / "outside")
    (work / "synth/samples.png").write_text("no note says that saukit wrote it")
    outcome = cli(*CACHE, "--resume", "-w", work, "-q")
    assert outcome.code == 0, outcome
    stays(work / "synth", mine, tmp_path / "outside")
    assert (work / "synth/samples.png").read_bytes()[:4] == b"\x89PNG"


def test_a_kill_between_the_renames(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    (tmp_path / "split/train.safetensors").write_text("new")
    (tmp_path / ".split.old/sub").mkdir(parents=True)
    for name in ("train.safetensors", "notes.txt", "sub/notes.txt"):
        (tmp_path / ".split.old" / name).write_text("old")
    recover_folder(tmp_path / "split", kind="split")
    assert {path.name: path.read_text() for path in (tmp_path / "split").glob("*.*")} == {
        "train.safetensors": "new", "notes.txt": "old",
    }  # fmt: skip
    assert (tmp_path / "split/sub/notes.txt").read_text() == "old" and not (tmp_path / ".split.old").exists()


@pytest.mark.parametrize("name", ["transformers/notes.txt", "README.md", "extra.md"])
def test_an_export_with_a_users_file_is_not_replaced(cli: Cli, shared_work: Path, tmp_path: Path, name: str) -> None:
    """Beside a README.md that saukit did not write, and one that somebody wrote into."""
    at = tmp_path / "at"
    assert cli("export", "ce", "--format", "hub", "-w", shared_work, "--to", at, "-q").code == 0
    (at / name).parent.mkdir(exist_ok=True)
    (at / name).write_text("mine")
    before = tree(at)
    outcome = cli("export", "ce", "--format", "hub", "-w", shared_work, "--to", at, "--force")
    assert outcome.code == 2 and f"did not write: move {name} away, or give another folder as --to" in outcome.error
    assert tree(at) == before


@pytest.mark.parametrize("out", ["{work}/runs/ce/results.json", "{work}/split/config.yaml", "{work}/synth/plan.json"])
def test_out_is_no_file_of_an_artefact(cli: Cli, work: Path, out: str) -> None:
    before, out = tree(work), out.format(work=work)
    for command in (("report", "--force"), ("predict", "ce", work / "split/counts.png", "--format", "json")):
        outcome = cli(*command, "-w", work, "--out", out)
        assert outcome.code == 2 and f"{out} lies in " in outcome.error and "give another --out" in outcome.error
    assert tree(work) == before


def test_out_is_none_of_the_images(cli: Cli, work: Path, tmp_path: Path) -> None:
    image = shutil.copy(work / "split/counts.png", tmp_path / "photo.png")
    outcome = cli("predict", "ce", image, "--format", "csv", "-w", work, "--out", image)
    assert outcome.code == 2 and f"--out {image} is one of the images, and would be replaced" in outcome.error
    assert Path(image).read_bytes() == (work / "split/counts.png").read_bytes()
