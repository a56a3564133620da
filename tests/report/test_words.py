"""The verdict in words, and the charts' geometry, on numbers whose answer is known."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from saukit.evaluation.statistics import Difference, mean, standard_deviation
from saukit.report.findings import Method, differences, verdict
from saukit.report.svg import Dot, Line, curves, interval_chart, nice_ticks
from saukit.report.words import answer, best_few_shot, points, with_interval

NAMES = ("top1", "balanced_accuracy", "many", "medium", "few", "ece")


def method(label: str, *accuracies: float, synthetic: bool = False, few: float | None = None) -> Method:
    """One with the same accuracy in every measure, a seed each; `few` in all seeds, if it is another."""
    seeds: dict[int, Any] = {
        seed: {name: few if name == "few" and few is not None else value for name in NAMES}
        for seed, value in enumerate(accuracies)
    }
    columns = {name: [values[name] for values in seeds.values()] for name in NAMES}
    return Method(
        label=label,
        config={"method": label.removesuffix("+synth"), "synthetic": synthetic},
        seeds=seeds,
        mean={name: mean(column) for name, column in columns.items()},
        std={name: standard_deviation(column) for name, column in columns.items()},
        per_class=[mean(accuracies)],
        facts={"synthetic_images": 10 if synthetic else 0, "views_per_step": 1},
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "tone", "headline", "ending"),
    [
        ((0.92, 0.93, 0.94), (0.90, 0.91, 0.921), "better", "Synthetic images helped: +2.0 points", "a clear gain."),
        ((0.90, 0.91, 0.92), (0.92, 0.93, 0.941), "worse", "Synthetic images did not help: \N{MINUS SIGN}2.0 points",
         "a clear loss."),
        ((0.90, 0.96, 0.90), (0.91, 0.92, 0.90), "unclear", "No clear effect of synthetic images: +1.0 points",
         "the interval includes zero, so this may be chance."),
        ((0.95,), (0.90,), "unclear", "+5.0 points of balanced accuracy with synthetic images, but one seed cannot",
         "with one seed there is no interval."),
        ((0.95, 0.93), (0.90, 0.88), "unclear", "+5.0 points of balanced accuracy with synthetic images, but equal",
         "with equal differences at 2 seeds there is no interval."),
    ],
)  # fmt: skip
def test_the_answer_follows_the_interval(
    ours: tuple[float, ...], theirs: tuple[float, ...], tone: str, headline: str, ending: str
) -> None:
    found = verdict([method("a", *theirs), method("b+synth", *ours, synthetic=True)], 0.95)
    assert found is not None
    said = answer(found, 0.95)
    assert (said.tone, said.headline[: len(headline)]) == (tone, headline)
    assert all(sentence.endswith(ending) for sentence in said.sentences[1:])


def test_the_best_of_either_side_are_compared() -> None:
    methods = [
        method("weak", 0.5, 0.5),
        method("strong", 0.8, 0.82),
        method("weak+synth", 0.7, 0.7, synthetic=True),
        method("other+synth", 0.75, 0.78, synthetic=True),
    ]
    found = verdict(methods, 0.95)
    assert found is not None
    assert (found.ours.label, found.theirs.label) == ("other+synth", "strong")
    assert [(ours.label, theirs.label) for ours, theirs, _ in found.pairs] == [("weak+synth", "weak")]
    gain = found.pairs[0][2]["balanced_accuracy"]
    assert gain is not None and gain.mean == pytest.approx(0.2)
    assert verdict(methods[:2], 0.95) is None and verdict(methods[2:], 0.95) is None


def test_seeds_that_only_one_side_has_count_for_nothing() -> None:
    ours, theirs = method("a+synth", 0.9, 0.8, 0.7, synthetic=True), method("a", 0.5)
    found = differences(ours, theirs, 0.95)["top1"]
    assert found is not None and (found.mean, found.low, found.high, found.seeds) == (pytest.approx(0.4), None, None, 1)
    theirs.seeds[7] = theirs.seeds.pop(0)
    assert set(differences(ours, theirs, 0.95).values()) == {None}
    without = verdict([ours, theirs], 0.95)
    assert without is not None
    assert answer(without, 0.95).headline.startswith("No seed was trained both with and without synthetic images")


def test_a_better_few_shot_method_on_real_images_is_told() -> None:
    methods = [method("best", 0.9, few=0.5), method("tail", 0.8, few=0.7), method("s", 0.91, synthetic=True, few=0.6)]
    found = verdict(methods, 0.95)
    assert found is not None and found.theirs.label == "best"
    assert best_few_shot(methods, found) == (
        "On few-shot classes alone, tail is the best on real images: 70.0 %, at 80.0 % balanced."
    )
    assert best_few_shot([methods[0], methods[2]], found) is None


def test_points_and_intervals_as_text() -> None:
    assert points(0.0213) == "+2.1" and points(-0.05) == "\N{MINUS SIGN}5.0" and points(None) == "-"
    assert with_interval(Difference(0.02, None, None, 1)) == "+2.0" and with_interval(None) == "-"
    assert with_interval(Difference(0.02, -0.01, 0.05, 3)) == "+2.0 (\N{MINUS SIGN}1.0 to +5.0)"


@pytest.mark.parametrize("low", [-123.4, -1.0, -0.02, 0.0, 0.3, 79.0])
@pytest.mark.parametrize("span", [0.0, 1e-4, 0.7, 1.0, 33.0, 5000.0])
def test_ticks_are_few_even_and_enclose_the_values(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    tolerance = 1e-6 * max(1.0, abs(low))
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + tolerance and ticks[-1] >= low + span - tolerance
    steps = {round(after - before, 9) for before, after in pairwise(ticks)}
    assert max(steps) - min(steps) < 1e-8 and min(steps) > 0


def test_an_interval_chart_keeps_the_order_of_its_numbers() -> None:
    chart = interval_chart(
        "A < B",
        [Dot("<one>", "real", "90", 90.0, 85.0, 95.0, (86.0, 94.0)), Dot("two", "synthetic", "99", 99.0)],
        form=lambda value: f"{value:g}",
    )
    assert "<title>A &lt; B</title>" in chart and "&lt;one&gt;" in chart and "<one>" not in chart
    low, high = map(float, re.findall(r'class="interval real" x1="([\d.]+)%" x2="([\d.]+)%"', chart)[0])
    first, second = (float(x) for x in re.findall(r'class="mean \w+" cx="([\d.]+)%"', chart))
    single = [float(x) for x in re.findall(r'class="single real" cx="([\d.]+)%"', chart)]
    assert 0 <= low < single[0] < first < single[1] < high < second <= 100
    assert (first - low) == pytest.approx(high - first, abs=0.02)


def test_curves_stay_within_their_frame() -> None:
    lines = [Line("c0", ((20.0, 3.0), (40.0, 0.5)), strong=True), Line("c1", ((20.0, -1.0), (40.0, 1.0)), strong=False)]
    chart = curves("t", lines, form=lambda value: f"{value:g}")
    found = re.findall(r'<polyline class="(strong|thin) (c\d)" points="([^"]+)"', chart)
    assert [(weight, kind) for weight, kind, _ in found] == [("thin", "c1"), ("strong", "c0")]  # means on top
    pairs = [tuple(map(float, pair.split(","))) for _, _, points in found for pair in points.split()]
    assert all(40 <= x <= 332 and 8 <= y <= 166 for x, y in pairs)
    heights = [y for _, y in pairs]
    assert heights[2] < heights[1] < heights[3] < heights[0]  # 3.0, 1.0, 0.5, -1.0 from the top
