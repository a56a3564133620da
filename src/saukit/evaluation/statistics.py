"""What a few training seeds tell: means, standard deviations, and paired differences with their intervals.

Numbers that are absent are None. The interval is Student's, so it takes the differences over seeds for normal. It
covers what the training seed decides (initialisation, order, augmentation) on one split, one cache and one test set.
It does not cover another draw of the split, another cache of synthetic images or other test images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences over `seeds` pairs and its interval.

    There is none for one pair, nor where all differences are equal: accuracies are counts of images, which a few seeds
    share by chance, and a spread of zero would then pass for certainty.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None if none is."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def standard_deviation(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation (n - 1) of the values that are there; None if fewer than two are."""
    there = [value for value in values if value is not None]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


def paired_difference(
    values: Sequence[float | None], baseline: Sequence[float | None], *, confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean difference, value - baseline of the same seed, and its Student-t interval; None if no pair is whole.

    Shapes: values and baseline, one number a seed, in the same order.
    Raises: ValueError if their lengths differ.
    """
    from scipy.stats import t

    pairs = zip(values, baseline, strict=True)
    differences = [value - other for value, other in pairs if value is not None and other is not None]
    if not differences:
        return None
    centre, seeds = float(np.mean(differences)), len(differences)
    # Equal but for rounding: 0.96 - 0.95 and 0.93 - 0.92 are no two numbers of images.
    if np.ptp(differences) <= 1e-9:
        return Difference(centre, None, None, seeds)
    half = float(t.ppf(0.5 + confidence / 2, seeds - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(seeds)
    return Difference(centre, centre - half, centre + half, seeds)
