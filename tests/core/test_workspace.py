import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from support import resealed

from saukit.core.artifacts import Manifest, write_manifest
from saukit.core.config import load_config, to_yaml
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, SaukitError, UsageError
from saukit.core.words import shown
from saukit.core.workspace import State, Workspace, existing_state, prepare, reopened, require, require_made_from
from saukit.core.writing import write_text


@dataclass(frozen=True)
class Recipe:
    """Stands for any stage's configuration."""

    epochs: int = 200
    lr: float = 0.1
    seed: int = 0


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


def complete(
    folder: Path, *, kind: str = "run", config: object = None, inputs: dict[str, str] | None = None
) -> Manifest:
    write_text(folder / "config.yaml", to_yaml(config or Recipe()))
    write_text(folder / "model.safetensors", "weights")
    files = ["config.yaml", "model.safetensors"]
    return write_manifest(folder, kind=kind, files=files, inputs=inputs or {}, summary={}, device="cpu")


# Names


def test_where_things_are(workspace: Workspace) -> None:
    assert workspace.split == workspace.root / "split"
    assert workspace.synth == workspace.root / "synth"
    for name in ("sau+synth", "ce-seed1", "a", "7", "A.b_c", "console", "n" * 200):
        assert workspace.run(name) == workspace.root / "runs" / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/a",
        "a\\b",
        ".hidden",
        "-rf",
        "a b",
        "ö",
        "a\n",
        "a\x00",
        "+a",
        "a.",
        "n" * 201,
        "CON",
        "nul.txt",
        "com1",
    ],
)
def test_names_that_cannot_be_a_folder(workspace: Workspace, name: str) -> None:
    message = f"run name {shown(name)}: use letters, digits, '.', '_', '+' and '-', a letter or digit first"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        workspace.run(name)


def test_runs_are_listed_by_the_time_they_were_completed(workspace: Workspace) -> None:
    assert workspace.run_names() == []
    for name in ("b", "c", "a"):
        complete(workspace.run(name))
    write_text(workspace.run("aa") / "config.yaml", "seed: 0\n")  # interrupted: no manifest
    assert workspace.run_names() == ["b", "c", "a"]
    (workspace.run("b") / "model.safetensors").unlink()  # a list reads no files
    complete(workspace.run("c"))
    assert workspace.run_names() == ["b", "a", "c"]
    (workspace.run("a") / "manifest.json").write_text("{")  # a damaged run hides no other
    assert workspace.run_names() == ["b", "c"]
    newer = json.loads((workspace.run("c") / "manifest.json").read_text()) | {"format_version": 2}
    (workspace.run("c") / "manifest.json").write_text(json.dumps(newer))
    assert workspace.run_names() == ["b"]


def test_a_command_names_the_workspace_unless_it_is_the_default() -> None:
    assert Workspace(Path("saukit_work")).command("saukit train") == "saukit train"
    assert Workspace(Path("my work")).command("saukit train") == "saukit train -w 'my work'"


# The lock

HOLDER = """
import sys
from pathlib import Path
from saukit.core.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
with workspace.lock(workspace.run("a")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(workspace.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def locks(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.root.rglob("*.lock")]


def test_a_second_process_is_kept_out_and_told_by_whom(workspace: Workspace) -> None:
    folder = workspace.run("a")
    with holder(workspace) as process:
        for _ in range(2):  # being refused takes nothing from the holder
            with pytest.raises(SaukitError) as caught, workspace.lock(folder):
                pass
            assert str(caught.value) == (
                f"{folder} is being written by process {process.pid} on {os.uname().nodename}: "
                f"wait for it, or stop it ({workspace.root / '.runs-a.lock'})"
            )
            assert caught.value.exit_code == 1
        with workspace.lock(workspace.run("b")), workspace.lock(workspace.synth):  # other artefacts are free
            pass
        process.communicate("", timeout=20)
        assert process.returncode == 0
    assert locks(workspace) == []
    with workspace.lock(folder):
        assert locks(workspace) == [".runs-a.lock"]
        assert (workspace.root / ".runs-a.lock").read_text() == f"{os.getpid()}\n{os.uname().nodename}\n"
    assert locks(workspace) == []


def test_a_killed_holder_blocks_nothing_and_its_halves_are_cleared(workspace: Workspace) -> None:
    folder = workspace.run("a")
    write_text(folder / "config.yaml", "seed: 0\n")
    (folder / ".checkpoint.pt.4242.partial").write_text("half")
    (folder / "mine.partial").write_text("mine")
    other = workspace.synth / ".shard.4242.partial"  # another artefact's: its own writer may be at it
    write_text(workspace.synth / "config.yaml", "seed: 0\n")
    other.write_text("half")
    with holder(workspace) as process:
        assert not (folder / ".checkpoint.pt.4242.partial").exists()
        (folder / f".checkpoint.pt.{process.pid}.partial").write_text("half")
        process.kill()
        process.wait(timeout=20)
    assert locks(workspace) == [".runs-a.lock"]
    with workspace.lock(folder):
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "mine.partial"]
    assert locks(workspace) == []
    assert other.exists()


def test_a_failure_inside_gives_the_lock_back(workspace: Workspace) -> None:
    with pytest.raises(KeyboardInterrupt), workspace.lock(workspace.split):
        raise KeyboardInterrupt
    assert locks(workspace) == []
    with workspace.lock(workspace.split):
        pass


def test_many_writers_are_never_inside_together(workspace: Workspace) -> None:
    # The lock file is removed by each holder, which a careless waiter would not notice.
    inside, together, done = [0], [0], [0]

    def write() -> None:
        mine = 0
        until = time.monotonic() + 20
        while mine < 60 and time.monotonic() < until:
            try:
                with workspace.lock(workspace.split):
                    inside[0] += 1
                    together[0] = max(together[0], inside[0])
                    time.sleep(0)
                    inside[0] -= 1
                    mine += 1
                    done[0] += 1
            except SaukitError:
                time.sleep(0)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (together[0], done[0]) == (1, 4 * 60)
    assert locks(workspace) == []


def test_a_workspace_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("mine")
    workspace = Workspace(tmp_path / "work")
    message = rf"^cannot write to {re.escape(str(workspace.root))}: .+; check the folder, or give another one$"
    with pytest.raises(EnvironmentFault, match=message), workspace.lock(workspace.split):
        pass
    assert (tmp_path / "work").read_text() == "mine"


# Running a command again

INPUTS = {"split": "a" * 64, "synth": "b" * 64}
BEGUN = [".config.yaml.sha256", ".inputs.json.sha256", "config.yaml", "inputs.json"]


def made(folder: Path, state: State) -> None:
    """Leave `folder` as a command would that got that far, with something in it to recognise it by."""
    if state == "new":
        return
    assert (
        prepare(folder, Recipe(), kind="run", force=False, resume=False, another="another --name", inputs=INPUTS)
        == "new"
    )
    write_text(folder / "checkpoint.pt", "half")
    if state == "complete":
        write_text(folder / "model.safetensors", "weights")
        files = ["config.yaml", "model.safetensors"]
        write_manifest(folder, kind="run", files=files, inputs=INPUTS, summary={}, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


Expected = Literal["new", "partial", "complete", "interrupted", "other config", "other inputs"]
TABLE: list[tuple[State, str, bool, bool, Expected]] = [
    # what is there, the command now, --force, --resume: what happens
    *[("new", "same", force, resume, "new") for force in (False, True) for resume in (False, True)],
    ("partial", "same", False, False, "interrupted"),
    ("partial", "same", False, True, "partial"),
    ("partial", "config", False, False, "other config"),
    ("partial", "config", False, True, "other config"),
    ("partial", "inputs", False, False, "other inputs"),
    ("partial", "inputs", False, True, "other inputs"),
    ("complete", "same", False, False, "complete"),
    ("complete", "same", False, True, "complete"),
    ("complete", "config", False, False, "other config"),
    ("complete", "config", False, True, "other config"),
    ("complete", "inputs", False, False, "other inputs"),
    ("complete", "inputs", False, True, "other inputs"),
    *[
        (before, now, True, resume, "new")
        for before in ("partial", "complete")
        for now in ("same", "config", "inputs")
        for resume in (False, True)
    ],
]


@pytest.mark.parametrize(("before", "now", "force", "resume", "expected"), TABLE)
def test_the_rule_for_running_a_command_again(
    workspace: Workspace, before: State, now: str, force: bool, resume: bool, expected: Expected
) -> None:
    folder = workspace.run("a")
    made(folder, before)
    config = Recipe(epochs=50, lr=0.2) if now == "config" else Recipe()
    inputs = {**INPUTS, "synth": "c" * 64} if now == "inputs" else INPUTS
    earlier = contents(folder)

    def act() -> State:
        return prepare(folder, config, kind="run", force=force, resume=resume, another="another --name", inputs=inputs)

    if expected in ("new", "partial", "complete"):
        assert act() == expected
        if expected == "new":  # emptied, and begun with this configuration and these inputs
            assert sorted(contents(folder)) == BEGUN
            assert load_config(Recipe, folder / "config.yaml") == config
            assert json.loads((folder / "inputs.json").read_text()) == inputs
        else:
            assert contents(folder) == earlier
        return
    messages = {
        "interrupted": "holds an interrupted run: continue it with --resume, or start over with --force",
        "other config": "was made with another configuration (epochs: 200 -> 50; lr: 0.1 -> 0.2): "
        "replace it with --force, or give another --name",
        "other inputs": "was made from another synth than this workspace holds now: "
        "replace it with --force, or give another --name",
    }
    with pytest.raises(UsageError) as caught:
        act()
    assert str(caught.value) == f"{folder} {messages[expected]}"
    assert contents(folder) == earlier


def state_with(folder: Path, inputs: dict[str, str]) -> State:
    return existing_state(folder, Recipe(), kind="run", another="another --name", inputs=inputs)


@pytest.mark.parametrize("before", ["partial", "complete"])
def test_every_input_that_differs_is_named(workspace: Workspace, before: State) -> None:
    folder = workspace.run("a")
    made(folder, before)
    assert state_with(folder, INPUTS) == before
    for inputs, named in (
        ({"split": "c", "synth": "c"}, "split and synth"),
        ({"split": INPUTS["split"]}, "synth"),  # one less
        ({**INPUTS, "teacher": "c"}, "teacher"),  # one more
    ):
        with pytest.raises(UsageError, match=f"was made from another {named} than this workspace holds now"):
            state_with(folder, inputs)


def test_looking_writes_nothing(workspace: Workspace) -> None:
    assert state_with(workspace.run("a"), INPUTS) == "new"
    assert not workspace.root.exists()


def test_a_kill_before_the_first_config_is_as_if_nothing_had_been(workspace: Workspace) -> None:
    folder = workspace.run("a")
    folder.mkdir(parents=True)
    assert state_with(folder, INPUTS) == "new"
    write_text(folder / "inputs.json", json.dumps({"split": "of another time"}))
    assert state_with(folder, INPUTS) == "new"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_saukit_did_not_write_is_left_alone(workspace: Workspace, force: bool) -> None:
    folder = workspace.run("a")
    write_text(folder / "thesis.tex", "years of work")
    message = f"{folder} exists but saukit did not write it: move it away, or give another --name"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        prepare(folder, Recipe(), kind="run", force=force, resume=True, another="another --name")
    assert contents(folder) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("there", ["file", "config", "manifest", "split", "begun split"])
def test_the_place_of_something_else_is_left_alone(workspace: Workspace, there: str, force: bool) -> None:
    folder, reason = workspace.run("a"), "exists but saukit did not write it"
    if there == "file":
        folder.parent.mkdir(parents=True)
        folder.write_bytes(b"years of work")
    elif there == "split":
        made(folder, "complete")
        resealed(folder / "manifest.json", kind="split")
        reason = "holds a split, not a run"
    elif there == "begun split":
        write_text(folder / "inputs.json", "{}")
        write_text(folder / "config.yaml", "imb: 50\n")
        reason = "holds an unfinished artefact that is no run"
    else:
        folder.mkdir(parents=True)
        (folder / {"config": "config.yaml", "manifest": "manifest.json"}[there]).write_text("name: theirs\n")
    earlier = folder.read_bytes() if there == "file" else contents(folder)
    message = f"{folder} {reason}: move it away, or give another --name"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        prepare(folder, Recipe(), kind="run", force=force, resume=True, another="another --name")
    assert (folder.read_bytes() if there == "file" else contents(folder)) == earlier


@pytest.mark.parametrize("before", ["partial", "complete"])
@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_damaged_artefact_is_still_saukits_to_replace(workspace: Workspace, before: State, name: str) -> None:
    folder = workspace.run("a")
    made(folder, before)
    (folder / name).write_bytes(b"\xff")
    assert prepare(folder, Recipe(), kind="run", force=True, resume=False, another="x", inputs=INPUTS) == "new"
    assert sorted(contents(folder)) == BEGUN


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_is_told_as_damage_and_force_mends_it(workspace: Workspace, name: str, how: str) -> None:
    folder = workspace.run("a")
    made(folder, "complete")
    path = folder / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"200", b"300").replace(b"weights", b"weighty"))
    reason = "is missing" if how == "missing" else "was changed after it was written"
    message = f"{folder} is damaged: {name} {reason}; remake the artefact with --force"
    with pytest.raises(CorruptArtifactError, match=f"^{re.escape(message)}$"):
        prepare(folder, Recipe(), kind="run", force=False, resume=False, another="another --name", inputs=INPUTS)
    state = prepare(folder, Recipe(), kind="run", force=True, resume=False, another="another --name", inputs=INPUTS)
    assert state == "new"


@pytest.mark.parametrize(("before", "steps"), [("partial", 7), ("complete", 5)])
def test_a_kill_while_force_removes_the_old(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, before: State, steps: int
) -> None:
    folder = workspace.run("a")
    unlink, rmtree = Path.unlink, shutil.rmtree
    killed_at = []
    for kill_at in range(1, steps + 2):
        rmtree(folder, ignore_errors=True)
        made(folder, before)
        whole = contents(folder)
        step = iter(range(1, 100))

        def unlink_or_die(self: Path, missing_ok: bool = False, step: Iterator[int] = step, at: int = kill_at) -> None:
            if self.suffix != ".partial" and next(step) == at:
                raise KeyboardInterrupt
            unlink(self, missing_ok)

        def rmtree_or_die(path: Path, step: Iterator[int] = step, at: int = kill_at) -> None:
            if next(step) == at:
                raise KeyboardInterrupt
            rmtree(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink_or_die)
            patch.setattr(shutil, "rmtree", rmtree_or_die)
            try:
                prepare(folder, Recipe(), kind="run", force=True, resume=False, another="x", inputs=INPUTS)
            except KeyboardInterrupt:
                killed_at.append(kill_at)
            else:
                continue
        if contents(folder) == whole:
            assert state_with(folder, INPUTS) == before
        else:  # nothing half-emptied is taken for an artefact to go on with
            message = f"{folder} holds only remains of a run: start over with --force"
            with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
                prepare(folder, Recipe(), kind="run", force=False, resume=True, another="x", inputs=INPUTS)
        assert prepare(folder, Recipe(), kind="run", force=True, resume=False, another="x", inputs=INPUTS) == "new"
        assert sorted(contents(folder)) == BEGUN
    assert killed_at == list(range(1, steps + 1))


@pytest.mark.parametrize("until", ["hashes", "manifest", "work", "end"])
def test_complete_work_is_opened_again_under_another_configuration(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    """A kill on the way leaves the work complete, or unfinished, as it was; at the end it is that of the new one."""
    folder, other = workspace.run("a"), {**INPUTS, "teacher": "d" * 64}
    made(folder, "complete")
    if until == "hashes":
        monkeypatch.setattr("saukit.core.workspace.write_json", no_disk)
    if until == "manifest":
        unlink = Path.unlink

        def all_but_the_manifest(self: Path, missing_ok: bool = False) -> None:
            no_disk() if self.name == "manifest.json" else unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", all_but_the_manifest)
    with (
        contextlib.nullcontext() if until == "end" else pytest.raises(OSError, match="gone"),
        reopened(folder, Recipe(epochs=50), kind="run", inputs=other),
    ):
        assert not (folder / "manifest.json").exists() and state_with(folder, other) == "partial"
        if until == "work":
            no_disk()
        write_text(folder / "results.json", "{}")
    monkeypatch.undo()
    if until in ("hashes", "manifest"):
        assert state_with(folder, INPUTS) == "complete"
        assert (
            prepare(folder, Recipe(), kind="run", force=False, resume=False, another="x", inputs=INPUTS) == "complete"
        )
        assert not {".config.yaml.sha256", "inputs.json"} & {*contents(folder)}
        return
    config = Recipe() if until == "work" else Recipe(epochs=50)
    assert existing_state(folder, config, kind="run", another="x", inputs=other) == "partial"
    (folder / "model.safetensors").write_text("weighty")  # its hash is known from the manifest
    state = prepare(folder, config, kind="run", force=False, resume=True, another="x", inputs=other)
    assert state == "partial" and not (folder / "model.safetensors").exists() and (folder / "config.yaml").exists()


def no_disk(*arguments: object, **options: object) -> None:
    raise OSError("gone")


@pytest.mark.parametrize("name", ["config.yaml", "inputs.json"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_damaged_unfinished_work_is_told(workspace: Workspace, name: str, how: str) -> None:
    folder = workspace.run("a")
    made(folder, "partial")
    if how == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    before = contents(folder)
    messages = {
        ("config.yaml", "changed"): f"{folder / name} was changed after it was written: start over with --force",
        ("inputs.json", "changed"): f"{folder / name} was changed after it was written: start over with --force",
        ("config.yaml", "missing"): f"{folder / name} is missing: start over with --force",
        ("inputs.json", "missing"): f"{folder} holds only remains of a run: start over with --force",
    }
    for resume in (False, True):
        with pytest.raises(SaukitError, match=f"^{re.escape(messages[name, how])}$"):
            prepare(folder, Recipe(), kind="run", force=False, resume=resume, another="x", inputs=INPUTS)
    assert contents(folder) == before
    assert prepare(folder, Recipe(), kind="run", force=True, resume=False, another="x", inputs=INPUTS) == "new"


def test_a_linked_folder_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    workspace.root.mkdir()
    for link, artifact in ((workspace.split, workspace.split), (workspace.root / "runs", workspace.run("a"))):
        link.symlink_to(tmp_path / "elsewhere")
        message = (
            f"{link} is a link to {tmp_path / 'elsewhere'}, and saukit writes only inside its workspace: "
            "put the folder itself there, or give the --workspace that it leads to"
        )
        with pytest.raises(EnvironmentFault, match=f"^{re.escape(message)}$"), workspace.lock(artifact):
            pass
    assert not list((tmp_path / "elsewhere").iterdir()) and not list(workspace.root.glob(".*"))


def test_only_a_tidy_lock_clears_what_was_left(workspace: Workspace) -> None:
    half = workspace.synth / ".plan.json.7.partial"
    write_text(workspace.synth / "plan.json", "{}")
    half.touch()
    with workspace.lock(workspace.synth, tidy=False):
        assert half.exists()
    with workspace.lock(workspace.synth):
        assert not half.exists()
    assert [path.name for path in workspace.synth.iterdir()] == ["plan.json"]


# What a stage needs


def test_what_must_be_there_names_the_command_that_makes_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = workspace.split
    with pytest.raises(DataError) as caught:
        require(folder, kind="split", command="saukit make-lt")
    command = f"saukit make-lt -w {workspace.root}"
    assert str(caught.value) == f"the split in {folder} is not there: run `{command}` first"
    write_text(folder / "config.yaml", "seed: 0\n")
    with pytest.raises(DataError) as caught:
        require(folder, kind="split", command="saukit make-lt")
    assert str(caught.value) == f"the split in {folder} is not complete: run `{command}` first"
    assert caught.value.exit_code == 3
    run = Workspace(tmp_path / "with space").run("a")
    with pytest.raises(DataError, match=re.escape(f"run `saukit train -w '{tmp_path / 'with space'}'` first")):
        require(run, kind="run", command="saukit train")
    monkeypatch.chdir(tmp_path)
    for artifact in (Workspace(Path("saukit_work")).split, Workspace(Path("saukit_work")).run("a")):
        with pytest.raises(DataError, match=r"run `saukit x` first$"):  # the default workspace needs no -w
            require(artifact, kind="split", command="saukit x")
    manifest = complete(folder, kind="split")
    assert require(folder, kind="split", command="saukit make-lt") == manifest
    (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors is missing"):
        require(folder, kind="split", command="saukit make-lt")


def test_a_cache_of_another_split_is_refused(workspace: Workspace) -> None:
    split = complete(workspace.split, kind="split")
    own = complete(workspace.synth, kind="synth", inputs={"split": split.digest})
    require_made_from(own, workspace.synth, split=split, command="saukit synth")
    for inputs in ({"split": "f" * 64}, {}):
        foreign = complete(workspace.synth, kind="synth", inputs=inputs)
        with pytest.raises(DataError) as caught:
            require_made_from(foreign, workspace.synth, split=split, command="saukit synth")
        assert str(caught.value) == (
            f"{workspace.synth} was made from another split than the one in this workspace: "
            f"remake it with `saukit synth --force -w {workspace.root}`, or give the workspace it belongs to"
        )
