import subprocess
import sys

import pytest

from saukit.core.config import from_mapping, to_mapping
from saukit.core.errors import UsageError
from saukit.data.config import DATASETS, SplitConfig, ratio, settled
from saukit.data.sources import TABLE


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1, 1), (100, 100), (0.01, 100), (0.1, 10), (0.02, 50), (1 / 49, 49), (1 / 3, 3), (0.4, 2.5)],
)
def test_a_ratio_and_its_inverse_mean_the_same(given: float, expected: float) -> None:
    assert ratio(given) == expected


@pytest.mark.parametrize("given", [0, -1, -0.01, float("nan"), float("inf"), float("-inf")])
def test_a_ratio_that_is_none_is_refused_with_its_value(given: float) -> None:
    with pytest.raises(UsageError, match=rf"imb must be at least 1 .*inverse in \(0, 1\), got {given:g}$"):
        settled(SplitConfig(imb=given))


def test_the_table_has_a_line_for_each_known_name() -> None:
    assert {*TABLE, "folder"} == set(DATASETS)


def test_an_unknown_dataset_lists_the_known_and_the_closest() -> None:
    with pytest.raises(
        UsageError, match=r"'cifar-10' \(did you mean cifar10\?\): choose one of digits, cifar10, .*folder"
    ):
        settled(SplitConfig("cifar-10"))
    with pytest.raises(UsageError, match=r"unknown dataset 'qqq': choose"):
        settled(SplitConfig("qqq"))


def test_defaults_by_dataset() -> None:
    digits = settled(SplitConfig())
    assert (digits.profile, digits.imb, digits.test_fraction) == ("exp", 100, 0.2)
    cifar = settled(SplitConfig("cifar10"))
    assert (cifar.profile, cifar.imb, cifar.test_fraction) == ("exp", 100, None)
    folder = settled(SplitConfig("folder"))
    assert (folder.profile, folder.imb) == ("none", None)
    assert settled(SplitConfig("folder", imb=0.1)).profile == "exp"
    assert settled(SplitConfig(counts={"3": 4})).profile == "counts"


@pytest.mark.parametrize(
    "config",
    [
        SplitConfig(imb=0.01),
        SplitConfig("cifar10", profile="step"),
        SplitConfig("folder"),
        SplitConfig(counts={"1": 3}),
        SplitConfig("svhn", profile="none"),
    ],
)
def test_settling_twice_changes_nothing_and_survives_yaml(config: SplitConfig) -> None:
    once = settled(config)
    assert settled(once) == once
    assert from_mapping(SplitConfig, to_mapping(once), where="test") == once


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(profile="none", imb=10), "profile none keeps every image, so imb means nothing"),
        (SplitConfig(counts={"1": 3}, imb=10), "counts and imb contradict each other"),
        (SplitConfig(counts={"1": 3}, profile="exp"), "counts and profile 'exp' contradict"),
        (SplitConfig(profile="counts"), "profile counts needs counts"),
        (SplitConfig(counts={}), "counts names no class"),
        (SplitConfig("cifar10", test_fraction=0.3), "cifar10 has a test set of its own: leave test_fraction out"),
        (SplitConfig(test_fraction=0.0), "test_fraction must be above 0 and below 1, got 0"),
        (SplitConfig(test_fraction=1.0), "test_fraction must be above 0 and below 1, got 1"),
        (SplitConfig(val_fraction=0.6), r"val_fraction must be from 0 to 0.5, got 0.6"),
        (SplitConfig(val_fraction=float("nan")), r"val_fraction must be from 0 to 0.5, got nan"),
        (SplitConfig(image_size=2), "image_size must be from 4 to 1024 pixels, got 2"),
        (SplitConfig(seed=-1), "seed must be from 0 to 4294967295, got -1"),
        (SplitConfig(skip_bad=True), "skip_bad is for dataset folder"),
        (SplitConfig(groups="some"), "groups must be auto, thresholds, thirds or two numbers such as 100,20"),
        (SplitConfig(profile="zipf"), "unknown profile 'zipf': choose exp, step, pareto"),  # type: ignore[arg-type]
        (SplitConfig(protocol="x"), "unknown protocol 'x'"),  # type: ignore[arg-type]
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(config: SplitConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settled(config)


def test_the_configuration_needs_no_numpy() -> None:
    code = "import sys, saukit.data.config; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
