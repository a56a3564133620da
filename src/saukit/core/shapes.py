"""What a JSON document has to hold, said as plain data beside the code that writes it, and the one check that it does.

A shape is a type; a `Number`; ANY; {"name": shape}, where "name?" may be absent and other names are left alone; {str:
shape}, any names; [shape], a list of any length; `Rows`, a list whose length has a letter; `Among`, one of the entries
of such a list; or `Maybe`, null or another shape.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saukit.core.words import shown

Shape = Any
ANY = object()
_WORDS = {str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`; `whole`: without a point."""

    words: str
    least: float
    most: float
    whole: bool = False


# Below what NumPy's integers and float32 hold, so that sums and products of them are numbers too.
NUMBER = Number("a number", -3.4e38, 3.4e38)
AMOUNT = Number("a number from 0 up", 0, 3.4e38)
COUNT = Number("a whole number from 0 up", 0, 10**15, whole=True)
SOME = Number("a whole number from 1 up", 1, 10**15, whole=True)
SHARE = Number("a share from 0 to 1", 0, 1 + 1e-6)


@dataclass(frozen=True)
class Maybe:
    """Null, or what has the shape."""

    shape: Shape


@dataclass(frozen=True)
class Rows:
    """A list of at least one; lists of one letter have one length in a document."""

    letter: str
    shape: Shape


@dataclass(frozen=True)
class Among:
    """One of the entries of the list that bears the letter."""

    letter: str


def all_of(names: str, shape: Shape) -> dict[str, Shape]:
    """One shape for several names, with spaces between them."""
    return dict.fromkeys(names.split(), shape)


def misfits(value: object, shape: Shape, known: Mapping[str, Collection[Any]] | None = None) -> Iterator[str]:
    """What of a document does not have its shape: `per_class.3.top1 is 'x', not a share from 0 to 1`.

    known: the lists of some letters.
    """
    return _misfits(value, shape, "", dict(known or {}))


def _misfits(value: Any, shape: Shape, where: str, known: dict[str, Collection[Any]]) -> Iterator[str]:
    if shape is ANY or (isinstance(shape, Maybe) and value is None):
        return
    shape = shape.shape if isinstance(shape, Maybe) else shape
    if isinstance(shape, Number):
        right = isinstance(value, int if shape.whole else int | float) and not isinstance(value, bool)
        if not right or not shape.least <= value <= shape.most:
            yield _is_not(where, value, shape.words)
    elif isinstance(shape, type):
        if not isinstance(value, shape):
            yield _is_not(where, value, _WORDS[shape])
    elif isinstance(shape, Among):
        if shape.letter in known and value not in known[shape.letter]:  # else the list is missing, which is told
            yield _is_not(where, value, f"one of {shown([*known[shape.letter]], quotes=False)}")
    elif isinstance(shape, dict):
        yield from _misfits_of_names(value, shape, where, known)
    elif not isinstance(value, list):
        yield _is_not(where, value, "a list")
    else:
        if isinstance(shape, Rows):
            length = len(known.setdefault(shape.letter, value))
            if len(value) != length or not value:
                yield f"{where or 'it'} has {len(value)} entries, not {length or 'at least one'}"
        inner = shape.shape if isinstance(shape, Rows) else shape[0]
        for index, entry in enumerate(value):
            yield from _misfits(entry, inner, f"{where}.{index}".lstrip("."), known)


def _misfits_of_names(
    value: Any, shape: Mapping[Any, Shape], where: str, known: dict[str, Collection[Any]]
) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _is_not(where, value, "a mapping of names to values")
        return
    inner = dict.fromkeys(value, shape[str]) if str in shape else shape
    for name, of_name in inner.items():
        key, path = name.removesuffix("?"), f"{where}.{shown(name.removesuffix('?'), quotes=False)}".lstrip(".")
        if key in value:
            yield from _misfits(value[key], of_name, path, known)
        elif key == name:
            yield f"{path} is missing"


def _is_not(where: str, value: object, words: str) -> str:
    return f"{where or 'it'} is {shown(value)}, not {words}"
