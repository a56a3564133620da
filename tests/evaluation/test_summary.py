"""The verdict's numbers and words, on methods whose answer is known."""

from typing import Any

import pytest
from scipy.stats import ttest_rel

from saukit.evaluation.comparison_files import answer, difference_text, footnotes, mean_rows, tone, trust
from saukit.evaluation.statistics import mean, standard_deviation
from saukit.evaluation.summary import MEASURES, differences, verdict

Entry = dict[str, Any]


def method(label: str, *accuracies: float, synthetic: bool = False, steps: int = 300) -> Entry:
    """One with the same accuracy in every measure, one per seed."""
    runs = [{"seed": seed, **dict.fromkeys(MEASURES, value)} for seed, value in enumerate(accuracies)]
    columns = {name: [run[name] for run in runs] for name in MEASURES}
    return {
        "label": label,
        "config": {"method": label.removesuffix("+synth"), "synthetic": synthetic},
        "runs": runs,
        "mean": {name: mean(column) for name, column in columns.items()},
        "std": {name: standard_deviation(column) for name, column in columns.items()},
        "synthetic_images": 10 if synthetic else 0,
        "steps": steps,
        "batch_size": 64,
        "counts_nothing": False,
        "trusted_share": None,
    }


def document(*methods: Entry, agreement: float | None = None) -> Entry:
    return {
        "methods": list(methods),
        "confidence": 0.95,
        "split": {"classes": [str(c) for c in range(10)]},
        "judged": None if agreement is None else {"agreement": agreement, "kept": 100},
        "verdict": verdict(methods, confidence=0.95),
    }


def test_a_row_whose_method_counts_nothing_is_marked_and_explained() -> None:
    plain, idle = method("ce+synth", 0.9, synthetic=True), method("balanced-softmax+synth", 0.9, synthetic=True)
    assert footnotes(document(plain)) == []
    found = document(plain, {**idle, "counts_nothing": True})
    assert [row[0] for row in mean_rows(found)] == ["ce+synth", "balanced-softmax+synth †"]
    (note,) = footnotes(found)
    assert note.startswith("† counts the training set") and "`ce+synth-prior1`" in note


def test_the_best_is_picked_again_on_the_other_seeds() -> None:
    """Of b and c each is best on the seed that it was lucky on: chosen by the others it is not."""
    methods = (
        method("a", 0.90, 0.90),
        method("b+s", 0.98, 0.90, synthetic=True),
        method("c+s", 0.88, 0.97, synthetic=True),
    )
    found = verdict(methods, confidence=0.95)
    assert found is not None and found["ours"] == "b+s"
    # Without seed 0 c is best, which has 0.88 there; without seed 1 b, which has 0.90 there.
    assert found["left_out"]["mean"] == pytest.approx((0.88 + 0.90) / 2 - 0.90)
    said = answer(document(*methods))
    assert said is not None
    assert said.sentences[1] == (
        "Picked for each seed by the other seeds instead, the best of either side differ by "
        "-1.0 points (too few seeds)."
    )
    alone = answer(document(method("a", 0.9), method("b+s", 0.95, synthetic=True)))
    assert alone is not None and alone.sentences[1].startswith("Both were picked by the test accuracies shown")


def test_trusted_shares_are_told_by_method() -> None:
    found = document(method("a", 0.9), {**method("sau+synth", 0.9, synthetic=True), "trusted_share": 0.123})
    assert trust(found) == ["synthetic images whose label was trusted at the end: sau+synth 12.3 %"]
    assert trust(document(method("a", 0.9))) == []


MINUS_TWO = "Synthetic images did not help: -2.0 points of balanced accuracy at 300 steps of batch size 64"


@pytest.mark.parametrize(
    ("ours", "theirs", "tone", "headline", "ending"),
    [
        ((0.92, 0.93, 0.94), (0.90, 0.91, 0.921), "better",
         "Synthetic images helped: +2.0 points of balanced accuracy at 300 steps of batch size 64",
         "+2.0 points (+1.8 to +2.1, clear)."),
        ((0.90, 0.91, 0.92), (0.92, 0.93, 0.941), "worse", MINUS_TWO, "-2.0 points (-2.2 to -1.9, clear)."),
        ((0.90, 0.96, 0.90), (0.91, 0.92, 0.90), "unclear", "No clear effect of synthetic images: +1.0 points",
         "+1.0 points (-5.6 to +7.6, not clear)."),
        ((0.95,), (0.90,), "unclear", "Too few seeds to say whether synthetic images help: +5.0 points",
         "+5.0 points (too few seeds)."),
        ((0.95, 0.93), (0.90, 0.87), "unclear", "Too few seeds to say whether synthetic images help: +5.5 points",
         "+5.5 points (too few seeds)."),
        ((0.95, 0.93, 0.9), (0.90, 0.88, 0.85), "unclear", "No clear effect of synthetic images: +5.0 points",
         "+5.0 points (no spread)."),
    ],
)  # fmt: skip
def test_the_answer_follows_the_interval(
    ours: tuple[float, ...], theirs: tuple[float, ...], tone: str, headline: str, ending: str
) -> None:
    said = answer(document(method("a", *theirs), method("b+synth", *ours, synthetic=True)))
    assert said is not None
    assert (said.tone, said.headline[: len(headline)]) == (tone, headline)
    assert said.sentences[0].endswith(ending)


def test_the_best_of_either_side_are_compared_and_the_same_training_with_and_without() -> None:
    methods = [
        method("weak", 0.5, 0.5, 0.51),
        method("strong", 0.8, 0.82, 0.81),
        method("weak+synth", 0.7, 0.7, 0.7, synthetic=True),
        method("other+synth", 0.75, 0.78, 0.77, synthetic=True),
    ]
    found = verdict(methods, confidence=0.95)
    assert found is not None
    assert (found["ours"], found["theirs"]) == ("other+synth", "strong")
    assert [rival["label"] for rival in found["rivals"]] == ["strong"]  # weak is clearly below it
    assert [(pair["with"], pair["without"]) for pair in found["pairs"]] == [("weak+synth", "weak")]
    assert found["pairs"][0]["difference"]["balanced_accuracy"]["mean"] == pytest.approx(0.2 - 0.01 / 3)
    assert found["tests"] == 3  # each of two against strong, and the pair
    assert verdict(methods[:2], confidence=0.95) is None and verdict(methods[2:], confidence=0.95) is None


def test_every_real_only_method_that_may_be_the_best_must_be_beaten() -> None:
    """`b` is as good as `a` within its interval; the gain over `a` is clear, that over `b` is not."""
    ours = method("c+synth", 0.95, 0.96, 0.97, 0.96, synthetic=True)
    a = method("a", 0.90, 0.91, 0.922, 0.91)
    b = method("b", 0.96, 0.84, 0.97, 0.84)
    far = method("far", 0.5, 0.51, 0.5, 0.5)
    said = answer(document(a, b, far, ours))
    assert said is not None and said.headline.startswith("No clear effect of synthetic images: +4.9 points")
    others = "Against the other real-only methods that may be the best: b +5.8 points (-5.8 to +17.3, not clear)."
    assert others in said.sentences
    alone = answer(document(a, far, ours))
    assert alone is not None and alone.headline.startswith("Synthetic images helped")


def test_the_correction_covers_that_the_best_was_picked() -> None:
    """One significant at 4 % by itself: clear as the only method with synthetic images, not as the best of two."""
    a, ours = method("a", 0.90, 0.90, 0.90, 0.90), method("c+synth", 0.91, 0.93, 0.95, 0.92, synthetic=True)
    p = ttest_rel([0.91, 0.93, 0.95, 0.92], [0.9] * 4).pvalue
    assert 0.025 < p < 0.05
    alone, of_two = verdict([a, ours], confidence=0.95), verdict(
        [a, ours, method("d+synth", 0.9, 0.91, 0.89, 0.905, synthetic=True)], confidence=0.95
    )  # fmt: skip
    assert alone is not None and of_two is not None
    first, second = (found["rivals"][0]["difference"]["top1"] for found in (alone, of_two))
    assert first["clear"] and first["p"] == pytest.approx(p)
    assert not second["clear"] and second["p"] == pytest.approx(2 * p)
    assert (second["low"], second["high"]) == (first["low"], first["high"])


def test_the_differences_of_a_table_are_corrected_measure_by_measure() -> None:
    baseline, one, two = method("a", 0.5, 0.52, 0.51), method("b", 0.6, 0.61, 0.63), method("c", 0.5, 0.53, 0.52)
    found = differences([(one, baseline), (two, baseline)], confidence=0.95)
    p_values = [ttest_rel([run["few"] for run in of["runs"]], [0.5, 0.52, 0.51]).pvalue for of in (one, two)]
    assert p_values[0] < p_values[1]
    assert [row["few"] and row["few"]["p"] for row in found] == pytest.approx(
        [2 * p_values[0], max(2 * p_values[0], p_values[1])]
    )
    baseline["runs"][0]["few"] = baseline["runs"][1]["few"] = baseline["runs"][2]["few"] = None
    assert [row["few"] for row in differences([(one, baseline)], confidence=0.95)] == [None]


@pytest.mark.parametrize(("agreement", "recognised"), [(0.0, False), (0.1, False), (0.155, False), (0.2, True)])
def test_a_cache_that_its_judge_does_not_recognise_is_the_answer(agreement: float, recognised: bool) -> None:
    """Chance is 10 % for ten classes; 100 images are within two standard errors of it up to 16 %."""
    methods = method("a", 0.90, 0.91, 0.921), method("b+synth", 0.92, 0.93, 0.94, synthetic=True)
    said = answer(document(*methods, agreement=agreement))
    assert said is not None
    assert said.headline.startswith("Synthetic images helped") is recognised
    if not recognised:
        assert said.tone == "worse"
        assert said.headline == (
            "The synthetic images do not look like their classes: the judge recognises "
            f"{100 * agreement:.1f} % of them, and chance is 10.0 %"
        )
        assert "+2.0 points of balanced accuracy at 300 steps of batch size 64" in said.sentences[0]


def test_the_budget_is_a_range_where_methods_differ() -> None:
    found = answer(document(method("a", 0.9, steps=200), method("b+synth", 0.9, synthetic=True, steps=1000)))
    assert found is not None and found.headline.endswith("at 200 to 1,000 steps of batch size 64")


def test_a_difference_as_text_and_as_a_tone() -> None:
    found = {"mean": 0.02, "low": 0.01, "high": 0.03, "clear": True, "seeds": 3}
    assert difference_text(found) == "+2.0 (+1.0 to +3.0)" and tone(found) == "better"
    assert tone({**found, "mean": -0.02}) == "worse" and tone({**found, "clear": False}) == tone(None) == "unclear"
    assert difference_text({**found, "low": None, "seeds": 2}) == "+2.0 (too few seeds)"
    assert difference_text({**found, "low": None}) == "+2.0 (no spread)" and difference_text(None) == "-"
