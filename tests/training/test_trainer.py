"""The loop: rates, what it sees, what it learns, stopping and going on to the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from support import metrics, timeless_metrics, tiny, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import saukit.data.split as split_room
from saukit.core import extras
from saukit.core.config import differences, load_config
from saukit.core.console import Reporter
from saukit.core.device import using_threads
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, Interrupted, SaukitError, UsageError
from saukit.core.seeding import derive_seed
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, make_split
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import normalise
from saukit.models.model_file import load_model
from saukit.training import costs, methods
from saukit.training import plan as plan_room
from saukit.training import trainer as room
from saukit.training.checkpoint import CHECKPOINT_NAME
from saukit.training.config import TrainConfig
from saukit.training.losses import NOISE_STRATEGIES
from saukit.training.plan import TrainingPlan, learning_rate, plan_training, validation_interval
from saukit.training.presets import PRESETS
from saukit.training.stage import TrainingResult, fit
from saukit.training.step import build_context
from saukit.training.trainer import Trainer
from saukit.training.views import Views

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
pytestmark = pytest.mark.usefixtures("narrow_projection")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def train(root: Path, config: TrainConfig, *, name: str | None = None, **options: Any) -> TrainingResult:
    given = {"force": False, "resume": False, "reporter": QUIET, **options}
    return fit(config, Workspace(root), name=name, device=CPU, **given)


def plan_of(root: Path, config: TrainConfig) -> TrainingPlan:
    return plan_training(config, Workspace(root), name=None, device=CPU)


# --- the learning rate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("schedule", ["cosine-epoch", "cosine-step"])
def test_learning_rate_follows_the_formula(shared_work: Path, schedule: Any, warmup: float) -> None:
    """392 images in batches of 64: six steps an epoch, five epochs."""
    config = tiny(steps=None, epochs=5, batch_size=64, lr=0.3, schedule=schedule, warmup=warmup, synthetic=False)
    plan = plan_of(shared_work, config)
    assert (plan.steps_per_epoch, plan.total_steps) == (6, 30)
    rising = {0.0: 0, 0.1: 3, 0.5: 15}[warmup]
    for step in range(30):
        if step < rising:
            expected = 0.3 * (step + 1) / rising
        elif schedule == "cosine-epoch":
            expected = 0.3 * (1 + math.cos(math.pi * (step // 6) / 5)) / 2
        else:
            expected = 0.3 * (1 + math.cos(math.pi * step / 30)) / 2
        assert learning_rate(step, plan) == pytest.approx(expected, rel=1e-12), step


def test_the_step_schedule_is_that_of_ldam_drw(shared_work: Path) -> None:
    """392 images in batches of 64, the last one kept: seven steps an epoch, as 12,406 in batches of 128 are 97."""
    config = tiny(preset="ldam", steps=None, epochs=None, batch_size=64, lr=0.1, warmup=None, synthetic=False)
    plan = plan_of(shared_work, replace(config, schedule=None, drop_last=None))
    assert (plan.steps_per_epoch, plan.total_steps) == (7, 1400)
    assert plan.images_of(1400) == 200 * 392
    assert plan.images_of(6) == 6 * 64
    for epoch in range(200):
        if epoch < 5:
            expected = 0.1 * (epoch + 1) / 5
        elif epoch < 160:
            expected = 0.1
        else:
            expected = 0.1 * (0.01 if epoch < 180 else 0.0001)
        for step in (7 * epoch, 7 * epoch + 6):
            assert learning_rate(step, plan) == pytest.approx(expected, rel=1e-9), epoch


@pytest.mark.parametrize("schedule", ["cosine-epoch", "cosine-step"])
def test_a_second_stage_that_begins_anew_has_a_schedule_of_its_own(shared_work: Path, schedule: Any) -> None:
    """30 steps, 24 and 6; the warm-up of a tenth is that of the first 24. LDAM-DRW goes on with one schedule."""
    fields: dict[str, Any] = {"steps": None, "epochs": 5, "batch_size": 64, "lr": 0.3, "schedule": schedule}
    config = tiny(method="crt", warmup=0.1, synthetic=False, **fields)
    plan = plan_of(shared_work, config)
    assert (plan.first_part_steps, plan.total_steps) == (24, 30)
    for step in range(30):
        own, length = (step, 24) if step < 24 else (step - 24, 6)
        if schedule == "cosine-epoch":
            shape = (1 + math.cos(math.pi * (own // 6 * 6) / length)) / 2
        else:
            shape = (1 + math.cos(math.pi * own / length)) / 2
        expected = 0.3 * ((step + 1) / 2 if step < 2 else shape)
        assert learning_rate(step, plan) == pytest.approx(expected, rel=1e-12), step
    one, other = (plan_of(shared_work, replace(config, method=method)) for method in ("ldam-drw", "ce"))
    assert [learning_rate(step, one) for step in range(30)] == [learning_rate(step, other) for step in range(30)]


def test_the_optimiser_gets_that_rate_and_the_log_says_so(split_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOG_EVERY_STEPS", 1)
    used: list[float] = []
    advance = Trainer.advance

    def recording(trainer: Trainer) -> None:
        advance(trainer)
        used.append(float(trainer.step.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(Trainer, "advance", recording)
    config = tiny(steps=9, batch_size=128, schedule="cosine-epoch", warmup=0.0, lr=0.1)
    run = train(split_work, config)
    # Three epochs of three steps: the rate changes twice.
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert used == pytest.approx(expected)
    assert [line["lr"] for line in metrics(run.folder)] == pytest.approx(used)


# --- what a run sees ----------------------------------------------------------------------------------------------


def test_prototypes_see_the_real_training_images_of_the_split_and_nothing_else(
    shared_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    original = room.class_prototypes

    def recording(images: Tensor, labels: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        seen.append((images.clone(), labels.clone()))
        return original(images, labels, *others)

    monkeypatch.setattr(room, "class_prototypes", recording)
    config = tiny(method="sau", synthetic=True, batch_size=128, steps=7)
    trainer = Trainer(plan_of(shared_work, config))
    assert len(trainer.training_set) == 454
    before = {}
    for _ in range(7):
        trainer.advance()
        before[trainer.step_count] = trainer.prototypes
    split = load_split(Workspace(shared_work))
    assert len(seen) == 3  # at steps 0, 3 and 6: the start of each epoch of 454 // 128 steps
    assert before[1] is before[3] and before[3] is not before[4]
    for images, labels in seen:
        assert np.array_equal(np.asarray(images)[: len(labels)], np.asarray(split.train.images))
        assert np.array_equal(labels.numpy(), split.train.labels)
    assert split.class_counts.tolist()[-1] == 2  # not the 140 and more images of that class outside the split


def test_each_step_is_told_the_share_of_the_steps_before_it(shared_work: Path) -> None:
    trainer = Trainer(plan_of(shared_work, tiny(method="glmc", steps=5)))
    found = []
    for _ in range(5):
        trainer.advance()
        found.append(float(trainer.step.context.done))
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


def test_the_label_check_begins_with_prototypes_of_its_first_step(shared_work: Path) -> None:
    config = tiny(method="sau", synthetic=True, batch_size=128, steps=10, check_after=0.4)
    trainer, logged = Trainer(plan_of(shared_work, config)), []
    prototypes = []
    for _ in range(10):
        trainer.advance()
        prototypes.append(trainer.prototypes)
        logged.append(trainer._log_line(None)["trusted_share"])
    assert [share is None for share in logged] == [True] * 4 + [False] * 6
    assert all(pair is not None and not pair[0].any() and not pair[1].any() for pair in prototypes[:4])
    found = [pair[0] for pair in prototypes if pair is not None]
    assert all(torch.allclose(rows.norm(dim=1), torch.ones(10)) for rows in found[4:])
    # Epochs have three steps: made at step 4, where the check begins, and at 6 and 9.
    assert [found[i] is found[i - 1] for i in range(5, 10)] == [True, False, True, True, False]


@pytest.mark.parametrize("method", ["ce", "sau", "mixup-cutmix", "balanced-softmax"])
@pytest.mark.parametrize("synthetic", [True, False])
def test_the_losses_see_the_counts_that_the_configuration_names(
    shared_work: Path, method: Any, synthetic: bool
) -> None:
    """Real counts for a prior correction, whatever else is in the training set; balanced softmax counts everything."""
    tau = None if method == "balanced-softmax" else 0.75
    config = tiny(method=method, synthetic=synthetic, prior_correction=tau, synthetic_weight=0.5 if synthetic else 1.0)
    trainer = Trainer(plan_of(shared_work, config))
    counts = np.bincount(
        trainer.training_set.labels.numpy() if tau is None else load_split(Workspace(shared_work)).train.labels
    )
    found = trainer.step.context.logit_offsets.tolist()
    assert found == pytest.approx([(tau or 1.0) * math.log(count) for count in counts], rel=1e-6)


def test_prior_and_weight_change_the_run_and_are_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(synthetic=True)
    given: list[dict[str, Any]] = [{}, {"prior_correction": 0.75}, {"synthetic_weight": 0.5},
             {"prior_correction": 0.75, "synthetic_weight": 0.5}]  # fmt: skip
    runs = [train(work, replace(config, **fields), reporter=Reporter()) for fields in given]
    assert [run.name for run in runs] == [
        "ce+synth", "ce+synth-prior0.75", "ce+synth-weight0.5", "ce+synth-prior0.75-weight0.5"
    ]  # fmt: skip
    assert len({(run.folder / "model.safetensors").read_bytes() for run in runs}) == 4
    shown = " ".join(capsys.readouterr().err.split())
    assert "training ce+synth: ce, preset small" in shown
    assert "training ce+synth-prior0.75-weight0.5: ce, prior correction 0.75, synthetic weight 0.5, preset" in shown


def test_a_prior_of_0_is_the_run_without_one(split_work: Path) -> None:
    first = train(split_work, tiny())
    again = train(split_work, tiny(prior_correction=0.0, synthetic_weight=1.0))
    assert (first.state, again.state, again.folder) == ("new", "complete", first.folder)


def test_a_run_from_before_there_were_prior_and_weight_is_still_complete(split_work: Path) -> None:
    """Its config.yaml names neither field, and means their defaults."""
    run = train(split_work, tiny())
    path = run.folder / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    old = [line for line in lines if not line.startswith(("prior_correction", "synthetic_weight"))]
    assert len(old) == len(lines) - 2
    path.write_text("".join(old))
    assert differences(load_config(TrainConfig, path), run.config) == []


def test_balanced_softmax_on_real_images_is_cross_entropy_with_a_prior_of_1(split_work: Path) -> None:
    own = train(split_work, tiny(method="balanced-softmax"))
    prior = train(split_work, tiny(method="ce", prior_correction=1.0))
    one, other = (load_model(run.folder / "model.safetensors")[0].state_dict() for run in (own, prior))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_class_balanced_sampling_sees_each_class_as_often(shared_work: Path) -> None:
    trainer = Trainer(plan_of(shared_work, tiny(method="class-balanced", synthetic=False)))
    labels = torch.cat([trainer._batch(step).samples.labels for step in range(200)])
    counts = torch.bincount(labels).double()
    assert float(counts.max() / counts.min()) < 1.5  # 71 in the split
    assert trainer.step.context.logit_offsets.tolist() == [0.0] * 10


def test_crt_ends_with_a_new_classifier_on_the_features_of_its_first_stage(split_work: Path) -> None:
    """The first stage is cross entropy with a shorter schedule; the second touches the classifier alone."""
    trainer = Trainer(plan_of(split_work, tiny(method="crt", steps=20, batch_size=32)))
    for _ in range(16):
        trainer.advance()
    first = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    sampled = []
    for _ in range(4):
        inputs = trainer._batch(trainer.step_count)
        assert inputs.second_stage
        sampled.append(inputs.samples.labels)
        trainer.advance()
    last = trainer.network.state_dict()
    assert {name for name in last if not torch.equal(last[name], first[name])} == {
        "classifier.weight", "classifier.bias"
    }  # fmt: skip
    assert torch.bincount(torch.cat(sampled), minlength=10).max() < 30  # class-balanced; 46 of 128 without
    # Its weights come from anew, not from the old ones: nearer to a fresh start than to where the first stage was.
    torch.manual_seed(derive_seed(0, "second stage"))
    fresh = trainer.plan.model_spec.build_network().classifier.weight
    distances = [float((last["classifier.weight"] - start).norm()) for start in (fresh, first["classifier.weight"])]
    assert distances[0] < distances[1]

    alone = Trainer(plan_of(split_work, tiny(method="ce", steps=16, batch_size=32)))
    for _ in range(16):
        alone.advance()
    assert all(torch.equal(value, first[name]) for name, value in alone.network.state_dict().items())


def test_a_finish_on_real_images_begins_where_it_should_and_changes_nothing_before(work: Path) -> None:
    config = tiny(method="sau", synthetic=True, steps=10, prior_correction=1.0, batch_size=32)
    plain, finish = (Trainer(plan_of(work, replace(config, real_finish=share))) for share in (0.0, 0.4))
    assert (plain.plan.first_part_steps, finish.plan.first_part_steps) == (10, 6)
    for step in range(10):
        one, other = plain._batch(step).samples, finish._batch(step).samples
        assert one.synthetic.any() and bool(other.synthetic.any()) == (step < 6)
        assert np.array_equal(np.asarray(one.images), np.asarray(other.images)) == (step < 6)
    assert torch.equal(plain.step.context.logit_offsets, finish.step.context.logit_offsets)


def test_class_balanced_sampling_finishes_on_real_images_class_balanced(work: Path) -> None:
    config = tiny(method="class-balanced", synthetic=True, steps=200, batch_size=32, real_finish=0.5)
    trainer = Trainer(plan_of(work, config))
    batches = [trainer._batch(step).samples for step in range(200)]
    assert any(bool(batch.synthetic.any()) for batch in batches[:100])
    assert not any(bool(batch.synthetic.any()) for batch in batches[100:])
    for half in (batches[:100], batches[100:]):
        counts = torch.bincount(torch.cat([batch.labels for batch in half])).double()
        assert float(counts.max() / counts.min()) < 1.5


def test_a_finish_on_real_images_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(work, tiny(synthetic=True, prior_correction=1.0, real_finish=0.5), reporter=Reporter())
    assert run.name == "ce+synth-prior1-finish0.5"
    shown = " ".join(capsys.readouterr().err.split())
    assert "ce, prior correction 1, the last 50% of the steps on real images alone, preset small" in shown


def test_a_recorded_step_needs_full_batches_in_the_finish_too(work: Path) -> None:
    config = tiny(synthetic=True, real_finish=0.5, cuda_graph=True, batch_size=400)
    message = r"the 392 real images of real_finish do not fill one of 400: use --no-cuda-graph, or a smaller --batch-s"
    with pytest.raises(UsageError, match=message):
        plan_training(config, Workspace(work), name=None, device=torch.device("cuda"))


def test_ldam_drw_weighs_classes_in_the_last_fifth_alone(split_work: Path) -> None:
    trainer = Trainer(plan_of(split_work, tiny(method="ldam-drw", steps=10)))
    assert [trainer._batch(step).second_stage for step in range(10)] == [False] * 8 + [True] * 2
    assert trainer.step.context.class_counts.tolist() == trainer.plan.class_counts.tolist()


def test_the_preset_paper_has_the_authors_details_and_no_other_has(split_work: Path) -> None:
    assert [name for name, preset in PRESETS.items() if preset.as_published] == ["paper"]
    assert plan_of(split_work, tiny(method="sau", preset="paper")).config.as_published
    own, published = (build_context(plan_of(split_work, tiny(method="sau", as_published=on))) for on in (False, True))
    assert (own.views.as_published, published.views.as_published) == (False, True)
    fan_in = own.network.classifier.in_features
    stds = [float(context.network.classifier.weight.std()) * fan_in**0.5 for context in (own, published)]
    assert stds == pytest.approx([3**-0.5, 2**0.5], rel=0.15)


def test_cmo_pastes_the_tail_from_the_fifth_of_two_hundred_parts_on_until_the_last_three(split_work: Path) -> None:
    trainer = Trainer(plan_of(split_work, tiny(method="cmo", steps=200, batch_size=32)))
    batches = [trainer._batch(step) for step in range(200)]
    assert [batch.second_stage for batch in batches] == [True] * 4 + [False] * 193 + [True] * 3
    partners = torch.bincount(torch.cat([batch.samples.partner_labels for batch in batches])).double()
    assert float(partners.max() / partners.min()) < 1.5
    assert torch.bincount(torch.cat([batch.samples.labels for batch in batches]))[0] > 2000  # 36 % of 6,400


@pytest.mark.parametrize("method", ["balanced-softmax", "logit-adjustment", "class-weights", "ce"])
def test_a_method_that_counts_classes_of_one_size_is_said_to_be_cross_entropy(
    method: Any, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingPlan, "class_counts", np.full(10, 142))
    run = train(work, tiny(method=method, synthetic=True), reporter=Reporter())
    told = f"{method} counts the training set, whose classes all have 142 images: this is cross entropy"
    assert (told in " ".join(capsys.readouterr().err.split())) is (method != "ce")
    assert run.manifest.summary.get("counts_nothing", False) is (method != "ce")


def test_little_trust_at_the_end_is_told_and_kept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(work, tiny(method="sau", synthetic=True), name="trust", reporter=Reporter())
    share = metrics(run.folder)[-1]["trusted_share"]
    assert run.manifest.summary["trusted_share"] == pytest.approx(share, abs=1e-4)
    told = f"the label check trusts {100 * share:.1f} % of the synthetic images at the end"
    assert (told in " ".join(capsys.readouterr().err.split())) is (share < 0.1)


def test_synaug_ends_with_real_images_class_balanced_and_its_last_layer(work: Path) -> None:
    trainer = Trainer(plan_of(work, tiny(method="synaug", synthetic=True, steps=100, batch_size=32)))
    batches = [trainer._batch(step) for step in range(100)]
    assert [batch.second_stage for batch in batches] == [False] * 80 + [True] * 20
    assert any(bool(batch.samples.synthetic.any()) for batch in batches[:80])
    assert not any(bool(batch.samples.synthetic.any()) for batch in batches[80:])
    counts = torch.bincount(torch.cat([batch.samples.labels for batch in batches[80:]]), minlength=10)
    assert int(counts.max()) < 3 * int(counts.min())


@pytest.mark.parametrize("synthetic", [False, True])
def test_post_hoc_logit_adjustment_is_cross_entropy_with_the_prior_taken_off_at_the_end(
    work: Path, synthetic: bool
) -> None:
    plain = train(work, tiny(method="ce", synthetic=synthetic), name="plain")
    adjusted = train(work, tiny(method="logit-adjustment", synthetic=synthetic), name="adjusted")
    one, other = (load_model(run.folder / "model.safetensors")[0].state_dict() for run in (plain, adjusted))
    counts = torch.from_numpy(plan_of(work, plain.config).class_counts)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"classifier.bias"}
    torch.testing.assert_close(other["classifier.bias"], one["classifier.bias"] - counts.log())


def test_post_hoc_logit_adjustment_chooses_on_validation_by_what_it_will_predict(val_work: Path) -> None:
    trainer = Trainer(plan_of(val_work, tiny(method="logit-adjustment", select="val", steps=30, batch_size=64)))
    for _ in range(30):
        trainer.advance()
    part = trainer.plan.split.val
    assert part is not None
    found = trainer._validate(part)
    trainer.network.eval()
    with torch.no_grad():
        logits = trainer.network(
            normalise(torch.from_numpy(part.images), trainer.step.context.views.mean, trainer.step.context.views.std)
        )
    predicted = (logits - torch.from_numpy(trainer.plan.class_counts).log()).argmax(1).numpy()
    assert found == pytest.approx(balanced_accuracy_score(part.labels, predicted))
    assert found != pytest.approx(balanced_accuracy_score(part.labels, logits.argmax(1).numpy()))


def test_the_optimizer_and_the_losses_get_what_the_configuration_says(split_work: Path) -> None:
    config = tiny(method="sau", weight_decay=0.0123, temperature=0.7, noise="drop")
    trainer = Trainer(plan_of(split_work, config))
    (group,) = trainer.step.optimizer.param_groups
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in trainer.network.parameters()
    }
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.0123, 0.9, False)
    assert trainer.step.context.config == trainer.plan.config
    assert TrainConfig().temperature == 0.1  # SAU's and BCL's papers


def test_every_step_has_an_augmentation_of_its_own(split_work: Path) -> None:
    trainers = [Trainer(plan_of(split_work, tiny(steps=40, seed=seed))) for seed in (0, 0, 1)]
    first, again, other = ([trainer._batch(step).seed for step in range(40)] for trainer in trainers)
    assert first == again
    assert len({*first, *other}) == 80


def test_the_seed_changes_the_run_and_never_the_data(split_work: Path) -> None:
    before = tree(split_work / "split")
    runs = {name: train(split_work, tiny(seed=seed), name=name) for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    weights = {name: (run.folder / "model.safetensors").read_bytes() for name, run in runs.items()}
    assert weights["a"] == weights["b"] != weights["c"]
    assert timeless_metrics(runs["a"].folder) == timeless_metrics(runs["b"].folder)
    assert runs["a"].manifest.inputs == runs["c"].manifest.inputs
    assert tree(split_work / "split") == before
    one, other = (Trainer(plan_of(split_work, tiny(seed=seed))).training_set for seed in (0, 1))
    assert np.array_equal(np.asarray(one.images), np.asarray(other.images))


def test_global_random_state_neither_matters_nor_changes(split_work: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(split_work, tiny(method="sau"), name="a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    train(split_work, tiny(method="sau"), name="b")
    runs = split_work / "runs"
    assert (runs / "a" / "model.safetensors").read_bytes() == (runs / "b" / "model.safetensors").read_bytes()


def test_a_run_leaves_its_four_files_and_a_summary(split_work: Path) -> None:
    run = train(split_work, tiny(steps=50, batch_size=128))
    assert run.state == "new"
    assert sorted(tree(run.folder)) == ["config.yaml", "manifest.json", "metrics.jsonl", "model.safetensors"]
    summary = run.manifest.summary
    assert (summary["steps"], summary["batch_size"], summary["chosen_step"]) == (50, 128, 50)
    assert summary["epochs"] == pytest.approx(50 / 3, abs=1e-4)
    assert (summary["real_images"], summary["synthetic_images"]) == (392, 0)
    assert summary["chosen_by"] == "last step"
    lines = metrics(run.folder)
    assert [line["step"] for line in lines] == [20, 40, 50]
    assert all(set(line["losses"]) == {"ce"} and line["images_per_second"] > 0 for line in lines)


def test_tensorboard_gets_the_log_too_and_is_no_part_of_the_run(split_work: Path) -> None:
    plain = train(split_work, tiny(steps=40), name="plain")
    shown = train(split_work, tiny(steps=40), name="shown", tracker="tensorboard")
    assert timeless_metrics(plain.folder) == timeless_metrics(shown.folder)
    assert plain.manifest.digest == shown.manifest.digest
    events = EventAccumulator(str(shown.folder / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("losses/ce")]
    assert logged == [(line["step"], pytest.approx(line["losses"]["ce"])) for line in metrics(shown.folder)]
    assert train(split_work, tiny(steps=40), name="shown").state == "complete"
    train(split_work, tiny(steps=40), name="shown", force=True)
    assert not (shown.folder / "tensorboard").exists()


def test_without_tensorboard_installed_nothing_is_written(split_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "tensorboard", ("a_package_that_is_not_there",))
    with pytest.raises(EnvironmentFault, match=r"^--tracker tensorboard needs a_package_that_is_not_there"):
        train(split_work, tiny(), name="a", tracker="tensorboard")
    assert not (split_work / "runs").exists()


def test_log_lines_are_means_over_their_own_steps(split_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOG_EVERY_STEPS", 1)
    single = [line["losses"]["ce"] for line in metrics(train(split_work, tiny(steps=10), name="a").folder)]
    monkeypatch.setattr(room, "LOG_EVERY_STEPS", 4)
    grouped = [line["losses"]["ce"] for line in metrics(train(split_work, tiny(steps=10), name="b").folder)]
    assert grouped == pytest.approx([np.mean(single[:4]), np.mean(single[4:8]), np.mean(single[8:])])


def test_the_log_of_sau_tells_the_share_trusted(work: Path) -> None:
    mixed = train(work, tiny(method="sau", synthetic=True, steps=20, batch_size=64), name="mixed")
    real = train(work, tiny(method="sau", synthetic=False, steps=20), name="real")
    (line,) = metrics(mixed.folder)
    assert set(line["losses"]) == {"mixup", "cutmix", "contrastive"}
    assert 0 <= line["trusted_share"] <= 1
    assert metrics(real.folder)[0]["trusted_share"] is None


def test_an_unfinished_cache_is_no_reason_to_train_without_it_in_silence(work: Path) -> None:
    (work / "synth" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"synth .* is not complete: run `saukit synth -w"):
        train(work, tiny(), name="a")


# --- what it learns -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sixty_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of digits with 64 training images."""
    root = tmp_path_factory.mktemp("sixty-four")
    counts = {str(digit): 7 if digit < 4 else 6 for digit in range(10)}
    make_split(SplitConfig(counts=counts), Workspace(root), root=None, force=False, reporter=QUIET)
    return root


def training_loss(trainer: Trainer) -> float:
    """Cross entropy of the training images as they are, in eval mode."""
    part = trainer.plan.split.train
    trainer.network.eval()
    with torch.no_grad():
        seen = normalise(torch.from_numpy(part.images), trainer.step.context.views.mean, trainer.step.context.views.std)
        return float(torch.nn.functional.cross_entropy(trainer.network(seen), torch.from_numpy(part.labels)))


def test_cross_entropy_overfits_64_images(sixty_four: Path) -> None:
    trainer = Trainer(plan_of(sixty_four, tiny(steps=120, batch_size=64, weight_decay=0.0)))
    assert len(trainer.training_set) == 64
    first = training_loss(trainer)
    for _ in range(120):
        trainer.advance()
    assert first > 1.5
    assert training_loss(trainer) < 0.02


def test_sau_learns_to_classify_64_images(sixty_four: Path) -> None:
    trainer = Trainer(plan_of(sixty_four, tiny(method="sau", steps=60, batch_size=64)))
    first, mixing = training_loss(trainer), []
    for _ in range(60):
        trainer.meters = {}
        trainer.advance()
        mixing.append(float(trainer.meters["mixup"] + trainer.meters["cutmix"]))
    assert training_loss(trainer) < 0.25 * first
    assert np.mean(mixing[-20:]) < 0.75 * np.mean(mixing[:5])


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is augmented and nothing mixed, so that every loss can reach its floor."""

    def as_it_is(views: Views, images: Tensor, generator: torch.Generator) -> Tensor:
        return normalise(images, views.mean, views.std).contiguous(memory_format=torch.channels_last)

    for name in ("crop_flip", "autoaugment", "simclr"):
        monkeypatch.setattr(Views, name, as_it_is)
    monkeypatch.setattr(methods, "draw_beta_one_one", lambda *, device, generator: torch.ones((), device=device))


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16", pytest.param("fp16", marks=needs_gpu)])
@pytest.mark.parametrize("noise", NOISE_STRATEGIES)
def test_sau_overfits_64_images_to_zero_loss(sixty_four: Path, still: None, noise: Any, amp: Any) -> None:
    """Zero: what is left of the contrastive loss where all embeddings of a class are one is log |P|, not 0."""
    config = tiny(method="sau", noise=noise, amp=amp, steps=150, batch_size=64, lr=0.05, weight_decay=0.0)
    plan = replace(plan_of(sixty_four, config), device=torch.device("cuda", 0) if amp == "fp16" else CPU)
    trainer = Trainer(plan)
    # Every third image counts as synthetic, so that the label check and the strategy have something to decide.
    flags = torch.arange(64, device=plan.device) % 3 == 0
    trainer.training_set = replace(trainer.training_set, synthetic=flags)
    history = []
    for _ in range(150):
        trainer.meters = {}
        trainer.advance()
        history.append({name: float(value) for name, value in trainer.meters.items()})
    same_class = 2 * (torch.bincount(trainer.training_set.labels).double() + 1)  # two views, and a prototype in each
    floor = float((same_class * (same_class - 1).log()).sum() / same_class.sum())
    first, last = history[0], history[-1]
    assert first["mixup"] > 1 and first["contrastive"] > floor + 1
    assert last["mixup"] == pytest.approx(0, abs=0.02)
    assert last["cutmix"] == pytest.approx(0, abs=0.02)
    assert last["contrastive"] == pytest.approx(floor, abs=0.03)
    assert first["trusted_images"] < last["trusted_images"] == last["synthetic_images"] == 22


# --- interrupted and resumed --------------------------------------------------------------------------------------


class Broken(Exception):
    """A crash in the middle of a run."""


def crash(monkeypatch: pytest.MonkeyPatch, *, saved_at: int | None, at: int) -> None:
    """Have the next run save its state after step `saved_at`, and break when `at` steps are done."""
    original = Trainer.advance

    def advance(trainer: Trainer) -> None:
        if trainer.step_count == at:
            raise Broken
        original(trainer)
        # A negative age saves after this step; afterwards nothing is old enough.
        room.CHECKPOINT_SECONDS = -1.0 if trainer.step_count == saved_at else 1e9

    monkeypatch.setattr(Trainer, "advance", advance)


CASES: list[dict[str, Any]] = [
    {"method": "ce"},
    {"method": "sau", "synthetic": True},
    {"method": "sau", "synthetic": True, "amp": "bf16"},
    {"method": "balanced-softmax", "schedule": "cosine-epoch", "batch_size": 64},
    {"method": "mixup-cutmix", "synthetic": True, "prior_correction": 0.75},
    {"method": "ce", "synthetic": True, "prior_correction": 1.0, "synthetic_weight": 0.5},
    {"method": "crt", "synthetic": True},  # the second stage begins with step 25
    {"method": "ldam-drw"},
    {"method": "sau", "synthetic": True, "prior_correction": 1.0, "real_finish": 0.2},  # from step 25 on
    {"method": "bcl"},
    {"method": "glmc", "synthetic": True},
    {"method": "sau", "synthetic": True, "check_after": 0.4},
    {"method": "synaug", "synthetic": True, "label_smoothing": 0.1},
    {"method": "cmo"},
    {"method": "class-balanced", "synthetic": True},
    {"method": "sau", "synthetic": True, "prior_correction": 0.75, "synthetic_weight": 0.25, "amp": "bf16"},
]


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))
@pytest.mark.parametrize(
    "crashes",
    [[(1, 1)], [(10, 13)], [(14, 14), (25, 25), (26, 28)], [(None, 3)]],
    ids=["first step", "between log lines", "three times", "before any checkpoint"],
)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    work: Path, fields: dict[str, Any], crashes: list[tuple[int | None, int]]
) -> None:
    config = tiny(**{"steps": 31, "synthetic": False, **fields})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LOG_EVERY_STEPS", 6)
        undisturbed = train(work, config, name="undisturbed")
        for number, (saved_at, at) in enumerate(crashes):
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(room, "CHECKPOINT_SECONDS", 1e9)
                crash(inner, saved_at=saved_at, at=at)
                with pytest.raises(Broken):
                    train(work, config, name="disturbed", resume=number > 0)
            assert not (work / "runs" / "disturbed" / "manifest.json").exists()
        resumed = train(work, config, name="disturbed", resume=True)
    assert resumed.state == "partial"
    one, other = undisturbed.folder, resumed.folder
    assert (other / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    assert (other / "config.yaml").read_bytes() == (one / "config.yaml").read_bytes()
    assert timeless_metrics(other) == timeless_metrics(one)
    assert resumed.manifest.digest == undisturbed.manifest.digest
    assert sorted(tree(other)) == sorted(tree(one))


def test_resuming_really_starts_at_the_checkpoint(split_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHECKPOINT_SECONDS", 1e9)
        crash(patch, saved_at=7, at=9)
        with pytest.raises(Broken):
            train(split_work, tiny(steps=12), name="a")
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.advance
        patch.setattr(Trainer, "advance", lambda self: (steps.append(self.step_count), original(self))[1])
        train(split_work, tiny(steps=12), name="a", resume=True, reporter=Reporter())
    assert steps == [7, 8, 9, 10, 11]
    assert "resuming a at step 7 of 12" in capsys.readouterr().err


def test_an_interrupted_run_asks_for_resume_or_force(split_work: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, saved_at=None, at=2)
        with pytest.raises(Broken):
            train(split_work, tiny(), name="a")
    with pytest.raises(UsageError, match=r"holds an interrupted run: continue it with --resume, or .* --force"):
        train(split_work, tiny(), name="a")
    with pytest.raises(UsageError, match=r"another configuration \(lr: 0\.05 -> 0\.1\)"):
        train(split_work, tiny(lr=0.1), name="a", resume=True)
    assert train(split_work, tiny(), name="a", force=True).state == "new"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_continues(split_work: Path, number: int) -> None:
    config = tiny(method="sau", steps=9)
    undisturbed = train(split_work, config, name="undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.advance

        def advance(trainer: Trainer) -> None:
            original(trainer)
            if trainer.step_count == 4:
                os.kill(os.getpid(), number)

        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(Interrupted) as caught:
            train(split_work, config, name="a")
    folder = split_work / "runs" / "a"
    assert str(caught.value) == "stopped and saved; continue with: the same call"
    assert caught.value.exit_code == 128 + number
    assert (folder / CHECKPOINT_NAME).exists()
    assert not list(split_work.glob(".*.lock"))
    train(split_work, config, name="a", resume=True)
    assert (folder / "model.safetensors").read_bytes() == (undisturbed.folder / "model.safetensors").read_bytes()


def test_a_checkpoint_that_a_kill_left_in_a_complete_run_goes(split_work: Path) -> None:
    run = train(split_work, tiny(), name="a")
    names = sorted(tree(run.folder))
    (run.folder / CHECKPOINT_NAME).write_bytes(b"left by a kill between the manifest and its removal")
    again = train(split_work, tiny(), name="a")
    assert again.state == "complete"
    assert sorted(tree(run.folder)) == names


# --- validation ---------------------------------------------------------------------------------------------------


def never_the_test_set(patch: pytest.MonkeyPatch) -> None:
    original = split_room.load_tensors

    def refusing(path: Path, **options: Any) -> Any:
        assert path.name != "test.safetensors", "training loaded the test set"
        return original(path, **options)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("training loaded the test set")

    patch.setattr(split_room, "load_tensors", refusing)
    patch.setattr(split_room, "load_test", refuse)


def validation_accuracy(root: Path, folder: Path) -> float:
    """Balanced accuracy of the saved model on the validation part, image by image."""
    split = load_split(Workspace(root))
    network, spec = load_model(folder / "model.safetensors")
    assert split.val is not None
    right: dict[int, list[bool]] = {}
    for image, label in zip(np.asarray(split.val.images), split.val.labels.tolist(), strict=True):
        pixels = normalise(torch.from_numpy(image[None]), torch.tensor(spec.mean), torch.tensor(spec.std))
        with torch.no_grad():
            right.setdefault(label, []).append(int(network(pixels).argmax()) == label)
    return float(np.mean([np.mean(hits) for hits in right.values()]))


def test_select_val_keeps_the_best_step_and_never_sees_test_images(
    val_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_the_test_set(monkeypatch)
    run = train(val_work, tiny(select="val", steps=40, batch_size=64, lr=0.4, warmup=0.0))
    measured = {line["step"]: line["val_balanced_accuracy"] for line in metrics(run.folder)}
    assert sorted(measured) == list(range(4, 41, 4))  # ten times in all
    best = max(measured.values())
    first_best = min(step for step, accuracy in measured.items() if accuracy == best)
    assert run.manifest.summary["chosen_step"] == first_best
    assert run.manifest.summary["chosen_by"] == "validation part of the real training images"
    assert validation_accuracy(val_work, run.folder) == pytest.approx(best)
    assert len(set(measured.values())) > 3


@pytest.mark.parametrize("images", [0, 341, 1000])
def test_few_validation_images_are_measured_each_epoch_and_ten_times(images: int) -> None:
    for total, per_epoch, expected in ((1000, 12, 12), (40, 22, 4), (4, 22, 1), (20_000, 452, 452)):
        for chosen_by in (False, True):
            assert validation_interval(total, per_epoch, 64, images, chosen_by=chosen_by) == expected


def test_many_validation_images_take_a_tenth_of_the_time() -> None:
    """A forward pass is a third of a step's work, if the backward pass is twice the forward one."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        total, per_epoch, batch_size = (int(generator.integers(1, most)) for most in (5000, 600, 300))
        images = int(generator.integers(1001, 30_000))
        every, choosing = (
            validation_interval(total, per_epoch, batch_size, images, chosen_by=chosen_by)
            for chosen_by in (False, True)
        )
        assert choosing <= every <= max(total, per_epoch)
        if every < total:
            assert images / 3 <= every * batch_size / 10 * 1.01 + batch_size
        assert total // choosing >= min(4, total)


@pytest.mark.parametrize(("select", "steps"), [("last", [40]), ("val", [10, 20, 30, 40])])
def test_a_large_validation_part_is_measured_seldom(
    val_work: Path, monkeypatch: pytest.MonkeyPatch, select: Any, steps: list[int]
) -> None:
    monkeypatch.setattr(plan_room, "FEW_IMAGES", 10)
    monkeypatch.setattr(plan_room, "VALIDATED_SHARE", 0.01)
    run = train(val_work, tiny(select=select, steps=40, batch_size=16))
    lines = metrics(run.folder)
    assert [line["step"] for line in lines if "val_balanced_accuracy" in line] == steps


def test_of_equal_steps_the_first_is_kept(val_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With validation accuracies put into its hands: a classifier that says 0, the truth, the truth, and 1."""
    weights: list[Tensor] = []
    original = Trainer._validate
    answers = ["always 0", "the truth", "the truth", "always 1"]

    def validate(trainer: Trainer, part: Any) -> float:
        answer = answers[len(weights)]
        weights.append(trainer.network.classifier.weight.detach().clone())
        truth = torch.nn.functional.one_hot(torch.from_numpy(part.labels), 10).float()
        said = {"always 0": torch.eye(10)[0].expand_as(truth), "always 1": torch.eye(10)[1].expand_as(truth)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.network.classifier, "forward", lambda features: said.get(answer, truth))
            accuracy = original(trainer, part)
        assert accuracy == pytest.approx(1.0 if answer == "the truth" else 1 / len(np.unique(part.labels)))
        return accuracy

    monkeypatch.setattr(Trainer, "_validate", validate)
    run = train(val_work, tiny(select="val", steps=4, batch_size=64))
    assert run.manifest.summary["chosen_step"] == 2
    network, _ = load_model(run.folder / "model.safetensors")
    assert [torch.equal(network.classifier.weight, weight) for weight in weights] == [False, True, False, False]


def test_select_last_validates_for_the_log_only(val_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_the_test_set(monkeypatch)
    last = train(val_work, tiny(steps=8, lr=0.4), name="last")
    chosen = train(val_work, tiny(steps=8, lr=0.4, select="val"), name="val")
    assert timeless_metrics(last.folder) == timeless_metrics(chosen.folder)
    assert last.manifest.summary["chosen_by"] == "last step"
    assert validation_accuracy(val_work, last.folder) == pytest.approx(
        metrics(last.folder)[-1]["val_balanced_accuracy"]
    )


def test_the_best_step_survives_a_crash(val_work: Path) -> None:
    config = tiny(select="val", steps=40, batch_size=64, lr=0.4, warmup=0.0)
    undisturbed = train(val_work, config, name="undisturbed")
    crash_at = undisturbed.manifest.summary["chosen_step"] + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHECKPOINT_SECONDS", 1e9)
        crash(patch, saved_at=min(crash_at, 39), at=min(crash_at, 39))
        with pytest.raises(Broken):
            train(val_work, config, name="disturbed")
    resumed = train(val_work, config, name="disturbed", resume=True)
    assert resumed.manifest.summary["chosen_step"] == undisturbed.manifest.summary["chosen_step"]
    assert resumed.manifest.digest == undisturbed.manifest.digest
    assert timeless_metrics(resumed.folder) == timeless_metrics(undisturbed.folder)


def validates_as(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Have the validation after step n of the next run find the n-th of `accuracies`."""

    def validate(trainer: Trainer, part: Any) -> float:
        accuracy = accuracies[trainer.step_count - 1]
        if trainer.best is None or accuracy > trainer.best[0]:
            state = {name: value.clone() for name, value in trainer.network.state_dict().items()}
            trainer.best = accuracy, trainer.step_count, state
        return accuracy

    monkeypatch.setattr(Trainer, "_validate", validate)


@pytest.mark.parametrize(
    ("patience", "changed", "stops_at"),
    [
        (None, {}, 10),
        (1, {}, 3),  # 2 is the best, 3 is no better
        (2, {}, 4),
        (3, {}, 5),
        (4, {}, 10),  # 6 is a new best
        (1, {"method": "crt"}, 9),  # its second stage begins after step 8
        (1, {"head_share": 0.3}, 4),
    ],
)
def test_patience_ends_a_run_after_validations_without_a_new_best(
    val_work: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None, changed: dict[str, Any], stops_at: int
) -> None:
    validates_as(monkeypatch, [0.3, 0.5, 0.4, 0.5, 0.1, 0.6, 0.6, 0.2, 0.6, 0.6])
    run = train(val_work, tiny(select="val", patience=patience, steps=10, batch_size=64, **changed))
    assert run.manifest.summary["steps"] == metrics(run.folder)[-1]["step"] == stops_at
    assert run.manifest.summary["chosen_step"] == (2 if stops_at < 6 else 6)


def test_patience_ends_a_resumed_run_where_it_ends_one_without_a_break(val_work: Path) -> None:
    config = tiny(select="val", patience=2, steps=40, batch_size=64, lr=0.4, warmup=0.0)
    undisturbed = train(val_work, config, name="undisturbed")
    summary = undisturbed.manifest.summary
    assert summary["steps"] == summary["chosen_step"] + 2 * 4 < 40  # validated every 4 steps
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, saved_at=summary["steps"] - 2, at=summary["steps"] - 1)
        with pytest.raises(Broken):
            train(val_work, config, name="disturbed")
    resumed = train(val_work, config, name="disturbed", resume=True)
    assert resumed.manifest.digest == undisturbed.manifest.digest
    assert timeless_metrics(resumed.folder) == timeless_metrics(undisturbed.folder)


def test_patience_needs_the_choice_by_validation(val_work: Path) -> None:
    with pytest.raises(UsageError, match="patience has no effect with select last: use select val, or leave it out"):
        train(val_work, tiny(patience=3))


def test_select_val_needs_a_validation_part(split_work: Path) -> None:
    with pytest.raises(DataError, match=r"--select val needs a validation part: .*make-lt --val-fraction 0\.1"):
        train(split_work, tiny(select="val"))
    assert not (split_work / "runs").exists()


# --- trouble ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(split_work: Path) -> None:
    with pytest.raises(
        SaukitError, match=r"not finite at step 20 .*--force and a smaller --lr, or with --amp off"
    ) as e:
        train(split_work, tiny(steps=60, lr=1e30))
    assert e.value.exit_code == 1
    assert not (split_work / "runs" / "ce" / "manifest.json").exists()
    assert train(split_work, tiny(steps=60), force=True).manifest.summary["steps"] == 60


def test_a_run_that_left_the_finite_numbers_goes_on_from_its_last_finite_state(
    split_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", -1.0)
    advance, config = room.Trainer.advance, tiny(steps=60, lr=0.05, schedule="cosine-step")

    def poisoned(self: room.Trainer) -> None:
        advance(self)
        if self.step_count == 13:
            with torch.no_grad():
                next(self.network.parameters()).fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(room.Trainer, "advance", poisoned)
        with pytest.raises(SaukitError, match=r"at step 13: its state of step 12 is kept.*--resume --lr 0.005"):
            train(split_work, config, name="a")
    folder = split_work / "runs" / "a"
    before = sorted(path.name for path in folder.iterdir())
    assert "checkpoint.pt" in before and "checkpoint.previous.pt" in before
    for other in (replace(config, lr=0.06), replace(config, lr=0.005, seed=1)):
        with pytest.raises(UsageError, match=r"made with another configuration \(lr: 0.05 -> "):
            train(split_work, other, name="a", resume=True)
    with pytest.raises(UsageError, match=r"made with another configuration \(lr: 0.05 -> 0.005\)"):
        train(split_work, replace(config, lr=0.005), name="a")
    run = train(split_work, replace(config, lr=0.005), name="a", resume=True)
    assert run.state == "partial" and run.manifest.summary["lowered_lr"] == [[12, 0.05, 0.005]]
    assert "lr: 0.005" in (folder / "config.yaml").read_text()
    first = train(split_work, replace(config, lr=0.05), name="undisturbed")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (first.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in whole] == [20, 40, 60]
    assert [line["lr"] for line in lines] == pytest.approx([line["lr"] / 10 for line in whole])
    assert not list(folder.glob("checkpoint*")) and "lowered_lr" not in first.manifest.summary


@pytest.mark.parametrize("damage", ["newer", "both", "log", "log cut"])
def test_a_damaged_file_of_a_stopped_run(split_work: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    whole = train(split_work, tiny(steps=50), name="whole")
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", -1.0)
    advance = room.Trainer.advance

    def stopped(self: room.Trainer) -> None:
        if self.step_count == 33:
            raise Broken
        advance(self)

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(room.Trainer, "advance", stopped)
        train(split_work, tiny(steps=50), name="a")
    folder = split_work / "runs" / "a"
    for name in {"newer": ["checkpoint.pt"], "both": ["checkpoint.pt", "checkpoint.previous.pt"]}.get(damage, []):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    log = folder / "metrics.jsonl"
    if damage.startswith("log"):
        log.write_text(log.read_text().replace('"step": 20', '"step": 19') if damage == "log" else "")
    if damage == "newer":
        run = train(split_work, tiny(steps=50), name="a", resume=True)
        assert (folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
        assert run.state == "partial" and timeless_metrics(folder) == timeless_metrics(whole.folder)
        return
    message = "checkpoint.pt is damaged" if damage == "both" else "metrics.jsonl was changed after it was written"
    with pytest.raises(CorruptArtifactError, match=rf"{message}.*start over with --force") as raised:
        train(split_work, tiny(steps=50), name="a", resume=True)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    ("preset", "advice"),
    [("fast", "`--preset small` trains a smaller network"), ("small", "give fewer --steps, or a GPU")],
)
def test_a_run_that_would_take_days_says_so_once(
    split_work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preset: Any, advice: str
) -> None:
    monkeypatch.setattr(room, "LONG_RUN_SECONDS", 1e-9)
    train(split_work, tiny(steps=14, preset=preset))
    said = capsys.readouterr().err
    assert said.count("warning: this run would take") == 1
    assert advice in said


def test_a_run_of_seconds_warns_of_nothing(split_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(split_work, tiny(steps=14))
    assert "warning" not in capsys.readouterr().err


def test_a_network_too_deep_for_the_images_names_the_right_one(split_work: Path) -> None:
    with pytest.raises(
        UsageError, match=r"resnet32-w16 needs images of at least 16 pixels, .*--backbone convnet-small"
    ):
        train(split_work, tiny(backbone="resnet32-w16"))


def test_the_plan_knows_images_steps_and_inputs(shared_work: Path) -> None:
    plan = plan_of(shared_work, tiny(steps=None, epochs=3, batch_size=128))
    assert (plan.name, plan.training_images, plan.steps_per_epoch, plan.total_steps) == ("ce+synth", 454, 3, 9)
    assert sorted(plan.inputs) == ["split", "synth"]
    alone = plan_of(shared_work, tiny(synthetic=False, batch_size=5000, steps=None, epochs=2))
    assert (alone.name, alone.batch_size, alone.total_steps, sorted(alone.inputs)) == ("ce", 392, 2, ["split"])


def test_a_run_of_another_split_is_not_taken_for_this_one(split_work: Path) -> None:
    train(split_work, tiny(), name="a")
    make_split(SplitConfig(imb=20), Workspace(split_work), root=None, force=True, reporter=QUIET)
    with pytest.raises(UsageError, match=r"was made from another split than this workspace holds now: .*--force"):
        train(split_work, tiny(), name="a")


def test_a_cache_of_another_split_is_refused(work: Path) -> None:
    make_split(SplitConfig(imb=20), Workspace(work), root=None, force=True, reporter=QUIET)
    with pytest.raises(DataError, match=r"synth was made from another split .*`saukit synth --force -w"):
        train(work, tiny(), name="a")
    assert train(work, tiny(synthetic=False), name="a").state == "new"


def test_the_manifest_vouches_for_every_file(split_work: Path) -> None:
    run = train(split_work, tiny(), name="a")
    document = json.loads((run.folder / "manifest.json").read_text())
    assert sorted(document["files"]) == ["config.yaml", "metrics.jsonl", "model.safetensors"]
    model = run.folder / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors was changed after it was written"):
        train(split_work, tiny(), name="a")


def test_a_workspace_can_be_carried_away(work: Path, tmp_path: Path) -> None:
    here = train(work, tiny(method="sau"), name="a")
    moved = shutil.move(work, tmp_path / "elsewhere")
    there = train(Path(moved), replace(here.config), name="b")
    moved_model = tmp_path / "elsewhere" / "runs" / "a" / "model.safetensors"
    assert (there.folder / "model.safetensors").read_bytes() == moved_model.read_bytes()


def test_wall_clock_of_a_resumed_run_adds_up(split_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: clock[0])
    original: Callable[[Trainer], None] = Trainer.advance

    def second_long(trainer: Trainer) -> None:
        if trainer.step_count == 6 and clock[0] < 10:
            raise Broken
        original(trainer)
        clock[0] += 1.0

    monkeypatch.setattr(Trainer, "advance", second_long)
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 2.5)
    with pytest.raises(Broken):
        train(split_work, tiny(steps=10), name="a")  # saved at step 3 and step 6
    clock[0] = 1000.0
    run = train(split_work, tiny(steps=10), name="a", resume=True)
    assert run.manifest.summary["seconds"] == 10.0


# --- speed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("2", 2)])
def test_small_images_train_with_one_thread(
    split_work: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    seen: list[int] = []
    features = DualBranchNet.features
    monkeypatch.setattr(
        DualBranchNet, "features", lambda network, x: (seen.append(torch.get_num_threads()), features(network, x))[1]
    )
    with using_threads(2):
        run = train(split_work, tiny())
        assert torch.get_num_threads() == 2
    assert seen == [expected] * 4
    assert run.manifest.device == f"cpu ({expected} thread{'s' if expected > 1 else ''})"


def test_the_share_of_the_peak_is_told_where_the_peak_is_known(
    split_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = train(split_work, tiny(method="sau"), name="unknown")
    assert unknown.manifest.summary["share_of_peak"] is None
    monkeypatch.setattr(costs, "peak_flops", lambda device, amp: 1e12)
    known = train(split_work, tiny(method="sau"), name="known").manifest.summary
    # A digit of 8 x 8 pixels through six convolutions and back: three products of matrices each, but for the first.
    layers = [(3, 32, 64), (32, 32, 64), (32, 64, 64), (64, 64, 16), (64, 128, 16), (128, 128, 16)]
    forward = [2 * 9 * before * after * pixels for before, after, pixels in layers]
    backbone = 3 * sum(forward) - forward[0]
    heads = 2 * 3 * 2 * (128 * 10) + 2 * 3 * 2 * (128 * 32 + 32 * 32 + 32 * 16)
    expected = (4 * backbone + heads) * known["images_per_second"] / 1e12
    assert known["share_of_peak"] == pytest.approx(expected, rel=0.01)


def test_what_a_step_reads_comes_from_the_host_where_the_device_is_too_small(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = room.build_training_set
    config = tiny(method="sau", synthetic=True, steps=8, batch_size=128)
    resident = train(work, config, name="resident")
    monkeypatch.setattr(room, "build_training_set", lambda *parts: original(*parts, residence="host"))
    copied = train(work, config, name="copied")
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (resident, copied)]
    assert weights[0] == weights[1]


def test_what_only_a_gpu_can_do_is_refused_on_a_processor(split_work: Path) -> None:
    with pytest.raises(UsageError, match="cuda_graph needs a CUDA device, this is cpu: use --no-cuda-graph"):
        plan_of(split_work, tiny(cuda_graph=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a processor needs a C++ compiler")
def test_compiling_is_timed_apart_and_changes_no_result(split_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eager = train(split_work, tiny(method="sau", steps=6), name="eager")
    reporter = Reporter(quiet=False)
    compiled = fit(
        tiny(method="sau", steps=6, compile=True),
        Workspace(split_work),
        name="compiled",
        device=torch.device("cpu"),
        force=False,
        resume=False,
        reporter=reporter,
    )
    assert "compiled in " in capsys.readouterr().err
    summary = compiled.manifest.summary
    assert summary["compile_seconds"] > summary["seconds"]
    assert eager.manifest.summary["compile_seconds"] is None
    for name, value in metrics(eager.folder)[-1]["losses"].items():
        assert metrics(compiled.folder)[-1]["losses"][name] == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
def test_without_a_compiler_the_error_names_the_way_on(split_work: Path) -> None:
    environment = {**os.environ, "CXX": "/nonexistent/compiler", "OMP_NUM_THREADS": "1"}
    command = ["train", "-w", str(split_work), "--method", "ce", "--steps", "2", "--compile", "--amp", "off"]
    code = "from saukit.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 5
    assert "torch.compile failed" in done.stderr
    assert "--no-compile" in done.stderr
