"""Label suspects against a loop that follows the paper, and against labels made wrong on purpose."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support import tiny

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.split import load_split
from saukit.evaluation import suspects as room
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.evaluation.suspects import out_of_fold, suspected
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


@pytest.mark.parametrize("seed", range(4))
def test_suspects_against_a_loop(seed: int) -> None:
    """Confident joint of Northcutt et al. 2021, Eq. 1, off its diagonal; one class has no images."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([0.4] * 5, 300)
    labels = np.where(generator.random(300) < 0.7, probabilities.argmax(1), generator.integers(0, 5, 300))
    labels[labels == 3] = 1
    found, suggested, means = suspected(probabilities, labels)
    thresholds = {c: probabilities[labels == c, c].mean() for c in (0, 1, 2, 4)}
    expected = {}
    for place, (p, y) in enumerate(zip(probabilities, labels, strict=True)):
        over = [c for c, threshold in thresholds.items() if p[c] >= threshold]
        if over and (best := max(over, key=lambda c: p[c])) != y and p[y] < thresholds[y]:
            expected[place] = best
    assert dict(zip(found.tolist(), suggested.tolist(), strict=True)) == expected
    assert 10 < len(expected) < 200 and 3 not in suggested and np.isnan(means[3])
    margins = [probabilities[at, labels[at]] - probabilities[at, to] for at, to in zip(found, suggested, strict=True)]
    assert margins == sorted(margins)


def test_labels_made_wrong_are_found_out_of_fold() -> None:
    bunch = load_digits()
    generator = np.random.default_rng(0)
    labels, wrong = bunch.target.astype(np.int64), generator.choice(1797, 60, replace=False)
    labels[wrong] = (labels[wrong] + generator.integers(1, 10, 60)) % 10
    features = bunch.data.astype(np.float32)
    probabilities, rows = out_of_fold(features, labels, 10)
    assert (rows == np.arange(1797)).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    found, suggested, _ = suspected(probabilities, labels)
    assert np.isin(wrong, found).mean() > 0.7 and np.isin(found, wrong).mean() > 0.8
    right = np.isin(found, wrong)
    assert (suggested[right] == bunch.target[found[right]]).mean() > 0.85


def test_classes_with_fewer_images_than_folds_are_not_judged() -> None:
    bunch = load_digits()
    keep = np.concatenate([np.flatnonzero(bunch.target < 8), np.flatnonzero(bunch.target == 8)[:4]])
    labels = bunch.target[keep].astype(np.int64)
    probabilities, rows = out_of_fold(bunch.data[keep], labels, 10)
    assert (labels[rows] < 8).all() and len(rows) == (labels < 8).sum()
    assert (probabilities[:, 8:] == 0).all()


def test_the_validation_part_is_judged_by_the_run(val_work: Path) -> None:
    workspace = Workspace(val_work)
    fit(tiny(steps=60, batch_size=64, synthetic=False), workspace, name="a", device=CPU, force=False, resume=False,
        reporter=QUIET)  # fmt: skip
    split = load_split(workspace)
    result = evaluate(EvalConfig(suspects=True), workspace, device=CPU, force=False, reporter=QUIET)
    found = result.suspects
    assert found is not None and split.val is not None and found.images == len(split.val.labels)
    assert "by the run's confidence on the validation part" in found.sentence
    rows = list(csv.DictReader(found.path.open()))
    assert len(rows) == found.count > 0
    for row in rows:
        assert (row["part"], row["file"]) == ("val", "")
        assert row["label"] == split.classes[split.val.labels[int(row["index"])]] != row["suggested"]
        assert float(row["confidence"]) < float(row["class_mean"])
    again = evaluate(EvalConfig(suspects=True), workspace, device=CPU, force=False, reporter=QUIET)
    assert not again.computed and again.suspects == found


def test_without_one_the_training_part_out_of_fold(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(work)
    asked = EvalConfig(run="ce", suspects=True)
    found = evaluate(asked, workspace, device=CPU, force=False, reporter=QUIET).suspects
    counts = load_split(workspace).class_counts
    assert found is not None and found.images == counts[counts >= 5].sum()
    assert "features that have learned these labels" in found.how
    assert {row["part"] for row in csv.DictReader(found.path.open())} <= {"train"}
    monkeypatch.setattr(room, "MOST_WORK", 1e3)
    refused = evaluate(asked, workspace, device=CPU, force=False, reporter=QUIET).suspects
    assert refused is not None and "not looked for, 392 images x" in refused.sentence
