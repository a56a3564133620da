"""What the sections on the data and the comparison show, ready for the template; None where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.console import format_share
from saukit.data.long_tail import class_counts
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.comparison_files import LESS_IS_BETTER, MEASURES
from saukit.evaluation.statistics import Difference
from saukit.report.collect import Cache, Contents
from saukit.report.findings import Method, Verdict
from saukit.report.pictures import framed, strip
from saukit.report.svg import PLAIN, Dot, bar, columns, interval_chart
from saukit.report.words import points, tone, with_interval

MOST_ROWS = 30  # classes that get a row of the histogram each
MOST_SAMPLED, SAMPLES = 20, 6
MOST_BARS, BARS_AT_FIRST = 8, 4  # methods of the bars per class

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
    return interval_chart(f"{title}: means over the seeds with one standard deviation", dots, form=PLAIN)


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


def _signed(value: float) -> str:
    return points(value / 100).removesuffix(".0") if value else "0"
