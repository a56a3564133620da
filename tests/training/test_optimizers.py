"""What fine-tuning asks of the optimizer: groups, heads first, frozen BatchNorm, clipping, averaged weights."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import resolved, tiny
from torch import Tensor

from saukit.core.console import Reporter
from saukit.core.errors import UsageError
from saukit.core.workspace import Workspace
from saukit.models.dual_branch import DualBranchNet
from saukit.training import trainer as training_room
from saukit.training.optimizers import SCALE, build_optimizer, set_learning_rate
from saukit.training.plan import learning_rate, plan_training
from saukit.training.stage import fit
from saukit.training.trainer import Trainer

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
FINE = {"optimizer": "adamw", "head_share": 0.5, "freeze_bn": True, "clip_norm": 1.0, "average": 0.5, "crop_scale": 0.5}


@pytest.fixture
def work(shared_work: Path, tmp_path: Path) -> Path:
    shutil.copytree(shared_work / "split", tmp_path / "work" / "split")
    return tmp_path / "work"


def trainer(work: Path, **fields: Any) -> Trainer:
    return Trainer(plan_training(tiny(synthetic=False, **fields), Workspace(work), name=None, device=CPU))


def state_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_updates_are_those_of_torchs_optimizer(kind: str) -> None:
    """On a copy with one optimizer for matrices and one for vectors, which AdamW does not decay."""
    torch.manual_seed(0)
    network = DualBranchNet("convnet-small", 3, projection=False)
    other = copy.deepcopy(network)
    optimizer = build_optimizer(network, resolved(optimizer=kind, weight_decay=0.3), CPU)
    vectors = [p for p in other.parameters() if p.ndim <= 1]
    matrices = [p for p in other.parameters() if p.ndim > 1]
    plain: list[torch.optim.Optimizer] = [
        torch.optim.SGD([*matrices, *vectors], lr=1.0, momentum=0.9, weight_decay=0.3)
        if kind == "sgd"
        else torch.optim.AdamW([{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}])
    ]
    for step, rate in enumerate((0.01, 0.02, 0.005)):
        for mine, its in zip(network.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            its.grad = mine.grad.clone()
        set_learning_rate(optimizer, rate)
        optimizer.step()
        for group in plain[0].param_groups:
            group["lr"] = rate
        plain[0].step()
    for mine, its in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


def test_the_rate_of_a_layer_is_timms() -> None:
    timm_optim = pytest.importorskip("timm.optim")
    network = DualBranchNet("timm/test_efficientnet", 3, projection=True)
    optimizer = build_optimizer(network, resolved(optimizer="adamw", layer_decay=0.5, weight_decay=0.1), CPU)
    expected = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in timm_optim.param_groups_layer_decay(network.backbone.network, 0.1, layer_decay=0.5)
        for parameter in group["params"]
    }
    found = {id(p): (group[SCALE], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {key: found[key] for key in expected} == expected
    assert len({scale for scale, _ in expected.values()}) > 3
    assert found.keys() == {id(parameter) for parameter in network.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)  # none twice
    assert found[id(network.classifier.weight)] == (1.0, 0.1)
    assert found[id(network.classifier.bias)] == (1.0, 0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_heads_learn_first(work: Path, optimizer: str) -> None:
    """The backbone waits to the bit, its BatchNorm too; then all of it learns."""
    run = trainer(work, steps=4, head_share=0.5, optimizer=optimizer)
    start = state_of(run.network)
    run.advance()
    run.advance()
    half = state_of(run.network)
    moved = {name for name in start if not torch.equal(start[name], half[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    run.advance()
    end = state_of(run.network)
    moved = {name for name, _ in run.network.named_parameters() if not torch.equal(half[name], end[name])}
    assert moved == {name for name, _ in run.network.named_parameters()}
    assert not torch.equal(half["backbone.layers.1.running_mean"], end["backbone.layers.1.running_mean"])


def test_each_part_has_a_schedule(work: Path) -> None:
    run = trainer(work, steps=40, head_share=0.25, lr=0.1, warmup=0.2, schedule="cosine-step")
    found = [learning_rate(step, run.plan) for step in range(40)]

    def part(steps: int) -> list[float]:
        rising = int(0.2 * steps)
        return [
            0.1 * (step + 1) / rising if step < rising else 0.05 * (1 + math.cos(math.pi * step / steps))
            for step in range(steps)
        ]

    assert found == pytest.approx(part(10) + part(30))


def test_batchnorm_stays_as_it_is(work: Path) -> None:
    run = trainer(work, steps=2, freeze_bn=True)
    start = state_of(run.network)
    run.advance()
    end = state_of(run.network)
    for name in start:
        is_statistic = "running" in name or "num_batches" in name
        assert torch.equal(start[name], end[name]) is is_statistic, name


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_a_gradient_is_clipped_to_its_norm(work: Path, limit: float) -> None:
    """The first step of SGD is the rate times the gradient."""
    fields = {"steps": 2, "weight_decay": 0.0, "lr": 0.5, "warmup": 0.0}
    runs = [trainer(work, **fields), trainer(work, **fields, clip_norm=limit)]
    steps = []
    for run in runs:
        before = torch.cat([parameter.detach().clone().flatten() for parameter in run.network.parameters()])
        run.advance()
        after = torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()])
        steps.append(before - after)
    whole = float(steps[0].norm()) / 0.5
    expected = steps[0] * min(1.0, limit / whole)
    torch.testing.assert_close(steps[1], expected, rtol=1e-3, atol=1e-6)


def test_averaged_weights_are_those_of_a_plain_loop(work: Path) -> None:
    run = trainer(work, steps=4, average=0.75)
    expected: dict[str, Tensor] = {}
    for _ in range(4):
        run.advance()
        now = state_of(run.network)
        expected = {
            name: value if not expected or not value.is_floating_point() else 0.75 * expected[name] + 0.25 * value
            for name, value in now.items()
        }
    found = run.state().average
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[f"module.{name}"], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(run.network.classifier.weight, found["module.classifier.weight"])


def test_the_model_is_the_average(work: Path) -> None:
    folder = fit(
        tiny(synthetic=False, average=0.75),
        Workspace(work),
        name="a",
        device=CPU,
        force=False,
        resume=False,
        reporter=QUIET,
    ).folder
    run = trainer(work, average=0.75)
    for _ in range(run.plan.total_steps):
        run.advance()
    saved, average = load_file(folder / "model.safetensors"), run.state().average
    assert torch.equal(saved["classifier.weight"], average["module.classifier.weight"])


def test_fine_tuning_resumes_to_the_same_bits(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> bytes:
        config = tiny(synthetic=False, steps=8, **FINE)
        folder = fit(config, Workspace(work), name=name, device=CPU, force=False, resume=True, reporter=QUIET).folder
        return (folder / "model.safetensors").read_bytes()

    expected = run("whole")
    original = Trainer.advance
    for stop in (2, 6):  # among the steps of the heads, and after

        def advance(trainer: Trainer, stop: int = stop) -> None:
            if trainer.step_count == stop:
                raise KeyboardInterrupt
            original(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(training_room, "CHECKPOINT_SECONDS", -1.0)
            patch.setattr(Trainer, "advance", advance)
            with pytest.raises(KeyboardInterrupt):
                run(f"cut{stop}")
        assert run(f"cut{stop}") == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decay": 0.5}, "layer_decay needs a backbone of timm, got convnet-small"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
        ({"average": 1.0}, "average must be above 0 and below 1, got 1"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0"),
        ({"tune": "head", "head_share": 0.5}, "head_share has no effect with tune head: use tune all"),
        ({"tune": "head", "crop_scale": 0.5}, "crop_scale has no effect with tune head: use tune all"),
    ],
)
def test_what_makes_no_sense_is_refused(work: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        trainer(work, **fields)
    assert message in str(caught.value)
