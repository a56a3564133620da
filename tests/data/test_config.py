import subprocess
import sys

import pytest

from saukit.core.config import from_mapping, to_mapping
from saukit.core.errors import UsageError
from saukit.data.config import ResolvedSplitConfig, SplitConfig, parse_counts, ratio, resolve, settled


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1, 1), (100, 100), (0.01, 100), (0.1, 10), (0.02, 50), (1 / 49, 49), (1 / 3, 3), (0.4, 2.5)],
)
def test_a_ratio_and_its_inverse_mean_the_same(given: float, expected: float) -> None:
    assert ratio(given) == expected


@pytest.mark.parametrize("given", [0, -1, -0.01, float("inf"), float("-inf")])
def test_a_ratio_that_means_nothing_is_refused_with_its_value(given: float) -> None:
    message = rf"^imb must be above 0 \(largest / smallest class, or its inverse\), got {float(given)}$"
    with pytest.raises(UsageError, match=message):
        settled(SplitConfig(imb=given))


def test_an_unknown_dataset_lists_the_known_and_the_closest() -> None:
    with pytest.raises(
        UsageError, match=r"'cifar-10' \(did you mean cifar10\?\): use one of digits, cifar10, .*folder"
    ):
        settled(SplitConfig(dataset="cifar-10"))
    with pytest.raises(UsageError, match=r"unknown dataset 'qqq': use"):
        settled(SplitConfig(dataset="qqq"))


def test_defaults_by_dataset() -> None:
    digits = settled(SplitConfig())
    assert (digits.profile, digits.imb, digits.test_fraction) == ("exp", 100, None)
    cifar = settled(SplitConfig(dataset="cifar10"))
    assert (cifar.profile, cifar.imb, cifar.test_fraction) == ("exp", 100, None)
    folder = settled(SplitConfig(dataset="folder"))
    assert (folder.profile, folder.imb) == ("none", None)
    assert settled(SplitConfig(dataset="folder", imb=0.1)).profile == "exp"
    assert settled(SplitConfig(counts={"3": 4})).profile == "counts"


@pytest.mark.parametrize(
    "config",
    [
        SplitConfig(imb=0.01),
        SplitConfig(dataset="cifar10", profile="step"),
        SplitConfig(dataset="folder"),
        SplitConfig(counts={"1": 3}),
        SplitConfig(dataset="svhn", profile="none"),
    ],
)
def test_settling_twice_changes_nothing_and_survives_yaml(config: SplitConfig) -> None:
    once = settled(config)
    assert settled(once) == once
    assert from_mapping(SplitConfig, to_mapping(once), where="test") == once


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(profile="none", imb=10), "imb has no effect with profile none: use profile exp, step or pareto"),
        (SplitConfig(counts={"1": 3}, imb=10), "imb has no effect with profile counts: use profile exp, step"),
        (SplitConfig(counts={"1": 3}, profile="exp"), "counts has no effect with profile exp: use profile counts"),
        (SplitConfig(profile="counts"), "profile counts needs counts: write CLASS=N"),
        (SplitConfig(counts={}), "counts names no class"),
        (
            SplitConfig(dataset="cifar10", test_fraction=0.3),
            "test_fraction has no effect with dataset cifar10: use dataset digits, huggingface, list or folder, or",
        ),
        (SplitConfig(test_fraction=0.0), "test_fraction must be above 0 and below 1, got 0"),
        (SplitConfig(test_fraction=1.0), "test_fraction must be above 0 and below 1, got 1"),
        (SplitConfig(val_fraction=0.6), "val_fraction must be at least 0 and at most 0.5, got 0.6"),
        (SplitConfig(val_fraction=float("nan")), "val_fraction: nan is not a number"),
        (SplitConfig(imb=float("nan")), "imb: nan is not a number"),
        (SplitConfig(image_size=2), "image_size must be at least 4 and at most 1024, got 2"),
        (SplitConfig(seed=-1), "seed must be at least 0 and at most 4294967295, got -1"),
        (SplitConfig(skip_bad=True), "skip_bad has no effect with dataset digits: use dataset imagenet-lt, places-lt"),
        (SplitConfig(groups="some"), "groups must be auto, thresholds, thirds or two numbers such as 100,20"),
        (SplitConfig(profile="zipf"), "profile: 'zipf' is not one of exp, step, pareto"),  # type: ignore[arg-type]
        (SplitConfig(protocol="x"), "protocol: 'x' is not one of ldam"),  # type: ignore[arg-type]
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(config: SplitConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settled(config)


def test_the_configuration_needs_no_numpy() -> None:
    code = "import sys, saukit.data.config; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_problem_is_listed() -> None:
    with pytest.raises(UsageError) as caught:
        settled(SplitConfig(imb=0, seed=-1, skip_bad=True))
    assert [text.split()[0] for text in str(caught.value).split("; ")] == ["imb", "seed", "skip_bad"]


def test_nothing_is_left_open_for_a_source_with_and_without_a_test_set() -> None:
    own = resolve(settled(SplitConfig(dataset="cifar10", image_size=16)), image_size=32, test_set=True)
    assert isinstance(own, ResolvedSplitConfig) and (own.image_size, own.test_fraction) == (16, None)
    none = resolve(settled(SplitConfig(dataset="folder")), image_size=64, test_set=False)
    assert (none.profile, none.image_size, none.test_fraction) == ("none", 64, 0.2)
    with pytest.raises(UsageError, match="this folder has a test set of its own: leave test_fraction out"):
        resolve(settled(SplitConfig(dataset="folder", test_fraction=0.1)), image_size=64, test_set=True)


def test_counts_on_the_command_line() -> None:
    assert parse_counts(["cat=50", "dog=7,a=b=3"]) == {"cat": 50, "dog": 7, "a=b": 3}
    for item in ("cat", "=3", "cat=", "cat=-1", "cat=1.5"):
        with pytest.raises(UsageError, match=f"'{item}' is not a count: write CLASS=N, such as --counts cat=50 dog=7"):
            parse_counts([item])
