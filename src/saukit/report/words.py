"""The sentences of the page, made from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from saukit.core.console import format_share
from saukit.evaluation.statistics import Difference
from saukit.report.collect import Contents
from saukit.report.findings import Method, Verdict

Tone = Literal["better", "worse", "unclear"]
MOST_NAMED = 3  # classes that gained or lost the most


@dataclass(frozen=True)
class Answer:
    """Did synthetic images help? `tone` colours it."""

    tone: Tone
    headline: str
    sentences: list[str]


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: +2.1; a dash if it is not there."""
    return "-" if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def with_interval(difference: Difference | None) -> str:
    """A difference and its interval: +2.1 (+0.8 to +3.4)."""
    if difference is None:
        return "-"
    if difference.low is None:
        return points(difference.mean)
    return f"{points(difference.mean)} ({points(difference.low)} to {points(difference.high)})"


def tone(difference: Difference | None) -> Tone:
    """What a difference of accuracies shows; an interval with zero in it, or none at all, shows nothing."""
    if difference is None or not difference.clear_of_zero:
        return "unclear"
    return "better" if difference.mean > 0 else "worse"


def title(contents: Contents) -> str:
    """What a page is called if nobody says it."""
    split = contents.split
    return f"Long-tailed {'images' if split.source == 'folder' else split.source}, {split.num_classes:,} classes"


def data_sentence(contents: Contents) -> str:
    """The data in a sentence."""
    split, counts = contents.split, contents.split.class_counts
    summary, imb = split.manifest.summary, contents.split_config.get("imb")
    reached = f"{summary['imb_reached']:.4g}"
    ratio = f"ratio {reached} : 1"
    if contents.split_config.get("profile") in ("exp", "step", "pareto") and f"{imb:.4g}" != reached:
        ratio = f"ratio {imb:g} asked for, {reached} : 1 in whole images"
    text = (
        f"{'A folder of images' if split.source == 'folder' else split.source}: {len(split.train.labels):,} real "
        f"training images in {split.num_classes:,} classes, from {counts.max():,} down to {counts.min():,} images a "
        f"class ({ratio})"
    )
    if contents.cache is not None:
        text += f", and {len(contents.cache.images.labels):,} synthetic images on top"
    return f"{text}. Accuracies are on {summary['test_images']:,} test images, by which nothing was trained or chosen."


def answer(verdict: Verdict, confidence: float) -> Answer:
    """The verdict in words, also where synthetic images did not help or a few seeds cannot tell."""
    ours, theirs, found = verdict.ours, verdict.theirs, verdict.differences["balanced_accuracy"]
    return Answer(
        tone=tone(found),
        headline=_headline(found),
        sentences=[
            f"The best method with synthetic images is {ours.label}, the best on real images alone {theirs.label} "
            "(both by mean balanced accuracy).",
            _sentence("Balanced accuracy", "balanced_accuracy", verdict, confidence),
            _sentence("Few-shot accuracy", "few", verdict, confidence),
        ],
    )


def where(verdict: Verdict, contents: Contents) -> list[str]:
    """Which classes gain and lose with the best method on synthetic images."""
    sentences = []
    counts = contents.split.class_counts
    changes = [
        (mine - other, c)
        for c, (mine, other) in enumerate(zip(verdict.ours.per_class, verdict.theirs.per_class, strict=True))
        if mine is not None and other is not None
    ]
    for text, chosen in (
        ("Gained most", sorted((entry for entry in changes if entry[0] > 0), reverse=True)),
        ("Lost most", sorted(entry for entry in changes if entry[0] < 0)),
    ):
        named = [
            f"class {contents.split.classes[c]} ({counts[c]:,} real images) {points(change)}"
            for change, c in chosen[:MOST_NAMED]
        ]
        if named:
            sentences.append(f"{text}: {', '.join(named)} points.")
    return sentences


def best_few_shot(methods: list[Method], verdict: Verdict) -> str | None:
    """A warning if another method on real images alone is better on few-shot classes than the one compared with."""
    real = [method for method in methods if not method.synthetic and method.mean["few"] is not None]
    best = max(real, key=lambda method: method.mean["few"] or 0.0, default=None)
    if best is None or best.label == verdict.theirs.label:
        return None
    return (
        f"On few-shot classes alone, {best.label} is the best on real images: {format_share(best.mean['few'])} %, "
        f"at {format_share(best.mean['balanced_accuracy'])} % balanced."
    )


def runs_sentence(methods: list[Method]) -> str:
    """What the evaluated runs say without a comparison."""
    best = max(methods, key=lambda method: method.mean["balanced_accuracy"] or 0.0)
    text = (
        f"Of {sum(len(method.seeds) for method in methods):,} evaluated runs, the best balanced accuracy is "
        f"{format_share(best.mean['balanced_accuracy'])} % ({best.label}{_over(best)}"
    )
    if best.mean["few"] is not None:
        text += f"; few-shot classes {format_share(best.mean['few'])} %"
    return f"{text}). No comparison was made, so these numbers have no intervals: `saukit compare` makes one."


def protocol(contents: Contents, configuration: Mapping[str, Any] | None) -> list[str]:
    """How models were chosen and what the test set was used for."""
    found = []
    if configuration is not None:
        ways = configuration["chosen_by"]
        if ways == ["last step"]:
            found.append("Every model is the one of the last step: nothing was chosen by looking at results.")
        else:
            found.append(f"Models were kept by: {', '.join(ways)}. The table of every run says which.")
    found.append(
        "The test set was used for evaluation alone: training never reads it"
        + (", and the audit of the synthetic images looks at it only to report." if contents.cache is not None else ".")
    )
    return found


def limits(contents: Contents, methods: list[Method], compared: list[Method]) -> list[str]:
    """What the numbers of the page cannot tell."""
    split, summary = contents.split, contents.split.manifest.summary
    found = [
        f"One split of one data set: another draw of the {len(split.train.labels):,} training images would give other "
        "numbers, and no interval here covers that."
    ]
    if methods:
        found.append(_resolution(contents))
    if compared:
        seeds = sorted({len(method.seeds) for method in compared})
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        one = seeds[0] == 1
        found.append(
            f"{count} training seed{'' if seeds[-1] == 1 else 's'} a method. "
            + (
                "One seed gives no interval: differences of a few points are noise."
                if one
                else "The intervals are Student's, over differences of the same seed: they cover initialisation, order "
                "and augmentation, and with few seeds they are wide"
                + (", though two seeds can also agree by chance." if seeds[0] == 2 else ".")
            )
        )
        if len(compared) > 2:
            found.append(
                f"The best of {len(compared)} methods was picked by the same test accuracies that are shown, which "
                "flatters the winner a little on either side."
            )
    elif methods:
        found.append("Runs without a comparison: differences of a few points between them may be noise.")
    views = {method.facts["views_per_step"] for method in methods}
    if len(views) > 1:
        found.append(
            f"Methods look at different numbers of views an image ({min(views)} to {max(views)} a step): equal steps "
            "are not equal arithmetic."
        )
    if contents.cache is not None:
        found.append(_cache_limit(contents))
    if "thirds" in split.groups.rule:
        found.append(
            "The shot groups are thirds of the classes by rank, as the usual thresholds would leave a group empty: "
            "“few” means the rarest third here, and not fewer than 20 images."
            if summary["groups_rule"] != "thirds by rank"
            else "The shot groups are thirds of the classes by rank: “few” means the rarest third here."
        )
    return found


def _headline(found: Difference | None) -> str:
    if found is None:
        return "No seed was trained both with and without synthetic images: nothing can be said of their worth"
    change = f"{points(found.mean)} points of balanced accuracy"
    if found.low is None:
        return f"{change} with synthetic images, but {_why_no_interval(found)} cannot tell that from chance"
    if not found.clear_of_zero:
        return f"No clear effect of synthetic images: {change}, and the interval includes zero"
    return f"Synthetic images helped: {change}" if found.mean > 0 else f"Synthetic images did not help: {change}"


def _sentence(name: str, measure: str, verdict: Verdict, confidence: float) -> str:
    found = verdict.differences[measure]
    if found is None:
        return f"{name} cannot be compared: no seed has it on both sides."
    text = (
        f"{name}: {format_share(verdict.ours.mean[measure])} % against "
        f"{format_share(verdict.theirs.mean[measure])} %, {points(found.mean)} points"
    )
    if found.low is None:
        return f"{text}; with {_why_no_interval(found)} there is no interval."
    text += (
        f" ({100 * confidence:g} % interval {points(found.low)} to {points(found.high)}, {found.seeds} seeds, paired)"
    )
    if not found.clear_of_zero:
        return f"{text}: the interval includes zero, so this may be chance."
    return f"{text}: a clear {'gain' if found.mean > 0 else 'loss'}."


def _why_no_interval(found: Difference) -> str:
    return "one seed" if found.seeds == 1 else f"equal differences at {found.seeds} seeds"


def _over(method: Method) -> str:
    return f", mean of {len(method.seeds)} seeds" if len(method.seeds) > 1 else ", one seed"


def _resolution(contents: Contents) -> str:
    """What one test image is worth, overall and among few-shot classes."""
    test_images = contents.split.manifest.summary["test_images"]
    text = f"{test_images:,} test images: one of them is {100 / test_images:.2g} points of top-1"
    results = next((result for series in contents.series for result in series.results), None)
    few = results["groups"].get("few") if results else None
    if few is not None:
        text += f", and {100 / few['images']:.2g} points among the {few['images']:,} of few-shot classes"
    return f"{text}."


def _cache_limit(contents: Contents) -> str:
    assert contents.cache is not None
    text = "One cache of synthetic images: another seed of the generator would give other images."
    generator = contents.cache.config.get("generator")
    if generator == "diffusion":
        return (
            f"{text} The generator saw the split's training images alone, so it varies what is there and adds nothing "
            "new to the world."
        )
    return f"{text} It was made with more than this split, which may hold images like those of the test set."
