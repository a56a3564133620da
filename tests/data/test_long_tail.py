import numpy as np
import pytest
from sklearn.datasets import load_digits

from saukit.core.errors import UsageError
from saukit.data.long_tail import (
    class_counts,
    fitting_counts,
    named_classes,
    named_counts,
    profile_counts,
    select_ldam,
    stratified_part,
)

CLASSES = ("cat", "dog", "eel")


def ldam_counts(img_max: float, classes: int, imb_factor: float) -> list[int]:
    """The usual CIFAR-LT recipe, in a plain loop."""
    return [int(img_max * (imb_factor ** (index / (classes - 1.0)))) for index in range(classes)]


def ldam_choice(targets: list[int], counts: list[int], seed: int) -> list[int]:
    """The usual CIFAR-LT recipe with NumPy's global generator, in a plain loop."""
    state = np.random.get_state()
    np.random.seed(seed)
    chosen: list[int] = []
    for the_class, the_number in zip(np.unique(targets), counts, strict=True):
        positions = np.where(np.array(targets) == the_class)[0]
        np.random.shuffle(positions)
        chosen.extend(positions[:the_number].tolist())
    np.random.set_state(state)
    return chosen


@pytest.mark.parametrize(("imb", "total"), [(10, 20431), (50, 13996), (100, 12406), (200, 11203)])
def test_exp_on_cifar10_has_the_published_counts(imb: float, total: int) -> None:
    counts = fitting_counts("exp", imb, np.full(10, 5000))
    assert counts.tolist() == ldam_counts(5000, 10, 1 / imb)
    assert counts.sum() == total


@pytest.mark.parametrize(("imb", "total"), [(10, 19573), (50, 12608), (100, 10847), (200, 9502)])
def test_exp_on_cifar100_has_the_published_counts(imb: float, total: int) -> None:
    counts = fitting_counts("exp", imb, np.full(100, 500))
    assert counts.tolist() == ldam_counts(500, 100, 1 / imb)
    assert counts.sum() == total


def test_exp_at_100_is_the_well_known_line() -> None:
    assert profile_counts("exp", 5000, 100, 10).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_step_loses_no_class_of_an_odd_number() -> None:
    assert profile_counts("step", 500, 100, 5).tolist() == [500, 500, 5, 5, 5]
    assert profile_counts("step", 500, 3, 2).tolist() == [500, 166]


def test_pareto_falls_from_head_to_tail_by_the_ratio_along_a_power_law() -> None:
    counts = profile_counts("pareto", 1280, 256, 1000)
    assert (counts[0], counts[-1]) == (1280, 5)
    assert (np.diff(counts) <= 0).all()
    x = 1 + (256 ** (1 / 7) - 1) * 500 / 999  # the formula at one class, by hand
    assert counts[500] == int(1280 * x**-7)


@pytest.mark.parametrize("profile", ["exp", "step", "pareto"])
@pytest.mark.parametrize("imb", [1, 3, 49, 100, 2.5])
def test_the_smallest_class_has_its_exact_share(profile: str, imb: float) -> None:
    """Floating point must not lose an image: 49 * (1 / 49) is below 1."""
    n_max = int(imb * 20)
    assert profile_counts(profile, n_max, imb, 10)[[0, -1]].tolist() == [n_max, 20]


@pytest.mark.parametrize("profile", ["exp", "step", "pareto"])
@pytest.mark.parametrize("seed", range(5))
def test_unequal_classes_get_the_largest_n_max_that_all_can_bear(profile: str, seed: int) -> None:
    available = np.random.default_rng(seed).integers(20, 90, 7)
    imb = 6.0
    fitting = [
        n
        for n in range(1, available.sum() // 7 + 1)
        if all(profile_counts(profile, n, imb, 7)[c] <= available[c] for c in range(7))
    ]
    assert fitting_counts(profile, imb, available).tolist() == profile_counts(profile, max(fitting), imb, 7).tolist()


def test_a_ratio_beyond_the_head_names_the_largest_possible() -> None:
    available = np.array([60, 50, 40, 30])  # n_max is 180 // 4 = 45
    with pytest.raises(UsageError, match=r"imb 46 leaves the smallest class without an image.*imb can be 45 at most"):
        fitting_counts("exp", 46, available)
    assert fitting_counts("exp", 45, available)[-1] == 1


def test_named_counts_keep_what_is_not_named() -> None:
    assert named_counts({"dog": 2}, CLASSES, np.array([5, 6, 7])).tolist() == [5, 2, 7]
    assert named_counts({"0": 1, "eel": 7}, CLASSES, np.array([5, 6, 7])).tolist() == [1, 6, 7]


def test_named_counts_list_everything_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match=r"cat=0 \(1 to 5 are possible\), eel=8 \(1 to 7 are possible\)$"):
        named_counts({"cat": 0, "dog": 6, "eel": 8}, CLASSES, np.array([5, 6, 7]))
    with pytest.raises(UsageError, match=r"unknown classes 'cow', '3': there are cat, dog, eel$"):
        named_classes({"cow": 1, "3": 2, "cat": 1}, CLASSES)
    with pytest.raises(UsageError, match=r"counts name a class twice: dog$"):
        named_classes({"dog": 1, "1": 2}, CLASSES)


def test_a_number_is_a_name_where_classes_have_numbers_for_names() -> None:
    assert named_classes({"7": 1}, ("7", "5", "3")) == {"7": 0}
    with pytest.raises(UsageError, match="unknown classes '0'"):
        named_classes({"0": 1}, ("7", "5", "3"))


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("imb", [10, 50, 100])
def test_selection_is_the_literal_loop_of_ldam(seed: int, imb: float) -> None:
    labels = load_digits().target.astype(np.int64)
    counts = fitting_counts("exp", imb, class_counts(labels, 10))
    assert select_ldam(labels, counts, seed).tolist() == ldam_choice(labels.tolist(), counts.tolist(), seed)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_a_stratified_part_leaves_and_takes_of_each_class(fraction: float) -> None:
    labels = np.repeat(np.arange(5), [1, 2, 3, 50, 400])
    kept, taken = stratified_part(labels, fraction, 5, seed=3, purpose="test")
    assert sorted([*kept, *taken]) == list(range(len(labels)))
    for index, size in enumerate([1, 2, 3, 50, 400]):
        expected = 0 if size == 1 else min(max(round(size * fraction), 1), size - 1)
        assert (labels[taken] == index).sum() == expected
    again = stratified_part(labels, fraction, 5, seed=3, purpose="test")[1]
    assert again.tolist() == taken.tolist()


def test_another_seed_takes_another_part() -> None:
    labels = np.repeat(np.arange(2), 50)
    parts = {tuple(stratified_part(labels, 0.2, 2, seed=seed, purpose="test")[1]) for seed in range(5)}
    assert len(parts) == 5
