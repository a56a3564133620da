"""What the numbers say: methods side by side, and whether synthetic images helped, by differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saukit.evaluation.comparison_files import MEASURES, measures_of
from saukit.evaluation.statistics import Difference, mean, paired_difference, standard_deviation
from saukit.report.collect import Contents, Series

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Method:
    """A way of training, over its seeds. `difference` is to the comparison's baseline: None for that one, and for
    methods outside a comparison; std is None with one seed."""

    label: str
    config: dict[str, Any]
    seeds: dict[int, Values]
    mean: Values
    std: Values
    per_class: list[float | None]
    facts: dict[str, Any]
    difference: Mapping[str, Mapping[str, Any] | None] | None = None

    @property
    def synthetic(self) -> bool:
        """Whether synthetic images were among its training images."""
        return bool(self.facts["synthetic_images"])


@dataclass(frozen=True)
class Verdict:
    """The best method on real + synthetic images against the best on real ones alone, both by mean balanced accuracy.

    differences: of each measure, paired by seed; None where no seed has both. pairs: the same for every
    way of training that was done both with and without synthetic images.
    """

    ours: Method
    theirs: Method
    differences: dict[str, Difference | None]
    pairs: list[tuple[Method, Method, dict[str, Difference | None]]]


def methods_of(contents: Contents) -> tuple[list[Method], list[Method]]:
    """Those of the comparison, its baseline first as it has them, and those of evaluated runs outside it."""
    document = {"methods": []} if contents.comparison is None else contents.comparison.document
    compared = [
        Method(
            label=entry["label"],
            config=entry["config"],
            seeds={run["seed"]: {name: run[name] for name in MEASURES} for run in entry["runs"]},
            mean=entry["mean"],
            std=entry["std"],
            per_class=entry["per_class"],
            facts=entry,
            difference=entry["difference"],
        )
        for entry in document["methods"]
    ]
    known = {method.label for method in compared}
    return compared, [_method(series) for series in contents.series if series.label not in known and series.results]


def verdict(methods: Sequence[Method], confidence: float) -> Verdict | None:
    """Whether synthetic images helped; None without methods on either side."""
    best = {}
    for synthetic in (True, False):
        side = [method for method in methods if method.synthetic is synthetic]
        if not side:
            return None
        best[synthetic] = max(side, key=lambda method: method.mean["balanced_accuracy"] or 0.0)
    ours, theirs = best[True], best[False]
    pairs = [
        (with_images, without, differences(with_images, without, confidence))
        for without in methods
        for with_images in methods
        if not without.synthetic and with_images.synthetic and _settings(with_images) == _settings(without)
    ]
    return Verdict(ours, theirs, differences(ours, theirs, confidence), pairs)


def differences(ours: Method, theirs: Method, confidence: float) -> dict[str, Difference | None]:
    """Of each measure, paired over the seeds that both have."""
    seeds = sorted(ours.seeds.keys() & theirs.seeds.keys())
    return {
        name: paired_difference(
            [ours.seeds[seed][name] for seed in seeds],
            [theirs.seeds[seed][name] for seed in seeds],
            confidence=confidence,
        )
        for name in MEASURES
    }


def _method(series: Series) -> Method:
    seeds: dict[int, Values] = {run.seed: measures_of(run.results) for run in series.runs if run.results is not None}
    columns = {name: [values[name] for values in seeds.values()] for name in MEASURES}
    rows = [[entry["top1"] for entry in results["per_class"]] for results in series.results]
    first = series.runs[0]
    return Method(
        label=series.label,
        config={name: value for name, value in first.config.items() if name != "seed"},
        seeds=seeds,
        mean={name: mean(column) for name, column in columns.items()},
        std={name: standard_deviation(column) for name, column in columns.items()},
        per_class=[mean(column) for column in zip(*rows, strict=True)],
        facts=dict(first.manifest.summary),
    )


def _settings(method: Method) -> dict[str, Any]:
    return {name: value for name, value in method.config.items() if name not in ("synthetic", "seed")}
