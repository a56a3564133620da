"""The selection against a plain loop, and the rounds of making more for every rate of acceptance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from saukit.synthesis.judging.selection import REASONS, Rules, Selection, first_round, more_candidates, select

GRID = [
    Rules(),
    Rules(min_confidence=0.3),
    Rules(min_clip=0.5),
    Rules(reject_copies=True),
    Rules(reject_black=True),
    Rules(distances=(0.3, 0.7)),
    Rules(0.2, 0.1, (0.1, 0.95), reject_copies=True, reject_black=True),
]


def loop(labels: list[int], wanted: list[int], scores: dict[str, Any], rules: Rules, is_copy: Any) -> list[str]:
    """The reasons by the rules as they are documented, one candidate and one class at a time."""
    confidence, clip, brightest, distance = (scores[name] for name in ("confidence", "clip", "brightest", "distance"))
    reasons = ["kept"] * len(labels)
    used = [confidence] if rules.min_confidence is not None else []
    used += [clip] if rules.min_clip is not None else []
    used += [distance] if rules.distances is not None else []
    for i in range(len(labels)):
        if rules.reject_black and brightest[i] == 0:
            reasons[i] = "blacked out by the safety checker"
        elif any(math.isnan(score[i]) for score in used):
            reasons[i] = "score is not a number"
        elif rules.min_confidence is not None and confidence[i] < np.float32(rules.min_confidence):
            reasons[i] = "low confidence"
        elif rules.min_clip is not None and clip[i] < np.float32(rules.min_clip):
            reasons[i] = "low CLIP similarity"
        elif rules.distances is not None and distance[i] < np.float32(rules.distances[0]):
            reasons[i] = "close to a real image of its class"
        elif rules.distances is not None and distance[i] > np.float32(rules.distances[1]):
            reasons[i] = "far from the real images of its class"
        elif rules.reject_copies and is_copy[i]:
            reasons[i] = "copy of a training image"
    for c in range(len(wanted)):
        passing = [i for i in range(len(labels)) if labels[i] == c and reasons[i] == "kept"]
        for i in passing[wanted[c] :]:
            reasons[i] = "surplus"
    return reasons


@pytest.mark.parametrize("rules", GRID, ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_a_plain_loop_decides_the_same(rules: Rules, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(1, 6)), int(rng.integers(0, 120))
    labels = rng.integers(0, classes, n)
    wanted = rng.integers(0, 30, classes)
    # Few distinct values, so that ties and scores on a bound occur; some that are no number.
    scores = {
        name: np.where(rng.random(n) < 0.05, np.nan, rng.integers(0, 21, n) / 20).astype(np.float32)
        for name in ("confidence", "clip", "distance")
    }
    is_copy = rng.random(n) < 0.2
    scores["brightest"] = np.where(rng.random(n) < 0.2, 0, rng.integers(1, 256, n)).astype(np.float32)
    selection = select(labels, wanted, scores, rules, is_copy=is_copy)
    expected = loop(labels.tolist(), wanted.tolist(), scores, rules, is_copy.tolist())
    assert [REASONS[code] for code in selection.reasons] == expected
    assert selection.kept.tolist() == [reason == "kept" for reason in expected]
    assert (selection.reasons.dtype, selection.kept.dtype) == (np.uint8, np.bool_)

    counts = selection.rejected_counts(labels, classes)
    assert set(counts) == set(expected) - {"kept"}
    for reason, by_class in counts.items():
        pairs = list(zip(labels.tolist(), expected, strict=True))
        assert by_class.tolist() == [pairs.count((c, reason)) for c in range(classes)]


def decided(rules: Rules, labels: list[int], wanted: list[int], **given: Any) -> Selection:
    scores: dict[Any, Any] = {
        name: np.array(given.pop(name), np.float32) for name in ("confidence", "clip") if name in given
    }
    return select(np.array(labels), np.array(wanted), scores, rules, **given)


def test_a_score_on_a_bound_passes() -> None:
    selection = decided(Rules(min_confidence=0.9), [0] * 3, [3], confidence=[0.9, 0.95, 0.89])
    assert selection.kept.tolist() == [True, True, False]


def test_what_no_rule_looks_at_may_be_missing_or_no_number() -> None:
    assert decided(Rules(), [0, 1], [1, 1], confidence=[np.nan, np.nan]).kept.all()
    assert decided(Rules(), [], [0, 0]).kept.shape == (0,)
    assert not decided(Rules(), [0, 1], [1, 1], is_copy=np.array([True, True])).reasons.any()


def test_the_first_round_is_what_is_wanted_and_there() -> None:
    wanted = np.array([0, 1, 7, 50])
    assert first_round(wanted, capacity=None).tolist() == [0, 1, 7, 50]
    assert first_round(wanted, capacity=np.array([9, 9, 9, 9])).tolist() == [0, 1, 7, 9]


def test_the_next_round_follows_the_acceptance_so_far() -> None:
    def more(kept: int, **options: Any) -> int:
        settings = {"max_tries": 100.0, "capacity": None, **options}
        found = more_candidates(np.array([100]), np.array([100]), np.array([kept]), **settings)
        assert found.dtype == np.int64
        return int(found[0])

    assert more(100) == 0
    assert more(50) == 100  # half of them passed, so twice as many as are missing
    assert more(75) == 34  # 25 / 0.75
    assert more(1) == 990  # a hundredth passed, a tenth is taken for granted
    assert more(0) == 1000
    assert more(0, max_tries=3.0) == 200
    assert more(50, max_tries=1.5) == 50
    assert more(50, max_tries=1.1) == 10  # 1.1 times 100 is 110, not 111
    assert more(50, max_tries=1.0) == 0
    assert more(50, capacity=np.array([130])) == 30
    assert more(50, capacity=np.array([100])) == 0
    assert more(50, capacity=np.array([0])) == 0


def test_a_class_that_has_not_begun_gets_its_first_round() -> None:
    zero = np.zeros(4, np.int64)
    wanted = np.array([0, 1, 10, 33])
    assert more_candidates(wanted, zero, zero, max_tries=1.0, capacity=None).tolist() == wanted.tolist()


@pytest.mark.parametrize("max_tries", [1.0, 2.5, 20.0])
@pytest.mark.parametrize("limited", [False, True])
def test_rounds_end_at_the_target_or_the_cap_whatever_passes(max_tries: float, limited: bool) -> None:
    rates = np.array([0, 0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0, 1.0])
    wanted = np.array([1, 57, 3, 40, 40, 40, 40, 40, 40, 0])
    rng = np.random.default_rng(3)
    capacity = rng.integers(0, 400, len(wanted)) if limited else None
    caps = np.array([math.ceil(round(max_tries * w, 9)) for w in wanted])
    caps = caps if capacity is None else np.minimum(caps, capacity)
    labels = np.empty(0, np.int64)
    confidence = np.empty(0, np.float32)
    fresh, rounds = first_round(wanted, capacity=capacity), 0
    kept = np.zeros(len(wanted), np.int64)
    while fresh.any():
        rounds += 1
        assert rounds < 100
        assert not fresh[kept == wanted].any()
        new = np.repeat(np.arange(len(wanted)), fresh)
        labels = np.concatenate([labels, new])
        confidence = np.concatenate([confidence, (rng.random(len(new)) < rates[new]).astype(np.float32)])
        chosen = select(labels, wanted, {"confidence": confidence}, Rules(min_confidence=0.5))
        kept = np.bincount(labels[chosen.kept], minlength=len(wanted))
        generated = np.bincount(labels, minlength=len(wanted))
        assert (generated <= caps).all() and (kept <= wanted).all()
        fresh = more_candidates(wanted, generated, kept, max_tries=max_tries, capacity=capacity)
    assert ((kept == wanted) | (generated == caps)).all()
    if not limited:
        assert kept[8] == 40
        assert kept[:2].tolist() == [0, 0] and generated[9] == 0
