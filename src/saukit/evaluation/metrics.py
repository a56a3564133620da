"""Measures from probabilities: over all images, per class and per shot group, and the calibration error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.data.types import Integers

ECE_BINS = 15
Probabilities = npt.NDArray[np.floating[Any]]


def top_k_accuracy(probabilities: Probabilities, labels: Integers, k: int) -> float | None:
    """Share of images whose label is among the k most probable classes; None where k classes are all there are.

    Shapes: probabilities [n, K]; labels [n].
    """
    from sklearn.metrics import top_k_accuracy_score

    classes = probabilities.shape[1]
    if k >= classes:
        return None
    if classes == 2:  # scikit-learn takes one score an image there
        return float(np.mean(probabilities.argmax(1) == labels))
    return float(top_k_accuracy_score(labels, probabilities, k=k, labels=np.arange(classes)))


def confusion_matrix(probabilities: Probabilities, labels: Integers) -> Integers:
    """Counts [K, K]: row = true class, column = predicted class."""
    from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

    classes = np.arange(probabilities.shape[1])
    matrix: Integers = sklearn_confusion_matrix(labels, probabilities.argmax(1), labels=classes)
    return matrix


def precision_recall_f1(confusion: Integers) -> list[dict[str, float | None]]:
    """Precision, recall and F1 of each class; recall is its accuracy.

    Precision is None for a class that is never predicted, recall and F1 for one without test images; scikit-learn calls
    these cases zero division. A class that is there and never predicted has an F1 of 0.
    """
    return [
        {
            "precision": float(hits / predicted) if predicted else None,
            "recall": float(hits / true) if true else None,
            "f1": float(2 * hits / (true + predicted)) if true else None,
        }
        for hits, true, predicted in zip(np.diag(confusion), confusion.sum(1), confusion.sum(0), strict=True)
    ]


def group_accuracy(
    confusion: Integers, members: Mapping[str, Sequence[int]], names: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
    """For each group of `names`: its classes, its test images and the share of them that is recognised.

    A group without classes is None: absent, not zero.
    """
    groups: dict[str, dict[str, Any] | None] = {}
    for name in names:
        rows = list(members.get(name, ()))
        images = int(confusion[rows].sum()) if rows else 0
        correct = int(confusion[rows, rows].sum()) if rows else 0
        groups[name] = {"classes": rows, "images": images, "top1": correct / images} if images else None
    return groups


def calibration_bins(probabilities: Probabilities, labels: Integers, *, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """A reliability diagram (Guo et al. 2017, Eq. 2): for each of `bins` equal-width bins of confidence, from `low` to
    `high`, its images, their mean confidence and their accuracy; those two are None in a bin without images.

    A confidence on a bin's edge belongs to the bin below it, as in the paper.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    sizes = np.bincount(index, minlength=bins).tolist()
    confidences = np.bincount(index, confidence, bins).tolist()
    hits = np.bincount(index, correct, bins).tolist()
    return [
        {
            "low": position / bins,
            "high": (position + 1) / bins,
            "images": size,
            "confidence": confidences[position] / size if size else None,
            "accuracy": hits[position] / size if size else None,
        }
        for position, size in enumerate(sizes)
    ]


def expected_calibration_error(probabilities: Probabilities, labels: Integers, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error (Guo et al. 2017, Eq. 3): |accuracy - confidence| of the bins, weighted by images."""
    filled = [row for row in calibration_bins(probabilities, labels, bins=bins) if row["images"]]
    return float(sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in filled) / len(labels))
