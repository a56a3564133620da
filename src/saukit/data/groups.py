"""Groups of images that belong together, such as those of one patient, video or burst: each is on one side only."""

import re
from collections.abc import Sequence

import numpy as np

from saukit.core.errors import DataError
from saukit.core.seeding import numpy_generator
from saukit.core.words import shortened
from saukit.data.source import Source
from saukit.data.types import Integers

PASSES = 20  # over all groups; a pass that moves none is the last
EMPTY_SIDE = 4.0  # cost of a class with no image on one of the sides; a share that is wholly wrong costs less than 1
KEEP_APART = "leave out --group-by to let groups be on both sides (--columns group= for a column that was found)"


def group_keys(source: Source, group_by: str | None) -> dict[str, list[str]] | None:
    """The group of every image by part: from a column of the source, else from its files' names; None without groups.

    Raises: DataError if names do not match `group_by`, or a group is in two parts that the source has of its own.
    """
    if source.groups is not None:
        keys = {part: list(of_part) for part, of_part in source.groups.items()}
    elif group_by is None:
        return None
    elif source.files is None:
        raise DataError(f"group_by {group_by!r} is not a column, and these images have no file names to match it with")
    else:
        keys = {part: _matched(names, group_by) for part, names in source.files().items()}
    parts = [part for part in ("train", "val", "test") if part in keys]
    for position, one in enumerate(parts):
        for other in parts[position + 1 :]:
            if both := sorted(set(keys[one]) & set(keys[other])):
                raise DataError(
                    f"{len(both)} group{'s are' if len(both) > 1 else ' is'} in both the {one} and the {other} part: "
                    f"{shortened(both)}; move them to one side, or {KEEP_APART}"
                )
    return keys


def _matched(names: Sequence[str], group_by: str) -> list[str]:
    """The first group of the expression, or all that it matches, in each name."""
    pattern = re.compile(group_by)
    first = min(pattern.groups, 1)
    found = [match[first] if (match := pattern.search(name)) else None for name in names]
    if odd := [name for name, key in zip(names, found, strict=True) if key is None]:
        raise DataError(
            f"group_by {group_by!r} does not match {len(odd)} of {len(names)} paths: {shortened(odd)}; "
            "it is a regular expression whose first group is the key, or the name of a column"
        )
    return [key for key in found if key is not None]


def grouped_part(
    labels: Integers, keys: Sequence[str], fraction: float, num_classes: int, *, seed: int, purpose: str
) -> tuple[Integers, Integers]:
    """As `long_tail.stratified_part`, with every group of `keys` on one side.

    A local search: from none in the part, groups change sides in an order by the seed while that brings the shares of
    their classes nearer to `fraction` (squared differences, a class with nothing on one side counting `EMPTY_SIDE`).
    A class whose images are all of one group may have none on one of the sides.
    """
    member = np.unique(np.asarray(keys, dtype=str), return_inverse=True)[1]
    of_class = np.bincount(labels, minlength=num_classes)
    target = np.clip(np.round(of_class * fraction), np.minimum(of_class - 1, 1), of_class - 1).tolist()
    size: list[int] = of_class.tolist()
    images: list[dict[int, int]] = [{} for _ in range(int(member.max(initial=-1)) + 1)]  # of each group, by class
    for group, label in zip(member.tolist(), labels.tolist(), strict=True):
        images[group][label] = images[group].get(label, 0) + 1
    inside = [0] * num_classes
    taken = np.zeros(len(images), bool)

    def cost(label: int, count: int) -> float:
        return float(((count - target[label]) / size[label]) ** 2 + EMPTY_SIDE * (count in (0, size[label])))

    order = numpy_generator(seed, purpose, 0).permutation(len(images)).tolist()
    for _ in range(PASSES):
        moved = False
        for group in order:
            sign = -1 if taken[group] else 1
            after = {label: inside[label] + sign * count for label, count in images[group].items()}
            if sum(cost(c, count) - cost(c, inside[c]) for c, count in after.items()) < -1e-9:
                taken[group], moved = not taken[group], True
                for label, count in after.items():
                    inside[label] = count
        if not moved:
            break
    chosen = taken[member]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
