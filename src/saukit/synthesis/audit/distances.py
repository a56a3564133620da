"""How far two sets of images lie apart, from their features: Fréchet and kernel distance, precision and recall.

All in float64 on plain arrays [n, d]; work over pairs goes in chunks, so that 10,000 x 10,000 needs no memory to speak
of. The numbers depend on the features: with another network than Inception they are not FID or KID, and comparable only
among sets measured with the same one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.machine import slices
from saukit.data.types import Integers

Features = npt.NDArray[Any]  # of floats
Doubles = npt.NDArray[np.float64]

CHUNK_VALUES = 2**22  # float64 of a chunk of pairs: 32 MiB


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017, Eq. 6).

        |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),  covariances with n - 1

    The root is not taken: with C = R^T R, R of the QR decomposition of the centred rows, its trace is the sum of the
    singular values of R_a R_b^T. So covariances without full rank (fewer rows than dimensions) are as good as any.

    Shapes: a [n, d]; b [m, d], two rows at least.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = a.mean(0) - b.mean(0)
    root_a, root_b = _root(a), _root(b)
    singular = np.linalg.svd(root_a @ root_b.T, compute_uv=False)
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    return max(0.0, float(difference @ difference + traces - 2 * singular.sum()))


def kernel_distance(
    a: Features, b: Features, *, subsets: int, subset_size: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Squared maximum mean discrepancy, unbiased, over random subsets (KID; Binkowski et al. 2018): mean, deviation.

    Kernel (x . y / d + 1)^3. Each subset draws `subset_size` rows of each set without replacement. Unbiased: about 0,
    and as often below, for two draws from one distribution.

    Shapes: a [n, d]; b [m, d], `subset_size` rows at least.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    values = []
    for _ in range(subsets):
        x = a[generator.choice(len(a), subset_size, replace=False)]
        y = b[generator.choice(len(b), subset_size, replace=False)]
        values.append(_unbiased_mmd(x, y))
    return float(np.mean(values)), float(np.std(values))


def precision_recall(real: Features, fake: Features, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eq. 1-3).

    Precision is the share of fake rows inside the real manifold, recall that of real rows inside the fake one. A row
    lies in a set's manifold if, for any row of the set, it is no farther away than that row's k-th nearest other row of
    the set.

    Shapes: real [n, d]; fake [m, d], more than k rows.
    """
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    in_real, in_fake = np.zeros(len(fake), dtype=bool), np.zeros(len(real), dtype=bool)
    for part, squares in _squared_distances(real, fake):
        in_real |= (squares <= real_radii[part, None]).any(axis=0)
        in_fake[part] = (squares <= fake_radii).any(axis=1)
    return float(in_real.mean()), float(in_fake.mean())


def diversity(features: Features, labels: Integers, num_classes: int) -> list[float | None]:
    """Mean cosine distance (1 - cosine) of all pairs of a class's rows; None for a class with fewer than two.

    Rows of zeros count as at distance 1 from all others.

    Shapes: features [n, d]; labels [n], 0 to num_classes - 1.
    """
    means: list[float | None] = []
    for c in range(num_classes):
        rows = features[labels == c].astype(np.float64)
        count = len(rows)
        if count < 2:
            means.append(None)
            continue
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(norms > 0, norms, 1)
        total = unit.sum(0)
        # the cosines of all pairs, each twice, and of each row with itself, without making a pair
        cosine = (total @ total - np.square(unit).sum()) / (count * (count - 1))
        means.append(max(0.0, float(1 - cosine)))
    return means


def _root(rows: Doubles) -> Doubles:
    """R [min(n, d), d] with R^T R the rows' covariance."""
    scaled: Doubles = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.linalg.qr(scaled).R


def _unbiased_mmd(x: Doubles, y: Doubles) -> float:
    """Of two sets of as many rows n: the mean of k(x, x') + k(y, y') over pairs of others, less twice that of k(x, y).

    Shapes: x, y [n, d].
    """
    count = len(x)
    within = sum(_kernel_sum(rows, rows) - _kernel_of_itself(rows) for rows in (x, y)) / (count * (count - 1))
    return float(within - 2 * _kernel_sum(x, y) / count**2)


def _kernel_sum(x: Doubles, y: Doubles) -> float:
    return sum(float(((x[part] @ y.T / x.shape[1] + 1) ** 3).sum()) for part in _parts(len(x), len(y)))


def _kernel_of_itself(x: Doubles) -> float:
    return float(((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum())


def _radii(rows: Doubles, k: int) -> Doubles:
    """Squared distance of each row to its k-th nearest other row, [n]."""
    radii = np.empty(len(rows))
    for part, squares in _squared_distances(rows, rows):
        squares[np.arange(len(squares)), np.arange(part.start, part.stop)] = np.inf
        radii[part] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii


def _squared_distances(a: Doubles, b: Doubles) -> Iterator[tuple[slice, Doubles]]:
    """Chunk by chunk of a's rows, [p, m]."""
    # about a common centre: what large means would round away
    centre = a.mean(0)
    a, b = a - centre, b - centre
    squares_a, squares_b = np.square(a).sum(1), np.square(b).sum(1)
    for part in _parts(len(a), len(b)):
        yield part, np.maximum(squares_a[part, None] + squares_b - 2 * a[part] @ b.T, 0)


def _parts(rows: int, columns: int) -> Iterator[slice]:
    return slices(rows, max(1, CHUNK_VALUES // max(1, columns)))
