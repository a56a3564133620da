"""`--tune lora`: low-rank updates learn, the rest of the backbone does not, and the model has them merged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from torch import Tensor

from saukit.core.console import Reporter
from saukit.core.errors import EnvironmentFault, SaukitError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, make_split
from saukit.deploy.config import ExportConfig
from saukit.deploy.export import export
from saukit.models.classifier import load_classifier
from saukit.models.lora import merged_state
from saukit.training import trainer as training_room
from saukit.training.plan import plan_training
from saukit.training.stage import fit
from saukit.training.trainer import Trainer

timm = pytest.importorskip("timm")
pytest.importorskip("peft")
CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def photo_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at 160 pixels, and random weights of a tiny transformer of timm beside them."""
    root = tmp_path_factory.mktemp("lora")
    counts = {str(digit): 3 for digit in range(10)}
    make_split(
        SplitConfig(dataset="digits", counts=counts, image_size=160),
        Workspace(root / "work"), root=None, force=False, reporter=QUIET,
    )  # fmt: skip
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, root / "weights.safetensors")
    return root


@pytest.fixture
def work(photo_work: Path, tmp_path: Path) -> Path:
    shutil.copytree(photo_work / "work", tmp_path / "work")
    return tmp_path / "work"


def config(photo_work: Path, **fields: Any) -> Any:
    given = {"backbone": "timm/test_vit", "weights": str(photo_work / "weights.safetensors"), "tune": "lora"}
    return tiny(**{**given, "steps": 3, "batch_size": 4, "lr": 0.05, "synthetic": False, "lora_rank": 2, **fields})


def train(work: Path, photo_work: Path, name: str = "run", **fields: Any) -> Path:
    return fit(
        config(photo_work, **fields), Workspace(work), name=name, device=CPU, force=False, resume=True, reporter=QUIET
    ).folder


def test_only_the_updates_and_the_head_learn(work: Path, photo_work: Path) -> None:
    run = Trainer(plan_training(config(photo_work), Workspace(work), name=None, device=CPU))
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    for _ in range(2):  # A moves once B is no longer zero
        run.advance()
    after = run.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    updates = {name for name in before if ".lora_" in name}
    layers = sum(
        isinstance(module, torch.nn.Linear) for module in timm.create_model("test_vit", num_classes=0).modules()
    )
    assert len(updates) == 2 * layers
    assert moved == updates | {"classifier.weight", "classifier.bias"}
    assert {before[name].shape[0] for name in updates if ".lora_A." in name} == {2}


@pytest.mark.parametrize("fields", [{}, {"average": 0.5}, {"optimizer": "adamw", "head_share": 0.4}], ids=str)
def test_the_model_is_the_plain_network_with_the_updates_added(
    work: Path, photo_work: Path, fields: dict[str, Any]
) -> None:
    """W + 2 B A by hand, in a network of timm without peft; and the same logits."""
    folder = train(work, photo_work, **fields)
    run = Trainer(plan_training(config(photo_work, **fields), Workspace(work), name=None, device=CPU))
    for _ in range(3):
        run.advance()
    learned = run.network if run.average is None else run.average.module
    state: dict[str, Tensor] = learned.state_dict()
    saved = load_file(folder / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in saved)
    for name, value in saved.items():
        base = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        if base not in state:
            assert torch.equal(value, state[name])
            continue
        expected = state[base]
        if name.endswith(".weight"):
            stem = name.removesuffix(".weight")
            update = state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
            assert update.any()
            expected = expected + 2 * update
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)

    images = torch.from_numpy(load_split(Workspace(work)).train.images[:4]).float() / 255
    classifier = load_classifier(folder)
    learned.eval()
    with torch.no_grad():
        expected = learned((images - classifier.mean) / classifier.std)
        torch.testing.assert_close(classifier(images), expected, rtol=1e-3, atol=1e-4)


def test_a_stopped_run_resumes_to_the_same_bits(work: Path, photo_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (train(work, photo_work, "whole") / "model.safetensors").read_bytes()
    original = Trainer.advance

    def advance(trainer: Trainer) -> None:
        if trainer.step_count == 2:
            raise KeyboardInterrupt
        original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(training_room, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            train(work, photo_work, "cut")
    assert (train(work, photo_work, "cut") / "model.safetensors").read_bytes() == expected


def test_a_merged_model_is_exported(work: Path, photo_work: Path, tmp_path: Path) -> None:
    train(work, photo_work)
    result = export(
        ExportConfig(("torch", "hub")), "run", tmp_path / "out", Workspace(work), force=False, reporter=QUIET
    )
    assert all(check.max_difference <= 1e-4 for check in result.checks)


def test_a_network_without_updates_is_left_alone() -> None:
    state = {"weight": torch.ones(2)}
    assert merged_state(torch.nn.Linear(2, 2), state) == state  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "run:x"}, "run `saukit train --name x"),
        ({"weights": "none"}, "tune lora trains on a frozen backbone, and weights none has learned nothing"),
        ({"layer_decay": 0.5}, "layer_decay has no effect with tune lora: use tune all"),
        ({"tune": "all", "lora_rank": 4}, "lora_rank has no effect with tune all: use tune lora"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(work: Path, photo_work: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SaukitError) as caught:
        train(work, photo_work, **fields)
    assert message in str(caught.value)
    assert not (work / "runs").exists()


def test_a_network_of_convolutions_has_nothing_to_adapt(work: Path, photo_work: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, work / "other.safetensors")
    with pytest.raises(UsageError, match="backbone timm/test_efficientnet has none: use a transformer"):
        train(work, photo_work, backbone="timm/test_efficientnet", weights=str(work / "other.safetensors"))


def test_without_the_extra_the_remedy_is_named(work: Path, photo_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saukit.core import extras

    monkeypatch.setattr(extras, "missing_packages", lambda extra: ["peft"] if extra == "lora" else [])
    with pytest.raises(EnvironmentFault, match=r"--tune lora needs peft: pip install 'saukit\[lora\]'"):
        train(work, photo_work)
