"""Many-, medium- and few-shot classes, by their number of real training images."""

from collections.abc import Sequence
from dataclasses import dataclass

from saukit.core.errors import UsageError

GROUP_NAMES = ("many", "medium", "few")
MANY_ABOVE, FEW_BELOW = 100, 20


@dataclass(frozen=True)
class ShotGroups:
    """Which class is in which group; a group without classes is absent.

    rule: one sentence for the user. members: group -> class indices, ascending.
    """

    rule: str
    members: dict[str, tuple[int, ...]]

    def of_class(self, index: int) -> str:
        """The group of class `index`."""
        return next(name for name, classes in self.members.items() if index in classes)


def shot_groups(counts: Sequence[int], rule: str) -> ShotGroups:
    """Group classes by their real training images.

    rule: `thresholds` (many > 100, medium 20-100, few < 20); "A,B" (many > A, few < B); `thirds` by rank, the middle
    group taking what does not divide by three (3/4/3 for ten classes), ties in class order; `auto`: thresholds if
    that leaves no group empty, else thirds.
    Raises: UsageError for another rule.
    """
    parsed = parse_rule(rule)
    if parsed == "thirds":
        return ShotGroups("thirds by rank", _thirds(counts))
    if parsed != "auto":
        return ShotGroups(_thresholds_rule(*parsed), _by_thresholds(counts, *parsed))
    members = _by_thresholds(counts, MANY_ABOVE, FEW_BELOW)
    if len(members) == len(GROUP_NAMES):
        return ShotGroups(_thresholds_rule(MANY_ABOVE, FEW_BELOW), members)
    absence = {
        "many": f"more than {MANY_ABOVE}",
        "medium": f"{FEW_BELOW} to {MANY_ABOVE}",
        "few": f"fewer than {FEW_BELOW}",
    }
    missing = " or ".join(absence[name] for name in GROUP_NAMES if name not in members)
    return ShotGroups(f"thirds by rank (no class has {missing} images)", _thirds(counts))


def parse_rule(rule: str) -> str | tuple[int, int]:
    """`auto`, `thirds`, or the two thresholds (many above, few below). Raises: UsageError for anything else."""
    if rule in ("auto", "thirds"):
        return rule
    if rule == "thresholds":
        return MANY_ABOVE, FEW_BELOW
    try:
        many_above, few_below = (int(text) for text in rule.split(","))
    except ValueError:
        raise UsageError(
            "groups must be auto, thresholds, thirds or two numbers such as 100,20 (many > 100, few < 20), "
            f"got {rule!r}"
        ) from None
    if not 1 <= few_below <= many_above:
        raise UsageError(
            f"groups {rule!r}: the first number (many above) must not be below the second (few below), "
            "and neither below 1"
        )
    return many_above, few_below


def _thresholds_rule(many_above: int, few_below: int) -> str:
    return f"thresholds: many > {many_above}, medium {few_below}-{many_above}, few < {few_below}"


def _by_thresholds(counts: Sequence[int], many_above: int, few_below: int) -> dict[str, tuple[int, ...]]:
    names = ["many" if count > many_above else "few" if count < few_below else "medium" for count in counts]
    return _collect(names)


def _thirds(counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Two classes are a head and a tail; a single one is a head."""
    ranked = sorted(range(len(counts)), key=lambda index: -counts[index])
    third = len(counts) // 3
    names = ["medium"] * len(counts)
    for index in ranked[: max(third, 1)]:
        names[index] = "many"
    for index in ranked[max(len(counts) - max(third, 1), 1) :]:
        names[index] = "few"
    return _collect(names)


def _collect(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    members = {group: tuple(index for index, name in enumerate(names) if name == group) for group in GROUP_NAMES}
    return {group: classes for group, classes in members.items() if classes}
