"""Classes from labels that are written down: names, or integers from 0, which a file may name."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from saukit.core.errors import DataError, UsageError
from saukit.core.words import shortened
from saukit.data.sources.lists import read_names

SHOWN = 5  # labels in a message
NO_LABEL = re.compile(r"-\d+|[-+]?(nan|inf)", re.IGNORECASE)
PLAIN = re.compile(r"0|[1-9][0-9]{0,17}")  # an integer that an array can hold
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def labels_in_order(labels: Collection[str], where: str) -> tuple[str, ...]:
    """The labels of the training images, each once: by value if all are plain integers, else as text (01 is not 1).

    Raises: DataError for numbers that are not integers from 0, and for fewer than two classes.
    """
    found = set(labels)
    integers = all(map(PLAIN.fullmatch, found))
    odd = {label for label in found if NO_LABEL.fullmatch(label)}
    if not integers and all(NUMBER.fullmatch(label) for label in found):
        odd |= {label for label in found if not label.isdecimal()}
    if odd:
        raise DataError(
            f"{where} has labels such as {shortened(sorted(odd), limit=3)}: labels are integers from 0, or names; "
            "remove images of unknown class"
        )
    need_two(found, where)
    return tuple(sorted(found, key=int) if integers else sorted(found))


def need_two(classes: Collection[str], where: str) -> None:
    """Raises: DataError for fewer than two classes."""
    if len(classes) < 2:
        raise DataError(f"{where} needs training images of at least two classes; it has {shortened(classes)} alone")


def refuse_unknown(labels: Sequence[str], known: Collection[str], where: str, lines: Sequence[int]) -> None:
    """Raises: DataError if there are labels without a training image; `lines`: where each label stands."""
    if unknown := {label: line for label, line in zip(labels, lines, strict=True) if label not in known}:
        some = shortened((f"{label} (line {line})" for label, line in sorted(unknown.items())), limit=SHOWN)
        raise DataError(f"{where} has classes without a training image: {some}; remove them, or add images to train on")


def named(labels: Sequence[str], class_names: str | None, where: str, notes: list[str]) -> tuple[str, ...]:
    """The names of integer labels: line i of the file `class_names`, from 0, is label i; without it, the labels.

    Raises: UsageError for labels that are names; DataError for labels out of the file's range.
    """
    if class_names is None:
        return tuple(labels)
    if odd := [label for label in labels if not PLAIN.fullmatch(label)]:
        raise UsageError(f"class_names names integer labels, but {where} has {odd[0]!r}: leave it out")
    file = Path(class_names)
    known = read_names(file)
    if beyond := [label for label in labels if int(label) >= len(known)]:
        raise DataError(
            f"{file} names {len(known)} classes, 0 to {len(known) - 1}, but labels of {where} are out of that range: "
            f"{shortened(beyond, limit=SHOWN)}; name them all, one per line"
        )
    return without_unused(known, [int(label) for label in labels], notes)


def without_unused(names: Sequence[str], labels: Sequence[int], notes: list[str]) -> tuple[str, ...]:
    """The names of the `labels`, ascending; a note says which others there are."""
    used = set(labels)
    if unused := [name for label, name in enumerate(names) if label not in used]:
        notes.append(f"classes without a training image are left out: {shortened(unused, limit=SHOWN)}")
    return tuple(names[label] for label in labels)


def numbered(labels: Sequence[str], order: Sequence[str]) -> list[int]:
    """The position of each label in `order`."""
    index: Mapping[str, int] = {label: position for position, label in enumerate(order)}
    return [index[label] for label in labels]
