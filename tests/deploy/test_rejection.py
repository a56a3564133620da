"""Rejection by confidence: thresholds against a plain loop, and what becomes of rejected images."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Cli, tiny

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.deploy.rejection import Rejection, judged, lowest_threshold
from saukit.training.stage import fit

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_lowest_threshold_that_is_accurate_enough(wanted: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    confidence = draw.integers(1, 12, 30) / 12  # many are equal
    correct = draw.random(30) < confidence
    enough = [t for t in sorted(set(confidence.tolist())) if correct[confidence >= t].mean() >= wanted]
    assert lowest_threshold(wanted, confidence, correct) == (min(enough) if enough else None)


def test_what_a_threshold_does() -> None:
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.2]), np.array([True, True, False, False])
    assert judged(0.5, confidence, correct) == Rejection(0.5, 4, 0.75, 2 / 3)
    assert judged(0.95, confidence, correct) == Rejection(0.95, 4, 0.0, None)
    assert str(judged(0.5, confidence, correct)) == (
        "min confidence 0.5: of 4 validation images 75.0 % keep a class, and 66.7 % of those are right"
    )


@pytest.fixture
def pictures(shared_work: Path, tmp_path: Path) -> Path:
    from PIL import Image

    from saukit.data.split import load_test

    (tmp_path / "pictures").mkdir()
    for index, pixels in enumerate(load_test(Workspace(shared_work)).images[:20]):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "pictures" / f"{index:02}.png")
    return tmp_path / "pictures"


def test_images_below_it_get_no_class_and_are_counted(
    cli: Cli, shared_work: Path, pictures: Path, tmp_path: Path
) -> None:
    command = ("predict", "ce", pictures, "-w", shared_work, "--top", "2")
    shares = [float(row["probability"]) for row in csv.DictReader(io.StringIO(cli(*command).out))]
    limit = sorted(shares)[7]  # this one is kept
    outcome = cli(*command, "--min-confidence", str(limit))
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [float(row["probability"]) for row in rows] == shares
    assert [row["class"] == "" for row in rows] == [share < limit for share in shares]
    assert [row["class_2"] == "" for row in rows] == [share < limit for share in shares]
    assert outcome.err == "7 of 20 images get no class\n"
    document = cli(*command, "--min-confidence", str(limit), "--json").document
    assert document["rejected"] == 7 and document["rejection"]["min_confidence"] == limit
    assert [entry["class"] is None for entry in document["predictions"]] == [share < limit for share in shares]
    assert all(entry["top"][0]["class"] for entry in document["predictions"])
    written = cli(*command, "--min-confidence", str(limit), "--out", tmp_path / "p.csv")
    assert "(no class)" in written.out and "rejected" not in cli(*command, "--json").document


def test_a_validation_part_says_what_a_threshold_is_worth(cli: Cli, val_work: Path, pictures: Path) -> None:
    fit(tiny(), Workspace(val_work), name="ce", device=CPU, force=False, resume=False, reporter=Reporter(quiet=True))
    outcome = cli("predict", "ce", pictures, "-w", val_work, "--min-confidence", "0.2")
    assert outcome.error.startswith("min confidence 0.2: of ") and "validation images" in outcome.error
    chosen = cli("predict", "ce", pictures, "-w", val_work, "--min-accuracy", "0.05", "--json")
    found = chosen.document["rejection"]
    assert chosen.code == 0 and found["accuracy"] >= 0.05 and 0 < found["coverage"] <= 1
    again = cli("predict", "ce", pictures, "-w", val_work, "--min-confidence", str(found["min_confidence"]), "--json")
    assert again.document == chosen.document  # a threshold can be copied
    shutil.rmtree(val_work / "split")
    outcome = cli("predict", "ce", pictures, "-w", val_work, "--min-accuracy", "0.5")
    assert outcome.code == 3 and "--min-accuracy chooses on the validation part of the run's split:" in outcome.error
    assert cli("predict", "ce", pictures, "-w", val_work, "--min-confidence", "0.2").code == 0


def test_what_makes_no_sense(cli: Cli, shared_work: Path, pictures: Path) -> None:
    command = ("predict", "ce", pictures, "-w", shared_work)
    outcome = cli(*command, "--min-confidence", "0.5", "--min-accuracy", "0.9")
    assert outcome.code == 2 and "give min_confidence or min_accuracy, not both" in outcome.error
    outcome = cli(*command, "--min-confidence", "1.5")
    assert outcome.code == 2 and "min_confidence must be at least 0 and at most 1, got 1.5" in outcome.error
    outcome = cli(*command, "--min-accuracy", "0.9")
    assert outcome.code == 3 and "that has none; give a run of a split with one" in outcome.error
