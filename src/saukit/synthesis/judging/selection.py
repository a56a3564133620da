"""Which candidates are kept, and how many more are sampled: pure functions of arrays.

Per class: what breaks a rule is rejected, and the first of the rest are kept. So a class whose candidates are poor
keeps fewer, and further rounds sample more of them, up to a cap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from saukit.data.types import Flags, Floats, Integers

CONFIDENCE, CLIP, BRIGHTEST, DISTANCE = "confidence", "clip", "brightest", "distance"  # names of scores
# What becomes of a candidate, by its code; the first rule that a candidate breaks counts.
REASONS = (
    "kept",
    "score is not a number",
    "low confidence",
    "low CLIP similarity",
    "copy of a training image",
    "surplus",
    "blacked out by the safety checker",
    "close to a real image of its class",
    "far from the real images of its class",
)
KEPT, NOT_A_NUMBER, LOW_CONFIDENCE, LOW_CLIP, COPY, SURPLUS, BLACKED_OUT, CLOSE, FAR = range(len(REASONS))
# A next round counts on at least this share being kept. A small first round of which nothing was kept says little;
# taken at its word it would spend the whole cap at once.
LEAST_ACCEPTANCE = Fraction(1, 10)


@dataclass(frozen=True)
class Rules:
    """What a candidate has to be; None and False are "no such rule". A score equal to a bound passes.

    min_confidence: the classifier's probability of the candidate's own class. min_clip: its CLIP similarity.
    distances: the least and the largest distance to the nearest real image of its class, 1 as between real ones.
    reject_copies: of real training images. reject_black: what a pipeline's safety checker made black all over.
    """

    min_confidence: float | None = None
    min_clip: float | None = None
    distances: tuple[float, float] | None = None
    reject_copies: bool = False
    reject_black: bool = False

    @property
    def needed_scores(self) -> tuple[str, ...]:
        """The names of the scores that these rules look at."""
        bounds = {CONFIDENCE: self.min_confidence, CLIP: self.min_clip, DISTANCE: self.distances}
        return (*(name for name, bound in bounds.items() if bound is not None), *[BRIGHTEST] * self.reject_black)


@dataclass(frozen=True)
class Selection:
    """What became of n candidates: `kept` bool [n]; `reasons` uint8 [n], positions in `REASONS`."""

    kept: Flags
    reasons: npt.NDArray[np.uint8]

    def rejected_counts(self, labels: Integers, num_classes: int) -> dict[str, Integers]:
        """How many candidates of each class every reason rejected, int64 [K]; a reason that rejected none is absent."""
        return {
            REASONS[code]: np.bincount(labels[self.reasons == code], minlength=num_classes).astype(np.int64)
            for code in range(1, len(REASONS))
            if (self.reasons == code).any()
        }


def select(
    labels: Integers, wanted: Integers, scores: Mapping[str, Floats], rules: Rules, *, is_copy: Flags | None = None
) -> Selection:
    """Decide on n candidates in the order of their plan, `wanted` of each of K classes.

    In each class candidates that break a rule are rejected; of the rest the first `wanted` are kept. A candidate whose
    needed score is NaN is never kept.

    Shapes: labels [n]; wanted [K]; each score that the rules need [n], "confidence", "clip", "distance" and
    "brightest" (pixel value) by name; is_copy [n].
    """
    labels, wanted = np.asarray(labels, np.int64), np.asarray(wanted, np.int64)
    reasons = np.full(len(labels), KEPT, np.uint8)

    def reject(broken: Flags, code: int) -> None:
        reasons[broken & (reasons == KEPT)] = code

    if rules.reject_black:
        reject(scores[BRIGHTEST] == 0, BLACKED_OUT)
    for name in rules.needed_scores:
        reject(np.isnan(scores[name]), NOT_A_NUMBER)
    if rules.min_confidence is not None:
        reject(scores[CONFIDENCE] < rules.min_confidence, LOW_CONFIDENCE)
    if rules.min_clip is not None:
        reject(scores[CLIP] < rules.min_clip, LOW_CLIP)
    if rules.distances is not None:
        least, largest = rules.distances
        reject(scores[DISTANCE] < least, CLOSE)
        reject(scores[DISTANCE] > largest, FAR)
    if rules.reject_copies and is_copy is not None:
        reject(is_copy, COPY)
    for label, want in enumerate(wanted.tolist()):
        passing = np.flatnonzero((reasons == KEPT) & (labels == label))
        reasons[passing[want:]] = SURPLUS
    return Selection(reasons == KEPT, reasons)


def first_round(wanted: Integers, *, capacity: Integers | None) -> Integers:
    """How many candidates each class gets at first: those wanted, at most `capacity`. Shapes: all [K]."""
    return wanted.copy() if capacity is None else np.minimum(wanted, capacity)


def more_candidates(
    wanted: Integers, generated: Integers, kept: Integers, *, max_tries: float, capacity: Integers | None
) -> Integers:
    """How many further candidates each class gets in the next round, int64 [K].

    What is missing over the share that was kept so far, which counts as a tenth at least. None once the target is met,
    or `ceil(max_tries * wanted)` candidates or the `capacity` are sampled. A class that is not through gets at least
    one, so that rounds come to an end whatever is kept of them.

    Shapes: wanted, generated, kept and capacity [K]; max_tries at least 1.
    """
    tries = Fraction(repr(float(max_tries)))  # the decimal number that was written: 1.1 times 10 is 11, its ceiling too
    caps = first_round(np.array([math.ceil(tries * count) for count in wanted.tolist()], np.int64), capacity=capacity)
    further = []
    for want, made, have, cap in zip(wanted.tolist(), generated.tolist(), kept.tolist(), caps.tolist(), strict=True):
        rate = max(Fraction(have, made) if made else Fraction(1), LEAST_ACCEPTANCE)
        further.append(max(0, min(math.ceil((want - have) / rate), cap - made)) if have < want else 0)
    return np.array(further, np.int64)
