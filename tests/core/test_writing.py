"""Hashes of unfinished work: what changed after it was written is found, and a kill in between leaves what fits."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from saukit.core.artifacts import write_json, write_manifest
from saukit.core.errors import CorruptArtifactError
from saukit.core.writing import atomic_path, expected, intact, recover_folder, sha256_file, sweep, write_text


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Unfinished work with a file of each kind, one of them in a folder."""
    write_json(tmp_path / "inputs.json", {})
    for name in ("config.yaml", "plan.json", "shard-0.safetensors", "samples.png", "generator/unet/config.json"):
        write_text(tmp_path / name, f"the content of {name}, which is long enough to be cut\n")
    write_text(tmp_path / "metrics.jsonl", "grows", hashed=False)
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.json").touch()


def unnoted(path: Path) -> None:
    path.with_name(f".{path.name}.sha256").unlink()


DAMAGES = [flip, zero_half, cut, empty, pipe, link_to_nothing, link_to_itself, folder, unnoted]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "shard-0.safetensors", "samples.png", "generator/unet/config.json"])
def test_what_changed_is_removed_to_be_made_again(begun: Path, name: str, damage: Callable[[Path], None]) -> None:
    assert sweep(begun, kind="synth", keep=()) == []
    damage(begun / name)
    assert not intact(begun / name)
    assert sweep(begun, kind="synth", keep=("plan.json",))[0] == name
    assert not os.path.lexists(begun / name) and sweep(begun, kind="synth", keep=()) == []
    assert (begun / "metrics.jsonl").read_text() == "grows"


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_made_again_is_named_and_nothing_is_removed(begun: Path, damage: Callable[[Path], None]) -> None:
    damage(begun / "plan.json")
    damage(begun / "samples.png")
    with pytest.raises(CorruptArtifactError, match=r"plan\.json was changed after it was written: start over with --f"):
        sweep(begun, kind="synth", keep=("plan.json",))
    assert os.path.lexists(begun / "samples.png")


def test_two_files_in_each_others_place_are_both_found(begun: Path) -> None:
    write_text(begun / "shard-1.safetensors", "another")
    one, other = begun / "shard-0.safetensors", begun / "shard-1.safetensors"
    one.rename(begun / "x")
    other.rename(one)
    (begun / "x").rename(other)
    assert sweep(begun, kind="synth", keep=()) == [one.name, other.name]


@pytest.mark.parametrize("at", ["expect", "replace", "after"])
@pytest.mark.parametrize("times", [1, 12])
def test_a_kill_while_a_file_is_replaced_leaves_one_that_fits(
    begun: Path, monkeypatch: pytest.MonkeyPatch, at: str, times: int
) -> None:
    path, replace = begun / "plan.json", Path.replace

    def killed(self: Path, target: Path) -> Path:
        if at == "expect" and target.suffix == ".sha256":
            raise KeyboardInterrupt
        if at == "after" and target == path:
            replace(self, target)
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    for attempt in range(times):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", killed)
            write_text(path, f"attempt {attempt}")
    if (at, times) != ("replace", 12):  # so many kills in the same place cost the file
        assert intact(path) and sweep(begun, kind="synth", keep=("plan.json",)) == []
    write_text(path, "whole")
    assert expected(path)[-1] == sha256_file(path) and intact(path)


def test_a_manifest_takes_no_file_that_changed_and_then_vouches_alone(begun: Path) -> None:
    files = ["config.yaml", "shard-0.safetensors"]
    zero_half(begun / "shard-0.safetensors")
    with pytest.raises(CorruptArtifactError, match=r"shard-0\.safetensors was changed while .*with --resume, or"):
        write_manifest(begun, kind="synth", files=files, inputs={}, summary={}, device="cpu")
    assert not (begun / "manifest.json").exists()
    write_text(begun / "shard-0.safetensors", "again")
    write_manifest(begun, kind="synth", files=files, inputs={}, summary={}, device="cpu")
    assert not list(begun.rglob(".*")) and not (begun / "inputs.json").exists()
    write_text(begun / "results.json", "added to what is complete")
    assert not list(begun.rglob(".*"))


def test_what_a_dead_process_left_of_a_file_goes_with_its_next_write(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead, alive = (tmp_path / f".page.html.{process}.partial" for process in (child, os.getppid()))
    others = [tmp_path / name for name in (f".page.htm.{child}.partial", f"page.html.{child}.partial", ".page.html.x")]
    for path in (dead, alive, *others):
        path.touch()
    write_text(tmp_path / "page.html", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others, tmp_path / "page.html"])


def test_a_link_in_the_place_of_a_temporary_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".x.{os.getpid()}.partial").symlink_to(victim)
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("new")
    (tmp_path / "y").symlink_to(victim)
    write_text(tmp_path / "y", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "x").read_text() == (tmp_path / "y").read_text() == "new"
    for name in (".split.new", ".split.old"):
        (tmp_path / name).symlink_to(tmp_path / "victims")
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "kept").touch()
    (tmp_path / "split").mkdir()
    recover_folder(tmp_path / "split")
    assert (tmp_path / "victims" / "kept").exists() and not list(tmp_path.glob(".split.*"))


@pytest.mark.parametrize("process", ["another user's", "no number of a process"])
def test_remains_go_only_where_their_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    number = 10**30 if process == "no number of a process" else 7
    remains = tmp_path / f".page.html.{number}.partial"
    remains.touch()

    def kill(number: int, signal: int) -> None:
        assert (number, signal) == (7, 0)
        raise PermissionError(1, "Operation not permitted")

    if number == 7:
        monkeypatch.setattr(os, "kill", kill)
    write_text(tmp_path / "page.html", "whole")
    assert remains.exists() == (number == 7)


def test_remains_that_cannot_be_removed_stop_no_write(tmp_path: Path) -> None:
    (tmp_path / f".page.html.{2**31 - 2}.partial").mkdir()
    write_text(tmp_path / "page.html", "whole")
    assert (tmp_path / "page.html").read_text() == "whole"
