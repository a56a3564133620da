"""What `saukit make-lt` can be told, and which of it contradicts itself."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import Literal

from saukit.core.errors import UsageError
from saukit.data.shots import parse_rule

Profile = Literal["exp", "step", "pareto", "counts", "none"]

# The names of the source table (data/sources.py); here so that `--help` knows them without loading anything.
DATASETS = ("digits", "cifar10", "cifar100", "fashion-mnist", "svhn", "folder")
WITHOUT_TEST_SET = ("digits",)  # a folder may or may not have one: only a look at it tells
DEFAULT_IMB = 100.0
DEFAULT_TEST_FRACTION = 0.2
IMAGE_SIZES = (4, 1024)
MAX_VAL_FRACTION = 0.5


@dataclass(frozen=True)
class SplitConfig:
    """A long-tailed split. Every default of `make-lt` lives here; None is "as the source suggests".

    imb: largest / smallest class; a value in (0, 1) is its inverse. None: 100 for exp, step and pareto.
    profile: None is `counts` with counts, `none` (keep every image) for a folder, else `exp`.
    counts: training images a class, by class name or index; classes that are not named keep all they have.
    image_size: pixels a side. None: the source's own; a folder of unequal or large images gets 64.
    test_fraction: share of each class that becomes the test set where the source has none. None: 0.2.
    val_fraction: share of the split's own training images that becomes the validation part.
    groups: auto, thresholds, thirds, or "100,20" for many > 100 and few < 20 training images.
    skip_bad: leave unreadable images of a folder out, instead of stopping.
    """

    dataset: str = "digits"
    imb: float | None = None
    profile: Profile | None = None
    counts: dict[str, int] | None = None
    protocol: Literal["ldam"] = "ldam"
    image_size: int | None = None
    test_fraction: float | None = None
    val_fraction: float = 0.0
    groups: str = "auto"
    skip_bad: bool = False
    seed: int = 0


def settled(config: SplitConfig) -> SplitConfig:
    """`config` with every default filled in that needs no look at the source; doing it twice changes nothing.

    Raises: UsageError for a value out of its range, or for options that contradict each other.
    """
    if config.dataset not in DATASETS:
        close = difflib.get_close_matches(config.dataset.lower(), DATASETS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"unknown dataset {config.dataset!r}{hint}: choose one of {', '.join(DATASETS)}")
    low, high = IMAGE_SIZES
    if config.image_size is not None and not low <= config.image_size <= high:
        raise UsageError(f"image_size must be from {low} to {high} pixels, got {config.image_size}")
    if not 0 <= config.val_fraction <= MAX_VAL_FRACTION:
        raise UsageError(f"val_fraction must be from 0 to {MAX_VAL_FRACTION}, got {config.val_fraction:g}")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"seed must be from 0 to {2**32 - 1}, got {config.seed}")
    if config.skip_bad and config.dataset != "folder":
        raise UsageError(f"skip_bad is for dataset folder; {config.dataset} has no image files of its own")
    if config.protocol != "ldam":
        raise UsageError(f"unknown protocol {config.protocol!r}: the one there is, is ldam")
    parse_rule(config.groups)
    profile = _profile(config)
    imb = None
    if profile in ("exp", "step", "pareto"):
        imb = DEFAULT_IMB if config.imb is None else ratio(config.imb)
    return replace(config, profile=profile, imb=imb, test_fraction=_test_fraction(config))


def ratio(imb: float) -> float:
    """`imb` as largest / smallest class, at least 1: 0.01 and 100 are the same.

    Raises: UsageError for zero, a negative value, NaN or infinity.
    """
    if not (math.isfinite(imb) and imb > 0):
        raise UsageError(f"imb must be at least 1 (largest / smallest class), or its inverse in (0, 1), got {imb:g}")
    if imb >= 1:
        return float(imb)
    inverse = 1 / imb
    whole = round(inverse)
    return float(whole) if abs(inverse - whole) <= 1e-9 * whole else inverse  # 1 / (1 / 49) is not 49


def _profile(config: SplitConfig) -> Profile:
    if config.counts is not None and config.profile not in (None, "counts"):
        raise UsageError(f"counts and profile {config.profile!r} contradict each other: leave one out")
    if config.counts is not None and config.imb is not None:
        raise UsageError("counts and imb contradict each other: leave one out")
    if config.counts is not None and not config.counts:
        raise UsageError("counts names no class: give it as CLASS=NUMBER, such as cat=50")
    if config.counts is not None:
        return "counts"
    if config.profile is None:
        return "none" if config.dataset == "folder" and config.imb is None else "exp"
    if config.profile == "counts":
        raise UsageError("profile counts needs counts: give them as CLASS=NUMBER, such as cat=50")
    if config.profile not in ("exp", "step", "pareto", "none"):
        raise UsageError(f"unknown profile {config.profile!r}: choose exp, step, pareto, counts or none")
    if config.profile == "none" and config.imb is not None:
        raise UsageError("profile none keeps every image, so imb means nothing: leave one of the two out")
    return config.profile


def _test_fraction(config: SplitConfig) -> float | None:
    if config.test_fraction is not None and not 0 < config.test_fraction < 1:
        raise UsageError(f"test_fraction must be above 0 and below 1, got {config.test_fraction:g}")
    if config.dataset in WITHOUT_TEST_SET and config.test_fraction is None:
        return DEFAULT_TEST_FRACTION
    if config.test_fraction is not None and config.dataset not in (*WITHOUT_TEST_SET, "folder"):
        raise UsageError(f"{config.dataset} has a test set of its own: leave test_fraction out")
    return config.test_fraction
