"""Rejection: a confidence below which a classifier gives no class, chosen or judged on the validation part.

An image is rejected if its most probable class is less probable than `min_confidence`. Coverage is the share of images
that keep a class, and accuracy the share of those whose class is right (El-Yaniv and Wiener 2010: selective
classification). Probabilities count as they are written, rounded to six digits, so that a threshold can be copied.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.console import Reporter
from saukit.core.errors import DataError, SaukitError
from saukit.core.words import format_share
from saukit.data.types import Flags, Integers
from saukit.deploy.config import PredictConfig
from saukit.models.classifier import ImageClassifier, split_of
from saukit.training.features import FeatureStore

PROBABILITY_DIGITS = 6  # float32 holds no more

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rejection:
    """A threshold, and what it does to the images of the validation part; None where that is not known.

    accuracy: of the images that keep a class; None if there is none.
    """

    min_confidence: float
    images: int | None = None
    coverage: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        if self.images is None or self.coverage is None:
            return f"min confidence {self.min_confidence:g}"
        return (
            f"min confidence {self.min_confidence:g}: of {self.images:,} validation images "
            f"{format_share(self.coverage)} % keep a class, and {format_share(self.accuracy)} % of those are right"
        )


def confidences(probabilities: npt.NDArray[np.float32]) -> Floats:
    """The largest probability of each row, as it is written. Shapes: [n, K] -> float64 [n]."""
    largest: Floats = probabilities.max(1).astype(np.float64)
    return largest.round(PROBABILITY_DIGITS)


def judged(min_confidence: float, confidence: Floats, correct: Flags) -> Rejection:
    """What a threshold does to images of which is known whether their class is right. Shapes: [n] each."""
    kept = confidence >= min_confidence
    accuracy = float(correct[kept].mean()) if kept.any() else None
    return Rejection(min_confidence, len(kept), float(kept.mean()), accuracy)


def lowest_threshold(min_accuracy: float, confidence: Floats, correct: Flags) -> float | None:
    """The lowest threshold with which at least `min_accuracy` of the images kept are right; None if there is none.

    Shapes: [n] each. Only confidences that occur are tried; images of one confidence are kept or rejected together.
    """
    order = np.argsort(-confidence, kind="stable")
    right, ordered = np.cumsum(correct[order]), confidence[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of its confidence
    enough = np.flatnonzero(last & (right >= min_accuracy * np.arange(1, len(order) + 1)))
    return float(ordered[enough[-1]]) if len(enough) else None


def choose_rejection(
    config: PredictConfig, path: Path, classifier: ImageClassifier, *, device: torch.device, reporter: Reporter
) -> Rejection | None:
    """The threshold that `config` gives or asks for, for the model at `path`, and what it does on validation images.

    Raises: DataError for `min_accuracy` without a validation part, or if no threshold reaches it.
    """
    if config.min_confidence is None and config.min_accuracy is None:
        return None
    try:
        confidence, correct = _on_validation(path, classifier, device, reporter)
    except SaukitError as error:
        if config.min_confidence is not None:  # it needs no validation part
            return Rejection(config.min_confidence)
        raise DataError(
            f"--min-accuracy chooses on the validation part of the run's split: {error}; "
            "give a run of a split with one (`saukit make-lt --val-fraction 0.1`), or --min-confidence"
        ) from error
    threshold = config.min_confidence
    if config.min_accuracy is not None:
        threshold = lowest_threshold(config.min_accuracy, confidence, correct)
        if threshold is None:
            raise DataError(
                f"no confidence is high enough for --min-accuracy {config.min_accuracy:g}: even of the "
                f"{int((confidence == confidence.max()).sum())} most confident of {len(confidence)} validation images "
                "fewer are right; give a lower one"
            )
    assert threshold is not None
    found = judged(threshold, confidence, correct)
    reporter.say(str(found))
    return found


def _on_validation(
    path: Path, classifier: ImageClassifier, device: torch.device, reporter: Reporter
) -> tuple[Floats, Flags]:
    """Confidences of the validation images, and whether their classes are right."""
    split, workspace = split_of(path)
    if split.val is None:
        raise DataError("that has none")
    store = FeatureStore(workspace, classifier.network, classifier.spec, device, reporter)
    found = store.predict(split.val.images, f"{split.manifest.digest} val")
    labels: Integers = found.logits.argmax(1)
    return confidences(found.probabilities), labels == split.val.labels
