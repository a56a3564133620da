"""How long a run will take: beside the processor time of real steps, and from few images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny, tree

from saukit.core.workspace import Workspace
from saukit.training import estimate as room
from saukit.training.context import StepContext
from saukit.training.estimate import estimate_seconds
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.trainer import Trainer

CPU = torch.device("cpu")


def plan_of(root: Path, **fields: Any) -> TrainingPlan:
    config = tiny(**{"synthetic": True, "batch_size": 64, "steps": 1000, **fields})
    return plan_training(config, Workspace(root), name=None, device=CPU)


@pytest.mark.parametrize("method", ["ce", "sau", "bcl"])
def test_an_estimate_is_near_the_processor_time_of_real_steps(shared_work: Path, method: str) -> None:
    plan = plan_of(shared_work, method=method)
    trainer = Trainer(plan)
    trainer.advance()
    started = time.process_time()
    for _ in range(6):
        trainer.advance()
    real = (time.process_time() - started) / 6 * plan.total_steps
    assert real / 2 < sorted(estimate_seconds(plan) for _ in range(3))[1] < 2 * real  # 1.5 on a quiet machine


def test_an_estimate_writes_nothing_and_measures_where_it_is_asked_to(
    shared_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    advance = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda trainer: (steps.append(trainer.step_count), advance(trainer))[1])
    before, plan = tree(shared_work), plan_of(shared_work)
    assert estimate_seconds(plan) > 0
    assert steps == []
    assert estimate_seconds(plan, measure=True) > 0
    assert steps == [*range(8)]
    assert tree(shared_work) == before
    steps.clear()
    assert estimate_seconds(plan_of(shared_work, steps=3), measure=True) > 0
    assert steps == [0, 1, 2]  # no more than the run has


@pytest.mark.parametrize(
    ("batch_size", "seconds", "step"),
    [
        (64, [90, 5, 1, 1.5, 1, 40, 1, 1], 1.0),  # neither the first steps nor one that waited for other work
        (64, [90, 5, 1, 2, 3, 4, 5, 6], 3.5),
        (128, [90, 5, 1, 4, 1, 1, 4, 1], 2.0),  # three steps per epoch, the first with what an epoch begins with
    ],
)
def test_a_step_that_waited_changes_no_measured_estimate(
    shared_work: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, seconds: list[float], step: float
) -> None:
    clock, left = [0.0], [*seconds]
    monkeypatch.setattr(Trainer, "advance", lambda trainer: clock.append(clock[-1] + left.pop(0)))
    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: clock[-1]))
    plan = plan_of(shared_work, batch_size=batch_size)
    assert estimate_seconds(plan, measure=True) == pytest.approx(step * plan.total_steps)
    assert left == []


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each trial step; a step takes 10 ms and 5 ms for each image."""
    seen: list[int] = []

    def take(plan: TrainingPlan, context: StepContext, images: int) -> float:
        seen.append(images)
        return 0.01 + 0.005 * seen[-1]

    monkeypatch.setattr(room, "_time_step", take)
    return seen


def test_what_a_whole_batch_costs_follows_from_fewer_images(shared_work: Path, trials: list[int]) -> None:
    plan = plan_of(shared_work, batch_size=450)
    assert estimate_seconds(plan) == pytest.approx(1000 * (0.01 + 0.005 * 450), rel=0.05)
    assert trials[0] == trials[1] == 2  # the first step prepares kernels
    assert 32 < trials[-1] < 450
    trials.clear()
    assert estimate_seconds(plan_of(shared_work, batch_size=8)) == pytest.approx(1000 * (0.01 + 0.005 * 8))
    assert trials == [2, 2, 8]


def test_prototypes_count_and_threads_share_the_work(
    shared_work: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAU on 454 images in batches of 64: seven steps per epoch, and 392 real images in two views at its start."""
    per_step = 0.01 + 0.005 * 64
    expected = 14 * per_step + 2 * (2 * 392 / 3) * per_step / (4 * 64)
    plan = plan_of(shared_work, method="sau", steps=14)
    assert estimate_seconds(plan) == pytest.approx(expected, rel=0.01)
    monkeypatch.setattr(room, "suited_threads", lambda size, device: 4)
    assert estimate_seconds(plan) == pytest.approx(expected / 4**0.9, rel=0.01)


def test_nothing_is_compiled(shared_work: Path) -> None:
    plan = plan_of(shared_work)
    assert estimate_seconds(replace(plan, config=replace(plan.config, compile=True))) < 3600
