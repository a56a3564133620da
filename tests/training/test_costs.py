"""What a run costs: against what a step of it really keeps, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor

from saukit.core.workspace import Workspace
from saukit.models.backbones import count_parameters
from saukit.training.costs import run_costs
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.trainer import Trainer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("narrow_projection")


def plan_of(root: Path, **fields: Any) -> TrainingPlan:
    config = tiny(**{"synthetic": True, "batch_size": 64, "steps": 100, **fields})
    return plan_training(config, Workspace(root), name=None, device=CPU)


@pytest.mark.parametrize(("method", "moments"), [("ce", 1), ("ce", 2), ("sau", 1)])
def test_memory_is_near_what_a_step_keeps(shared_work: Path, method: str, moments: int) -> None:
    plan = plan_of(shared_work, method=method, optimizer={1: "sgd", 2: "adamw"}[moments])
    trainer = Trainer(plan)
    kept: list[dict[int, Tensor]] = [{}]

    def keep(tensor: Tensor) -> Tensor:
        kept[-1][tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def passes() -> None:
        for _, loss in plan.method.step(trainer._batch(0).samples, context):
            loss.backward()
            kept.append({})

    batch = trainer._batch(0)
    context = trainer.step.context.__class__(**{**vars(trainer.step.context), "prototypes": batch.prototypes})
    trainer.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes()
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.network.parameters()}
    most = max(
        sum(tensor.untyped_storage().nbytes() for where, tensor in each.items() if where not in weights)
        for each in kept
    )
    state = 4 * count_parameters(trainer.network) * (2 + moments)
    images = plan.split.train.images.nbytes + (0 if plan.cache is None else plan.cache.images.nbytes)
    assert run_costs(plan).memory_bytes == pytest.approx(most + state + images, rel=0.15)


def test_costs_by_hand(shared_work: Path) -> None:
    ce, sau = plan_of(shared_work, method="ce"), plan_of(shared_work, method="sau")
    assert run_costs(ce).image_passes == 100 * 64
    epochs = math.ceil(100 / sau.steps_per_epoch)
    assert run_costs(sau).image_passes == 100 * 64 * 4 + epochs * 2 * len(sau.split.train.labels)
    assert run_costs(plan_of(shared_work, method="ce", steps=200)).flops == 2 * run_costs(ce).flops
    halves = [run_costs(ce, processes=n).memory_bytes for n in (1, 2)]
    assert halves[0] > halves[1] > halves[0] / 2  # the weights are in each process
    assert run_costs(ce).disk_bytes == ce.disk_bytes
