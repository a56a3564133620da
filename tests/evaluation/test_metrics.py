import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, top_k_accuracy_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from saukit.evaluation.metrics import (
    calibration_bins,
    confusion_matrix,
    expected_calibration_error,
    group_accuracy,
    precision_recall_f1,
    top_k_accuracy,
)
from saukit.evaluation.statistics import mean

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
CASES = [(classes, seed, spread) for classes in (2, 3, 10, 100) for seed in (0, 1) for spread in (0.05, 1.0)]


def drawn(classes: int, seed: int, spread: float, images: int = 400) -> tuple[Floats, Labels]:
    """Random probabilities, and labels that agree with them more often than chance."""
    generator = np.random.default_rng([classes, seed])
    probabilities = generator.dirichlet([spread] * classes, images).astype(np.float32)
    random = generator.integers(0, classes, images)
    return probabilities, np.where(generator.random(images) < 0.5, probabilities.argmax(1), random)


def rows(*confidences: float, classes: int = 4) -> Floats:
    """Probabilities with class 0 at each confidence and the rest shared."""
    other = [(1 - confidence) / (classes - 1) for confidence in confidences]
    return np.array([[c, *[o] * (classes - 1)] for c, o in zip(confidences, other, strict=True)], np.float32)


def recalls(confusion: Labels) -> list[float | None]:
    return [score["recall"] for score in precision_recall_f1(confusion)]


def paper_ece(probabilities: Floats, labels: Labels, bins: int) -> float:
    """Guo et al. 2017, Eq. 2 and 3, in exact arithmetic: bin m holds the confidences in ((m - 1) / M, m / M]."""
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, row in enumerate(probabilities):
        confidence = Fraction(float(row.max()))
        members[max(math.ceil(confidence * bins), 1) - 1].append(i)
    total = Fraction(0)
    for rows_of_bin in members:
        if rows_of_bin:
            accuracy = Fraction(sum(int(probabilities[i].argmax() == labels[i]) for i in rows_of_bin), len(rows_of_bin))
            confidence = sum((Fraction(float(probabilities[i].max())) for i in rows_of_bin), Fraction(0))
            total += Fraction(len(rows_of_bin), len(labels)) * abs(accuracy - confidence / len(rows_of_bin))
    return float(total)


@pytest.mark.parametrize(("classes", "seed", "spread"), CASES)
def test_calibration_error_against_torchmetrics_and_the_paper(classes: int, seed: int, spread: float) -> None:
    probabilities, labels = drawn(classes, seed, spread)
    result = expected_calibration_error(probabilities, labels)
    oracle = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=classes, n_bins=15, norm="l1"
    )
    assert result == pytest.approx(oracle.item(), abs=1e-6)
    assert result == pytest.approx(paper_ece(probabilities, labels, 15), abs=1e-9)
    assert result > 0.01


@pytest.mark.parametrize(("classes", "seed", "spread"), CASES)
def test_calibration_bins_against_a_loop_over_the_images(classes: int, seed: int, spread: float) -> None:
    probabilities, labels = drawn(classes, seed, spread)
    bins = calibration_bins(probabilities, labels, bins=15)
    assert [(row["low"], row["high"]) for row in bins] == [(m / 15, (m + 1) / 15) for m in range(15)]
    for m, row in enumerate(bins):
        inside = [
            (confidence, int(probability.argmax() == label))
            for probability, label in zip(probabilities, labels, strict=True)
            if Fraction(m, 15) < (confidence := Fraction(float(probability.max()))) <= Fraction(m + 1, 15)
        ]
        assert row["images"] == len(inside)
        if not inside:
            assert row["confidence"] is None and row["accuracy"] is None
            continue
        assert row["confidence"] == pytest.approx(float(sum(c for c, _ in inside) / len(inside)), abs=1e-12)
        assert row["accuracy"] == pytest.approx(sum(hit for _, hit in inside) / len(inside), abs=1e-12)
    assert sum(row["images"] for row in bins) == len(labels)


@pytest.mark.parametrize("bins", [4, 8, 16])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(bins: int) -> None:
    # 1/2 is an edge, and exact in binary. Right there and wrong just below: in one bin the two nearly cancel.
    labels = np.array([0, 1])
    on_edge = rows(0.5, 0.5 - 0.25 / bins)
    result = expected_calibration_error(on_edge, labels, bins=bins)
    assert result == pytest.approx(paper_ece(on_edge, labels, bins), abs=1e-12)
    assert result == pytest.approx(0.125 / bins)
    beyond = rows(0.5 + 0.25 / bins, 0.5 - 0.25 / bins)  # in two bins, as the other rule would have it
    assert expected_calibration_error(beyond, labels, bins=bins) == pytest.approx(0.5 - 0.25 / bins)


def test_calibration_error_at_the_ends() -> None:
    sure = rows(1.0, 1.0, 1.0, 1.0)
    assert expected_calibration_error(sure, np.array([0, 0, 0, 0])) == 0
    assert expected_calibration_error(sure, np.array([1, 2, 3, 1])) == 1
    assert expected_calibration_error(sure, np.array([0, 0, 0, 1])) == 0.25
    uniform = np.full((4, 4), 0.25, np.float32)
    assert expected_calibration_error(uniform, np.array([0, 1, 2, 3])) == 0


@pytest.mark.parametrize(("classes", "seed", "spread"), CASES)
@pytest.mark.parametrize("k", [1, 5])
def test_top_k_against_sklearn_and_torchmetrics(classes: int, seed: int, spread: float, k: int) -> None:
    probabilities, labels = drawn(classes, seed, spread)
    result = top_k_accuracy(probabilities, labels, k)
    if k >= classes:
        assert result is None
        return
    oracle = multiclass_accuracy(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=classes, top_k=k, average="micro"
    )
    assert result == pytest.approx(oracle.item(), abs=1e-6)
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert result == top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
    assert result is not None and 0 < result < 1


def test_top_k_with_absent_classes_and_where_k_is_all_there_is() -> None:
    probabilities, _ = drawn(10, 0, 1.0, images=6)
    ranks = np.argsort(-probabilities, axis=1)
    labels = np.array([ranks[0, 0], ranks[1, 4], ranks[2, 5], ranks[3, 1], ranks[4, 9], ranks[5, 2]])
    assert top_k_accuracy(probabilities, labels, 1) == pytest.approx(1 / 6)
    assert top_k_accuracy(probabilities, labels, 5) == pytest.approx(4 / 6)
    assert top_k_accuracy(probabilities, labels, 9) == pytest.approx(5 / 6)
    assert top_k_accuracy(probabilities, labels, 10) is None
    assert top_k_accuracy(probabilities[:, :5], labels % 5, 5) is None
    pair = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32)
    assert top_k_accuracy(pair, np.array([0, 1, 1]), 1) == pytest.approx(2 / 3)
    assert top_k_accuracy(pair, np.array([0, 1, 1]), 2) is None


@pytest.mark.parametrize(("classes", "seed", "spread"), CASES)
def test_confusion_and_accuracies_against_torchmetrics_and_sklearn(classes: int, seed: int, spread: float) -> None:
    probabilities, labels = drawn(classes, seed, spread, images=4000)
    predicted, truth = torch.from_numpy(probabilities), torch.from_numpy(labels)
    confusion = confusion_matrix(probabilities, labels)
    np.testing.assert_array_equal(confusion, multiclass_confusion_matrix(predicted, truth, num_classes=classes).numpy())
    accuracies = recalls(confusion)
    oracle = multiclass_accuracy(predicted, truth, num_classes=classes, average=None)
    np.testing.assert_allclose(np.array(accuracies, float), oracle.numpy(), atol=1e-6)
    assert mean(accuracies) == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(1)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classes_without_test_images_are_absent_not_zero() -> None:
    probabilities, labels = drawn(6, 0, 1.0)
    keep = ~np.isin(labels, [1, 5])
    probabilities, labels = probabilities[keep], labels[keep]
    confusion = confusion_matrix(probabilities, labels)
    assert confusion.shape == (6, 6)
    assert confusion[[1, 5]].sum() == 0 < confusion[:, [1, 5]].sum()  # never true, yet predicted
    accuracies = recalls(confusion)
    assert [c for c, accuracy in enumerate(accuracies) if accuracy is None] == [1, 5]
    assert mean(accuracies) == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(1)))


def test_a_class_never_recognised_is_zero_not_absent() -> None:
    confusion = np.array([[3, 1, 0], [2, 0, 0], [0, 0, 0]])
    assert recalls(confusion) == [0.75, 0.0, None]
    assert mean([0.75, 0.0, None]) == 0.375


@pytest.mark.parametrize(("classes", "seed", "spread"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_precision_recall_and_f1_against_sklearn(classes: int, seed: int, spread: float) -> None:
    """With a class that is never predicted, and one without test images; zero division is nan there and None here."""
    probabilities, labels = drawn(classes, seed, spread)
    if classes > 3:
        probabilities[:, 1] = 0
        labels = np.where(labels == 2, 0, labels)
    scores = precision_recall_f1(confusion_matrix(probabilities, labels))
    oracle = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(classes), zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1"), oracle, strict=False):
        mine = np.array([score[name] for score in scores], float)
        there = np.isin(np.arange(classes), labels) if name == "f1" else np.full(classes, True)
        np.testing.assert_allclose(mine[there], values[there], atol=1e-12, err_msg=name)
        assert np.isnan(mine[~there]).all()
    there = np.unique(labels)
    macro = precision_recall_fscore_support(labels, probabilities.argmax(1), labels=there, average="macro")
    assert mean([score["f1"] for score in scores]) == pytest.approx(macro[2])
    if classes > 3:
        assert scores[1]["precision"] is None and (scores[1]["recall"], scores[1]["f1"]) == (0, 0)
        assert scores[2]["recall"] is None and scores[2]["f1"] is None


@pytest.mark.parametrize("classes", [2, 10])
def test_groups_against_the_accuracy_over_their_images(classes: int) -> None:
    probabilities, labels = drawn(classes, 3, 1.0, images=1000)
    members = {"many": [0], "few": list(range(1, classes))}
    groups = group_accuracy(confusion_matrix(probabilities, labels), members, ["many", "medium", "few"])
    assert list(groups) == ["many", "medium", "few"]
    assert groups["medium"] is None  # a group without classes
    for name, classes_of_group in members.items():
        chosen = np.isin(labels, classes_of_group)
        expected = float(np.mean(probabilities[chosen].argmax(1) == labels[chosen]))
        assert groups[name] == {
            "classes": classes_of_group,
            "images": int(chosen.sum()),
            "top1": pytest.approx(expected),
        }
    weighted = sum(group["images"] * group["top1"] for group in groups.values() if group)
    assert weighted / 1000 == pytest.approx(np.mean(probabilities.argmax(1) == labels))


def test_a_group_weighs_images_and_one_without_images_is_absent() -> None:
    confusion = np.array([[8, 2, 0, 0], [1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    groups = group_accuracy(confusion, {"many": (0, 1), "medium": (2,), "few": (3,)}, ["many", "medium", "few"])
    assert groups == {
        "many": {"classes": [0, 1], "images": 12, "top1": 0.75},
        "medium": {"classes": [2], "images": 2, "top1": 0.0},
        "few": None,
    }
    assert group_accuracy(confusion, {"many": [0], "few": []}, ["few"]) == {"few": None}
