"""How a comparison's document reads: the verdict in words, tables for the terminal and Markdown, and a CSV."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from saukit.core.words import format_duration, format_share, markdown
from saukit.core.writing import csv_text, write_text
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.statistics import MIN_SEEDS
from saukit.evaluation.summary import MEASURES, best_of

TABLE_NAME, MARKDOWN_NAME, CHART_NAME = "compare.csv", "compare.md", "compare.png"
METHOD_COLUMNS = (
    "real_images", "synthetic_images", "steps", "batch_size", "views_per_step", "images_seen", "parameters", "device",
)  # fmt: skip
CLEAR = "*"
MARK = " †"  # of a method whose own remedy does nothing here
Tone = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Answer:
    """Did synthetic images help? In words; `tone` colours it."""

    tone: Tone
    headline: str
    sentences: list[str]


def answer(document: dict[str, Any]) -> Answer | None:
    """The verdict of a comparison in words, with the budget it holds for; None without methods on either side.

    Where the judge of the synthetic images recognises no more of them than chance would, that is the answer.
    """
    found = document["verdict"]
    if found is None:
        return None
    methods = {method["label"]: method for method in document["methods"]}
    ours, theirs = (methods[found[side]]["mean"] for side in ("ours", "theirs"))
    changes = {rival["label"]: rival["difference"]["balanced_accuracy"] for rival in found["rivals"]}
    first, few = changes[found["theirs"]], found["rivals"][0]["difference"]["few"]
    gain = f"{points(first['mean'])} points of balanced accuracy at {budget(document['methods'])}"
    left_out = found["left_out"]
    tone: Tone = "unclear"
    if unrecognised := _unrecognised(document["judged"], len(document["split"]["classes"])):
        tone, headline = "worse", unrecognised
    elif first["seeds"] < MIN_SEEDS:
        headline = f"Too few seeds to say whether synthetic images help: {gain}"
    elif any(change["clear"] and change["mean"] < 0 for change in changes.values()):
        tone, headline = "worse", f"Synthetic images did not help: {gain}"
    elif all(change["clear"] for change in changes.values()) and (left_out is None or left_out["mean"] > 0):
        tone, headline = "better", f"Synthetic images helped: {gain}"
    else:
        headline = f"No clear effect of synthetic images: {gain}"
    sentences = [
        f"Best with synthetic images: {found['ours']}, {format_share(ours['balanced_accuracy'])} % balanced accuracy. "
        f"Best on real images alone: {found['theirs']}, {format_share(theirs['balanced_accuracy'])} %. "
        f"Paired by seed, {described(first)}."
    ]
    if left_out is None:
        sentences.append("Both were picked by the test accuracies shown, which flatters them.")
    else:
        text = f"{points(left_out['mean'])} points ({interval(left_out)})"
        sentences.append(f"Picked for each seed by the other seeds instead, the best of either side differ by {text}.")
    if unrecognised:
        sentences.insert(0, f"The comparison with such images: {gain}.")
    if few is not None:
        shares = f"{format_share(ours['few'])} % against {format_share(theirs['few'])} %"
        sentences.append(f"Few-shot classes: {shares}, {described(few)}.")
    if others := [f"{label} {described(change)}" for label, change in changes.items() if label != found["theirs"]]:
        sentences.append(f"Against the other real-only methods that may be the best: {'; '.join(others)}.")
    if first["low"] is not None:
        level, tests = 100 - 100 * document["confidence"], found["tests"]
        between = "between methods with and without synthetic images"
        correction = f" after Holm's correction for {tests} differences {between}" if tests > 1 else ""
        sentences.append(f"Clear means significant at {level:.0f} %{correction}.")
    return Answer(tone, headline, sentences)


def budget(methods: Sequence[Mapping[str, Any]]) -> str:
    """What the methods were trained for: 300 steps of batch size 64."""
    found = {(method["steps"], method["batch_size"]) for method in methods}
    steps, sizes = (sorted(set(values)) for values in zip(*found, strict=True))
    ranges = [f"{values[0]:,}{f' to {values[-1]:,}' if len(values) > 1 else ''}" for values in (steps, sizes)]
    return f"{ranges[0]} steps of batch size {ranges[1]}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: +2.1; less than nothing, rounded, is +0.0."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def interval(difference: Mapping[str, Any]) -> str:
    """The interval of a difference in points, or why there is none: +0.2 to +2.0."""
    if None not in (difference["low"], difference["high"]):
        return f"{points(difference['low'])} to {points(difference['high'])}"
    return "too few seeds" if difference["seeds"] < MIN_SEEDS else "no spread"


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """A difference and its interval in points, or why there is none: +1.1 (+0.2 to +2.0)."""
    return "-" if difference is None else f"{points(difference['mean'])} ({interval(difference)})"


def tone(difference: Mapping[str, Any] | None) -> Tone:
    """What a difference of accuracies shows."""
    if difference is None or not difference["clear"]:
        return "unclear"
    return "better" if difference["mean"] > 0 else "worse"


def described(difference: Mapping[str, Any]) -> str:
    """A difference, its interval and whether it is clear: +1.1 points (+0.2 to +2.0, clear)."""
    clear = "" if difference["low"] is None else ", clear" if difference["clear"] else ", not clear"
    return f"{points(difference['mean'])} points ({interval(difference)}{clear})"


def mean_rows(document: dict[str, Any], *, bold: str = "") -> list[list[str]]:
    """One row per method: its label, and mean ± standard deviation of each measure in %; `bold` surrounds the best."""
    best = best_of(document["methods"])
    rows = []
    for method in document["methods"]:
        cells = []
        for measure in MEASURES:
            centre, spread = method["mean"][measure], method["std"][measure]
            text = format_share(centre) + ("" if spread is None else f" ± {format_share(spread)}")
            cells.append(f"{bold}{text}{bold}" if centre is not None and centre == best[measure] else text)
        rows.append([method["label"] + (MARK if method["counts_nothing"] else ""), *cells])
    return rows


def footnotes(document: dict[str, Any]) -> list[str]:
    """What the marked rows of `mean_rows` are."""
    if not any(method["counts_nothing"] for method in document["methods"]):
        return []
    return [
        f"{MARK.strip()} counts the training set, which synthetic images have filled to classes of one size: this is "
        "cross entropy and says nothing about the method. `ce+synth-prior1` counts the real images."
    ]


def difference_rows(document: dict[str, Any], measures: Collection[str]) -> list[list[str]]:
    """One row per method: its label, and the difference to the baseline in each measure; `CLEAR` marks clear ones."""
    rows = []
    for method in document["methods"]:
        if (found := method["difference"]) is not None:
            cells = [
                difference_text(found[name]) + CLEAR * bool(found[name] and found[name]["clear"]) for name in measures
            ]
            rows.append([method["label"], *cells])
    return rows


def chosen_by(document: dict[str, Any]) -> str:
    """How the models were chosen, in words."""
    counts = Counter(run["chosen_by"] for method in document["methods"] for run in method["runs"])
    ways = ", ".join(f"{way} ({count} run{'s' if count != 1 else ''})" for way, count in counts.items())
    return f"the model that each run keeps: {ways}; test images chose none, and each run was evaluated on them once"


def trust(document: dict[str, Any]) -> list[str]:
    """How many of the synthetic images the label check trusts at the end, by method."""
    shares = {method["label"]: method["trusted_share"] for method in document["methods"]}
    found = [f"{label} {format_share(share)} %" for label, share in shares.items() if share is not None]
    return [f"synthetic images whose label was trusted at the end: {', '.join(found)}"] if found else []


def write_tables(folder: Path, document: dict[str, Any]) -> None:
    """Write compare.csv and compare.md."""
    write_text(folder / TABLE_NAME, comparison_csv(document))
    write_text(folder / MARKDOWN_NAME, comparison_markdown(document))


def comparison_csv(document: dict[str, Any]) -> str:
    """One row per run, accuracies in [0, 1]; what is absent is an empty cell."""
    run_columns = ("name", "seed", "reused", *MEASURES, "chosen_step", "chosen_by")
    rows = [
        [method["label"], method["method"], *(run[c] for c in run_columns), *(method[c] for c in METHOD_COLUMNS)]
        for method in document["methods"]
        for run in method["runs"]
    ]
    return csv_text([("label", "method", *run_columns, *METHOD_COLUMNS), *rows])


def comparison_markdown(document: dict[str, Any]) -> str:
    """The document for a person: the means, the paired differences, and how all of it was measured."""
    split, methods = document["split"], document["methods"]
    seeds = [run["seed"] for run in methods[0]["runs"]]
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
        *(line for note in footnotes(document) for line in (note, "")),
        "ECE: expected calibration error, of which less is better.",
        "",
    ]
    if (found := answer(document)) is not None:
        lines += ["## Did synthetic images help?", "", f"**{found.headline}.**", ""]
        lines += [*(f"- {sentence}" for sentence in found.sentences), ""]
    if rows := difference_rows(document, MEASURES):
        share = f"{100 * document['confidence']:.0f} %"
        lines += [
            f"## Differences to {document['baseline']}, in points",
            "",
            *_table(["method", *MEASURES.values()], rows, text_columns=1),
            "",
            f"Paired by training seed; Student-t intervals at {share}, with at least {MIN_SEEDS} seeds. "
            f"{CLEAR}: clear, which is significant after Holm's correction over the methods, for each measure by "
            "itself. Intervals cover what the training seed decides, on this split, this cache of synthetic images and "
            "these test images. They do not cover another sample of the split, another cache or another test set.",
            "",
        ]
    lines += [
        "## How it was measured",
        "",
        *_table(
            ["method", "training images", "network", "steps", "batch", "views per step", "images seen", "time per run"],
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
        *(f"- {line}" for line in trust(document)),
        "",
    ]
    return "\n".join(lines)


def _unrecognised(judged: Mapping[str, Any] | None, num_classes: int) -> str | None:
    """That a judge recognises no more images than chance would, within two standard errors; None if it does."""
    share, chance = None if judged is None else judged["agreement"], 1 / num_classes
    if judged is None or share is None or share > chance + 2 * sqrt(chance * (1 - chance) / judged["kept"]):
        return None
    return (
        f"The synthetic images do not look like their classes: the judge recognises {format_share(share)} % of them, "
        f"and chance is {format_share(chance)} %"
    )


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
    names = [markdown(split["classes"][row]) for row in rows]
    shown = f"class{'es' if len(names) > 1 else ''} {', '.join(names)}" if len(names) <= 12 else f"{len(names)} classes"
    return f"{shown} ({fewest:,}{f' to {most:,}' if most > fewest else ''} real training images each)"


def _table(columns: list[str], rows: list[list[str]], *, text_columns: int) -> list[str]:
    rules = ["---" if index < text_columns else "---:" for index in range(len(columns))]
    return ["| " + " | ".join(cells) + " |" for cells in (columns, rules, *rows)]
