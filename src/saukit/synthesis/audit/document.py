"""What a cache of synthetic images is worth: the audit document.

Nothing here decides anything: test images are looked at only to report, never to choose an image or a setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from saukit.core.seeding import numpy_generator
from saukit.core.shapes import AMOUNT, COUNT, NUMBER, SHARE, Maybe, Rows, Shape, all_of
from saukit.data.images import ImageStore
from saukit.data.types import Flags, Floats, Integers
from saukit.synthesis.audit.distances import diversity, frechet_distance, kernel_distance, precision_recall
from saukit.synthesis.judging.duplicates import CopyDetector, Nearest

FORMAT_VERSION = 1
NEIGHBOURS = 3  # k of precision and recall
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 20, 1000
MIN_DISTANCE_IMAGES = 32  # of each set; below, a distance says nothing
MAX_DISTANCE_IMAGES = 10_000
PAIRS = 12
_ROW = all_of("real wanted kept", COUNT) | all_of("agreement memorised leaked", Maybe(SHARE))
_ROW |= {"diversity": {"ratio": Maybe(AMOUNT)}}
_DISTANCES = {
    **{"features": str, "classes": [str]},
    "synthetic": Maybe({"images": COUNT, "frechet": NUMBER, "precision": SHARE, "recall": SHARE}),
    "yardstick": Maybe(all_of("synthetic real", {"frechet": NUMBER})),
}
# What of the audit document somebody reads.
SHAPE: Shape = {
    **{"format_version": COUNT, "classifier": Maybe(str), "classifier_also_filters": bool},
    "per_class": Rows("K", {"class": str} | _ROW),
    "overall": _ROW,
    "memorisation": {"real_share": Maybe(SHARE)},
    "distances": [_DISTANCES],
}


Set = tuple[ImageStore, Integers]


class FeatureExtractor(Protocol):
    """A network that turns images into features, and perhaps into class probabilities."""

    @property
    def name(self) -> str:
        """What the document calls it, such as "balanced-softmax"."""

    @property
    def features_of(self) -> str:
        """What it calls its features."""

    def __call__(self, images: ImageStore) -> tuple[Floats, Floats | None]:
        """Features float32 [n, d] and probabilities float32 [n, K] or None, of images uint8 [n, 3, H, W].

        It is given thousands of images at once, and makes its own batches.
        """


@dataclass(frozen=True)
class Pair:
    """A synthetic image and the training image closest to it, by their positions."""

    synthetic: int
    real: int
    distance: float
    is_copy: bool


def audit_document(
    *,
    classes: Sequence[str],
    real: Set,
    test: Set,
    synthetic: Set,
    generated_counts: Integers,
    wanted_counts: Integers,
    rejected: Mapping[str, Integers],
    extractors: Sequence[FeatureExtractor],
    detector: CopyDetector,
    nearest: Nearest,
) -> dict[str, Any]:
    """All that is known of the kept synthetic images; every number finite, what cannot be known None.

    Of the extractors, the first is asked about every synthetic and test image (its features give the diversity, its
    probabilities agreement and confidence), the others only about the images whose distances are taken.

    - agreement: share of kept images that the classifier gives their own class; confidence: its mean probability of it.
    - diversity: mean cosine distance of a class's images to each other, and the same of its test images (a classifier
      that knows the training images by heart sees them all alike); overall the mean over the classes that have both.
    - memorised: share of kept images that are copies of a training image, mirrored ones too if `mirrored`.
      `real_share` is the yardstick: the share of training images that pass for copies of another one.
    - leakage: `near_test` kept images are copies of a test image. A training image is at least as close to
      `explained_by_training` of them, so that they were learned from it; `leaked` is the rest. `real_share` is the
      yardstick: the share of training images that are copies of a test image themselves.
    - distances: between synthetic and test images, as many of each class. The test set is the reference because it is
      balanced and held out: the training set has a handful of images of the classes that matter most, and a
      generator that repeats those would be at distance 0. The classes and the number of images are those that use most
      images (at most 10,000). `yardstick`: synthetic and real training images, each against the test images, on the
      same classes with as many images of each set as the rarest class has; distances of fewer images are larger, so
      compare only these two with each other. Features of a network that was trained on the real images flatter them.

    Shapes: real, test, synthetic (kept): images uint8 [n, 3, H, W] and labels int64 [n]; generated_counts,
        wanted_counts and rejected (reason to counts) int64 [K].
        nearest: of the synthetic images, from `detector`, which holds the real ones.
    """
    labels, real_counts = synthetic[1], np.bincount(real[1], minlength=len(classes))
    copied = detector.is_copy(nearest)
    leakage, leaked = _leakage(real[0], test[0], synthetic[0], detector, nearest)
    sets = {"synthetic": synthetic, "real": real, "test": test}
    judged = _judge(extractors[0], sets)
    diversities = _diversities(judged, sets, len(classes))
    comparable = [row for row in diversities if row["ratio"] is not None]
    overall_diversity = {
        name: _mean_of([value for row in comparable if (value := row[name]) is not None])
        for name in ("synthetic", "test", "ratio")
    }

    def row(chosen: int | slice, own: Flags, diversity: Mapping[str, float | None]) -> dict[str, Any]:
        """Of one class, or of all of them; `own`: its kept images."""
        return {
            "real": int(real_counts[chosen].sum()),
            "wanted": int(wanted_counts[chosen].sum()),
            "generated": int(generated_counts[chosen].sum()),
            "kept": int(own.sum()),
            "rejected": {reason: int(counts[chosen].sum()) for reason, counts in rejected.items()},
            "agreement": _mean(judged.agrees, own),
            "confidence": _mean(judged.confidence, own),
            "diversity": diversity,
            "memorised": _mean(copied, own),
            "leaked": _mean(leaked, own),
        }

    return {
        "format_version": FORMAT_VERSION,
        "classifier": judged.classifier,
        "diversity_features": judged.features_of,
        "per_class": [{"class": name, **row(c, labels == c, diversities[c])} for c, name in enumerate(classes)],
        "overall": row(slice(None), np.ones(len(labels), dtype=bool), overall_diversity),
        "memorisation": _memorisation(detector, nearest, copied),
        "leakage": leakage,
        "distances": [
            _distances(extractor, judged.features if index == 0 else {}, sets, classes)
            for index, extractor in enumerate(extractors)
        ],
    }


def closest_pairs(nearest: Nearest, detector: CopyDetector, *, count: int = PAIRS) -> list[Pair]:
    """The synthetic images closest to a training image, closest first; each training image is there only once, so
    that one which is copied over and over does not fill the picture."""
    copied = detector.is_copy(nearest)
    pairs: dict[int, Pair] = {}
    for position in np.argsort(nearest.distance, kind="stable").tolist():
        if len(pairs) == count:
            break
        real = int(nearest.index[position])
        pairs.setdefault(real, Pair(position, real, float(nearest.distance[position]), bool(copied[position])))
    return list(pairs.values())


@dataclass(frozen=True)
class _Judged:
    """What the first extractor says of the synthetic images; `features` [n, d] of the sets it was asked about.

    agrees bool [n] and confidence float32 [n]: None without probabilities, `classifier` too.
    """

    features_of: str
    classifier: str | None
    agrees: Flags | None
    confidence: Floats | None
    features: Mapping[str, Floats]


Sets = Mapping[str, Set]


def _judge(extractor: FeatureExtractor, sets: Sets) -> _Judged:
    features, agrees, confidence, classifier = {}, None, None, None
    for part in ("synthetic", "test"):
        images, labels = sets[part]
        if not len(images):
            continue
        features[part], probabilities = extractor(images)
        if part == "synthetic" and probabilities is not None:
            classifier = extractor.name
            agrees = probabilities.argmax(1) == labels
            confidence = probabilities[np.arange(len(labels)), labels]
    return _Judged(extractor.features_of, classifier, agrees, confidence, features)


def _diversities(judged: _Judged, sets: Sets, num_classes: int) -> list[dict[str, float | None]]:
    of: dict[str, list[float | None]] = {
        part: diversity(judged.features[part], sets[part][1], num_classes)
        if part in judged.features
        else [None] * num_classes
        for part in ("synthetic", "test")
    }
    return [
        {"synthetic": ours, "test": theirs, "ratio": ours / theirs if ours is not None and theirs else None}
        for ours, theirs in zip(of["synthetic"], of["test"], strict=True)
    ]


def _memorisation(detector: CopyDetector, nearest: Nearest, copied: Flags) -> dict[str, Any]:
    real = detector.real_distances
    return {
        "threshold": detector.threshold,
        "mirrored": detector.flip,
        "count": int(copied.sum()),
        "share": _mean_of(copied),
        "real_share": _mean_of(real < detector.threshold),
        "median_distance": float(np.median(nearest.distance)) if len(nearest.distance) else None,
        "real_median_distance": float(np.median(real)) if len(real) else None,
    }


def _leakage(
    real_images: ImageStore,
    test_images: ImageStore,
    images: ImageStore,
    detector: CopyDetector,
    nearest: Nearest,
) -> tuple[dict[str, Any], Flags | None]:
    """The section of the document, and whether each synthetic image is leaked, bool [n]; None without test images."""
    names = ("near_test", "explained_by_training", "leaked", "share", "real_share")
    if not len(test_images):
        return dict.fromkeys(names), None
    of_test = detector.of(test_images)
    to_test = of_test.nearest(images)
    near = of_test.is_copy(to_test)
    explained = near & (nearest.distance <= to_test.distance)
    leaked = near & ~explained
    real_share = _mean_of(of_test.is_copy(of_test.nearest(real_images)))
    values = (int(near.sum()), int(explained.sum()), int(leaked.sum()), _mean_of(leaked), real_share)
    return dict(zip(names, values, strict=True)), leaked


def _distances(
    extractor: FeatureExtractor, known: Mapping[str, Floats], sets: Sets, classes: Sequence[str]
) -> dict[str, Any]:
    counts = {part: np.bincount(labels, minlength=len(classes)) for part, (_, labels) in sets.items()}
    chosen, each = _most_balanced(np.minimum(counts["synthetic"], counts["test"]))
    document: dict[str, Any] = {
        "features": extractor.features_of,
        "reference": "test",
        "classes": [classes[c] for c in chosen],
        "synthetic": None,
        "yardstick": None,
    }
    if each * len(chosen) < MIN_DISTANCE_IMAGES:
        return document

    def features(part: str, each: int) -> Floats:
        """[classes, each, d]; fewer of each are the first of more."""
        images, labels = sets[part]
        order = [numpy_generator(0, f"audit-{part}", c).permutation(np.flatnonzero(labels == c)) for c in chosen]
        positions = np.concatenate([of_class[:each] for of_class in order])
        rows = known[part][positions] if part in known else extractor(images[positions])[0]
        return rows.reshape(len(chosen), each, -1)

    synthetic, test = features("synthetic", each), features("test", each)
    document["synthetic"] = _measured(synthetic, test)
    fewer = min(each, *(int(counts["real"][c]) for c in chosen))
    if fewer * len(chosen) >= MIN_DISTANCE_IMAGES:
        document["yardstick"] = {
            "synthetic": _measured(synthetic[:, :fewer], test[:, :fewer]),
            "real": _measured(features("real", fewer), test[:, :fewer]),
        }
    return document


def _most_balanced(counts: Integers) -> tuple[list[int], int]:
    """Classes, and as many images of each, that make the most images in all; of equals, the most classes."""
    options = []
    for each in np.unique(counts[counts > 0]).tolist():
        chosen = np.flatnonzero(counts >= each).tolist()
        used = min(each, max(1, MAX_DISTANCE_IMAGES // len(chosen)))
        options.append((used * len(chosen), len(chosen), used, chosen))
    if not options:
        return [], 0
    _, _, each, chosen = max(options)
    return chosen, each


def _measured(fake: Floats, real: Floats) -> dict[str, Any]:
    """Of features [classes, each, d]."""
    each = fake.shape[1]
    fake, real = fake.reshape(-1, fake.shape[2]), real.reshape(-1, real.shape[2])
    kernel_mean, kernel_std = kernel_distance(
        fake,
        real,
        subsets=KERNEL_SUBSETS,
        # at most half of the images: subsets that were all the same would have no spread
        subset_size=min(KERNEL_SUBSET_SIZE, len(fake) // 2),
        generator=numpy_generator(0, "audit-kernel"),
    )
    precision, recall = precision_recall(real, fake, k=NEIGHBOURS)
    return {
        "images": len(fake),
        "images_per_class": each,
        "frechet": frechet_distance(fake, real),
        "kernel_mean": kernel_mean,
        "kernel_std": kernel_std,
        "precision": precision,
        "recall": recall,
    }


def _mean(values: npt.NDArray[Any] | None, chosen: Flags) -> float | None:
    return None if values is None else _mean_of(values[chosen])


def _mean_of(values: Sequence[float] | npt.NDArray[Any]) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None
