"""How a comparison's document looks: rows of tables for the terminal and Markdown, a CSV, and a dot plot."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saukit.core.artifacts import write_text
from saukit.core.console import format_duration, format_share
from saukit.core.figures import GROUP_COLOURS, INK, new_figure, save_figure
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.statistics import Difference

TABLE_NAME, MARKDOWN_NAME, CHART_NAME = "compare.csv", "compare.md", "compare.png"
# The measures of a comparison and what tables call them.
MEASURES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced",
    **{name: name for name in GROUP_NAMES},
    "ece": "ECE",
}
LESS_IS_BETTER = ("ece",)
METHOD_COLUMNS = (
    "real_images", "synthetic_images", "steps", "batch_size", "views_per_step", "images_seen", "parameters", "device",
)  # fmt: skip


def measures_of(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a results.json, shares in [0, 1]; None for a group without classes."""
    groups = {name: (results["groups"][name] or {}).get("top1") for name in GROUP_NAMES}
    return {name: groups[name] if name in groups else results[name] for name in MEASURES}


def mean_rows(document: dict[str, Any], *, bold: str = "") -> list[list[str]]:
    """One row a method: its label, and mean ± standard deviation of each measure in %; `bold` goes around the best."""
    best = {measure: _best(document, measure) for measure in MEASURES}
    rows = []
    for method in document["methods"]:
        cells = []
        for measure in MEASURES:
            centre, spread = method["mean"][measure], method["std"][measure]
            text = format_share(centre) + ("" if spread is None else f" ± {format_share(spread)}")
            cells.append(f"{bold}{text}{bold}" if centre is not None and centre == best[measure] else text)
        rows.append([method["label"], *cells])
    return rows


def difference_columns(document: dict[str, Any]) -> list[str]:
    """What is above the columns of `difference_rows`."""
    return ["method", "measure", "difference", f"{100 * document['confidence']:.0f} % interval", "clear of zero"]


def difference_rows(document: dict[str, Any]) -> list[list[str]]:
    """One row a method and measure: label, measure, difference to the baseline, interval in points, clear of zero."""
    rows = []
    for method in document["methods"]:
        for measure, numbers in (method["difference"] or {}).items():
            if numbers is not None:
                rows.append([method["label"], MEASURES[measure], *_difference_cells(Difference(**numbers))])
    return rows


def chosen_by(document: dict[str, Any]) -> str:
    """How the models were chosen, in words."""
    counts = Counter(run["chosen_by"] for method in document["methods"] for run in method["runs"])
    ways = ", ".join(f"{way} ({count} run{'s' if count != 1 else ''})" for way, count in counts.items())
    return f"the model that each run keeps: {ways}; test images chose none, and each run was evaluated on them once"


def write_tables(folder: Path, document: dict[str, Any]) -> None:
    """Write compare.csv and compare.md."""
    write_text(folder / TABLE_NAME, comparison_csv(document))
    write_text(folder / MARKDOWN_NAME, comparison_markdown(document))


def comparison_csv(document: dict[str, Any]) -> str:
    """One row a run, accuracies in [0, 1]; what is absent is an empty cell."""
    run_columns = ("name", "seed", "reused", *MEASURES, "chosen_step", "chosen_by")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "method", *run_columns, *METHOD_COLUMNS])
    for method in document["methods"]:
        for run in method["runs"]:
            cells = [method["label"], method["method"], *(run[c] for c in run_columns)]
            writer.writerow([*cells, *(method[column] for column in METHOD_COLUMNS)])
    return text.getvalue()


def comparison_markdown(document: dict[str, Any]) -> str:
    """The document for a person: the means, the paired differences, and how all of it was measured."""
    split, methods, seeds = document["split"], document["methods"], _seeds(document)
    what = f"mean ± standard deviation over {len(seeds)} training seeds" if len(seeds) > 1 else "one training seed"
    lines = [
        f"# Comparison {document['name']}",
        "",
        f"{split['source']}, {len(split['classes'])} classes of {max(split['class_counts']):,} to "
        f"{min(split['class_counts']):,} real training images, {split['test_images']:,} test images.",
        "",
        f"## Accuracy in %, {what}",
        "",
        *_table(["method", *MEASURES.values()], mean_rows(document, bold="**"), text_columns=1),
        "",
        "ECE: expected calibration error, of which less is better.",
        "",
    ]
    if rows := difference_rows(document):
        share = f"{100 * document['confidence']:.0f} %"
        lines += [
            f"## Differences to {document['baseline']}, in points",
            "",
            *_table(difference_columns(document), rows, text_columns=2),
            "",
            *(["One seed gives no interval: nothing here is told apart from chance.", ""] if len(seeds) == 1 else []),
            f"Paired by training seed; Student-t intervals at {share}, each for itself: among many rows some leave out "
            "zero by chance. They cover what the training seed decides, on this split, this cache of synthetic images "
            "and these test images. They do not cover another draw of the split, another cache or another test set.",
            "",
        ]
    lines += [
        "## How it was measured",
        "",
        *_table(
            ["method", "training images", "network", "steps", "batch", "views a step", "images seen", "time a run"],
            [_cost_row(method) for method in methods],
            text_columns=3,
        ),
        "",
        "Images seen: steps x batch x views, each view of an image counted.",
        "",
        f"- split: {split['digest'][:16]}",
        *(f"- {name}: {_members(split, name)}" for name in GROUP_NAMES),
        f"- groups: {document['groups_rule']}",
        f"- training seeds: {', '.join(map(str, seeds))}",
        f"- device: {', '.join(sorted({method['device'] for method in methods}))}",
        f"- {chosen_by(document)}",
        "",
    ]
    return "\n".join(lines)


def draw_comparison(path: Path, document: dict[str, Any]) -> None:
    """Methods downwards; balanced accuracy and few-shot accuracy side by side, a dot a seed and a line at the mean."""
    methods = document["methods"]
    shown = [
        (measure, title, colour)
        for measure, title, colour in (
            ("balanced_accuracy", "balanced accuracy, %", INK),
            ("few", "few-shot accuracy, %", GROUP_COLOURS["few"]),
        )
        if any(method["mean"][measure] is not None for method in methods)
    ]
    longest = max(len(method["label"]) for method in methods)
    figure, first = new_figure(1.2 + 0.075 * longest + 3.0 * len(shown), 1.1 + 0.36 * len(methods))
    grid = figure.add_gridspec(1, len(shown))
    first.set_subplotspec(grid[0, 0])
    panels = [first]
    for column in range(1, len(shown)):
        panels.append(figure.add_subplot(grid[0, column], sharey=first))
        panels[-1].spines[["top", "right"]].set_visible(False)
        panels[-1].tick_params(colors=INK, labelsize=8, left=False, labelleft=False)
    for axes, (measure, title, colour) in zip(panels, shown, strict=True):
        for row, method in enumerate(methods):
            values = [100 * run[measure] for run in method["runs"] if run[measure] is not None]
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
            if values:
                centre = 100 * method["mean"][measure]
                axes.plot([centre, centre], [row - 0.3, row + 0.3], color=colour, linewidth=1.8)
                axes.annotate(
                    f"{centre:.1f}", (centre, row - 0.3), xytext=(0, 1), textcoords="offset points", ha="center",
                    va="bottom", fontsize=7, color=colour,
                )  # fmt: skip
        axes.set_title(title, fontsize=9, loc="left", color=INK)
        axes.grid(axis="x", color="#e4e7ea", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.08)
    names = [m["label"] + (" (baseline)" if m["label"] == document["baseline"] else "") for m in methods]
    first.set_yticks(range(len(methods)), names)
    first.set_ylim(len(methods) - 0.4, -0.85)
    save_figure(figure, path)


def _best(document: dict[str, Any], measure: str) -> float | None:
    means = [method["mean"][measure] for method in document["methods"] if method["mean"][measure] is not None]
    if len(document["methods"]) < 2 or not means:
        return None
    return float(min(means) if measure in LESS_IS_BETTER else max(means))


def _difference_cells(difference: Difference) -> list[str]:
    if difference.low is None or difference.high is None:
        return [f"{100 * difference.mean:+.1f}", "-", "-"]
    interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    direction = "higher" if difference.mean > 0 else "lower"
    return [f"{100 * difference.mean:+.1f}", interval, f"yes, {direction}" if difference.clear_of_zero else "no"]


def _cost_row(method: dict[str, Any]) -> list[str]:
    images = f"{method['real_images']:,} real"
    if method["synthetic_images"]:
        images += f" + {method['synthetic_images']:,} synthetic"
    network = f"{method['config']['backbone']}, {method['parameters'] / 1e6:.2f} M"
    numbers = (method[name] for name in ("steps", "batch_size", "views_per_step", "images_seen"))
    return [method["label"], images, network, *(f"{n:,}" for n in numbers), format_duration(method["seconds"])]


def _members(split: dict[str, Any], group: str) -> str:
    rows = split["groups"].get(group)
    if not rows:
        return "no class"
    fewest, most = (of(split["class_counts"][row] for row in rows) for of in (min, max))
    names = [split["classes"][row] for row in rows]
    told = f"class{'es' if len(names) > 1 else ''} {', '.join(names)}" if len(names) <= 12 else f"{len(names)} classes"
    return f"{told} ({fewest:,}{f' to {most:,}' if most > fewest else ''} real training images each)"


def _seeds(document: dict[str, Any]) -> list[int]:
    return [run["seed"] for run in document["methods"][0]["runs"]]


def _table(columns: list[str], rows: list[list[str]], *, text_columns: int) -> list[str]:
    rules = ["---" if index < text_columns else "---:" for index in range(len(columns))]
    return ["| " + " | ".join(cells) + " |" for cells in (columns, rules, *rows)]
