"""Shapes of documents, against values that have them and values that do not."""

from __future__ import annotations

from typing import Any

import pytest

from saukit.core.shapes import AMOUNT, ANY, COUNT, NUMBER, SHARE, SOME, Among, Maybe, Rows, all_of, misfits

SHAPE = {
    "names": Rows("K", str),
    "counts": Rows("K", COUNT),
    "groups": {str: [Among("K")]},
    "mean": Maybe(SHARE),
    "note?": str,
}
DOCUMENT: dict[str, Any] = {"names": ["a", "b"], "counts": [3, 0], "groups": {"few": ["b"]}, "mean": None, "more": [{}]}


def test_what_has_its_shape() -> None:
    assert not [*misfits(DOCUMENT, SHAPE)]
    assert not [*misfits(DOCUMENT | {"note": "x", "mean": 1, "groups": {}}, SHAPE, {"K": "ab"})]


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"names": "ab"}, ["names is 'ab', not a list", "groups.few.0 is 'b', not one of [3, 0]"]),
        ({"names": None, "counts": None}, ["names is None, not a list", "counts is None, not a list"]),
        ({"names": ["a", 7]}, ["names.1 is 7, not text", "groups.few.0 is 'b', not one of ['a', 7]"]),
        ({"counts": [3]}, ["counts has 1 entries, not 2"]),
        ({"counts": [3, -1]}, ["counts.1 is -1, not a whole number from 0 up"]),
        ({"counts": [True, 1.0]}, [f"counts.{i} is {value}, not a whole number from 0 up"
                                   for i, value in enumerate(["True", "1.0"])]),
        ({"groups": {"few": [[]]}}, ["groups.few.0 is [], not one of ['a', 'b']"]),
        ({"groups": []}, ["groups is [], not a mapping of names to values"]),
        ({"mean": 1.1}, ["mean is 1.1, not a share from 0 to 1"]),
        ({"mean": "0.5"}, ["mean is '0.5', not a share from 0 to 1"]),
        ({"note": None}, ["note is None, not text"]),
        ({"names": [], "counts": [], "groups": {}}, ["names has 0 entries, not at least one",
                                                     "counts has 0 entries, not at least one"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_not_is_named(change: dict[str, Any], problems: list[str]) -> None:
    assert [*misfits(DOCUMENT | change, SHAPE)] == problems


def test_a_name_that_is_missing_and_one_that_is_long() -> None:
    without = {name: value for name, value in DOCUMENT.items() if name != "mean"}
    assert [*misfits(without, SHAPE)] == ["mean is missing"]
    assert [*misfits([], SHAPE)] == ["it is [], not a mapping of names to values"]
    (problem,) = misfits({"x" * 10_000: "y" * 10_000}, {str: COUNT})
    assert len(problem) < 300


def test_a_length_that_is_known_elsewhere() -> None:
    assert [*misfits(DOCUMENT, SHAPE, {"K": "abc"})] == ["names has 2 entries, not 3", "counts has 2 entries, not 3"]


@pytest.mark.parametrize(
    ("shape", "right", "wrong"),
    [
        (COUNT, [0, 10**15], [-1, 1.0, 10**16, True, None, "1"]),
        (SOME, [1], [0, -1]),
        (SHARE, [0, 1, 0.5, 1.0000001], [-0.1, 1.1, 10**400]),
        (AMOUNT, [0, 1e30], [-1e-9, 1e39]),
        (NUMBER, [-1e30, 0, 7], [1e39, -(10**40), False, []]),
        (ANY, [None, {}, [], "x"], []),
        (bool, [True], [1, None]),
        (all_of("a b", COUNT), [{"a": 1, "b": 2}], [{"a": 1}, {"a": 1, "b": -1}]),
    ],
    ids=["count", "some", "share", "amount", "number", "any", "bool", "several"],
)
def test_kinds(shape: Any, right: list[Any], wrong: list[Any]) -> None:
    assert not [found for value in right for found in misfits(value, shape)]
    assert all([*misfits(value, shape)] for value in wrong)
