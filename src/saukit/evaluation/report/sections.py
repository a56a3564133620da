"""What each section of the page shows, ready for the template; a section is None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.console import format_share
from saukit.data.long_tail import class_counts
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.comparison_files import LESS_IS_BETTER, MEASURES
from saukit.evaluation.report.collect import Cache, Contents, Run, Series
from saukit.evaluation.report.findings import Method, Verdict
from saukit.evaluation.report.pictures import framed, heat_map, strip
from saukit.evaluation.report.svg import Dot, Line, bar, columns, curves, interval_chart, reliability
from saukit.evaluation.report.words import points, tone, with_interval
from saukit.evaluation.statistics import Difference, mean

MOST_ROWS = 30  # classes that get a row of the histogram each
MOST_SAMPLED, SAMPLES = 20, 6
MOST_CELLS = 20  # classes of a confusion matrix with numbers in its cells
MOST_CONFUSIONS = 8
MOST_BARS, BARS_AT_FIRST = 8, 4  # methods of the bars per class
MOST_POINTS = 120  # of a line
MOST_CARDS = 8  # shown at once

View = dict[str, Any]


def split_section(contents: Contents) -> View:
    """Real and synthetic images of each class, by falling number of real ones, and the shot groups."""
    split, counts, synthetic = contents.split, contents.split.class_counts, synthetic_counts(contents)
    order = by_falling_count(contents)
    top = int((counts + synthetic).max())
    rows = [
        {
            "name": split.classes[c],
            "group": split.groups.of_class(c),
            "real": int(counts[c]),
            "synthetic": int(synthetic[c]),
            "bar": bar(counts[c] / top, split.groups.of_class(c), synthetic[c] / top),
        }
        for c in order
    ]
    heights = [(counts[c] / top, synthetic[c] / top, split.groups.of_class(c)) for c in order]
    title = f"Real and synthetic images of {len(order)} classes, by falling number of real ones; the most is {top:,}"
    return {
        "rows": rows,
        "chart": columns(title, heights) if len(order) > MOST_ROWS else None,
        "top": top,
        "has_synthetic": contents.cache is not None,
        "rule": split.groups.rule,
        "groups": [
            {
                "name": name,
                "classes": [split.classes[c] for c in members],
                "real": int(counts[list(members)].sum()),
                "synthetic": int(synthetic[list(members)].sum()),
            }
            for name in GROUP_NAMES
            if (members := split.groups.members.get(name))
        ],
        "config": contents.split_config,
    }


def samples_section(contents: Contents) -> View:
    """The first real and synthetic images of classes, the rarest first; of many classes the ten rarest, and ten more
    spread evenly over the others."""
    split, order = contents.split, by_falling_count(contents)[::-1]
    chosen = order
    if len(order) > MOST_SAMPLED:
        half = MOST_SAMPLED // 2
        chosen = [*order[:half], *(order[i] for i in np.linspace(half, len(order) - 1, half).round().astype(int))]
    cache = None if contents.cache is None else contents.cache.images
    rows = []
    for c in chosen:
        real = split.train.images[np.flatnonzero(split.train.labels == c)[:SAMPLES]]
        made = None if cache is None else cache.images[np.flatnonzero(cache.labels == c)[:SAMPLES]]
        rows.append(
            {
                "name": split.classes[c],
                "group": split.groups.of_class(c),
                "count": int(split.class_counts[c]),
                "real": strip(real) if len(real) else None,
                "synthetic": strip(made) if made is not None and len(made) else None,
            }
        )
    return {
        "rows": rows,
        "has_synthetic": cache is not None,
        "left": len(order) - len(chosen),
        "pixelated": max(split.image_size) < 44,
    }


def audit_section(cache: Cache | None) -> View | None:
    """The audit document, its distances in words, and the picture of the closest pairs."""
    if cache is None or cache.audit is None:
        return None
    audit = cache.audit
    return {
        **audit,
        "rows": [row for row in audit["per_class"] if row["wanted"]],
        "distances": [entry for entry in audit["distances"] if entry["synthetic"] is not None],
        "closest": None if cache.closest is None else framed(cache.closest),
    }


def comparison_section(contents: Contents, compared: Sequence[Method], found: Verdict | None) -> View | None:
    """The methods of the comparison side by side, and their differences to its baseline."""
    if contents.comparison is None:
        return None
    document = contents.comparison.document
    return {
        "name": contents.comparison.name,
        "baseline": document["baseline"],
        "confidence": document["confidence"],
        "rule": document["groups_rule"],
        "methods": compared,
        "best": best_of(compared),
        "seeds": sorted({len(method.seeds) for method in compared}),
        "charts": [
            {"title": title, "chart": _means(title, measure, compared)}
            for measure, title in (("balanced_accuracy", "Balanced accuracy, %"), ("few", "Few-shot accuracy, %"))
            if any(method.mean[measure] is not None for method in compared)
        ],
        "differences": [
            {"title": title, "chart": chart}
            for measure, title in (("balanced_accuracy", "Balanced accuracy"), ("few", "Few-shot accuracy"))
            if (chart := _differences(f"{title}, points against {document['baseline']}", measure, compared))
        ],
        "pairs": [] if found is None else found.pairs,
    }


def verdict_chart(found: Verdict) -> Any:
    """The best method with synthetic images against the best without, in each measure of accuracy."""
    dots = [
        _difference_dot(label, difference, with_interval(difference))
        for name, label in MEASURES.items()
        if name not in LESS_IS_BETTER and (difference := found.differences[name]) is not None
    ]
    if not dots:
        return None
    numbers = "; ".join(f"{dot.label} {dot.text}" for dot in dots)  # for those who hear the page: no table repeats them
    title = f"Difference of {found.ours.label} to {found.theirs.label} in points, with its interval: {numbers}"
    return interval_chart(title, dots, form=_signed, zero=True)


def classes_section(
    contents: Contents, compared: Sequence[Method], others: Sequence[Method], found: Verdict | None
) -> View | None:
    """Bars of the accuracy per class of up to eight methods, the ones that matter most first and shown at first: those
    of the verdict, the baseline, and the others of the comparison by their accuracy."""
    first = [] if found is None else [found.ours.label, found.theirs.label]
    baseline = [method.label for method in compared if method.difference is None]
    ranked = [
        *sorted(compared, key=lambda method: -(method.mean["balanced_accuracy"] or 0.0)),
        *sorted(others, key=lambda method: -(method.mean["balanced_accuracy"] or 0.0)),
    ]
    by_label = {method.label: method for method in ranked}
    ordered = [by_label[label] for label in dict.fromkeys([*first, *baseline, *by_label])]
    if not ordered:
        return None
    shown = ordered[:MOST_BARS]
    split, counts = contents.split, contents.split.class_counts
    return {
        "methods": [
            {"label": method.label, "at_first": index < BARS_AT_FIRST, "seeds": len(method.seeds)}
            for index, method in enumerate(shown)
        ],
        "left": [method.label for method in ordered[MOST_BARS:]],
        "rows": [
            {
                "name": split.classes[c],
                "group": split.groups.of_class(c),
                "count": int(counts[c]),
                "bars": [
                    {"value": method.per_class[c], "bar": bar(method.per_class[c] or 0.0, f"c{index}")}
                    for index, method in enumerate(shown)
                ],
            }
            for c in by_falling_count(contents)
        ],
    }


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
                "losses": curves(f"Training losses of {series.label} over the steps", losses, form=_brief),
                "last": [
                    {"name": name.replace("_", " "), "value": mean([log[-1]["losses"].get(name) for log in logs])}
                    for name in names
                ],
                "validation": curves(
                    f"Balanced accuracy of {series.label} on the validation part over the steps, %",
                    validation,
                    form=_brief,
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


def by_falling_count(contents: Contents) -> list[int]:
    """The classes, those with most real training images first."""
    counts = contents.split.class_counts
    return sorted(range(len(counts)), key=lambda c: -int(counts[c]))


def synthetic_counts(contents: Contents) -> npt.NDArray[np.int64]:
    """Kept synthetic images of each class, int64 [K]."""
    if contents.cache is None:
        return np.zeros(contents.split.num_classes, dtype=np.int64)
    return class_counts(contents.cache.images.labels, contents.split.num_classes)


def best_of(methods: Sequence[Method]) -> dict[str, float | None]:
    """The best mean of each measure; of the calibration error the smallest."""
    best: dict[str, float | None] = {}
    for name in MEASURES:
        values = [value for method in methods if (value := method.mean[name]) is not None]
        best[name] = (min(values) if name in LESS_IS_BETTER else max(values)) if values else None
    return best


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


def _means(title: str, measure: str, methods: Sequence[Method]) -> Any:
    dots = []
    for method in methods:
        value, deviation = method.mean[measure], method.std[measure]
        if value is None:
            continue
        singles = tuple(100 * single for values in method.seeds.values() if (single := values[measure]) is not None)
        text = format_share(value) if deviation is None else f"{format_share(value)} ± {format_share(deviation)}"
        dots.append(
            Dot(
                method.label,
                "synthetic" if method.synthetic else "real",
                text,
                100 * value,
                None if deviation is None else 100 * (value - deviation),
                None if deviation is None else 100 * (value + deviation),
                singles if len(singles) > 1 else (),
            )
        )
    return interval_chart(f"{title}: means over the seeds with one standard deviation", dots, form=_brief)


def _differences(title: str, measure: str, methods: Sequence[Method]) -> Any:
    dots = [
        _difference_dot(method.label, difference, points(difference.mean))
        for method in methods
        if method.difference is not None
        and (found := method.difference[measure]) is not None
        and (difference := Difference(**found))
    ]
    return interval_chart(title, dots, form=_signed, zero=True) if dots else None


def _difference_dot(label: str, found: Difference, text: str) -> Dot:
    low, high = (None if bound is None else 100 * bound for bound in (found.low, found.high))
    return Dot(label, tone(found), text, 100 * found.mean, low, high)


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


def _signed(value: float) -> str:
    return points(value / 100).removesuffix(".0") if value else "0"


def _brief(value: float) -> str:
    return f"{value:g}"
