import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from saukit.data import pair_distance as distances
from saukit.synthesis.judging import duplicates
from saukit.synthesis.judging.duplicates import CopyDetector, calibrated_threshold

CPU = torch.device("cpu")
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
MIRRORED = ("mirrored", "all at once")  # kinds of copies that are none where mirroring changes the class
DIRECTIONS = [shift for shift in itertools.product((-1, 0, 1), repeat=2) if shift != (0, 0)]


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    images = np.repeat(np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None], 3, axis=1)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], bunch.target[order]


def noise(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Images with structure: coarse noise, enlarged."""
    cell = max(4, max(height, width) // 8)
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 3, -(-height // cell), -(-width // cell)))
    return np.repeat(np.repeat(coarse, cell, axis=2), cell, axis=3)[:, :, :height, :width].astype(np.uint8)


def shifted(edge: str) -> Change:
    def change(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = images.shape[2:]
        out = []
        for image in images:
            down, right = DIRECTIONS[generator.integers(8)]
            padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode=edge)  # type: ignore[call-overload]
            out.append(padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width])
        return np.stack(out)

    return change


def noised(sigma: float) -> Change:
    return lambda images, generator: np.clip(np.rint(images + generator.normal(0, sigma, images.shape)), 0, 255).astype(
        np.uint8
    )


PLANTED: dict[str, Change] = {
    "exact": lambda images, _: images,
    "mirrored": lambda images, _: images[..., ::-1],
    "replicated edge": shifted("edge"),
    "zero edge": shifted("constant"),
    "rolled": shifted("wrap"),
    "noise 4": noised(4),
    "noise 8": noised(8),
    "brighter": lambda images, _: np.clip(images.astype(int) + 12, 0, 255).astype(np.uint8),
    "less contrast": lambda images, _: (images * 0.9).astype(np.uint8),
    "all at once": lambda images, generator: noised(8)(shifted("edge")(images[..., ::-1], generator), generator),
}


def loop_distance(a: np.ndarray, b: np.ndarray, *, flip: bool = True) -> float:
    """The formula of the module's docstring, a pixel at a time."""
    x, other = a / 255, b / 255
    _, height, width = x.shape
    best = np.inf
    for mirrored in (False, True) if flip else (False,):
        y = other[:, :, ::-1] if mirrored else other
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            square = 0.0
            for channel in range(3):
                differences = [
                    x[channel, i, j] - y[channel, i - down, j - right]
                    for i in range(height)
                    for j in range(width)
                    if 0 <= i - down < height and 0 <= j - right < width
                ]
                mean = sum(differences) / len(differences)
                variance = sum((value - mean) ** 2 for value in differences) / len(differences)
                square += (variance + max(abs(mean) - 0.1, 0) ** 2) / 3
            best = min(best, square)
    contrasts = [sum(image[channel].var() for channel in range(3)) / 3 for image in (x, other)]
    return float(np.sqrt(best) / (np.sqrt(sum(contrasts) / 2) + 0.1))


def pair_distance(a: np.ndarray, b: np.ndarray, *, flip: bool = True) -> np.ndarray:
    """The detector's distance of each pair, without its search."""
    x, y = (distances.as_compared(images, CPU) for images in (a, b))
    distance = distances.pair_distance(x, y).numpy()
    return np.minimum(distance, distances.pair_distance(x, y.flip(3)).numpy()) if flip else distance


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 9), (12, 6)])
def test_the_distance_of_a_pair_is_the_loops(size: tuple[int, int], flip: bool) -> None:
    a, b = noise(8, *size), noise(8, *size, seed=1)
    generator = np.random.default_rng(2)
    for row, change in enumerate(PLANTED.values()):
        if row < len(a) - 2:
            b[row] = change(a[row : row + 1], generator)[0]
    a[-1], b[-1] = 40, 90  # blank
    expected = [loop_distance(x, y, flip=flip) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pair_distance(a, b, flip=flip), expected, atol=3e-4)
    np.testing.assert_allclose(pair_distance(b, a, flip=flip), expected, atol=3e-4)


def test_copies_are_at_distance_zero_and_strangers_are_not() -> None:
    images, _ = digits()
    generator = np.random.default_rng(0)
    for name in ("exact", "mirrored", "replicated edge", "zero edge", "rolled"):
        assert pair_distance(images[:200], PLANTED[name](images[:200], generator)).max() < 1e-3, name
    assert pair_distance(images[:200], images[:200][..., ::-1], flip=False).min() > 0.1
    assert np.median(pair_distance(images[:200], images[200:400])) > 0.5


def test_large_images_are_compared_averaged_to_32_pixels() -> None:
    a, b = noise(3, 128, 96), noise(3, 128, 96, seed=1)
    small = [
        np.stack([np.asarray(Image.fromarray(i.transpose(1, 2, 0)).reduce(4)).transpose(2, 0, 1) for i in images])
        for images in (a, b)
    ]
    np.testing.assert_allclose(pair_distance(a, b), pair_distance(*small), atol=0.01)  # PIL rounds to bytes
    assert pair_distance(a, shifted("edge")(a, np.random.default_rng(0))).max() < 0.2
    assert pair_distance(noise(1, 256, 256), noise(1, 256, 256)[..., ::-1])[0] == 0


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", PLANTED)
def test_every_planted_copy_of_a_digit_is_found(kind: str, flip: bool) -> None:
    if kind in MIRRORED and not flip:
        pytest.skip("no copy then")
    images, _ = digits()
    detector = CopyDetector(images[:1200], flip=flip, device=CPU)
    nearest = detector.nearest(PLANTED[kind](images[:1200], np.random.default_rng(0)))
    assert detector.is_copy(nearest).all()
    assert (nearest.index == np.arange(1200)).mean() > 0.995
    own = pair_distance(PLANTED[kind](images[:1200], np.random.default_rng(0)), images[:1200], flip=flip)
    assert (nearest.distance <= own + 1e-6).all()


def test_a_mirrored_digit_is_a_copy_only_where_mirroring_keeps_the_class() -> None:
    images, labels = digits()
    mirrored, crooked = images[:1200][..., ::-1].copy(), np.isin(labels[:1200], (2, 3, 4, 5, 6, 7, 9))
    detectors = {flip: CopyDetector(images[:1200], flip=flip, device=CPU) for flip in (True, False)}
    copied = {flip: detector.is_copy(detector.nearest(mirrored)) for flip, detector in detectors.items()}
    assert copied[True].all()
    assert copied[False][crooked].mean() < 0.02  # of 0, 1 and 8 some look the same from behind
    nearest = detectors[False].nearest(mirrored[:40])
    table = [pair_distance(np.repeat(image[None], 1200, axis=0), images[:1200], flip=False) for image in mirrored[:40]]
    assert (nearest.distance >= np.min(table, axis=1) - 1e-6).all()


def test_few_unseen_digits_are_copies() -> None:
    images, _ = digits()
    detector = CopyDetector(images[:1200], flip=True, device=CPU)
    assert 0.1 < detector.threshold < 0.25
    # digits of 8 pixels do coincide: those that are flagged are closer than 99 % of the training digits are
    assert detector.is_copy(detector.nearest(images[1200:])).mean() < 0.04
    blank = (images[1200:] * 0.3 + 90).astype(np.uint8)
    assert not detector.is_copy(detector.nearest(blank)).any()
    assert not detector.is_copy(detector.nearest(noise(200, 8, 8))).any()


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [8, 16, 20])
def test_nearest_is_that_of_all_pairs_for_copies(size: int, flip: bool) -> None:
    reference, generator = noise(40, size, size), np.random.default_rng(3)
    for kind, change in PLANTED.items():
        if kind in MIRRORED and not flip:
            continue
        images = change(reference[::2], generator)
        nearest = CopyDetector(reference, flip=flip, device=CPU).nearest(images)
        copies = [np.repeat(image[None], 40, axis=0) for image in images]
        table = np.stack([pair_distance(same, reference, flip=flip) for same in copies])
        np.testing.assert_array_equal(nearest.index, table.argmin(axis=1), err_msg=kind)
        np.testing.assert_allclose(nearest.distance, table.min(axis=1), atol=1e-6, err_msg=kind)


def test_threshold_is_the_closest_percent_of_real_images_within_limits() -> None:
    assert calibrated_threshold(np.linspace(0.15, 0.17, 101).astype(np.float32)) == pytest.approx(0.1502)
    assert calibrated_threshold(np.full(50, 0.7, dtype=np.float32)) == 0.25
    assert calibrated_threshold(np.zeros(50, dtype=np.float32)) == 0.1
    assert calibrated_threshold(np.empty(0, dtype=np.float32)) == 0.25


@pytest.mark.parametrize("flip", [True, False])
def test_real_distances_leave_the_image_itself_out(flip: bool) -> None:
    reference = noise(30, 8, 8)
    reference[7] = reference[6, ..., ::-1]
    expected = [
        min(loop_distance(reference[i], reference[j], flip=flip) for j in range(30) if j != i) for i in range(0, 30, 6)
    ]
    found = CopyDetector(reference, flip=flip, device=CPU).real_distances
    np.testing.assert_allclose(found[::6], expected, atol=3e-4)
    assert (found[7] < 0.01) == flip


def test_calibration_takes_a_fixed_sample_of_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = digits()
    monkeypatch.setattr(duplicates, "CALIBRATION_IMAGES", 100)
    first, second = (CopyDetector(images[:500], flip=True, device=CPU) for _ in range(2))
    assert len(first.real_distances) == 100
    np.testing.assert_array_equal(first.real_distances, second.real_distances)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_reference_images_is_enough(count: int) -> None:
    reference = noise(count, 12, 12)
    detector = CopyDetector(reference, flip=True, device=CPU)
    assert detector.is_copy(detector.nearest(reference[..., ::-1])).all()
    assert not detector.is_copy(detector.nearest(noise(20, 12, 12, seed=9))).any()
    assert np.isfinite(detector.real_distances).all()


def test_duplicates_and_blank_images_among_the_reference_break_nothing() -> None:
    images, _ = digits()
    reference = np.concatenate([images[:30], images[:30], np.full((40, 3, 8, 8), 7, dtype=np.uint8)])
    detector = CopyDetector(reference, flip=True, device=CPU)
    assert detector.threshold == 0.1
    nearest = detector.nearest(reference)
    assert detector.is_copy(nearest).all() and np.isfinite(nearest.distance).all()
    np.testing.assert_array_equal(nearest.index[:61], [*range(30), *range(30), 60])  # the first of equals
    assert detector.is_copy(detector.nearest(images[100:200])).mean() < 0.02
    assert len(detector.nearest(images[:0]).index) == 0


def test_nearest_depends_on_no_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = digits()
    whole = CopyDetector(images[:200], flip=True, device=CPU).nearest(images[150:300])
    monkeypatch.setattr(duplicates, "MATRIX_VALUES", 7 * 400)
    monkeypatch.setattr(duplicates, "PAIR_VALUES", 3 * 192)
    parts = CopyDetector(images[:200], flip=True, device=CPU).nearest(images[150:300])
    np.testing.assert_array_equal(whole.index[:50], parts.index[:50])
    np.testing.assert_allclose(whole.distance, parts.distance, atol=1e-6)


@pytest.fixture(scope="module")
def cifar() -> tuple[np.ndarray, np.ndarray]:
    """4,000 training and 2,000 test images of CIFAR-10."""
    root = os.environ.get("SAUKIT_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("SAUKIT_DATA holds no CIFAR-10")
    parts = []
    for name, count in (("data_batch_1", 4000), ("test_batch", 2000)):
        with (Path(root) / "cifar-10-batches-py" / name).open("rb") as file:
            parts.append(pickle.load(file, encoding="bytes")[b"data"][:count].reshape(-1, 3, 32, 32))
    return parts[0], parts[1]


@pytest.mark.cifar10
def test_copies_of_cifar_images_are_found_and_unseen_images_are_not(cifar: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = cifar
    detector = CopyDetector(train, flip=True, device=CPU)
    chosen = np.arange(0, 4000, 10)
    for kind, change in PLANTED.items():
        nearest = detector.nearest(change(train[chosen], np.random.default_rng(0)))
        # what is missed is nearly blank, and noise is most of it
        assert detector.is_copy(nearest).mean() >= (0.99 if "noise" in kind or kind == "all at once" else 1), kind
        assert (nearest.index == chosen).mean() >= 0.99, kind
    assert detector.is_copy(detector.nearest(test)).mean() < 0.005  # the set is known to hold a few
    faint = (test[:1000] * 0.3 + 90).astype(np.uint8)
    assert detector.is_copy(detector.nearest(faint)).mean() < 0.002


# --- features of a pretrained network -----------------------------------------------------------------------------


def histograms(images: Any) -> np.ndarray:
    """Features that do not see where a pixel lies: a histogram of each channel, [n, 24]."""
    levels = np.asarray(images[:]) // 32
    counts = [(levels == level).mean(axis=(2, 3)) for level in range(8)]
    return np.concatenate(counts, axis=1).astype(np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of all pairs of images in these features."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in map(histograms, (a, b))]
    distances: np.ndarray = 1 - unit[0] @ unit[1].T
    return distances


@pytest.mark.parametrize("given", [None, 0.2])
def test_with_features_what_only_they_recognise_is_a_copy_too(given: float | None) -> None:
    reference, new = noise(60, 32, 32), noise(20, 32, 32, seed=1)
    turned = np.ascontiguousarray(reference[:10].transpose(0, 1, 3, 2)[:, :, ::-1])
    plain = CopyDetector(reference, flip=False, threshold=given, device=CPU)
    detector = CopyDetector(reference, flip=False, threshold=given, device=CPU, features=histograms)
    assert detector.threshold == plain.threshold
    assert not plain.is_copy(plain.nearest(turned)).any() and not plain.is_copy(plain.nearest(new)).any()
    found = detector.nearest(turned)
    assert detector.is_copy(found).all() and found.index.tolist() == list(range(10))
    assert detector.is_copy(detector.nearest(reference)).all()

    # The smaller of both distances, the cosine's scaled so that 1 % of the reference images lie below the threshold.
    own = cosines(reference, reference)
    np.fill_diagonal(own, np.inf)
    scale = detector.threshold / np.clip(np.quantile(own.min(axis=1), 0.01), 0.01, 0.25)
    by_pixels, by_cosine = plain.nearest(new), cosines(new, reference)
    expected = np.minimum(by_pixels.distance, scale * by_cosine.min(axis=1))
    assert detector.nearest(new).distance == pytest.approx(expected, rel=1e-3)
    closer = scale * by_cosine.min(axis=1) < by_pixels.distance
    assert detector.nearest(new).index.tolist() == np.where(closer, by_cosine.argmin(axis=1), by_pixels.index).tolist()
    assert detector.real_distances == pytest.approx(np.minimum(plain.real_distances, scale * own.min(axis=1)), rel=1e-3)

    # Of other images by the same measure: not one calibrated on them.
    other = detector.of(new)
    assert other.nearest(reference).distance == pytest.approx(
        np.minimum(
            CopyDetector(new, flip=False, threshold=detector.threshold, device=CPU).nearest(reference).distance,
            scale * by_cosine.min(axis=0),
        ),
        rel=1e-3,
    )


def test_features_of_a_single_image_and_of_images_that_are_all_alike() -> None:
    one = noise(1, 32, 32)
    detector = CopyDetector(one, flip=False, device=CPU, features=histograms)
    assert len(detector.real_distances) == 0 and detector.is_copy(detector.nearest(one)).all()
    alike = np.concatenate([one] * 30)
    detector = CopyDetector(alike, flip=False, device=CPU, features=histograms)
    assert not detector.is_copy(detector.nearest(noise(5, 32, 32, seed=1))).any()
