import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from saukit.evaluation.statistics import mean, paired_difference, standard_deviation


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_against_scipys_paired_t_test(seeds: int, confidence: float) -> None:
    draw = np.random.default_rng(seeds)
    values, baseline = draw.normal(0.9, 0.02, seeds).tolist(), draw.normal(0.88, 0.03, seeds).tolist()
    difference = paired_difference(values, baseline, confidence=confidence)
    assert difference is not None and difference.low is not None and difference.high is not None
    expected = ttest_rel(values, baseline).confidence_interval(confidence)
    assert difference.mean == pytest.approx(np.mean(np.subtract(values, baseline)), abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert difference.seeds == seeds
    assert difference.clear_of_zero == (ttest_rel(values, baseline).pvalue < 1 - confidence)


def test_by_the_table_of_students_t() -> None:
    """Differences 1, 2, 3 have mean 2 and standard deviation 1; t(0.975) with 2 degrees of freedom is 4.3027."""
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert difference is not None and difference.low is not None and difference.high is not None
    assert difference.high - difference.mean == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert not difference.clear_of_zero


@pytest.mark.parametrize(
    ("values", "baseline", "clear"),
    [([0.9, 0.91, 0.9], [0.8, 0.8, 0.81], True), ([0.8, 0.8, 0.81], [0.9, 0.91, 0.9], True),
     ([0.9, 0.7, 0.8], [0.8, 0.8, 0.8], False)],
)  # fmt: skip
def test_clear_of_zero_is_told_on_both_sides(values: list[float], baseline: list[float], clear: bool) -> None:
    difference = paired_difference(values, baseline)
    assert difference is not None and difference.clear_of_zero is clear


@pytest.mark.parametrize(
    ("values", "baseline", "expected"),
    [([0.75, 0.5, 1.0], [0.5, 0.25, 0.75], 0.25), ([0.5, 0.25], [0.5, 0.25], 0.0), ([0.96, 0.93], [0.95, 0.92], 0.01)],
)
def test_equal_differences_pass_for_no_certainty(values: list[float], baseline: list[float], expected: float) -> None:
    """Accuracies are counts of images: a few seeds have the same difference by chance, and its spread is not zero."""
    difference = paired_difference(values, baseline)
    assert difference is not None and difference.mean == pytest.approx(expected, abs=1e-12)
    assert (difference.low, difference.high, difference.clear_of_zero) == (None, None, False)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    difference = paired_difference([0.75], [0.5])
    assert difference is not None
    assert (difference.mean, difference.low, difference.high, difference.seeds) == (0.25, None, None, 1)
    assert not difference.clear_of_zero
    assert mean([0.75]) == 0.75 and standard_deviation([0.75]) is None


def test_what_is_absent_is_none() -> None:
    assert mean([None, None]) is None and standard_deviation([None, None]) is None
    assert paired_difference([None, None], [None, None]) is None
    assert mean([0.25, None, 0.75]) == 0.5
    assert standard_deviation([0.25, None, 0.75]) == pytest.approx(np.std([0.25, 0.75], ddof=1))
    assert standard_deviation([0.25, None]) is None
    pairs = paired_difference([0.5, None, 0.75, 1.0], [0.25, 0.5, None, 0.5])
    whole = paired_difference([0.5, 1.0], [0.25, 0.5])
    assert pairs == whole and pairs is not None and pairs.seeds == 2


def test_unequal_numbers_of_seeds() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_mean_and_standard_deviation_against_numpy(seeds: int) -> None:
    values = np.random.default_rng(seeds).uniform(0, 1, seeds)
    assert mean(values.tolist()) == pytest.approx(values.mean(), abs=1e-15)
    assert standard_deviation(values.tolist()) == pytest.approx(values.std(ddof=1), abs=1e-15)
