import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from saukit.evaluation.statistics import Difference, holm, mean, paired_difference, standard_deviation


@pytest.mark.parametrize("seeds", [3, 5, 20])
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
    assert difference.p == pytest.approx(ttest_rel(values, baseline).pvalue, abs=1e-12)
    assert difference.clear == (ttest_rel(values, baseline).pvalue < 1 - confidence)


def test_by_the_table_of_students_t() -> None:
    """Differences 1, 2, 3 have mean 2 and standard deviation 1; t(0.975) with 2 degrees of freedom is 4.3027."""
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert difference is not None and difference.low is not None and difference.high is not None
    assert difference.high - difference.mean == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert not difference.clear


@pytest.mark.parametrize(
    ("values", "baseline", "clear"),
    [([0.9, 0.91, 0.9], [0.8, 0.8, 0.81], True), ([0.8, 0.8, 0.81], [0.9, 0.91, 0.9], True),
     ([0.9, 0.7, 0.8], [0.8, 0.8, 0.8], False)],
)  # fmt: skip
def test_clear_is_said_on_both_sides(values: list[float], baseline: list[float], clear: bool) -> None:
    difference = paired_difference(values, baseline)
    assert difference is not None and difference.clear is clear


@pytest.mark.parametrize(
    ("values", "baseline", "expected"),
    [([0.75, 0.5, 1.0], [0.5, 0.25, 0.75], 0.25), ([0.96, 0.93, 0.91], [0.95, 0.92, 0.9], 0.01)],
)
def test_equal_differences_pass_for_no_certainty(values: list[float], baseline: list[float], expected: float) -> None:
    """Accuracies are counts of images: a few seeds have the same difference by chance, and its spread is not zero."""
    difference = paired_difference(values, baseline)
    assert difference is not None and difference.mean == pytest.approx(expected, abs=1e-12)
    assert (difference.low, difference.high, difference.p, difference.clear) == (None, None, None, False)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_have_a_difference_and_no_interval(seeds: int) -> None:
    """Two of them would have one of +-181 points here."""
    difference = paired_difference([0.75, 0.95][:seeds], [0.5, 0.4149][:seeds])
    assert difference is not None and difference.mean > 0.2
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert (difference.clear, difference.seeds) == (False, seeds)


def step_down(p_values: list[float], level: float) -> list[bool]:
    """Holm 1979, as he writes it: from the smallest p-value on, reject while p < level / (hypotheses left)."""
    rejected, left = [False] * len(p_values), len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: p_values[place]):
        if p_values[place] >= level / left:
            break
        rejected[place], left = True, left - 1
    return rejected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1, 2, 7])
def test_holm_rejects_what_its_steps_reject(seed: int, size: int) -> None:
    p_values = (np.random.default_rng(seed).uniform(0, 1, size) ** 4).tolist()
    table: list[Difference | None] = [Difference(0.1, 0.0, 0.2, p, p < 0.05, 5) for p in p_values]
    with_gaps = [None, *table, Difference(0.1, None, None, None, False, 2)]
    adjusted = holm(with_gaps, confidence=0.95)
    assert adjusted[0] is None and adjusted[-1] == with_gaps[-1]  # neither counts as a test
    found = [difference for difference in adjusted[1:-1] if difference is not None]
    assert [difference.clear for difference in found] == step_down(p_values, 0.05)
    assert all(d.p is not None and d.p >= p for d, p in zip(found, p_values, strict=True))


def test_holm_by_hand() -> None:
    """0.01, 0.02 and 0.03: 3 x 0.01, 2 x 0.02, and 0.03 which must not be below 0.04."""
    found = holm([Difference(0.1, 0.0, 0.2, p, True, 5) for p in (0.03, 0.01, 0.02)], confidence=0.95)
    assert [d.p for d in found if d is not None] == pytest.approx([0.04, 0.03, 0.04])
    assert all(d is not None and d.clear for d in found)


def test_one_seed_has_no_deviation() -> None:
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
