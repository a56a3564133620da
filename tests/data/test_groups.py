from collections import defaultdict

import numpy as np
import pytest

from saukit.core.errors import DataError
from saukit.data.config import SplitConfig, settled
from saukit.data.groups import group_keys, grouped_part
from saukit.data.plan import choose, resolved_for
from saukit.data.source import Source
from saukit.data.types import Integers


def drawn(seed: int, classes: int, groups: int, images: int) -> tuple[Integers, list[str]]:
    """Images of long-tailed classes in groups of unequal size; every class has images of at least six groups."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), 6), random.geometric(0.5, images) % classes])
    keys = [f"p{index % groups}" for index in range(6 * classes)] + [
        f"p{int(groups * x**2)}" for x in random.random(images)
    ]
    return labels.astype(np.int64), keys


def source_of(
    labels: Integers, files: list[str] | None = None, keys: list[str] | None = None, **parts: object
) -> Source:
    def never(*_: object) -> object:
        raise AssertionError("nothing is decoded here")

    return Source(
        classes=tuple(f"c{index}" for index in range(labels.max() + 1)),
        train_labels=labels,
        test_labels=None,
        image_size=8,
        load=never,  # type: ignore[arg-type]
        files=None if files is None else lambda: {"train": files},
        groups=None if keys is None else {"train": keys},
        **parts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "groups", "images"), [(2, 40, 300), (10, 200, 2000), (5, 12, 100)])
def test_no_group_is_on_two_sides_and_shares_are_about_right(seed: int, classes: int, groups: int, images: int) -> None:
    labels, keys = drawn(seed, classes, groups, images)
    rest, part = grouped_part(labels, keys, 0.2, classes, seed=seed, purpose="test part")
    assert sorted([*rest, *part]) == list(range(len(labels)))
    sides = defaultdict(set)  # the plain loop
    for name, positions in (("rest", rest), ("part", part)):
        for position in positions:
            sides[keys[position]].add(name)
    assert all(len(side) == 1 for side in sides.values())
    for label in range(classes):
        of_class = [position for position in range(len(labels)) if labels[position] == label]
        taken = sum(position in set(part.tolist()) for position in of_class)
        largest = max(sum(keys[p] == key for p in of_class) for key in set(keys))
        assert 0 < taken < len(of_class)
        assert abs(taken - 0.2 * len(of_class)) <= largest + 1  # no class is further off than its largest group
    assert abs(len(part) / len(labels) - 0.2) < 0.1


def test_groups_of_one_image_give_the_same_shares_as_no_groups() -> None:
    labels = np.repeat(np.arange(3), (50, 20, 5))
    _, part = grouped_part(labels, [str(index) for index in range(75)], 0.2, 3, seed=0, purpose="test part")
    assert np.bincount(labels[part]).tolist() == [10, 4, 1]


def test_the_seed_decides_and_repeats() -> None:
    labels, keys = drawn(0, 5, 60, 400)
    first, again, other = (
        grouped_part(labels, keys, 0.3, 5, seed=seed, purpose="test part")[1].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_key_comes_from_a_path_or_from_a_column() -> None:
    labels = np.array([0, 0, 1, 1])
    files = ["a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "b/p3_1.png"]
    assert group_keys(source_of(labels, files), None) is None
    assert group_keys(source_of(labels, files), r"(p\d)_") == {"train": ["p1", "p1", "p2", "p3"]}
    assert group_keys(source_of(labels, files), r"p\d") == {"train": ["p1", "p1", "p2", "p3"]}  # no group: all of it
    assert group_keys(source_of(labels, files, ["x", "y", "x", "y"]), None) == {"train": ["x", "y", "x", "y"]}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("patient", r"group_by 'patient' does not match 4 of 4 paths: a/p1_1.png, .*name of a column"),
        (r"(p1)", "does not match 2 of 4 paths: b/p2_1.png, b/p3_1.png"),
        (r"p\d_(x)?", r"does not match 4 of 4"),  # it matches, but its group does not
    ],
)
def test_a_path_without_a_key_is_told(pattern: str, message: str) -> None:
    files = ["a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "b/p3_1.png"]
    with pytest.raises(DataError, match=message):
        group_keys(source_of(np.array([0, 0, 1, 1]), files), pattern)


def test_images_without_names_have_no_groups() -> None:
    with pytest.raises(DataError, match="'x' is not a column, and these images have no file names"):
        group_keys(source_of(np.array([0, 1])), "x")


def test_a_group_in_two_parts_of_the_source_is_told() -> None:
    parts = {"train": ["1/a", "2/b"], "test": ["2/c"], "val": ["3/d"]}
    source = source_of(np.array([0, 1]))
    source = Source(**{**source.__dict__, "files": lambda: parts})
    with pytest.raises(
        DataError, match=r"1 group is in both the train and the test part: 2; move .* leave out --group-by"
    ):
        group_keys(source, r"(\d)/")


def test_a_split_keeps_groups_in_one_part() -> None:
    labels, keys = drawn(3, 4, 80, 600)
    source = source_of(labels, keys=keys)
    config = resolved_for(settled(SplitConfig(dataset="folder", imb=5, val_fraction=0.2, test_fraction=0.25)), source)
    choice = choose(config, source)
    parts = [{keys[position] for position in part} for part in (choice.train, choice.val, choice.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(choice.test) and len(choice.val)


def test_a_class_of_one_group_cannot_be_on_both_sides() -> None:
    source = source_of(np.repeat([0, 1], 8), keys=[f"a{i}" for i in range(8)] + ["only"] * 8)
    config = resolved_for(settled(SplitConfig(dataset="folder")), source)
    message = (
        r"groups cannot be kept on one side .*: c1 \((8 and 0|0 and 8)\); add groups to these classes, or leave out"
    )
    with pytest.raises(DataError, match=message):
        choose(config, source)


def test_a_class_of_one_image_is_trained_on() -> None:
    source = source_of(np.array([0, 0, 0, 0, 1]), keys=["a", "b", "c", "d", "e"])
    choice = choose(resolved_for(settled(SplitConfig(dataset="folder")), source), source)
    assert 4 in choice.train and source.train_labels[choice.test].tolist() == [0]


def test_a_validation_part_without_two_groups_is_told() -> None:
    source = source_of(np.repeat([0, 1], 4), keys=["a", "b", "b", "b", "c", "d", "d", "d"])
    config = resolved_for(settled(SplitConfig(dataset="folder", val_fraction=0.2)), source)
    with pytest.raises(DataError, match="no class has two groups, so none can give one to the validation part"):
        choose(config, source)
