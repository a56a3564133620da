import pytest

from saukit.core.errors import UsageError
from saukit.data.shots import shot_groups

CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_thresholds_at_their_edges() -> None:
    groups = shot_groups([101, 100, 20, 19, 1], "auto")
    assert groups.members == {"many": (0,), "medium": (1, 2), "few": (3, 4)}
    assert groups.rule == "thresholds: many > 100, medium 20-100, few < 20"
    assert [groups.of_class(index) for index in range(5)] == ["many", "medium", "medium", "few", "few"]


def test_auto_falls_back_to_thirds_and_says_why() -> None:
    groups = shot_groups(CIFAR10_LT_100, "auto")
    assert groups.members == {"many": (0, 1, 2), "medium": (3, 4, 5, 6), "few": (7, 8, 9)}
    assert groups.rule == "thirds by rank (no class has fewer than 20 images)"
    assert shot_groups([50, 30, 10], "auto").rule == "thirds by rank (no class has more than 100 images)"


def test_a_group_without_classes_is_absent() -> None:
    groups = shot_groups(CIFAR10_LT_100, "thresholds")
    assert groups.members == {"many": tuple(range(8)), "medium": (8, 9)}


def test_custom_thresholds() -> None:
    groups = shot_groups([51, 50, 5, 4], "50,5")
    assert groups.members == {"many": (0,), "medium": (1, 2), "few": (3,)}
    assert groups.rule == "thresholds: many > 50, medium 5-50, few < 5"


@pytest.mark.parametrize(
    ("counts", "members"),
    [
        ([3], {"many": (0,)}),
        ([1, 3], {"many": (1,), "few": (0,)}),
        ([1, 2, 3], {"many": (2,), "medium": (1,), "few": (0,)}),
        ([7, 7, 7, 7], {"many": (0,), "medium": (1, 2), "few": (3,)}),
        ([1, 9, 9, 5, 1, 9], {"many": (1, 2), "medium": (3, 5), "few": (0, 4)}),
    ],
)
def test_thirds_of_any_number_of_classes_with_ties_in_class_order(
    counts: list[int], members: dict[str, tuple[int, ...]]
) -> None:
    assert shot_groups(counts, "thirds").members == members


@pytest.mark.parametrize("size", range(1, 40))
def test_thirds_hold_each_class_once(size: int) -> None:
    counts = [(7 * index) % 11 for index in range(size)]
    members = shot_groups(counts, "thirds").members
    assert sorted(index for group in members.values() for index in group) == list(range(size))
    if size >= 3:
        assert len(members["many"]) == len(members["few"]) == size // 3
        assert min(counts[i] for i in members["many"]) >= max(counts[i] for i in members["few"])


@pytest.mark.parametrize("rule", ["100", "a,b", "100,20,3", "", "Auto"])
def test_an_unknown_rule_names_the_known(rule: str) -> None:
    with pytest.raises(UsageError, match=r"groups must be auto, thresholds, thirds or two numbers such as 100,20"):
        shot_groups([1, 2, 3], rule)


@pytest.mark.parametrize("rule", ["20,100", "10,0", "10,-3"])
def test_thresholds_in_the_wrong_order_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match=r"the first number .many above. must not be below the second"):
        shot_groups([1, 2, 3], rule)
