"""Which candidates are kept, and how many more are made: pure functions of arrays.

Per class: what a rule forbids goes, of the rest the best are kept. So a class whose candidates are poor keeps fewer,
and further rounds make more of them, up to a cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CONFIDENCE, CLIP = "confidence", "clip"  # names of scores
# What becomes of a candidate, by its code; the first rule that a candidate breaks counts.
REASONS = (
    "kept",
    "score is not a number",
    "low confidence",
    "high confidence",
    "low CLIP similarity",
    "copy of a training image",
    "repeat of another",
    "ranked out",
    "surplus",
)
KEPT, NOT_A_NUMBER, LOW_CONFIDENCE, HIGH_CONFIDENCE, LOW_CLIP, COPY, REPEAT, RANKED_OUT, SURPLUS = range(len(REASONS))
# Of what `keep` lets through, a next round counts on this part at least. A small first round of which nothing was kept
# says little; taken at its word it would spend the whole cap at once.
LEAST_ACCEPTANCE = Fraction(1, 10)


@dataclass(frozen=True)
class Rules:
    """What a candidate has to be; None and False are "no such rule". A score equal to a bound passes.

    min_confidence, max_confidence: of the classifier in the candidate's own class. min_clip: its CLIP similarity.
    reject_copies: of real training images. reject_repeats: of other candidates. keep: the share of a class's
    candidates that may be kept, the best by `rank_by`, or (None) the first of the plan.
    """

    min_confidence: float | None = None
    max_confidence: float | None = None
    min_clip: float | None = None
    reject_copies: bool = False
    reject_repeats: bool = False
    keep: float = 1.0
    rank_by: Literal["confidence", "clip"] | None = None

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        if self.rank_by not in (None, CONFIDENCE, CLIP):
            raise ValueError(f"rank_by must be {CONFIDENCE!r}, {CLIP!r} or None, got {self.rank_by!r}")

    @property
    def needed_scores(self) -> tuple[str, ...]:
        """The names of the scores that these rules look at."""
        used = {
            CONFIDENCE: self.min_confidence is not None or self.max_confidence is not None,
            CLIP: self.min_clip is not None,
        }
        return tuple(name for name, by_bound in used.items() if by_bound or self.rank_by == name)


@dataclass(frozen=True)
class Selection:
    """What became of n candidates: `kept` bool [n]; `reasons` uint8 [n], positions in `REASONS`."""

    kept: Mask
    reasons: npt.NDArray[np.uint8]

    def rejected_counts(self, labels: Integers, num_classes: int) -> dict[str, Integers]:
        """How many candidates of each class every reason rejected, int64 [K]; a reason that rejected none is absent."""
        return {
            REASONS[code]: np.bincount(labels[self.reasons == code], minlength=num_classes).astype(np.int64)
            for code in range(1, len(REASONS))
            if (self.reasons == code).any()
        }


def select(
    labels: Integers,
    wanted: Integers,
    scores: Mapping[str, Floats],
    rules: Rules,
    *,
    is_copy: Mask | None = None,
    repeats: Callable[[Mask], Mask] | Mask | None = None,
) -> Selection:
    """Decide on n candidates in the order of their plan, `wanted` of each of K classes.

    In each class candidates that break a rule go; of the rest the best `min(wanted, ceil(keep * candidates))` are
    kept, of equal ones the first. A candidate whose needed score is NaN is never kept.

    Shapes: labels [n]; wanted [K]; each score [n], "confidence" and "clip" by name; is_copy [n]. repeats: which
    candidates repeat an earlier one, [n], or a function that says so of those that are still in the race (a mask [n]),
    so that a candidate that is out already drags no other with it.
    Raises: ValueError for shapes that differ, labels out of range, and what a rule needs and is missing.
    """
    labels, wanted = np.asarray(labels, np.int64), np.asarray(wanted, np.int64)
    _check_arrays(labels, wanted, scores, rules, is_copy, repeats)
    reasons = np.full(len(labels), KEPT, np.uint8)

    def reject(broken: Mask, code: int) -> None:
        reasons[broken & (reasons == KEPT)] = code

    for name in rules.needed_scores:
        reject(np.isnan(scores[name]), NOT_A_NUMBER)
    if rules.min_confidence is not None:
        reject(scores[CONFIDENCE] < rules.min_confidence, LOW_CONFIDENCE)
    if rules.max_confidence is not None:
        reject(scores[CONFIDENCE] > rules.max_confidence, HIGH_CONFIDENCE)
    if rules.min_clip is not None:
        reject(scores[CLIP] < rules.min_clip, LOW_CLIP)
    if rules.reject_copies and is_copy is not None:
        reject(is_copy, COPY)
    if rules.reject_repeats and repeats is not None:
        found = repeats(reasons == KEPT) if callable(repeats) else repeats
        _check_shape("repeats", found, len(labels))
        reject(found, REPEAT)

    passing = np.flatnonzero(reasons == KEPT)
    rank = passing if rules.rank_by is None else -scores[rules.rank_by][passing]
    best_first = passing[np.lexsort((passing, rank, labels[passing]))]  # class by class
    sizes = np.bincount(labels[best_first], minlength=len(wanted))
    place = np.arange(len(best_first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its class
    generated = np.bincount(labels, minlength=len(wanted))
    allowed = np.array([math.ceil(_exact(rules.keep) * count) for count in generated.tolist()], np.int64)
    of_class = labels[best_first]
    reasons[best_first[place >= wanted[of_class]]] = SURPLUS
    reasons[best_first[place >= allowed[of_class]]] = RANKED_OUT
    return Selection(reasons == KEPT, reasons)


def first_round(wanted: Integers, *, keep: float, capacity: Integers | None) -> Integers:
    """How many candidates each class gets at first: `ceil(wanted / keep)`, at most `capacity`. Shapes: all [K]."""
    _check_keep(keep)
    return _capped([math.ceil(count / _exact(keep)) for count in wanted.tolist()], capacity)


def more_candidates(
    wanted: Integers,
    generated: Integers,
    kept: Integers,
    *,
    keep: float,
    max_tries: float,
    capacity: Integers | None,
) -> Integers:
    """How many further candidates each class gets in the next round, int64 [K].

    What is missing over the share that was kept so far; that share counts as a tenth of `keep` at least and as `keep`
    at most. None once the target is met, or `ceil(max_tries * wanted / keep)` candidates or the `capacity` are made.
    A class that is not through gets at least one, so that rounds come to an end whatever is kept of them.

    Shapes: wanted, generated, kept and capacity [K]. Raises: ValueError for max_tries below 1.
    """
    _check_keep(keep)
    if not (max_tries >= 1 and math.isfinite(max_tries)):
        raise ValueError(f"max_tries must be at least 1 (times the candidates of the first round), got {max_tries}")
    share = _exact(keep)
    caps = _capped([math.ceil(_exact(max_tries) * count / share) for count in wanted.tolist()], capacity)
    further = []
    for want, made, have, cap in zip(wanted.tolist(), generated.tolist(), kept.tolist(), caps.tolist(), strict=True):
        accepted = Fraction(have, made) if made else share
        rate = min(max(accepted, LEAST_ACCEPTANCE * share), share)
        further.append(max(0, min(math.ceil((want - have) / rate), cap - made)) if have < want else 0)
    return np.array(further, np.int64)


def _capped(counts: list[int], capacity: Integers | None) -> Integers:
    limited = np.array(counts, np.int64)
    return limited if capacity is None else np.minimum(limited, capacity)


def _exact(value: float) -> Fraction:
    """The decimal number that was written: 0.07 times 100 is 7, and its ceiling is not 8."""
    return Fraction(repr(float(value)))


def _check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1 (the share of candidates that may be kept), got {keep}")


def _check_arrays(
    labels: Integers,
    wanted: Integers,
    scores: Mapping[str, Floats],
    rules: Rules,
    is_copy: Mask | None,
    repeats: Callable[[Mask], Mask] | Mask | None,
) -> None:
    missing = [f"the score {name!r}" for name in rules.needed_scores if name not in scores]
    missing += ["is_copy"] if rules.reject_copies and is_copy is None else []
    missing += ["repeats"] if rules.reject_repeats and repeats is None else []
    if missing:
        raise ValueError(f"these rules need {' and '.join(missing)}")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(wanted)):
        raise ValueError(f"labels must be from 0 to {len(wanted) - 1}, got {labels.min()} to {labels.max()}")
    for name in rules.needed_scores:
        _check_shape(name, scores[name], len(labels))
    if is_copy is not None:
        _check_shape("is_copy", is_copy, len(labels))


def _check_shape(name: str, array: npt.NDArray[np.generic], count: int) -> None:
    if array.shape != (count,):
        raise ValueError(f"{name} must have one value for each of {count} candidates, got shape {array.shape}")
