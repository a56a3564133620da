"""A command in a forked process in which one change of the file system goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Begun

from saukit.cli.main import run
from saukit.synthesis.generators import diffusion_training
from saukit.training import trainer

MOMENTS = 16
KILL = 0  # in place of an errno
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR
RUN = ("--steps", "4", "--batch-size", "16", "--amp", "off")
CACHE = ("synth", "--per-class-target", "8", "--train-steps", "3", "--train-batch-size", "4", "--sampler-steps", "2",
         "--sample-batch-size", "4", "--amp", "off", "--preflight", "0", "--no-audit")  # fmt: skip
# What each command needs of the shared workspace, itself, and the folder it makes.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "make-lt": ((), ("make-lt", "--imb", "50"), "split"),
    "make-lt again": (("split",), ("make-lt", "--imb", "20", "--force"), "split"),
    "synth": (("split",), CACHE, "synth"),
    "train": (("split",), ("train", "--name", "new", "--method", "ce", *RUN), "runs/new"),
    "eval": (("split", "runs"), ("eval", "--run", "ce", "--force"), "runs/ce"),
    "compare": (("split", "synth", "runs"), ("compare", "--methods", "ce", "--seeds", "1", "--jobs", "1", *RUN),
                "comparisons/main"),
    "export": (("split", "runs"), ("export", "ce", "--to", "{work}/out", "--force"), "out"),
    "report": (("split", "synth", "runs"), ("report",), "report.html"),
}  # fmt: skip
RESUMED = ("synth", "train")
TIMED = ("manifest.json", "source.json", "metrics.jsonl", "results.json", "compare.json", "compare.csv", "compare.md",
         "compare.png", "report.html")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended, what it said on stderr, and how often it changed something in its workspace."""

    code: int
    err: str
    changes: int


@dataclass(frozen=True)
class Process:
    """A command that runs, and where it says what became of it."""

    child: int | Begun
    work: Path

    def wait(self) -> Ended:
        """Wait until it ends."""
        if isinstance(self.child, Begun):
            code = self.child.wait().returncode
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        log, changes = (self.work.with_name(f"{self.work.name}.{kind}") for kind in ("err", "changes"))
        return Ended(code, log.read_text(), int(changes.read_text()) if code >= 0 else 0)


def forked(name: str, work: Path, *, resume: bool = False, at: int | None = None, fault: int = KILL) -> Ended:
    """Run the command `name` of the table; at its change number `at` it is killed, or gets the error `fault`."""
    return begun(name, work, resume=resume, at=at, fault=fault).wait()


def begun(
    name: str,
    work: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    fault: int = KILL,
    more: tuple[str, ...] = (),
    trains: bool = False,
) -> Process:
    """Begin the command `name` of the table, with `more` options; `trains`: where no test has trained (`processes`)."""
    arguments = [*(word.format(work=work) for word in COMMANDS[name][1]), *more]
    if resume and name in RESUMED and (work / COMMANDS[name][2] / "config.yaml").exists():
        arguments.append("--resume")
    log, counted = (work.with_name(f"{work.name}.{kind}") for kind in ("err", "changes"))
    given = [*arguments, "-w", str(work), "-q"], str(work), at, fault, str(log), str(counted)
    if trains:
        return Process(Begun("-c", f"from injection import become; become(*{given!r})"), work)
    child = os.fork()
    if child == 0:
        become(*given)
    return Process(child, work)


def become(arguments: list[str], work: str, at: int | None, fault: int, log: str, counted: str) -> None:
    """Be the command, in a forked process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
    trainer.CHECKPOINT_SECONDS = diffusion_training.CHECKPOINT_SECONDS = -1.0
    changes, flush = 0, os.fsync

    def change(place: str) -> None:
        nonlocal changes
        if place.startswith(work):
            changes += 1
            if changes == at:
                if fault > 0:
                    raise OSError(fault, os.strerror(fault), place)
                os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or int(given[2] or 0) & WRITING):
            change(os.fsdecode(given[0]) if not isinstance(given[0], int) else "")

    def flushed(file: int) -> None:
        change(str(Path(f"/proc/self/fd/{file}").readlink()))
        flush(file)

    os.fsync = flushed  # type: ignore[assignment]
    sys.addaudithook(heard)
    sys.argv, code = ["saukit", *arguments], 0
    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    Path(counted).write_text(str(changes))
    os._exit(code)


def moments(changes: int, part: int, parts: int) -> list[int]:
    """Every `parts`-th of up to `MOMENTS` changes, spread from the first to the last."""
    return sorted({1 + round(k * (changes - 1) / (MOMENTS - 1)) for k in range(MOMENTS)})[part::parts]


def started(name: str, shared: Path, work: Path) -> Path:
    """The folder `work` with what the command `name` needs of the workspace `shared`."""
    work.mkdir()
    for part in COMMANDS[name][0]:
        shutil.copytree(shared / part, work / part)
    return work


def untimed(files: Mapping[str, str]) -> dict[str, str]:
    """Of a `support.tree` what is the same whenever it is made."""
    return {name: what for name, what in files.items() if not name.endswith(TIMED)}
