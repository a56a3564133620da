import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from saukit.data.images import ImageStore
from saukit.synthesis.audit.distances import diversity, frechet_distance
from saukit.synthesis.audit.document import FeatureExtractor, audit_document, closest_pairs
from saukit.synthesis.judging.duplicates import CopyDetector, Nearest

CPU = torch.device("cpu")
Set = tuple[np.ndarray, np.ndarray]


def structured(labels: np.ndarray, seed: int, size: int = 12) -> np.ndarray:
    """Independent images; the mean of the first channel tells the class."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 160, (len(labels), 3, size // 4, size // 4))
    coarse[:, 0] += 30 * labels[:, None, None] - coarse[:, 0].mean((1, 2), keepdims=True) + 60
    return np.clip(np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3), 0, 255).astype(np.uint8)


class Means:
    """Features: the means of quarters; the class: by the first channel's mean, unless `judges` is off."""

    def __init__(self, num_classes: int = 3, *, judges: bool = True) -> None:
        self.name = self.features_of = "means"
        self.num_classes, self.judges = num_classes, judges
        self.seen = 0

    def __call__(self, images: ImageStore) -> tuple[np.ndarray, np.ndarray | None]:
        self.seen += len(images)
        half = images.shape[2] // 2
        quarters = [images[:, :, i : i + half, j : j + half].mean((2, 3)) for i in (0, half) for j in (0, half)]
        features = (np.concatenate(quarters, axis=1) / 255).astype(np.float32)
        if not self.judges:
            return features, None
        places = 60 + 30 * np.arange(self.num_classes)
        distances = np.abs(images[:, 0].mean((1, 2))[:, None] - places)
        weights = np.exp(-distances / 5)
        return features, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


REAL, TEST, FAKE = labels_of(60, 30, 6), labels_of(40, 40, 40), labels_of(0, 30, 54)


def sets(real: np.ndarray = REAL, test: np.ndarray = TEST, fake: np.ndarray = FAKE) -> dict[str, Set]:
    return {
        "real": (structured(real, 1), real),
        "test": (structured(test, 2), test),
        "fake": (structured(fake, 3), fake),
    }


def audit(
    given: dict[str, Set], *extractors: FeatureExtractor, threshold: float | None = None, flip: bool = True
) -> dict[str, Any]:
    fake, labels = given["fake"]
    detector = CopyDetector(given["real"][0], flip=flip, threshold=threshold, device=CPU)
    kept = np.bincount(labels, minlength=3)
    document = audit_document(
        classes=("a", "b", "c"),
        real=given["real"],
        test=given["test"],
        synthetic=given["fake"],
        generated_counts=kept + 4,
        wanted_counts=kept + 1,
        rejected={"copy": np.array([1, 2, 3]), "repeat": np.array([3, 2, 1])},
        extractors=extractors or (Means(),),
        detector=detector,
        nearest=detector.nearest(fake),
    )
    # valid JSON, which knows no NaN and no infinity, and nothing in it is lost
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    return document


def test_counts_agreement_and_diversity_of_each_class() -> None:
    given = sets()
    document = audit(given, Means())
    fake, labels = given["fake"]
    features, probabilities = Means()(fake)
    assert probabilities is not None
    expected = diversity(features, labels, 3), diversity(Means()(given["test"][0])[0], TEST, 3)
    for c, row in enumerate(document["per_class"]):
        own = labels == c
        count = int(own.sum())
        assert (row["class"], row["real"], row["kept"]) == ("abc"[c], int(np.sum(c == REAL)), count)
        assert (row["generated"], row["wanted"]) == (count + 4, count + 1)
        assert row["rejected"] == {"copy": c + 1, "repeat": 3 - c}
        assert row["diversity"]["test"] == pytest.approx(expected[1][c])
        if c == 0:  # without synthetic images nothing is known of them
            names = ("agreement", "confidence", "memorised", "leaked")
            assert [row[name] for name in names] == [None] * 4
            assert row["diversity"]["synthetic"] is None and row["diversity"]["ratio"] is None
        else:
            assert row["agreement"] == pytest.approx((probabilities[own].argmax(1) == c).mean())
            assert row["confidence"] == pytest.approx(probabilities[own, c].mean())
            assert row["diversity"]["ratio"] == pytest.approx(expected[0][c] / expected[1][c])  # type: ignore[operator]
    overall = document["overall"]
    assert (overall["kept"], overall["real"], overall["generated"]) == (84, 96, 96)
    assert overall["rejected"] == {"copy": 6, "repeat": 6}
    assert overall["agreement"] == pytest.approx((probabilities.argmax(1) == labels).mean())
    ratios = [row["diversity"]["ratio"] for row in document["per_class"][1:]]
    assert overall["diversity"]["ratio"] == pytest.approx(np.mean(ratios))
    assert document["classifier"] == document["diversity_features"] == "means"


def test_wrong_labels_lower_the_agreement_of_their_class() -> None:
    given = sets()
    images, labels = given["fake"]
    wrong = labels.copy()
    wrong[:15] = 2  # 15 images of class 1
    before, after = audit(given, Means()), audit({**given, "fake": (images, wrong)}, Means())
    assert before["per_class"][2]["agreement"] == pytest.approx(1)
    assert after["per_class"][2]["agreement"] == pytest.approx(54 / 69)
    assert after["per_class"][2]["confidence"] < before["per_class"][2]["confidence"] - 0.1


def test_independent_images_are_neither_memorised_nor_leaked() -> None:
    document = audit(sets(), Means())
    assert (document["memorisation"]["count"], document["memorisation"]["share"]) == (0, 0)
    assert (document["leakage"]["near_test"], document["leakage"]["leaked"]) == (0, 0)
    assert document["memorisation"]["median_distance"] > 2 * document["memorisation"]["threshold"]
    assert document["memorisation"]["real_median_distance"] > 2 * document["memorisation"]["threshold"]


def test_copies_of_training_images_are_memorised_and_nothing_else() -> None:
    given = sets()
    images, labels = given["fake"]
    images = images.copy()
    images[:12] = np.roll(given["real"][0][60:72, :, :, ::-1], 1, axis=2)
    document = audit({**given, "fake": (images, labels)}, Means())
    assert [row["memorised"] for row in document["per_class"]] == [None, pytest.approx(12 / 30), 0]
    assert document["memorisation"]["count"] == 12
    assert document["overall"]["memorised"] == document["memorisation"]["share"] == pytest.approx(12 / 84)
    assert (document["leakage"]["near_test"], document["overall"]["leaked"]) == (0, 0)


def test_copies_of_test_images_are_leaked_and_nothing_else() -> None:
    given = sets()
    images, labels = given["fake"]
    images = images.copy()
    images[-6:] = given["test"][0][-6:, :, :, ::-1]
    document = audit({**given, "fake": (images, labels)}, Means())
    assert [row["leaked"] for row in document["per_class"]] == [None, 0, pytest.approx(6 / 54)]
    leakage = document["leakage"]
    assert (leakage["near_test"], leakage["explained_by_training"], leakage["leaked"]) == (6, 0, 6)
    assert leakage["share"] == document["overall"]["leaked"] == pytest.approx(6 / 84)
    assert leakage["real_share"] == 0
    assert (document["memorisation"]["count"], document["overall"]["memorised"]) == (0, 0)


def test_mirrored_copies_count_only_where_mirroring_keeps_the_class() -> None:
    given = sets()
    images, labels = given["fake"]
    images = images.copy()
    images[:12] = given["real"][0][60:72, :, :, ::-1]
    images[-6:] = given["test"][0][-6:, :, :, ::-1]
    for flip, expected in ((True, (12, 6)), (False, (0, 0))):
        document = audit({**given, "fake": (images, labels)}, flip=flip)
        assert (document["memorisation"]["count"], document["leakage"]["leaked"]) == expected
        assert document["memorisation"]["mirrored"] is flip


def test_a_test_image_that_training_holds_too_explains_its_copies() -> None:
    given = sets()
    real, test, fake = (given[name][0].copy() for name in ("real", "test", "fake"))
    real[-3:] = test[-3:]
    fake[:5] = test[-1]
    document = audit({"real": (real, REAL), "test": (test, TEST), "fake": (fake, FAKE)}, Means())
    leakage = document["leakage"]
    assert (leakage["near_test"], leakage["explained_by_training"], leakage["leaked"]) == (5, 5, 0)
    assert leakage["real_share"] == pytest.approx(3 / 96)
    assert document["memorisation"]["count"] == 5


def test_distances_weigh_the_classes_equally_and_name_what_they_compared() -> None:
    given = sets()
    (found,) = audit(given, Means())["distances"]
    assert (found["features"], found["reference"], found["classes"]) == ("means", "test", ["b", "c"])
    assert found["synthetic"]["images_per_class"] == 30 and found["synthetic"]["images"] == 60
    assert found["yardstick"] is None  # twelve real images say nothing
    many = sets(real=labels_of(80, 60, 40))
    (found,) = audit(many, Means())["distances"]
    assert found["yardstick"]["real"]["images"] == found["yardstick"]["synthetic"]["images"] == 60
    assert found["yardstick"]["synthetic"] == found["synthetic"]
    # class b has 30 synthetic images: all are taken, and 30 of the 40 test images
    assert found["yardstick"]["real"]["frechet"] < 0.1
    assert 0 <= found["synthetic"]["precision"] <= 1
    all_rows = {name: Means()(images[labels > 0])[0] for name, (images, labels) in many.items() if name != "real"}
    assert found["synthetic"]["frechet"] == pytest.approx(
        frechet_distance(all_rows["fake"], all_rows["test"]), abs=0.02
    )


def test_the_yardstick_has_as_many_images_as_the_rarest_class() -> None:
    (found,) = audit(sets(real=labels_of(80, 60, 20)), Means())["distances"]
    assert found["synthetic"]["images_per_class"] == 30
    assert found["yardstick"]["real"]["images_per_class"] == 20
    assert found["yardstick"]["synthetic"]["images_per_class"] == 20
    assert found["yardstick"]["synthetic"]["images"] == 40


def test_worse_images_are_farther_away() -> None:
    given = sets(real=labels_of(80, 60, 40), fake=labels_of(0, 40, 40))
    images, labels = given["fake"]
    worse = {**given, "fake": (np.clip(images.astype(int) + 60, 0, 255).astype(np.uint8), labels)}
    good, bad = audit(given, Means())["distances"][0], audit(worse, Means())["distances"][0]
    assert bad["synthetic"]["frechet"] > 10 * good["synthetic"]["frechet"]
    assert bad["synthetic"]["kernel_mean"] > 3 * abs(good["synthetic"]["kernel_mean"])
    assert bad["synthetic"]["precision"] < good["synthetic"]["precision"]
    assert bad["yardstick"]["real"] == good["yardstick"]["real"]


def test_only_the_first_extractor_sees_every_image() -> None:
    first, second = Means(), Means(judges=False)
    document = audit(sets(), first, second)
    assert first.seen == 84 + 120 and second.seen == 60 + 60
    assert document["distances"][0]["synthetic"] == document["distances"][1]["synthetic"]


def test_without_probabilities_there_is_no_agreement() -> None:
    features_only = audit(sets(), Means(judges=False))
    assert features_only["classifier"] is None and features_only["diversity_features"] == "means"
    assert features_only["overall"]["agreement"] is None and features_only["overall"]["diversity"]["ratio"] > 0


@pytest.mark.parametrize(
    ("real", "test", "fake"),
    [
        (labels_of(5, 1, 1), labels_of(2, 2, 2), labels_of(0, 0, 0)),
        (labels_of(5, 1, 1), labels_of(2, 2, 2), labels_of(0, 1, 0)),
        (labels_of(1, 0, 0), labels_of(1, 0, 0), labels_of(0, 1, 40)),
        (labels_of(1, 1, 1), labels_of(0, 0, 0), labels_of(9, 9, 40)),
        (labels_of(1, 1, 1), labels_of(60, 60, 60), labels_of(0, 0, 40)),
    ],
)
@pytest.mark.parametrize("grey", [False, True])
def test_odd_cases_make_a_document_too(real: np.ndarray, test: np.ndarray, fake: np.ndarray, grey: bool) -> None:
    given = sets(real, test, fake)
    if grey:
        given = {name: (np.full_like(images, 128), labels) for name, (images, labels) in given.items()}
    document = audit(given, Means(), Means(judges=False))
    if not len(fake):
        assert document["memorisation"]["share"] is None and document["memorisation"]["median_distance"] is None
        assert document["overall"]["agreement"] is None
    if not len(test):
        assert set(document["leakage"].values()) == {None} and document["overall"]["leaked"] is None
    assert (document["memorisation"]["real_share"] is None) == (len(real) == 1)


def test_closest_pairs_are_the_closest_and_each_training_image_once() -> None:
    detector = CopyDetector(structured(REAL, 1), flip=True, threshold=0.2, device=CPU)
    distance = np.array([0.5, 0.1, 0.05, 0.3, 0.1, 0.9], dtype=np.float32)
    nearest = Nearest(distance, np.array([4, 7, 2, 7, 3, 5]))
    pairs = closest_pairs(nearest, detector, count=4)
    assert [(pair.synthetic, pair.real, pair.is_copy) for pair in pairs] == [
        (2, 2, True),
        (1, 7, True),
        (4, 3, True),
        (0, 4, False),
    ]
    assert pairs[0].distance == pytest.approx(0.05)
    assert len(closest_pairs(nearest, detector)) == 5


def test_digits_against_unseen_digits() -> None:
    bunch = load_digits()
    images = np.repeat(np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None], 3, axis=1)
    labels = np.where(bunch.target < 2, bunch.target, 2)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [900, 1300])
    given = {name: (images[at], labels[at]) for name, at in zip(("real", "test", "fake"), parts, strict=True)}
    document = audit(given, Means())
    # real images that nobody generated: the yardsticks must say the same of them as of the training images
    assert document["memorisation"]["share"] < 0.04 and document["memorisation"]["real_share"] < 0.02
    assert document["leakage"]["share"] < 0.04
    found = document["distances"][0]
    assert found["synthetic"]["precision"] > 0.8 and found["synthetic"]["recall"] > 0.8
    assert found["synthetic"]["frechet"] < 3 * found["yardstick"]["real"]["frechet"] + 0.01
