"""The figures of results: accuracy per class, confusion matrix, calibration, losses, and methods with intervals.

Classes come by falling number of real training images: the head on top or on the left, the tail at the other end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saukit.core.plots import NARROW, add_legend, bare, colour, labels, new_figure, styled
from saukit.data.charts import by_falling_count
from saukit.data.types import Integers
from saukit.evaluation.summary import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 30  # classes with a row and a name each
MOST_NUMBERS = 20  # classes of a confusion matrix with numbers in its cells
SMALLEST = 5  # points of a class name
CELL = (0.18, 0.42, 0.71)  # over light and dark paper, the more opaque the larger the share
LONGEST_LABEL = 44


@styled
def per_class_figure(
    accuracies: Mapping[str, Sequence[float | None]],
    *,
    classes: Sequence[str],
    counts: Sequence[int],
    members: Mapping[str, Sequence[int]],
    title: str = "",
) -> Figure:
    """The accuracy per class of one method as bars in the colours of the shot groups, or of several as dots.

    `accuracies`: for each method's label its accuracies in [0, 1]. `members`: the classes of each shot group.
    """
    order = by_falling_count(counts)
    group_of = {c: name for name, rows in members.items() for c in rows}
    named = len(order) <= MOST_ROWS
    rows = np.arange(len(order))
    figure, (axes,) = new_figure(0.8 + 0.25 * len(order) if named else 3.2)
    absent = 0.0 if len(accuracies) == 1 else np.nan  # a bar without length and a dash, or no dot
    series = {
        label: [absent if (value := values[c]) is None else 100 * value for c in order]
        for label, values in accuracies.items()
    }
    if len(series) == 1:
        (values,) = series.values()
        for name in members:
            own = [row for row in rows if group_of[order[row]] == name]
            axes.barh(own, [values[row] for row in own], color=colour(name), height=0.72, label=name)
    else:
        axes.hlines(rows, *np.sort(list(series.values()), axis=0)[[0, -1]], color=colour("line"), linewidth=3)
        for (label, values), name in zip(series.items(), ("synthetic", "real", "c1", "c2"), strict=False):
            face = colour("paper" if name == "real" else name)
            size, text = 5 if named else 3, labels([label], longest=LONGEST_LABEL)[0]
            axes.plot(values, rows, "o", color=colour(name), markersize=size, label=text, markerfacecolor=face)
    if named:
        names = labels(classes)
        axes.set_yticks(rows, [f"{names[c]} ({counts[c]:,})" for c in order])
        if len(series) == 1:
            for row, c in enumerate(order):
                value = next(iter(accuracies.values()))[c]
                axes.text(values[row] + 1, row, "-" if value is None else f"{100 * value:.0f}", va="center", fontsize=8)
    else:
        axes.set(yticks=[], ylabel="classes, the most frequent on top")
    lowest = np.nanmin(list(series.values()))
    reach = (0, 109) if len(series) == 1 else (20 * ((lowest - 1) // 20), 102)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlim=reach, xlabel="accuracy, %")
    add_legend(figure, axes.get_legend_handles_labels()[0], title=title)
    return figure


@styled
def confusion_figure(
    confusion: Integers,
    *,
    classes: Sequence[str],
    counts: Sequence[int],
    title: str = "",
    width: float = NARROW,
) -> Figure:
    """The confusion matrix: true rows, predicted columns, each cell the share of its true class in %."""
    order = by_falling_count(counts)
    shares = confusion[np.ix_(order, order)] / np.maximum(confusion.sum(1, keepdims=True)[order], 1)
    figure, (axes,) = new_figure(width, width=width)
    cells = np.empty((*shares.shape, 4))
    cells[..., :3], cells[..., 3] = CELL, np.sqrt(shares)  # the root shows small shares too
    axes.imshow(cells, interpolation="none")
    bare(axes)
    size = min(8.0, 50 * width / len(order))
    if size >= SMALLEST:
        names = labels(classes, longest=14)
        short = max(len(names[c]) for c in order) <= 3
        axes.set_xticks(range(len(order)), [names[c] for c in order], rotation=0 if short else 90, fontsize=size)
        axes.set_yticks(range(len(order)), [names[c] for c in order], fontsize=size)
    else:
        axes.set(xticks=[], yticks=[])
    if len(order) <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            ink = "#f8fafc" if share > 0.35 else colour("ink")
            text = f"{100 * share:.0f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=min(8.0, 32 * width / len(order)), color=ink
            )
    axes.set(xlabel="predicted", ylabel="true")
    add_legend(figure, [], title=title)
    return figure


@styled
def calibration_figure(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """A reliability diagram: what accuracy and confidence share in each bin, the gap between them, the diagonal."""
    figure, (axes,) = new_figure(3.0, width=NARROW)
    filled = [row for row in bins if row["images"]]
    lows = np.array([[row["low"], row["high"] - row["low"], row["accuracy"], row["confidence"]] for row in filled]).T
    left, width, accuracy, confidence = 100 * lows
    both = np.minimum(accuracy, confidence)
    look: dict[str, Any] = {"align": "edge", "edgecolor": colour("paper")}
    axes.bar(left, both, width, color=colour("c0"), alpha=0.55, label="both agree", **look)
    for name, text, gap in (("worse", "too sure", confidence - both), ("medium", "not sure enough", accuracy - both)):
        axes.bar(left, gap, width, both, color=colour(name), label=text, **look)
    axes.plot([0, 100], [0, 100], "--", color=colour("soft"), linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence, %", ylabel="accuracy, %", aspect="equal")
    axes.grid(True, axis="y")
    add_legend(figure, axes.get_legend_handles_labels()[0])
    return figure


@styled
def losses_figure(logs: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """The losses over the steps, from the logs of one method's runs: a thin line per seed, and a strong one for the
    mean; below it the balanced accuracy on the validation part, if there is one."""
    figure, (axes,) = new_figure(3.0, width=NARROW)
    names = list(dict.fromkeys(name for log in logs for line in log for name in line["losses"]))
    for index, name in enumerate(names):
        runs = [{line["step"]: line["losses"][name] for line in log if name in line["losses"]} for log in logs]
        _mean_line(axes, runs, colour(f"c{index % 4}"), name.replace("_", " "))
    axes.set(ylim=(min(0, axes.get_ylim()[0]), None), xlim=(0, None), xlabel="steps", ylabel="loss")
    axes.grid(True, axis="y")
    key = "val_balanced_accuracy"
    checked = [{line["step"]: 100 * line[key] for line in log if key in line} for log in logs]
    if any(checked):
        right = axes.twinx()
        _mean_line(right, checked, colour("soft"), "validation accuracy, %", style=":")
        right.set_ylim(0, 100)
        right.grid(False)
        right.tick_params(right=False)
        axes.tick_params(left=False)
        axes.plot([], [], ":", color=colour("soft"), label="validation accuracy, % (right)")
    add_legend(figure, axes.get_legend_handles_labels()[0])
    return figure


@dataclass(frozen=True)
class Row:
    """A row of `interval_axes`, in the measure's own unit: a mean, its interval if there is one, its seeds."""

    label: str
    text: str
    colour: str
    value: float
    low: float | None = None
    high: float | None = None
    singles: tuple[float, ...] = ()


def interval_axes(axes: Axes, rows: Sequence[Row], *, zero: bool = False) -> None:
    """A row each: its label and numbers, and below them its mean as a dot, its interval as a line, its seeds as small
    dots; `zero` marks 0. Dots of the colours "real" and "soft" are hollow."""
    from matplotlib.ticker import MaxNLocator

    for index, row in enumerate(rows):
        ink = colour(row.colour)
        at = axes.get_yaxis_transform()
        label = labels([row.label], longest=LONGEST_LABEL - len(row.text))[0]
        axes.text(0, index - 0.28, label, transform=at, va="center", weight="bold", fontsize=8.5)
        axes.text(1, index - 0.28, row.text, transform=at, va="center", ha="right", fontsize=8.5)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [index + 0.12] * 2, color=ink, linewidth=2, solid_capstyle="round")
        seeds = [index + 0.12] * len(row.singles)
        axes.plot(row.singles, seeds, "o", color=ink, alpha=0.5, markersize=3, markeredgewidth=0)
        face = colour("paper") if row.colour in ("real", "soft") else ink
        axes.plot(row.value, index + 0.12, "o", color=ink, markerfacecolor=face, markersize=6.5, markeredgewidth=1.7)
    if zero:  # beside the dots alone: a whole line would run through the labels
        at_dots = np.arange(len(rows)) + 0.12
        axes.vlines([0] * len(rows), at_dots - 0.24, at_dots + 0.26, color=colour("soft"), linewidth=1, zorder=1)
    axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=[])
    axes.margins(x=0.04)
    axes.xaxis.set_major_locator(MaxNLocator(5))


@styled
def interval_figure(rows: Sequence[Row], *, zero: bool = False) -> Figure:
    """`interval_axes` on a figure of their own."""
    figure, (axes,) = new_figure(0.3 + 0.42 * len(rows))
    interval_axes(axes, rows, zero=zero)
    return figure


@styled
def comparison_figure(document: Mapping[str, Any]) -> Figure:
    """The methods of compare.json: balanced accuracy and few-shot accuracy beside each other."""
    measures = [name for name in ("balanced_accuracy", "few") if mean_intervals(document["methods"], name)]
    figure, panels = new_figure(0.7 + 0.42 * len(document["methods"]), columns=len(measures))
    for axes, name in zip(panels, measures, strict=True):
        interval_axes(axes, mean_intervals(document["methods"], name))
        axes.set_title(f"{'few-shot' if name == 'few' else MEASURES[name]} accuracy, %")
    return figure


def mean_intervals(methods: Sequence[Mapping[str, Any]], measure: str) -> list[Row]:
    """A row per method with its mean of the measure, one standard deviation, and its seeds, all in %."""
    rows = []
    for method in methods:
        value, std = method["mean"][measure], method["std"][measure]
        if value is None:
            continue
        kind = "synthetic" if method["synthetic_images"] else "real"
        singles = tuple(100 * run[measure] for run in method["runs"] if run[measure] is not None)
        text = f"{100 * value:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
        low, high = (None, None) if std is None else (100 * (value - std), 100 * (value + std))
        rows.append(Row(method["label"], text, kind, 100 * value, low, high, singles if len(singles) > 1 else ()))
    return rows


def _mean_line(axes: Axes, runs: Sequence[Mapping[int, float]], ink: str, label: str, style: str = "-") -> None:
    shared = sorted(set.intersection(*(set(run) for run in runs if run)))
    if len(runs) > 1:
        for run in runs:
            axes.plot(list(run), list(run.values()), style, color=ink, alpha=0.35, linewidth=0.8)
    mean = [float(np.mean([run[step] for run in runs if run])) for step in shared]
    axes.plot(shared, mean, style, color=ink, linewidth=1.8, label=label)
