"""The evaluation against scikit-learn and torchmetrics on the probabilities of a trained network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support import tiny, tree
from torchmetrics.classification import MulticlassCalibrationError

from saukit.core.artifacts import write_manifest
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Part, load_split, load_test, make_split
from saukit.evaluation import evaluate as room
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import EvalResult, choose_run, evaluate, result_document
from saukit.models.inference import predict
from saukit.models.model_file import load_model, save_model
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


def evaluated(root: Path, *, run: str | None = None, force: bool = False) -> EvalResult:
    return evaluate(EvalConfig(run=run), Workspace(root), device=CPU, force=force, reporter=QUIET)


@pytest.fixture(scope="module")
def trained(shared_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that has learnt something, so that the figures differ from chance and each other."""
    root = shutil.copytree(shared_work, tmp_path_factory.mktemp("evaluated") / "work")
    config = tiny(steps=40, batch_size=64, synthetic=False)
    fit(config, Workspace(root), name="learnt", device=CPU, force=False, resume=False, reporter=QUIET)
    evaluated(root, run="learnt")
    return root


@pytest.fixture(scope="module")
def figures(trained: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """results.json, and probabilities and labels computed anew."""
    network, spec = load_model(trained / "runs" / "learnt" / "model.safetensors")
    test = load_test(Workspace(trained))
    probabilities = predict(network, spec, test.images, device=CPU).probabilities
    return json.loads((trained / "runs" / "learnt" / "results.json").read_text()), probabilities, test.labels


def test_overall_figures_are_those_of_scikit_learn(figures: tuple[dict[str, Any], np.ndarray, np.ndarray]) -> None:
    document, probabilities, labels = figures
    predicted = probabilities.argmax(1)
    assert 0.3 < document["top1"] < 1
    assert document["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert document["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert document["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert document["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, probabilities, k=5))
    assert document["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert document["test_images"] == len(labels) == 359
    calibration = MulticlassCalibrationError(num_classes=10, n_bins=15, norm="l1")
    expected = calibration(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert document["ece"] == pytest.approx(float(expected), abs=1e-5)


def test_the_calibration_bins_make_the_calibration_error(
    figures: tuple[dict[str, Any], np.ndarray, np.ndarray],
) -> None:
    document, probabilities, _ = figures
    bins = [row for row in document["calibration"] if row["images"]]
    assert len(document["calibration"]) == 15 and sum(row["images"] for row in bins) == 359
    gaps = [row["images"] / 359 * abs(row["accuracy"] - row["confidence"]) for row in bins]
    assert sum(gaps) == pytest.approx(document["ece"])
    assert sum(row["images"] * row["accuracy"] for row in bins) / 359 == pytest.approx(document["top1"])
    assert sum(row["images"] * row["confidence"] for row in bins) / 359 == pytest.approx(
        probabilities.max(1).mean(), abs=1e-6
    )


def test_each_class_has_its_recall_and_counts(
    figures: tuple[dict[str, Any], np.ndarray, np.ndarray], trained: Path
) -> None:
    document, probabilities, labels = figures
    split = load_split(Workspace(trained))
    recalls = sk.recall_score(labels, probabilities.argmax(1), average=None)
    rows = document["per_class"]
    precisions, _, f1s, _ = sk.precision_recall_fscore_support(labels, probabilities.argmax(1), zero_division=np.nan)
    assert [row["f1"] for row in rows] == pytest.approx(f1s.tolist())
    found = np.array([row["precision"] for row in rows], float)
    np.testing.assert_allclose(found, precisions)
    assert [row["recall"] for row in rows] == [row["top1"] for row in rows]
    assert [row["top1"] for row in rows] == pytest.approx(recalls.tolist())
    assert [row["class"] for row in rows] == list(split.classes)
    assert [row["train_images"] for row in rows] == split.class_counts.tolist()
    assert [row["test_images"] for row in rows] == np.bincount(labels).tolist()
    assert [row["group"] for row in rows] == ["many"] + ["medium"] * 4 + ["few"] * 5


def test_a_group_is_the_accuracy_on_the_images_of_its_classes(
    figures: tuple[dict[str, Any], np.ndarray, np.ndarray],
) -> None:
    document, probabilities, labels = figures
    for name, classes in {"many": [0], "medium": [1, 2, 3, 4], "few": [5, 6, 7, 8, 9]}.items():
        chosen = np.isin(labels, classes)
        group = document["groups"][name]
        assert group["top1"] == pytest.approx(sk.accuracy_score(labels[chosen], probabilities[chosen].argmax(1)))
        assert group["classes"] == [str(label) for label in classes]
        assert group["images"] == int(chosen.sum())
    assert [document["groups"][name]["train_images"] for name in ("many", "medium", "few")] == [142, 212, 38]
    assert document["groups_rule"] == "thresholds: many > 100, medium 20-100, few < 20"


def test_the_document_tells_the_run_and_the_split(trained: Path) -> None:
    document = evaluated(trained, run="learnt").document
    split = load_split(Workspace(trained))
    assert document["run"]["name"] == "learnt"
    assert (document["run"]["config"]["method"], document["run"]["config"]["steps"]) == ("ce", 40)
    assert document["run"]["steps"] == 40 and len(document["run"]["digest"]) == 64
    assert document["split"] == {"digest": split.manifest.digest, "source": "digits"}


def test_groups_and_classes_without_images_are_null(shared_work: Path) -> None:
    split = load_split(Workspace(shared_work))
    halves = replace(split.groups, members={"many": (0, 1, 2, 3, 4), "few": (5, 6, 7, 8, 9)})
    labels = np.array([0, 1, 1, 9], np.int64)
    test = Part(np.zeros((4, 3, 8, 8), np.uint8), labels, np.arange(4))
    probabilities = np.eye(10, dtype=np.float32)[[0, 1, 2, 9]]
    document = result_document(probabilities, test, replace(split, groups=halves))
    assert document["groups"]["medium"] is None
    assert [document["groups"][name]["top1"] for name in ("many", "few")] == [pytest.approx(2 / 3), 1.0]
    assert [row["top1"] for row in document["per_class"]] == [1.0, 0.5, *[None] * 7, 1.0]
    assert document["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_an_evaluation_is_read_back_and_vouched_for(work: Path) -> None:
    first = evaluated(work, run="sau")
    again = evaluated(work, run="sau")
    assert (first.computed, again.computed) == (True, False)
    assert first.document == again.document
    assert all(path.stat().st_size > 0 for path in first.files)
    path = first.folder / "results.json"
    path.write_text(path.read_text().replace('"top1"', '"top2"', 1))
    with pytest.raises(CorruptArtifactError, match=r"results\.json was changed after it was written"):
        evaluated(work, run="sau")


def test_a_failure_on_the_way_leaves_the_run_as_it_was(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(5, "broken")

    model = tree(work)["runs/sau/model.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(room, "confusion_figure", fail)
        with pytest.raises(OSError, match="broken"):
            evaluated(work, run="sau")
        with pytest.raises(OSError, match="broken"):
            evaluated(work, run="ce", force=True)
    assert evaluated(work, run="sau").computed
    assert evaluated(work, run="ce").computed  # the old files are no longer vouched for
    assert tree(work)["runs/sau/model.safetensors"] == model
    assert not list(work.rglob(".*"))


def test_a_run_of_another_split_is_refused(work: Path) -> None:
    make_split(SplitConfig(imb=20), Workspace(work), root=None, force=True, reporter=QUIET)
    with pytest.raises(DataError, match=r"runs/ce was made from another split .*`saukit train --name ce --force -w"):
        evaluated(work, run="ce")


def test_a_model_with_other_classes_is_refused(work: Path) -> None:
    folder = work / "runs" / "sau"
    manifest = json.loads((folder / "manifest.json").read_text())
    network, spec = load_model(folder / "model.safetensors")
    state = network.state_dict() | {name: value[:3] for name, value in network.state_dict().items() if
                                    name.startswith("classifier")}  # fmt: skip
    save_model(folder / "model.safetensors", state, replace(spec, classes=("a", "b", "c")))
    names = ["config.yaml", "metrics.jsonl", "model.safetensors"]
    write_manifest(
        folder, kind="run", files=names, inputs=manifest["inputs"], summary=manifest["summary"], device="cpu"
    )
    with pytest.raises(DataError, match="knows 3 classes, this split has 10: train again on this split"):
        evaluated(work, run="sau")


def test_the_run_completed_last_is_the_default(work: Path) -> None:
    workspace = Workspace(work)
    assert choose_run(workspace, None) == "ce"
    assert choose_run(workspace, "sau") == "sau"
    with pytest.raises(DataError, match=r"no complete run 'x' in .*runs \(complete runs: sau, ce\)"):
        choose_run(workspace, "x")
    (work / "runs" / "ce" / "manifest.json").unlink()
    assert choose_run(workspace, None) == "sau"


def test_without_a_run_the_command_that_makes_one_is_named(split_work: Path) -> None:
    with pytest.raises(DataError, match=r"no run is complete in .*runs: run `saukit train -w"):
        choose_run(Workspace(split_work), None)
    with pytest.raises(DataError, match=r"no complete run 'x' in .* \(no run is complete\)"):
        choose_run(Workspace(split_work), "x")
