"""What a few training seeds can say: means, standard deviations, and paired differences with their intervals.

Absent numbers are None. An interval is Student's, so it takes the differences over seeds for normal, and it needs at
least three of them. It covers what the training seed decides (initialisation, order, augmentation) on one split, one
cache and one test set; not another sample of the split, another cache of synthetic images or other test images.

A table of many differences has some whose interval excludes zero by chance. `holm` therefore adjusts the p-values of
one table (Holm 1979, "A simple sequentially rejective multiple test procedure"), and a difference is called clear only
if it stays significant: the chance of one or more false "clear" in that table is then at most 1 - confidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95
MIN_SEEDS = 3  # two seeds give intervals of +-181 points: Student's factor is 12.7 there, and 4.3 with three


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences over `seeds` pairs, its interval, and its two-sided p-value.

    low, high and p are None with fewer than three pairs, and where all differences are equal: accuracies are counts of
    images, which a few seeds share by chance, and a spread of zero would then pass for certainty.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    clear: bool
    seeds: int


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None if there are none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def standard_deviation(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation (n - 1) of the values that are there; None if there are fewer than two."""
    there = [value for value in values if value is not None]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


def paired_difference(
    values: Sequence[float | None], baseline: Sequence[float | None], *, confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean difference, value - baseline of the same seed, with its Student-t interval; None without a whole pair.

    Shapes: values and baseline, one number per seed, in the same order.
    Raises: ValueError if their lengths differ.
    """
    from scipy.stats import t

    pairs = zip(values, baseline, strict=True)
    differences = [value - other for value, other in pairs if value is not None and other is not None]
    if not differences:
        return None
    centre, seeds = float(np.mean(differences)), len(differences)
    # Equal but for rounding: 0.96 - 0.95 and 0.93 - 0.92 are the same number of images.
    if seeds < MIN_SEEDS or np.ptp(differences) <= 1e-9:
        return Difference(centre, None, None, None, False, seeds)
    error = float(np.std(differences, ddof=1)) / math.sqrt(seeds)
    half = float(t.ppf(0.5 + confidence / 2, seeds - 1)) * error
    p = 2 * float(t.sf(abs(centre) / error, seeds - 1))
    return Difference(centre, centre - half, centre + half, p, p < 1 - confidence, seeds)


def holm(table: Sequence[Difference | None], *, confidence: float = CONFIDENCE) -> list[Difference | None]:
    """The differences of one table with p-values adjusted by Holm's procedure; `clear` follows them."""
    tested = sorted((d.p, place) for place, d in enumerate(table) if d is not None and d.p is not None)
    adjusted, largest = list(table), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        if (difference := table[place]) is not None:
            adjusted[place] = replace(difference, p=largest, clear=largest < 1 - confidence)
    return adjusted
