"""Every file of finished and unfinished work, damaged in every way, under every command that reads it.

A command refuses what is damaged, with the file and the remedy, and changes nothing; or it makes the file again, as it
was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import Cli, Count, tree

from saukit.core.artifacts import write_json
from saukit.core.console import Reporter
from saukit.core.state import DIGEST_BYTES
from saukit.core.workspace import Workspace
from saukit.core.writing import expect
from saukit.deploy.config import ExportConfig
from saukit.deploy.export import export
from saukit.evaluation.compare import compare
from saukit.evaluation.config import CompareConfig
from saukit.training import trainer

QUIET = Reporter(quiet=True)
RUN = ("--steps", "4", "--batch-size", "16", "--amp", "off")
CACHE = ("synth", "--per-class-target", "20", "--train-steps", "3", "--train-batch-size", "4", "--sampler-steps", "2",
         "--amp", "off", "--preflight", "0", "--no-audit")  # fmt: skip
Command = tuple[str, ...]
Damage = Callable[[Path, Path], None]  # of a file; where whole files are
COMPARE = ("compare", "--methods", "ce,sau+synth", "--seeds", "1", "--jobs", "1", *RUN)


# --- damages ------------------------------------------------------------------------------------------------------


def _bytes(change: Callable[[bytearray], Any]) -> Damage:
    def damage(path: Path, finished: Path) -> None:
        content = bytearray(path.read_bytes())
        changed = change(content)
        path.unlink()  # it may be a link to the shared file
        path.write_bytes(content if changed is None else changed)

    return damage


def _flipped(content: bytearray, place: int) -> None:
    content[place] ^= 4


def _in_place(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, finished: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Damage] = {
    "emptied": _bytes(lambda it: b""),
    "halved": _bytes(lambda it: it[: len(it) // 2]),
    "last byte lost": _bytes(lambda it: it[:-1]),
    "a byte more": _bytes(lambda it: it + b"\0"),
    "first byte": _bytes(lambda it: _flipped(it, 0)),
    "middle byte": _bytes(lambda it: _flipped(it, len(it) // 2)),
    "last byte": _bytes(lambda it: _flipped(it, -1)),
    "block of zeros": _bytes(lambda it: it[: len(it) // 3] + bytes(len(it) // 3) + it[2 * (len(it) // 3) :]),
    "text": _bytes(lambda it: b"not what you look for\n"),
    "another": lambda path, finished: _bytes(lambda it: (finished / "runs/sau/model.safetensors").read_bytes())(
        path, finished
    ),
    "folder": _in_place(Path.mkdir),
    "pipe": _in_place(os.mkfifo),
    "loop": _in_place(lambda path: path.symlink_to(path.name)),
    "dangling": _in_place(lambda path: path.symlink_to("nowhere")),
    "deleted": lambda path, finished: path.unlink(),
}


# --- finished work ------------------------------------------------------------------------------------------------

SPLIT = [f"split/{name}" for name in ("config.yaml", "manifest.json", "train.safetensors", "test.safetensors",
                                      "counts.png")]  # fmt: skip
SYNTH = [f"synth/{name}" for name in ("config.yaml", "manifest.json", "plan.json", "shard-00000.safetensors",
         "selection.safetensors", "source.json", "samples.png", "generator/unet/config.json",
         "generator/unet/diffusion_pytorch_model.safetensors", "generator/scheduler/scheduler_config.json",
         )]  # fmt: skip
RUNS = [f"runs/ce/{name}" for name in ("config.yaml", "manifest.json", "metrics.jsonl", "model.safetensors",
        "results.json", "per_class.png", "confusion.png", "errors.csv", "errors.png")]  # fmt: skip
COMPARISON = [f"comparisons/main/{name}" for name in ("config.yaml", "manifest.json", "compare.json", "compare.csv",
              "compare.md", "compare.png")]  # fmt: skip
EXPORT = [f"exported/{name}" for name in ("config.json", "model.safetensors", "classes.json")]
FINISHED = [*SPLIT, *SYNTH, *RUNS, *COMPARISON, *EXPORT]
READ_BY_NOTHING = ["exported/README.md"]
UNREAD = [("exported/classes.json", "deleted")]  # a model of the Hub has none
FOR_EVERY_COMMAND = ("middle byte", "folder", "loop", "deleted")
READERS: dict[str, list[Command]] = {
    "split": [("make-lt", "--imb", "50"), CACHE, ("train", "--name", "new", "--method", "ce", *RUN),
              ("eval", "--run", "sau"), ("report",)],
    "synth": [CACHE, ("train", "--name", "new", "--method", "sau", *RUN)],
    "runs": [("eval", "--run", "ce"), ("export", "ce", "--to", "{out}"), ("predict", "ce", "{picture}"),
             ("train", "--name", "ce", "--method", "ce", "--no-synthetic", *RUN), ("report", "--runs", "ce")],
    "comparisons": [COMPARE, ("report", "--comparison", "main")],
    "exported": [("predict", "{work}/exported", "{picture}"),
                 ("export", "{work}/exported", "--to", "{out}")],
}  # fmt: skip


REMEDIES = ("--force", "run `saukit", "--resume", "complete runs: ")


@pytest.fixture(scope="module")
def finished(shared_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shared workspace with a comparison and an exported model, and a picture beside it; nobody may change it."""
    root = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(shared_work, root)
    train = {"steps": 4, "batch_size": 16, "amp": "off"}
    config = CompareConfig(methods=("ce", "sau+synth"), seeds=1, train=train)
    compare(config, Workspace(root), name="main", devices=["cpu"], force=False, reporter=QUIET)
    export(ExportConfig(), "ce", root / "exported", Workspace(root), force=False, reporter=QUIET)
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(root.with_name("picture.png"))
    before = tree(root)
    yield root
    assert tree(root) == before


def contents(root: Path) -> dict[Path, tuple[int, ...]]:
    """Every path below `root` with what changes when it is written, moved or replaced.

    Hashes of the contents, twice for each case, took most of its time; of what is hard-linked `finished` has them.
    """
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            there = (path := Path(folder, name)).lstat()
            written = (there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
            found[path] = (there.st_mode, *(() if name in folders else written))
    return found


def hard_linked(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target, copy_function=os.link)


def test_every_file_of_finished_work_is_damaged_here(finished: Path) -> None:
    there = {name for name, what in tree(finished).items() if what != "folder"}
    others = ("runs/sau", "runs/ce+", "runs/ce-")
    assert {name for name in there if not name.startswith(others)} == {*FINISHED, *READ_BY_NOTHING}


def as_it_was(path: Path, whole: Path) -> bool:
    if path.suffix != ".json":
        return path.read_bytes() == whole.read_bytes()
    found, expected = (json.loads(file.read_text()) for file in (path, whole))
    return bool(found.get("digest", found) == expected.get("digest", expected))  # a manifest says when it was made


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FINISHED)
def test_damage_of_finished_work(
    record_property: Count, cli: Cli, finished: Path, tmp_path: Path, name: str, damage: str
) -> None:
    commands = READERS[name.split("/")[0]]
    turn = list(DAMAGES).index(damage) + FINISHED.index(name)
    tried = commands if damage in FOR_EVERY_COMMAND else [commands[turn % len(commands)]]
    record_property("cases", len(tried))
    for command in tried:
        work, out = hard_linked(finished, tmp_path / command[0]), tmp_path / f"out-{command[0]}"
        DAMAGES[damage](work / name, finished)
        before = contents(work)
        places = {"work": work, "out": out, "picture": finished.with_name("picture.png")}
        outcome = cli(*(word.format(**places) for word in command), "-w", work)
        case = f"{name}, {damage}, {command[0]}: {outcome.code} {outcome.error}"
        if outcome.code == 0:  # it was made again, or says what it said
            assert (name, damage) in UNREAD or as_it_was(work / name, finished / name), case
            continue
        unfinished = damage == "deleted" and name.endswith("manifest.json")
        assert outcome.code in ((2, 3) if unfinished else (3, 4)), case
        assert unfinished or Path(name).name in outcome.error, case
        assert any(remedy in outcome.error for remedy in REMEDIES) and "Traceback" not in outcome.err, case
        assert contents(work) == before and not out.exists(), case


# --- unfinished work ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a command as a kill does: nothing is tidied but what `finally` tidies."""


def stopped(cli: Cli, patches: pytest.MonkeyPatch, where: object, name: str, *, call: int, command: Command) -> None:
    """Run a command that ends at a call of a function."""
    calls, function = 0, getattr(where, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return function(*arguments, **options)

    with patches.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(trainer, "LOG_EVERY_STEPS", 1)
        patch.setattr(where, name, counted)
        cli(*command)


def bits(folder: Path) -> dict[str, str]:
    """All that is the same whenever it is made."""
    timed = ("manifest.json", "source.json", "metrics.jsonl")
    return {name: what for name, what in tree(folder).items() if not name.endswith(timed)}


UNFINISHED: dict[str, tuple[str, Command, object, str, int, list[str]]] = {
    "training": (
        "runs/new",
        ("train", "--name", "new", "--method", "ce", "--no-synthetic", *RUN),
        trainer.Trainer, "advance", 4,
        ["config.yaml", "inputs.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.previous.pt",
         ".config.yaml.sha256", ".inputs.json.sha256"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unfinished workspaces and what their commands make of them undisturbed, by name; filled as they are asked for."""
    return {"": tmp_path_factory.mktemp("unfinished")}


def unfinished(stage: str, made: dict[str, Path], cli: Cli, shared_work: Path, patch: pytest.MonkeyPatch) -> Path:
    _, command, where, name, call, _ = UNFINISHED[stage]
    if stage not in made:
        for kind in (stage, f"{stage} done"):
            made[kind] = made[""] / kind
            shutil.copytree(shared_work / "split", made[kind] / "split")
        stopped(cli, patch, where, name, call=call, command=(*command, "-w", str(made[stage])))
        assert cli(*command, "-w", made[f"{stage} done"]).code == 0
    return made[stage]


UNFINISHED_CASES = [
    (stage, name, damage) for stage, row in UNFINISHED.items() for name in row[-1] for damage in DAMAGES
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name", "damage"), UNFINISHED_CASES)
def test_damage_of_unfinished_work(
    cli: Cli, made: dict[str, Path], shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str,
    name: str, damage: str,
) -> None:  # fmt: skip
    folder, command, *_ = UNFINISHED[stage]
    start, whole = unfinished(stage, made, cli, shared_work, monkeypatch), made[f"{stage} done"]
    work = shutil.copytree(start, tmp_path / "work")
    DAMAGES[damage](work / folder / name, shared_work)
    before = tree(work)
    outcome = cli(*command, "--resume", "-w", work)
    case = f"{stage}, {name}, {damage}: {outcome.code} {outcome.error}"
    assert "Traceback" not in outcome.err, case
    if outcome.code == 0:
        assert bits(work) == bits(whole), case
        return
    remains = name == "inputs.json" and damage == "deleted"  # as after a kill of --force
    assert outcome.code == (2 if remains else 4), case
    assert remains or name.rsplit("/")[-1].lstrip(".").removesuffix(".sha256") in outcome.error, case
    assert "--force" in outcome.error and tree(work) == before, case
    assert name.lstrip(".").split(".")[0] in ("config", "inputs", "plan", "metrics"), case  # all else is made again


def test_a_value_changed_in_an_unfinished_configuration(cli: Cli, work: Path) -> None:
    folder = work / "synth"
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "inputs.json", manifest["inputs"])
    for name, record in manifest["files"].items():
        expect(folder / name, record["sha256"])
    (folder / "manifest.json").unlink()
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("prompts: null", "prompts: nuln"))
    outcome = cli("synth", "--resume", "-w", work)
    assert outcome.code == 4 and f"{path} was changed after it was written: start over" in outcome.error, outcome


FORGED = {"step": "x", "network": {}, "optimizer": {}, "meters": {"ce": 1}, "prototypes": [1, 2]}


@pytest.mark.slow
@pytest.mark.parametrize("field", FORGED)
def test_a_state_whose_checksum_fits(
    cli: Cli, made: dict[str, Path], shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    folder, command, *_ = UNFINISHED["training"]
    work = shutil.copytree(unfinished("training", made, cli, shared_work, monkeypatch), tmp_path / "work")
    for path in (work / folder).glob("checkpoint*.pt"):
        document = torch.load(io.BytesIO(path.read_bytes()[:-DIGEST_BYTES]), weights_only=True)
        document["state"][field] = FORGED[field]
        torch.save(document, path)
        path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    outcome = cli(*command, "--resume", "-w", work)
    assert outcome.code == 4 and "checkpoint.pt" in outcome.error and "--force" in outcome.error, outcome
