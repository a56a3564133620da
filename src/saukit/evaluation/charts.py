"""Pictures of a result: accuracy per class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saukit.core.figures import GROUP_COLOURS, INK, new_figure, save_figure

MOST_LABELS = 40


def draw_per_class(
    path: Path,
    *,
    title: str,
    classes: Sequence[str],
    accuracies: Sequence[float | None],
    counts: Sequence[int],
    members: Mapping[str, Sequence[int]],
) -> None:
    """Bars of the accuracy per class, the classes by falling number of real training images, coloured by group."""
    from matplotlib.patches import Patch

    order = sorted(range(len(classes)), key=lambda c: -counts[c])
    group_of = {c: name for name, rows in members.items() for c in rows}
    figure, axes = new_figure(max(5.5, min(14.0, 1.5 + 0.55 * len(classes))), 3.4)
    heights = [100 * (accuracies[c] or 0.0) for c in order]
    axes.bar(range(len(order)), heights, color=[GROUP_COLOURS[group_of[c]] for c in order], width=0.75)
    if len(order) <= MOST_LABELS:
        for position, c in enumerate(order):
            text = "-" if accuracies[c] is None else f"{100 * accuracies[c]:.0f}"  # type: ignore[operator]
            axes.text(position, heights[position] + 1, text, ha="center", va="bottom", fontsize=7, color=INK)
        labels = [f"{classes[c]}\n{counts[c]:,}" for c in order]
        axes.set_xticks(range(len(order)), labels, fontsize=7, rotation=0 if len(order) <= 12 else 90)
    else:
        axes.set_xlabel("classes, by falling number of real training images", fontsize=8)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    handles = [Patch(color=GROUP_COLOURS[name], label=name) for name in GROUP_COLOURS if name in members]
    axes.legend(handles=handles, fontsize=7, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def draw_confusion(path: Path, *, title: str, classes: Sequence[str], confusion: npt.NDArray[np.int64]) -> None:
    """The confusion matrix, each row as shares of its true class."""
    rows = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = max(4.2, min(12.0, 1.8 + 0.42 * len(classes)))
    figure, axes = new_figure(side + 0.6, side)
    image = axes.imshow(100 * rows, cmap="Blues", vmin=0, vmax=100)
    few = len(classes) <= 20
    if len(classes) <= MOST_LABELS:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    if few:
        for row in range(len(classes)):
            for column in range(len(classes)):
                share = 100 * rows[row, column]
                if share >= 0.5:
                    colour = "white" if share > 55 else INK
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xlabel("predicted class", fontsize=8)
    axes.set_ylabel("true class", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    save_figure(figure, path)
