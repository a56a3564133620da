"""The counts of a split as a figure, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from saukit.core.plots import LONGEST_NAME, add_legend, colour, labels, new_figure, styled
from saukit.core.words import brief
from saukit.data.shots import ShotGroups
from saukit.data.types import Integers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_WIDTH = 40
MAX_LINES = 40
MAX_ROWS = 30  # classes with a bar and a name each


def by_falling_count(counts: Sequence[int] | Integers) -> list[int]:
    """The classes, those with most images first; of equals in their own order."""
    return sorted(range(len(counts)), key=lambda c: -int(counts[c]))


def counts_chart(
    classes: Sequence[str], counts: Sequence[int], groups: ShotGroups, cut: Callable[[str, int], str] = brief
) -> list[str]:
    """A bar chart of the counts, one line per class, at most about 40 lines: head and tail, dots between.

    `cut` shortens a name to a number of columns.
    """
    shown = list(range(len(classes)))
    if len(shown) > MAX_LINES:
        shown = [*shown[: MAX_LINES // 2], *shown[-(MAX_LINES // 2 - 1) :]]
    names = [cut(classes[index], LONGEST_NAME) for index in shown]
    width = max(map(cell_len, names))
    digits = len(str(max(counts)))
    lines = []
    for previous, index, name in zip([-1, *shown], shown, names, strict=False):
        if index > previous + 1:
            lines.append(f"{'...':<{width}}  {index - previous - 1} more classes")
        bar = "█" * max(1, round(BAR_WIDTH * counts[index] / max(counts))) if counts[index] else ""
        name += " " * (width - cell_len(name))
        lines.append(f"{name}  {counts[index]:>{digits}}  {groups.of_class(index):<6}  {bar}".rstrip())
    return lines


@styled
def counts_figure(
    classes: Sequence[str],
    counts: Sequence[int],
    groups: ShotGroups,
    synthetic: Sequence[int] | None = None,
    *,
    title: str = "",
) -> Figure:
    """The training images of each class by falling count, coloured by shot group, with `synthetic` ones on top."""
    from matplotlib.patches import Patch

    order = by_falling_count(counts)
    real = [counts[c] for c in order]
    total = [counts[c] + (0 if synthetic is None else synthetic[c]) for c in order]
    rows = len(order) <= MAX_ROWS
    figure, (axes,) = new_figure(0.7 + 0.25 * len(order) if rows else 3.2)
    layers = [(real, 1.0)] if synthetic is None else [(total, 0.3), (real, 1.0)]
    legend = [Patch(color=colour(name), label=f"{name} ({len(own)})") for name, own in groups.members.items()]
    for name, members in groups.members.items():
        own = [place for place, c in enumerate(order) if c in members]
        for top, alpha in layers:
            heights = [top[place] for place in own]
            look: dict[str, Any] = {"color": colour(name), "alpha": alpha, "linewidth": 0}
            if rows:
                axes.barh(own, heights, 0.72, **look)
            else:  # one shape, not a thousand bars
                edges = [own[0] - 0.5, *(place + 0.5 for place in own)]
                axes.fill_between(edges, [heights[0], *heights], step="pre", **look)
    if synthetic is not None:
        legend.append(Patch(color=colour("soft"), alpha=0.4, label="synthetic"))
    if rows:
        names = labels(classes)
        for place, (count, sum_) in enumerate(zip(real, total, strict=True)):
            text = f"{count:,}" + (f" + {sum_ - count:,}" if sum_ > count else "")
            axes.annotate(text, (sum_, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(order)), [names[c] for c in order])
        axes.set(ylim=(len(order) - 0.4, -0.6), xlim=(0, 1.2 * max(total)), xlabel="training images")
    else:
        axes.set(xlim=(-0.5, len(order) - 0.5), xlabel="classes by falling count", ylabel="training images")
        axes.grid(True, axis="y")
    add_legend(figure, legend, title=title)
    return figure
