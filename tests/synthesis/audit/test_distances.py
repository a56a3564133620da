import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from saukit.synthesis.audit import distances
from saukit.synthesis.audit.distances import diversity, frechet_distance, kernel_distance, precision_recall


def sets(n: int = 60, m: int = 80, d: int = 5, apart: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)), apart + generator.normal(size=(m, d)) @ generator.normal(size=(d, d))


def generator() -> np.random.Generator:
    return np.random.default_rng(7)


class Flat(nn.Module):
    """Features that are the image itself, for torchmetrics."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1)[:, : self.num_features]


def pixels(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 4, d))).to(torch.uint8)


def test_frechet_is_that_of_torchmetrics() -> None:
    a, b = pixels(90, 4, 0), pixels(70, 4, 1) // 2
    metric = FrechetInceptionDistance(feature=Flat(6), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    ours = frechet_distance(Flat(6)(a).numpy(), Flat(6)(b).numpy())
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_frechet_is_the_formula_with_scipys_root(d: int) -> None:
    a, b = sets(d=d)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    root = np.real(sqrtm(first @ second))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_known_gaussians() -> None:
    a = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + np.array([3, 4])) == pytest.approx(25)
    assert frechet_distance(a, 3 * a) == pytest.approx(2 * (np.sqrt(2 / 3) * 2) ** 2)  # (3 s - s)^2 in each direction


@pytest.mark.parametrize("rows", [2, 3, 10])
def test_frechet_without_full_rank_stays_exact(rows: int) -> None:
    a, b = sets(rows, rows + 1, d=50)
    value = frechet_distance(a, b)
    # the same points in a space of just their dimensions, where the covariances can be rooted
    basis = np.linalg.qr(np.concatenate([a, b]).T)[0]
    low_a, low_b = a @ basis, b @ basis
    roots = []
    for low in (low_a, low_b):
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(low, rowvar=False)))
        roots.append(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = (
        np.square(low_a.mean(0) - low_b.mean(0)).sum()
        + np.square(roots[0]).sum()
        + np.square(roots[1]).sum()
        - 2 * cross
    )
    assert value == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a.copy()) == pytest.approx(0, abs=1e-9)


def test_frechet_of_constant_features_is_the_distance_of_means() -> None:
    assert frechet_distance(np.zeros((5, 8)), np.full((3, 8), 2.0)) == pytest.approx(32)
    assert frechet_distance(np.full((5, 8), 1e6), np.full((3, 8), 1e6)) == 0


def test_kernel_distance_of_all_rows_is_the_double_loop() -> None:
    a, b = sets(12, 12, d=4)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(12) for j in range(12) if i != j) / (12 * 11)
    across = sum(k(x, y) for x in a for y in b) / 144
    mean, std = kernel_distance(a, b, subsets=3, subset_size=12, generator=generator())
    assert mean == pytest.approx(within - 2 * across, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    a, b = pixels(40, 4, 0), pixels(40, 4, 1) // 2
    metric = KernelInceptionDistance(feature=Flat(6), subsets=2, subset_size=40).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    ours, _ = kernel_distance(Flat(6)(a).numpy(), Flat(6)(b).numpy(), subsets=2, subset_size=40, generator=generator())
    assert ours == pytest.approx(metric.compute()[0].item(), rel=1e-5)


def test_kernel_distance_is_unbiased_and_the_subsets_are_the_generators() -> None:
    a, b = sets(400, 400, d=6, apart=0)[0], sets(400, 400, d=6, seed=1)[0]
    near = kernel_distance(a, b, subsets=60, subset_size=100, generator=generator())
    assert abs(near[0]) < near[1]
    assert near == kernel_distance(a, b, subsets=60, subset_size=100, generator=generator())
    assert near != kernel_distance(a, b, subsets=60, subset_size=100, generator=np.random.default_rng(8))
    far = kernel_distance(a, b + 1, subsets=60, subset_size=100, generator=generator())
    assert far[0] > 5 * far[1] > 0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_those_of_the_pairwise_table(k: int) -> None:
    real, fake = sets(50, 70, d=3, apart=1)

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = np.sort(euclidean_distances(manifold), axis=1)[:, k]  # the first is the row itself
        return float((euclidean_distances(points, manifold) <= radii).any(axis=1).mean())

    precision, recall = precision_recall(real, fake, k=k)
    assert (precision, recall) == (share(fake, real), share(real, fake))
    assert 0 < precision < 1 and 0 < recall < 1


def test_precision_and_recall_at_their_ends() -> None:
    real, fake = sets(50, 50, d=3)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, fake + 1000) == (0, 0)
    precision, recall = precision_recall(real, np.repeat(real[:1], 50, axis=0))
    assert precision == 1 and recall <= 0.04


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = sets(50, 70)
    whole = precision_recall(a, b), kernel_distance(a, b, subsets=2, subset_size=40, generator=generator())
    monkeypatch.setattr(distances, "CHUNK_VALUES", 7 * 70)
    assert precision_recall(a, b) == whole[0]
    assert kernel_distance(a, b, subsets=2, subset_size=40, generator=generator())[0] == pytest.approx(whole[1][0])


def test_diversity_is_the_mean_of_all_pairs() -> None:
    rows, _ = sets(30, 2, d=4)
    labels = np.array([0] * 9 + [1] * 20 + [3])
    expected = [cosine_distances(rows[labels == c])[np.triu_indices((labels == c).sum(), 1)].mean() for c in (0, 1)]
    assert diversity(rows, labels, 4) == [pytest.approx(expected[0]), pytest.approx(expected[1]), None, None]
    assert diversity(np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64), 1)[0] == pytest.approx(
        0, abs=1e-12
    )
    assert diversity(np.zeros((3, 2)), np.zeros(3, dtype=np.int64), 1) == [1]
