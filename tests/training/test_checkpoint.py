"""A checkpoint comes back as it was, or not at all."""

import hashlib
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import resolved

from saukit.core.config import to_yaml
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, EnvironmentFault
from saukit.training import checkpoint as room
from saukit.training.checkpoint import TrainingState

CPU = torch.device("cpu")
CONFIG = resolved(method="ce", weights="none", as_published=False, lr=0.05)
ORIGIN = {"kind": "state of a training run", "method": "'ce'", "seed": "0", "split": "a" * 64}


def save_checkpoint(path: Path, state: TrainingState, made_from: dict[str, str] = ORIGIN) -> None:
    room.save_checkpoint(path, state, made_from=made_from)


def load_checkpoint(path: Path, device: torch.device, heard: list[str] | None = None) -> TrainingState | None:
    return room.load_checkpoint(path, device, made_from=ORIGIN, warn=print if heard is None else heard.append)


def state() -> TrainingState:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=draw)
    return TrainingState(
        step=17,
        network={"weight": weight, "tracked": torch.tensor(3)},
        optimizer={"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        prototypes=(weight[:2], weight[2:]),
        meters={"ce": torch.tensor(0.1, dtype=torch.float64)},
        seconds=1.25,
        best_accuracy=0.5,
        best_step=12,
        best_network={"weight": weight + 1},
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_every_field_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", state())
    loaded = load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert loaded is not None and same(vars(loaded), vars(state()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """In every byte, the archive's directory among them: a bit there makes torch.load return memory as it finds it."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    content = path.read_bytes()
    draw = random.Random(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifactError, match=r"checkpoint\.pt is damaged .*start over with --force"):
            load_checkpoint(path, CPU)


@pytest.mark.parametrize("size", [0, 1, 100, 1000, -1, -30])
def test_a_cut_off_file_is_damaged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptArtifactError, match=r"checkpoint\.pt is damaged .*start over with --force"):
        load_checkpoint(path, CPU)


def with_digest(path: Path, document: Any) -> None:
    """Write a document as `save_checkpoint` would."""
    torch.save(document, path)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())


def in_place(state: Any) -> dict[str, Any]:
    return {"made_from": ORIGIN, "state": state}


@pytest.mark.parametrize(
    "document",
    [
        *({"step": 1}, [1, 2], 7, {"made_from": ORIGIN}, {"made_from": 1, "state": {}}),
        *map(in_place, ({"step": 1}, {"step": 1, "colour": 2}, [1, 2], None)),
    ],
)
def test_something_else_that_torch_saved_is_damaged(tmp_path: Path, document: Any) -> None:
    with_digest(tmp_path / "checkpoint.pt", document)
    with pytest.raises(CorruptArtifactError, match=r"checkpoint\.pt is damaged \(.+\): start over with --force$"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)


class Trap:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    with_digest(tmp_path / "checkpoint.pt", Trap(tmp_path / "sprung"))
    with pytest.raises(CorruptArtifactError, match=r"is damaged \(Weights only load failed"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # so the trap works


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    before = path.read_bytes()

    def full(document: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(EnvironmentFault, match=r"no space left to write .*checkpoint\.pt; free some space"):
        save_checkpoint(path, state())
    assert path.read_bytes() == before

    def broken(document: Any, file: Path) -> None:  # as torch reports it
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", broken)
    for free, told in ((0, "no space left to write"), (1 << 30, "cannot write .*unexpected pos 64 vs 0; check the")):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        with pytest.raises(EnvironmentFault, match=told):
            save_checkpoint(path, state())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_last_two_states_are_kept_and_the_older_stands_in(tmp_path: Path) -> None:
    path, older = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    assert load_checkpoint(path, CPU) is None
    for step in (1, 2, 3):
        save_checkpoint(path, replace(state(), step=step))
    assert sorted(file.name for file in tmp_path.iterdir()) == [older.name, path.name]
    heard: list[str] = []
    found = load_checkpoint(path, CPU, heard)
    assert found is not None and found.step == 3 and heard == []
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:100] + b"\0" * (len(whole) - 100), older.read_bytes()[::-1]):
        path.write_bytes(content)
        heard.clear()
        found = load_checkpoint(path, CPU, heard)
        assert found is not None and found.step == 2
        (told,) = heard
        assert "checkpoint.pt is damaged (" in told and told.endswith("the state before it, checkpoint.previous.pt")
    path.unlink()  # a power cut between the two renames
    found = load_checkpoint(path, CPU)
    assert found is not None and found.step == 2
    path.symlink_to("nowhere")
    found = load_checkpoint(path, CPU, heard)
    assert found is not None and found.step == 2
    older.write_bytes(b"too")
    with pytest.raises(CorruptArtifactError, match=r"checkpoint\.pt is dam.*previous\.pt is dam.*start over"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": "1"}, "seed: 1 there, 0 here"),
        ({"method": "'sau'"}, "method: 'sau' there, 'ce' here"),
        ({"split": "b" * 64}, "split: bbb"),
        ({"kind": "state of a generator's training"}, "kind: state of a generator's training there"),
        ({"synth": "c" * 64}, "synth: ccc"),
    ],
)
def test_a_state_of_other_work_is_named(tmp_path: Path, other: dict[str, str], message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(), made_from=ORIGIN | other)
    with pytest.raises(CorruptArtifactError, match=rf"belongs to other work \({re.escape(message)}") as raised:
        load_checkpoint(path, CPU)
    assert str(raised.value).endswith("start over with --force")
    save_checkpoint(path, state())
    save_checkpoint(path, state(), made_from=ORIGIN | other)  # copied over a run's own, which stands in
    heard: list[str] = []
    assert load_checkpoint(path, CPU, heard) is not None and message in heard[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["network", "optimizer", "prototypes", "meters", "average"])
def test_a_state_that_left_the_finite_numbers_says_so(field: str, bad: float) -> None:
    assert state().is_finite
    tensor = torch.tensor([1.0, bad])
    value: dict[str, Any] = {"optimizer": {"state": {0: {"momentum_buffer": tensor}}}, "prototypes": (tensor, tensor)}
    assert not replace(state(), **{field: value.get(field, {"x": tensor})}).is_finite


def test_a_pipe_in_the_place_of_a_state_is_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint.pt")
    with pytest.raises(CorruptArtifactError, match="it is a pipe, not a file"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)


def test_what_a_state_is_made_from_is_all_but_the_learning_rate() -> None:
    config = replace(CONFIG, lr=0.25)
    values = room.made_from(config, {"split": "ab"})
    assert values == room.made_from(replace(config, lr=0.125), {"split": "ab"})
    assert values != room.made_from(replace(config, weight_decay=0.5), {"split": "ab"})
    assert values["kind"] == "state of a training run" and values["split"] == "ab" and values["schedule"]
    assert "lr" not in values and values["batch_size"] == "16"


def test_an_interrupted_run_goes_on_with_a_smaller_learning_rate_alone(tmp_path: Path) -> None:
    class Heard(Reporter):
        def say(self, text: str, **options: Any) -> None:
            heard.append(text)

    heard: list[str] = []
    config, path = CONFIG, tmp_path / "config.yaml"
    room.lower_learning_rate(tmp_path, config, Heard())
    assert not path.exists()
    path.write_text(to_yaml(config))
    for other in (config, replace(config, lr=0.5), replace(config, lr=0.005, steps=5)):
        room.lower_learning_rate(tmp_path, other, Heard())
        assert path.read_text() == to_yaml(config) and heard == []
    (tmp_path / "manifest.json").touch()
    room.lower_learning_rate(tmp_path, replace(config, lr=0.005), Heard())
    assert path.read_text() == to_yaml(config) and heard == []  # a complete run stays what it is
    (tmp_path / "manifest.json").unlink()
    room.lower_learning_rate(tmp_path, replace(config, lr=0.005), Heard())
    assert path.read_text() == to_yaml(replace(config, lr=0.005))
    assert heard == ["going on with the learning rate 0.005 in place of 0.05, as config.yaml says now"]


def test_a_run_that_left_the_finite_numbers_says_the_way_on() -> None:
    start = "the loss is not finite at step 7 of 9: "
    over = "start over with --force and a smaller --lr, or with --amp off"
    first = room.not_finite("the loss", "7 of 9", saved_step=None, lr=0.5)
    assert (str(first), first.exit_code) == (f"{start}{over}", 1)
    assert str(room.not_finite("the loss", "7 of 9", saved_step=4, lr=0.5)) == (
        f"{start}its state of step 4 is kept, go on from there with --resume --lr 0.05; or {over}"
    )


def test_a_checkpoint_of_unfinished_work_has_its_hash_in_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text("{}")
    save_checkpoint(tmp_path / "checkpoint.pt", state())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "inputs.json"]
