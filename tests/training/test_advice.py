"""What a beginner is told to start with, held against the records it refers to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saukit.training.advice import default_passes, starting_method

RECORDS = Path(__file__).parents[2] / "examples" / "benchmarks" / "results" / "cpu"


def means(name: str) -> dict[str, float]:
    """Balanced accuracy in percent by label."""
    document: dict[str, Any] = json.loads((RECORDS / f"compare_{name}.json").read_text())
    return {row["label"]: 100 * row["mean"]["balanced_accuracy"] for row in document["methods"]}


def test_few_passes() -> None:
    found = means("cifar10")
    assert len(found) == 29 and max(found.values()) - found["class-balanced"] < 0.05
    assert starting_method(3, synthetic=True) == (
        "at 3 passes over the real images start with `--method class-balanced --no-synthetic` "
        "(the best of 29 methods on CIFAR-10-LT at 3 passes)"
    )
    assert "`--method class-balanced`" in starting_method(3, synthetic=False)


@pytest.mark.parametrize("name", ["digits50", "digits20"])
def test_many_passes(name: str) -> None:
    found = means(name)
    assert max(found.values()) - found["sau+synth-prior1-finish0.5"] < 0.05
    assert "`--method sau --prior-correction 1 --real-finish 0.5`" in starting_method(40, synthetic=True)
    real = {label: value for label, value in found.items() if "+synth" not in label}
    assert abs(found["mixup-cutmix-prior1"] - found["sau-prior1"]) < 1
    assert sorted(real, key=real.__getitem__)[-2:] in (
        ["mixup-cutmix-prior1", "sau-prior1"], ["sau-prior1", "mixup-cutmix-prior1"]
    )  # fmt: skip
    assert "`--method mixup-cutmix --prior-correction 1`" in starting_method(40, synthetic=False)


def test_the_recipe_is_advised_with_both_of_its_budgets() -> None:
    documents = [
        json.loads((RECORDS / f"compare_{n}.json").read_text()) for n in ("digits20", "digits50", "digits50_budget")
    ]
    rows = [{row["label"]: row for row in document["methods"]}["sau+synth-prior1-finish0.5"] for document in documents]
    short, middle, long = (row["steps"] * row["batch_size"] // row["real_images"] for row in rows)
    assert f"at {short} to {middle + 1} passes, at {long} level" in starting_method(short, synthetic=True)
    difference = rows[-1]["difference"]["balanced_accuracy"]
    assert difference["low"] < 0 < difference["high"]


def test_photos() -> None:
    cuts = [means(f"clothing50_draw{draw}") for draw in range(3)]
    average = {label: sum(cut[label] for cut in cuts) / len(cuts) for label in cuts[0]}
    assert max(average, key=average.__getitem__) == "balanced-softmax" and len(average) == 6
    assert starting_method(3, synthetic=True, pretrained=True) == (
        "for photos start with `--method balanced-softmax --no-synthetic` "
        "(on average the best of six methods on three cuts of photos of clothes)"
    )


def test_passes_in_between() -> None:
    table = json.loads((RECORDS / "variants_cifar10.json").read_text())["table"]
    best = max(row["balanced_accuracy"] for row in table)
    (own,) = (row["balanced_accuracy"] for row in table if (row["kind"], row["way"]) == ("none", "balanced-softmax"))
    assert 0 < best - own < 2
    assert "`--method balanced-softmax --no-synthetic`" in starting_method(10, synthetic=True)


@pytest.mark.parametrize(
    ("images", "device", "expected"), [(12_406, "cpu", 10.3), (100, "cpu", 1000), (9, "cuda", 100)]
)
def test_passes_of_a_run_without_options(images: int, device: str, expected: float) -> None:
    assert default_passes(images, device_type=device) == pytest.approx(expected, abs=0.05)
