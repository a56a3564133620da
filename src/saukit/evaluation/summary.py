"""What runs say together: a method over its training seeds, and whether synthetic images helped. Plain documents."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saukit.core.artifacts import Manifest
from saukit.core.shapes import AMOUNT, ANY, COUNT, NUMBER, SHARE, SOME, Maybe, Rows, Shape, all_of
from saukit.core.words import shown
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.statistics import holm, mean, paired_difference, standard_deviation

# The measures of a result and what tables call them.
MEASURES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    **{name: name for name in GROUP_NAMES},
    "ece": "ECE",
}
LESS_IS_BETTER = ("ece",)
_COST = ("real_images", "synthetic_images", "steps", "batch_size", "views_per_step", "parameters")

Document = dict[str, Any]
_DIFFERENCE = Maybe({"mean": NUMBER, "clear": bool, "seeds": COUNT} | all_of("low high", Maybe(NUMBER)))
_VALUES, _CHANGES = (all_of(" ".join(MEASURES), of) for of in (Maybe(SHARE), _DIFFERENCE))
_METHOD = (
    all_of("label method device", str)
    | all_of(" ".join(["images_seen", *_COST]), COUNT)
    | {"config": {str: ANY}, "seconds": AMOUNT, "counts_nothing": bool, "trusted_share": Maybe(SHARE)}
    | {"runs": Rows("seeds", {"name": str, "seed": COUNT, "chosen_by": str} | _VALUES), "difference": Maybe(_CHANGES)}
    | {"mean": _VALUES, "std": _VALUES, "per_class": Rows("K", Maybe(SHARE))}
)
_VERDICT = {
    **{"ours": str, "theirs": str, "tests": COUNT, "left_out": _DIFFERENCE},
    "rivals": Rows("rivals", {"label": str, "difference": _CHANGES}),
    "pairs": [{"with": str, "without": str, "difference": _CHANGES}],
}
# What of compare.json somebody reads.
SHAPE: Shape = {
    **{"format_version": COUNT, "baseline": str, "confidence": SHARE, "groups_rule": str},
    "split": {"test_images": SOME, "classes": Rows("K", str), "class_counts": Rows("K", COUNT)},
    "judged": Maybe({"agreement": Maybe(SHARE), "kept": SOME}),
    "methods": Rows("methods", _METHOD),
    "verdict": Maybe(_VERDICT),
}


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that is trained and evaluated: its training seed, its manifest, and its results.json as a document."""

    name: str
    seed: int
    manifest: Manifest
    results: Document


def measures_of(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a results.json, shares in [0, 1]; None for a group without classes."""
    groups = {name: (results["groups"][name] or {}).get("top1") for name in GROUP_NAMES}
    return {name: groups[name] if name in groups else results[name] for name in MEASURES}


def unknown_labels(document: Document) -> Iterator[str]:
    """What of a compare.json with its shape is of no method in it."""
    labels, found = {method["label"] for method in document["methods"]}, document["verdict"]
    named = {"baseline": document["baseline"], **({} if found is None else {"ours": found["ours"]})}
    if found is not None:
        rivals = {rival["label"]: rival["difference"]["balanced_accuracy"] for rival in found["rivals"]}
        if None in rivals.values() or found["theirs"] not in rivals:
            yield f"verdict.rivals lack a difference to {shown(found['theirs'])}"
        named["theirs"] = found["theirs"]
    yield from (
        f"{name} {shown(label)} is not one of the methods" for name, label in named.items() if label not in labels
    )


def method_entry(label: str, config: Mapping[str, Any], runs: Sequence[EvaluatedRun]) -> Document:
    """A method as compare.json has it: configuration, cost, the mean and deviation of each measure, and its runs."""
    summary = runs[0].manifest.summary
    values = [measures_of(run.results) for run in runs]
    columns = {measure: [of_run[measure] for of_run in values] for measure in MEASURES}
    per_class = zip(*([entry["top1"] for entry in run.results["per_class"]] for run in runs), strict=True)
    return {
        "label": label,
        "method": config["method"],
        "config": {name: value for name, value in config.items() if name != "seed"},
        **{name: summary[name] for name in _COST},
        "counts_nothing": bool(summary.get("counts_nothing")),
        "trusted_share": mean([run.manifest.summary.get("trusted_share") for run in runs]),
        "images_seen": summary["steps"] * summary["batch_size"] * summary["views_per_step"],
        "seconds": mean([run.manifest.summary["seconds"] for run in runs]),
        "device": ", ".join(sorted({run.manifest.device for run in runs})),
        "runs": [
            {
                "name": run.name,
                "seed": run.seed,
                **of_run,
                **{name: run.manifest.summary[name] for name in ("chosen_step", "chosen_by")},
            }
            for run, of_run in zip(runs, values, strict=True)
        ],
        "mean": {measure: mean(column) for measure, column in columns.items()},
        "std": {measure: standard_deviation(column) for measure, column in columns.items()},
        "per_class": [mean(column) for column in per_class],
    }


def best_of(methods: Sequence[Document]) -> dict[str, float | None]:
    """The best mean of each measure among several methods; None for a single one, and for an absent group."""
    best: dict[str, float | None] = {}
    for name in MEASURES:
        values = [value for method in methods if (value := method["mean"][name]) is not None]
        best[name] = (min if name in LESS_IS_BETTER else max)(values, default=None) if len(methods) > 1 else None
    return best


def differences(
    pairs: Sequence[tuple[Document, Document]], *, confidence: float
) -> list[dict[str, dict[str, Any] | None]]:
    """For each pair of methods and each measure the first minus the second, paired by seed: one table.

    Holm's correction is over the pairs, for each measure by itself.
    """
    table: list[dict[str, dict[str, Any] | None]] = [{} for _ in pairs]
    for measure in MEASURES:
        column = [
            paired_difference(_by_seed(ours, measure), _by_seed(theirs, measure), confidence=confidence)
            for ours, theirs in pairs
        ]
        for row, found in zip(table, holm(column, confidence=confidence), strict=True):
            row[measure] = None if found is None else asdict(found)
    return table


def verdict(methods: Sequence[Document], *, confidence: float) -> Document | None:
    """Whether synthetic images helped; None without methods on either side.

    - ours, theirs: the methods of the best mean balanced accuracy with and without synthetic images.
    - rivals: what `ours` gains over `theirs`, and over each other method on real images alone that is not clearly
      below `theirs`.
    - pairs: what synthetic images add to the same training.
    - left_out: what the best of either side gains where it is chosen, for each seed, by the other seeds' mean: what
      `ours` gains over `theirs` without the luck of having been picked by the very numbers that are shown.
    - tests: how many differences Holm's correction is over, for each measure: every method with synthetic images
      against every rival, so that picking the best of them is covered, and the pairs.
    """
    sides: dict[bool, list[Document]] = {True: [], False: []}
    for method in sorted(methods, key=lambda method: -(method["mean"]["balanced_accuracy"] or 0.0)):
        sides[bool(method["synthetic_images"])].append(method)
    if not all(sides.values()):
        return None
    ours, theirs = sides[True][0], sides[False][0]
    rivals = [theirs]
    for method in sides[False][1:]:
        accuracies = (_by_seed(entry, "balanced_accuracy") for entry in (method, theirs))
        behind = paired_difference(*accuracies, confidence=confidence)
        if behind is not None and not behind.clear:
            rivals.append(method)
    pairs = [(one, other) for other in sides[False] for one in sides[True] if _settings(one) == _settings(other)]
    tested = [(one, other) for one in sides[True] for other in rivals]
    tested += [pair for pair in pairs if pair not in tested]
    found = {
        (one["label"], other["label"]): change
        for (one, other), change in zip(tested, differences(tested, confidence=confidence), strict=True)
    }
    return {
        "ours": ours["label"],
        "theirs": theirs["label"],
        "rivals": [{"label": it["label"], "difference": found[ours["label"], it["label"]]} for it in rivals],
        "pairs": [
            {"with": one["label"], "without": other["label"], "difference": found[one["label"], other["label"]]}
            for one, other in pairs
        ],
        "left_out": _left_out(sides[True], sides[False], confidence=confidence),
        "tests": len(tested),
    }


def _left_out(ours: Sequence[Document], theirs: Sequence[Document], *, confidence: float) -> dict[str, Any] | None:
    """The difference in balanced accuracy, paired by seed, of the methods that are best on the other seeds."""

    def chosen(methods: Sequence[Document]) -> list[float | None]:
        columns = [_by_seed(method, "balanced_accuracy") for method in methods]
        seeds = range(len(columns[0]))
        return [max(columns, key=lambda column: mean([*column[:s], *column[s + 1 :]]) or 0.0)[s] for s in seeds]

    if len(ours[0]["runs"]) < 2:
        return None
    found = paired_difference(chosen(ours), chosen(theirs), confidence=confidence)
    return None if found is None else asdict(found)


def _by_seed(method: Document, measure: str) -> list[float | None]:
    return [run[measure] for run in method["runs"]]


def _settings(method: Document) -> Document:
    return {name: value for name, value in method["config"].items() if name not in ("synthetic", "seed")}
