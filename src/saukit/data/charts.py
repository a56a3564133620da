"""The counts of a split as a picture and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saukit.core.figures import GROUP_COLOURS, INK, new_figure, save_figure
from saukit.data.shots import ShotGroups

BAR_WIDTH = 40
MAX_LINES = 40
MAX_NAME = 20
MAX_LABELLED = 120  # class names below the bars
MAX_NUMBERED = 30  # counts above the bars


def counts_chart(classes: Sequence[str], counts: Sequence[int], groups: ShotGroups) -> list[str]:
    """A bar chart of the counts, a line a class, at most about 40 lines: head and tail, dots between."""
    shown = list(range(len(classes)))
    if len(shown) > MAX_LINES:
        shown = [*shown[: MAX_LINES // 2], *shown[-(MAX_LINES // 2 - 1) :]]
    names = [_short(classes[index]) for index in shown]
    width = max(map(len, names))
    digits = len(str(max(counts)))
    lines = []
    for previous, index, name in zip([-1, *shown], shown, names, strict=False):
        if index > previous + 1:
            lines.append(f"{'...':<{width}}  {index - previous - 1} more classes")
        bar = "█" * max(1, round(BAR_WIDTH * counts[index] / max(counts))) if counts[index] else ""
        lines.append(f"{name:<{width}}  {counts[index]:>{digits}}  {groups.of_class(index):<6}  {bar}".rstrip())
    return lines


def save_counts_chart(path: Path, classes: Sequence[str], counts: Sequence[int], groups: ShotGroups) -> None:
    """Write the counts as a PNG: a bar a class in class order, on a logarithmic scale, coloured by group."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import StrMethodFormatter

    few_classes = len(classes) <= MAX_NUMBERED
    figure, axes = new_figure(min(max(5.0, 1.5 + 0.5 * len(classes)), 14.0), 3.6)
    colours = [GROUP_COLOURS[groups.of_class(index)] for index in range(len(classes))]
    axes.bar(range(len(classes)), counts, width=0.78 if few_classes else 1.0, color=colours)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(counts) * (1.9 if few_classes else 1.3))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.minorticks_off()
    axes.set_xlim(-0.6, len(classes) - 0.4)
    if few_classes:
        for index, count in enumerate(counts):
            axes.annotate(
                str(count),
                (index, count),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
    if len(classes) <= MAX_LABELLED:
        turned = len(classes) > 12 or max(map(len, classes)) > 8
        size = 8 if few_classes else 5
        axes.set_xticks(
            range(len(classes)),
            [_plain(_short(name)) for name in classes],
            rotation=90 if turned else 0,
            fontsize=size,
        )
    else:
        axes.set_xlabel("class", color=INK, fontsize=9)
    axes.set_ylabel("training images (log scale)", color=INK, fontsize=9)
    axes.set_title(_plain(groups.rule), color=INK, fontsize=9, loc="left")
    legend = [
        Patch(color=GROUP_COLOURS[name], label=f"{name} ({len(members)})") for name, members in groups.members.items()
    ]
    axes.legend(handles=legend, frameon=False, fontsize=8, loc="upper right", ncols=len(legend))
    save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read it as mathematics
