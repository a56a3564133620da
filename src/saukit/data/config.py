"""The configuration of `saukit make-lt`. Imports no numpy."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from saukit.core.config import from_mapping, to_mapping
from saukit.core.errors import UsageError
from saukit.core.options import check, option, resolved_as
from saukit.core.words import shown
from saukit.data.shots import parse_rule
from saukit.data.source import IMAGE_SIZES
from saukit.data.source_config import DEFAULT_TEST_FRACTION, SourceConfig
from saukit.data.sources.table import TABLE

Profile = Literal["exp", "step", "pareto", "counts", "none"]

DEFAULT_IMB = 100.0
MOST_IMB = 1e9


def parse_counts(items: Sequence[str]) -> dict[str, int]:
    """`cat=50`, `dog=7` (or `cat=50,dog=7`) as a mapping. Raises: UsageError for anything else."""
    counts = {}
    for item in (piece for text in items for piece in text.split(",") if piece):
        name, _, number = item.rpartition("=")
        if not name or not number.isdecimal() or len(number) > 18:
            raise UsageError(f"{shown(item)} is not a count: write CLASS=N, such as --counts cat=50 dog=7")
        counts[name] = int(number)
    return counts


def _dataset_problems(name: str) -> list[str]:
    if name in TABLE:
        return []
    close = difflib.get_close_matches(name.lower(), TABLE, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return [f"unknown dataset {name!r}{hint}: use one of {', '.join(TABLE)}"]


def _imb_problems(imb: float) -> list[str]:
    """A ratio whose inverse is not finite, or that no data set has."""
    if imb <= 0 or not math.isfinite(imb) or 1 / MOST_IMB <= imb <= MOST_IMB:
        return []
    return [f"imb must lie between {1 / MOST_IMB:g} and {MOST_IMB:g}, got {imb:g}"]


def _groups_problems(rule: str) -> list[str]:
    try:
        parse_rule(rule)
    except UsageError as error:
        return [str(error)]
    return []


@dataclass(frozen=True, kw_only=True)
class SplitConfig(SourceConfig):
    """A long-tailed split. Every default of `make-lt` lives here; None is "as the source suggests".

    profile: None is `counts` with counts, `none` (keep every image) for sources that are imbalanced, else `exp`.
    counts: training images per class, by class name or index; classes that are not named keep all they have.
    image_size: pixels per side; None is the source's own; for a folder of unequal or large images 224, if half
    of them have at least 128 pixels on their shorter side, else 64.
    """

    dataset: str = option(
        "digits",
        f"{', '.join(list(TABLE)[:-1])}, or {list(TABLE)[-1]}.",
        check=_dataset_problems,
        displaces=("counts", "image_size", "test_fraction", "flip"),
    )
    imb: float | None = option(
        None,
        "Largest / smallest class; 0.01 means 100.",
        shown="100",
        above=0,
        note="largest / smallest class, or its inverse",
        check=_imb_problems,
        needs={"profile": ("exp", "step", "pareto")},
    )
    profile: Profile | None = option(
        None, "How counts fall; `none` keeps every image.", shown="exp; images of your own: none", displaces=("counts",)
    )
    counts: dict[str, int] | None = option(
        None,
        "Images of some classes: --counts cat=50 dog=7.",
        needs={"profile": "counts"},
        displaces=("profile", "imb"),
        cli_type=list[str] | None,
        parse=parse_counts,
        metavar="CLASS=N ...",
        shown="all",
        check=lambda counts: [] if counts else ["counts names no class: write CLASS=N, such as cat=50"],
    )
    protocol: Literal["ldam"] = option("ldam", "How images are chosen: ldam is LDAM-DRW's, the de-facto standard.")
    image_size: int | None = option(
        None,
        "Side in pixels to resize and crop to.",
        shown="the images' own",
        least=IMAGE_SIZES[0],
        most=IMAGE_SIZES[1],
    )
    val_fraction: float = option(0.0, "Share of the real training images for validation.", least=0, most=0.5)
    flip: bool | None = option(
        None, "Whether a mirrored image keeps its class; also for training.", shown="as the data set allows"
    )
    groups: str = option(
        "auto", "Shot groups: auto, thresholds, thirds, or bounds like 100,20.", check=_groups_problems
    )
    drop_duplicates: bool = option(
        False,
        "Leave out training images that are copies of test images or lie under two labels.",
        flags=("--drop-duplicates",),
    )
    seed: int = option(0, "Seed of the split; the training seed is another.", least=0, most=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class ResolvedSplitConfig(SplitConfig):
    """A split with nothing left open: what config.yaml holds.

    `imb` is None without a ratio (profiles counts and none), `test_fraction` where the source has a test set.
    """

    profile: Profile
    image_size: int
    flip: bool


def settled(config: SplitConfig) -> SplitConfig:
    """`config` with every default filled in that needs no look at the source; doing it twice changes nothing.

    Raises: UsageError that lists every value out of its limits and every option without effect.
    """
    config = from_mapping(SplitConfig, to_mapping(config), where="the split")
    if problems := _dataset_problems(config.dataset):
        raise UsageError(problems[0])
    row = TABLE[config.dataset]
    by_ratio: Profile = "none" if row.imbalanced and config.imb is None else "exp"
    profile = config.profile or ("counts" if config.counts is not None else by_ratio)
    config = replace(config, profile=profile, flip=row.flip if config.flip is None else config.flip)
    problems = []
    if profile == "counts" and config.counts is None:
        problems.append("profile counts needs counts: write CLASS=N, such as --counts cat=50")
    check(config, *problems, tables={"dataset": TABLE})
    if profile in ("exp", "step", "pareto"):
        config = replace(config, imb=ratio(DEFAULT_IMB if config.imb is None else config.imb))
    return config


def resolve(config: SplitConfig, *, image_size: int, test_set: bool, val_set: bool = False) -> ResolvedSplitConfig:
    """The settled `config` with nothing left open, for a source of this size, with or without a test set and a
    validation part of its own.

    Raises: UsageError for a test_fraction where there is a test set, and a val_fraction where there is a validation
    part.
    """
    if test_set and config.test_fraction is not None:
        raise UsageError(f"this {config.dataset} has a test set of its own: leave test_fraction out")
    if val_set and config.val_fraction:
        raise UsageError(f"this {config.dataset} has a validation part of its own: leave val_fraction out")
    values = {"image_size": image_size} | ({} if test_set else {"test_fraction": DEFAULT_TEST_FRACTION})
    return resolved_as(ResolvedSplitConfig, config, values)


def ratio(imb: float) -> float:
    """`imb` above 0 as largest / smallest class, at least 1: 0.01 and 100 are the same."""
    if imb >= 1:
        return float(imb)
    inverse = 1 / imb
    whole = round(inverse)
    return float(whole) if abs(inverse - whole) <= 1e-9 * whole else inverse  # 1 / (1 / 49) is not 49
