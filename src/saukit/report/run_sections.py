"""What the sections on single runs show: curves, confusions, calibration, configuration; None where none has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.console import format_share
from saukit.evaluation.statistics import mean
from saukit.report.collect import Contents, Run, Series
from saukit.report.findings import Verdict
from saukit.report.pictures import heat_map
from saukit.report.sections import View, by_falling_count
from saukit.report.svg import PLAIN, Line, curves, reliability

MOST_CARDS = 8  # shown at once
MOST_POINTS = 120  # of a line
MOST_CELLS = 20  # classes of a confusion matrix with numbers in its cells
MOST_CONFUSIONS = 8


def curves_section(contents: Contents) -> View | None:
    """For each method its losses over the steps, and its validation accuracy where there is a validation part."""
    cards = []
    for series in contents.series:
        logs = [run.log for run in series.runs if run.log]
        if not logs:
            continue
        names = list(dict.fromkeys(name for log in logs for line in log for name in line["losses"]))
        losses = [
            line
            for index, name in enumerate(names)
            for line in _lines(
                [[(row["step"], row["losses"][name]) for row in log if name in row["losses"]] for log in logs],
                f"c{index}",
            )
        ]
        validation = _lines(
            [
                [(row["step"], 100 * row["val_balanced_accuracy"]) for row in log if "val_balanced_accuracy" in row]
                for log in logs
            ],
            "c0",
        )
        cards.append(
            {
                "label": series.label,
                "seeds": len(logs),
                "names": [name.replace("_", " ") for name in names],
                "losses": curves(f"Training losses of {series.label} over the steps", losses, form=PLAIN),
                "last": [
                    {"name": name.replace("_", " "), "value": mean([log[-1]["losses"].get(name) for log in logs])}
                    for name in names
                ],
                "validation": curves(
                    f"Balanced accuracy of {series.label} on the validation part over the steps, %",
                    validation,
                    form=PLAIN,
                    bounds=(0.0, 100.0),
                )
                if validation
                else None,
                "best_validation": mean(
                    [max((row.get("val_balanced_accuracy", 0.0) for row in log), default=0.0) for log in logs]
                )
                if validation
                else None,
            }
        )
    return _folded(cards, contents) if cards else None


def confusion_section(contents: Contents, found: Verdict | None) -> View | None:
    """Confusion matrices, summed over the seeds of a method, classes by falling count; each row shares of its class.

    `first` is the one to open: of the best method on synthetic images, or else of the first.
    """
    order = by_falling_count(contents)
    classes = contents.split.classes
    entries = []
    for series in contents.series:
        if not series.results:
            continue
        counts = np.sum([results["confusion"] for results in series.results], axis=0)[np.ix_(order, order)]
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        wrong = shares - np.diag(np.diag(shares))
        worst = [divmod(int(place), len(order)) for place in np.argsort(-wrong, axis=None)[:MOST_CONFUSIONS]]
        entries.append(
            {
                "label": series.label,
                "seeds": len(series.results),
                "rows": _cells(shares) if len(order) <= MOST_CELLS else None,
                "picture": heat_map(shares) if len(order) > MOST_CELLS else None,
                "worst": [
                    {"true": classes[order[row]], "predicted": classes[order[column]], "share": wrong[row, column]}
                    for row, column in worst
                    if wrong[row, column] > 0
                ],
            }
        )
    if not entries:
        return None
    labels = [entry["label"] for entry in entries]
    first = found.ours.label if found is not None and found.ours.label in labels else labels[0]
    return {"entries": entries, "classes": [classes[c] for c in order], "first": first}


def calibration_section(contents: Contents) -> View | None:
    """A reliability diagram for each method, its bins over all seeds; `missing` runs were evaluated without bins."""
    cards, missing = [], []
    for series in contents.series:
        missing += [run.name for run in series.runs if run.results is not None and "calibration" not in run.results]
        bins = _pooled([results["calibration"] for results in series.results if "calibration" in results])
        if not bins:
            continue
        ece = mean([results["ece"] for results in series.results])
        title = f"Reliability of {series.label}: accuracy in {len(bins)} bins of confidence; ECE {format_share(ece)} %"
        cards.append(
            {
                "label": series.label,
                "ece": ece,
                "chart": reliability(title, bins),
                "bins": [row for row in bins if row["images"]],
            }
        )
    return {**_folded(cards, contents), "missing": missing} if cards or missing else None


def configuration_section(contents: Contents) -> View | None:
    """What the methods have in common, what differs, what each cost, and every run."""
    if not contents.series:
        return None
    configs = [{k: v for k, v in series.runs[0].config.items() if k != "seed"} for series in contents.series]
    fields = list(dict.fromkeys(name for config in configs for name in config))
    values = {name: [config.get(name) for config in configs] for name in fields}
    varying = [name for name in fields if any(value != values[name][0] for value in values[name])]
    current = None if contents.cache is None else contents.cache.images.manifest.digest
    runs = [run for series in contents.series for run in series.runs]
    return {
        "common": {name: setting(values[name][0]) for name in fields if name not in varying},
        "varying": varying,
        "methods": [
            {
                "label": series.label,
                "seeds": ", ".join(str(run.seed) for run in series.runs),
                "settings": [setting(config.get(name)) for name in varying],
                **_cost(series),
            }
            for series, config in zip(contents.series, configs, strict=True)
        ],
        "runs": [{"run": run, "other_cache": _other_cache(run, current)} for run in runs],
        "other_cache": [run.name for run in runs if _other_cache(run, current)],
        "chosen_by": sorted({run.manifest.summary["chosen_by"] for run in runs}),
    }


def setting(value: Any) -> str:
    """A value of a configuration for a person."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _folded(cards: Sequence[View], contents: Contents) -> View:
    """The cards to show at once, and those behind a click: beyond the first few, or not of the comparison."""
    compared = [] if contents.comparison is None else [row["label"] for row in contents.comparison.document["methods"]]
    shown = [card for card in cards if card["label"] in compared or not compared][:MOST_CARDS]
    return {"cards": shown, "more": [card for card in cards if card not in shown], "all": cards}


def _lines(runs: Sequence[Sequence[tuple[int, float]]], kind: str) -> list[Line]:
    """A thin line a run and a strong one for the mean over the steps that all have; of a single run a strong one."""
    runs = [run for run in runs if run]
    if not runs:
        return []
    thin = [Line(kind, _thinned(run), strong=False) for run in runs]
    if len(runs) == 1:
        return [Line(kind, thin[0].points, strong=True)]
    tables = [dict(run) for run in runs]
    shared = [step for step, _ in runs[0] if all(step in table for table in tables)]
    average = [(step, sum(table[step] for table in tables) / len(tables)) for step in shared]
    return [*thin, *([Line(kind, _thinned(average), strong=True)] if average else [])]


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
    """At most `MOST_POINTS` points, each the mean of the ones it stands for; a line of one point gets a second."""
    if len(points) == 1:
        return ((0.0, points[0][1]), (float(points[0][0]), points[0][1]))
    pieces = np.array_split(np.asarray(points, dtype=np.float64), min(MOST_POINTS, len(points)))
    return tuple((float(piece[-1, 0]), float(piece[:, 1].mean())) for piece in pieces)


def _cells(shares: npt.NDArray[np.float64]) -> list[list[View]]:
    """For each cell its share and its shade, 0 to 10."""
    return [[{"share": float(share), "shade": int(np.ceil(10 * share - 0.05))} for share in row] for row in shares]


def _pooled(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[View]:
    """The bins of several runs as those of one with all their images."""
    pooled = []
    for bins in zip(*runs, strict=True):
        filled = [row for row in bins if row["images"]]
        images = sum(row["images"] for row in filled)
        pooled.append(
            {
                "low": bins[0]["low"],
                "high": bins[0]["high"],
                "images": images,
                "confidence": sum(row["images"] * row["confidence"] for row in filled) / images if images else None,
                "accuracy": sum(row["images"] * row["accuracy"] for row in filled) / images if images else None,
            }
        )
    return pooled


def _cost(series: Series) -> View:
    """What a run of a method took; seconds are the mean over its runs."""
    summary = series.runs[0].manifest.summary
    return {
        **{name: summary[name] for name in ("parameters", "real_images", "synthetic_images", "steps", "batch_size")},
        "views": summary["views_per_step"],
        "seen": summary["steps"] * summary["batch_size"] * summary["views_per_step"],
        "seconds": mean([run.manifest.summary["seconds"] for run in series.runs]),
        "devices": ", ".join(sorted({run.manifest.device for run in series.runs})),
    }


def _other_cache(run: Run, current: str | None) -> bool:
    """Whether a run was trained on synthetic images that are not the ones of this page."""
    return run.manifest.inputs.get("synth", current) != current
