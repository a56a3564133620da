import dataclasses

import numpy as np
import pytest

from saukit.core.errors import DataError, UsageError
from saukit.data.config import ResolvedSplitConfig, SplitConfig, settled
from saukit.data.plan import Choice, choose, plan_split, resolved_for
from saukit.data.source import Pixels, Source
from saukit.data.sources.table import open_source

from .conftest import TreeMaker, loaded


def chosen(config: SplitConfig, source: Source | None = None) -> tuple[Choice, Source]:
    source = source or open_source(config, None)
    return choose(resolved_for(settled(config), source), source, None), source


def test_parts_are_disjoint_and_the_test_part_is_stratified() -> None:
    choice, source = chosen(SplitConfig(imb=20, val_fraction=0.25))
    together = np.concatenate([choice.train, choice.val, choice.test])
    assert len(np.unique(together)) == len(together)
    for index in range(10):
        share = (source.train_labels[choice.test] == index).sum() / (source.train_labels == index).sum()
        assert share == pytest.approx(0.2, abs=0.003)


def test_the_test_part_depends_on_the_seed_alone_not_on_the_profile() -> None:
    first = chosen(SplitConfig(imb=20))[0].test
    assert (chosen(SplitConfig(profile="step", imb=5, val_fraction=0.1))[0].test == first).all()
    assert not np.array_equal(chosen(SplitConfig(imb=20, seed=1))[0].test, first)


def test_the_validation_part_comes_out_of_the_training_part() -> None:
    whole = chosen(SplitConfig(imb=20))[0].train
    choice = chosen(SplitConfig(imb=20, val_fraction=0.25))[0]
    assert sorted([*choice.train, *choice.val]) == sorted(whole)
    assert choice.train.tolist() == [position for position in whole if position in set(choice.train)]  # order kept


def test_counts_and_groups_are_those_left_after_validation() -> None:
    plan = plan_split(SplitConfig(counts={"0": 102, "1": 20, "2": 1}, val_fraction=0.1), None)
    assert plan.train_counts[:3] == (92, 18, 1) and plan.val_counts[:3] == (10, 2, 0)
    assert plan.groups.of_class(1) == "few"
    assert plan.summary["train_images"] == sum(plan.train_counts)


def test_profile_none_keeps_every_image_in_the_order_of_the_source() -> None:
    choice, _ = chosen(SplitConfig(profile="none"))
    assert len(choice.train) + len(choice.test) == 1797
    assert (np.diff(choice.train) > 0).all()


def test_the_resolved_configuration_repeats_itself(make_tree: TreeMaker) -> None:
    plan = plan_split(SplitConfig(imb=0.02), None)
    assert plan.config == ResolvedSplitConfig(imb=50.0, profile="exp", image_size=8, test_fraction=0.2, flip=False)
    assert plan_split(plan.config, None) == plan
    root = make_tree({"cat": 9, "dog": 8, "eel": 7})
    plan = plan_split(SplitConfig(dataset="folder", counts={"2": 3, "cat": 4}), root)
    assert plan.config.counts == {"cat": 4, "eel": 3} and plan.config.profile == "counts"
    assert plan.train_counts == (4, 6, 3) and plan.test_counts == (2, 2, 1)
    assert plan_split(plan.config, root) == plan


def test_a_class_with_one_image_gives_none_to_the_test_set(make_tree: TreeMaker) -> None:
    plan = plan_split(SplitConfig(dataset="folder"), make_tree({"cat": 5, "dog": 1, "eel": 2}))
    assert (plan.train_counts, plan.test_counts) == ((4, 1, 1), (1, 0, 1))
    assert plan.warnings == ("classes without a test image, whose accuracy will be absent: dog",)
    with pytest.raises(DataError, match="there is no test image: no class has two images"):
        plan_split(SplitConfig(dataset="folder"), make_tree({"cat": 1, "dog": 1}, name="ones"))


def test_one_image_is_enough_where_there_is_a_test_folder(make_tree: TreeMaker) -> None:
    make_tree({"cat": 5, "dog": 1}, under="train")
    root = make_tree({"cat": 5, "dog": 1}, under="test")
    plan = plan_split(SplitConfig(dataset="folder"), root)
    assert (plan.train_counts, plan.test_counts, plan.config.test_fraction) == ((5, 1), (5, 1), None)
    with pytest.raises(UsageError, match="has a test set of its own: leave test_fraction out"):
        plan_split(SplitConfig(dataset="folder", test_fraction=0.1), root)


def test_a_validation_part_of_its_own_is_used_whole(make_tree: TreeMaker) -> None:
    for part, counts in (
        ("train", {"cat": 8, "dog": 4}),
        ("test", {"cat": 2, "dog": 2}),
        ("val", {"cat": 3, "dog": 1}),
    ):
        root = make_tree(counts, under=part)
    plan = plan_split(SplitConfig(dataset="folder", imb=4, profile="exp"), root)
    assert (plan.train_counts, plan.val_counts, plan.test_counts) == ((6, 1), (3, 1), (2, 2))
    with pytest.raises(UsageError, match="this folder has a validation part of its own: leave val_fraction out"):
        plan_split(SplitConfig(dataset="folder", val_fraction=0.1), root)


def test_no_class_that_can_give_to_the_validation_part(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 2, "dog": 2})
    with pytest.raises(DataError, match="no class has two images, so none can give one to the validation part"):
        plan_split(SplitConfig(dataset="folder", val_fraction=0.1), root)


def test_unreadable_images_are_never_chosen() -> None:
    source = open_source(SplitConfig(), None)
    config = resolved_for(settled(SplitConfig(imb=5)), source)
    ok = np.ones(1797, bool)
    ok[::3] = False
    pixels = dataclasses.replace(loaded(source, 8), ok={"train": ok})
    choice = choose(config, source, pixels)
    assert ok[choice.train].all() and ok[choice.test].all()
    lost = Pixels(pixels.read, {"train": source.train_labels != 4})
    with pytest.raises(DataError, match=r"none in: 4;"):
        choose(config, source, lost)
