"""Classes with one image, or without a test image: the whole chain trains on them, and their accuracy is absent."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_page import Page
from support import Cli

COUNTS = {"bee": (9, 3), "cat": (6, 2), "dog": (4, 0), "eel": (2, 1), "fox": (1, 0), "gnu": (1, 1)}  # train and test
ABSENT = ["dog", "fox"]
SHORT = ("--steps", "3", "--batch-size", "8")
TINY = ("--train-steps", "2", "--train-batch-size", "4", "--sampler-steps", "2", "--amp", "off")
OFF = ("--filter", "none", "--preflight", "0", "--no-audit")


def folder(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for name, counts in COUNTS.items():
        for part, count in zip(("train", "test"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def test_the_chain_with_absent_classes(cli: Cli, tmp_path: Path) -> None:
    def document(*arguments: str | Path) -> Any:
        done = cli(*arguments, "--json")
        assert done.code == 0, done.error
        said.append(done.error)
        return done.document

    said: list[str] = []
    pictures, work = folder(tmp_path / "pictures"), tmp_path / "work"
    at = ("-w", work)
    split = document("make-lt", "--dataset", "folder", "--root", pictures, *at)
    assert split["counts"] == [train for train, _ in COUNTS.values()]
    assert split["test_images"] == sum(test for _, test in COUNTS.values())
    assert "classes without a test image, whose accuracy will be absent: dog, fox" in said[-1]

    cache = document("synth", *TINY, *OFF, *at)
    assert set(cache["images_per_class"].values()) == {0, 3, 5, 7, 8}  # filled to the largest class, of one image too

    document("train", "--method", "sau", "--name", "sau", *SHORT, *at)
    results = document("eval", "--run", "sau", "--suspects", *at)
    per_class = {entry["class"]: entry for entry in results["per_class"]}
    assert list(per_class) == list(COUNTS)
    for name, entry in per_class.items():
        assert (entry["top1"] is None) == (entry["recall"] is None) == (entry["f1"] is None) == (name in ABSENT)
    there = [entry["top1"] for name, entry in per_class.items() if name not in ABSENT]
    assert results["balanced_accuracy"] == pytest.approx(float(np.mean(there)))
    assert results["macro_f1"] == pytest.approx(
        np.mean([it["f1"] for name, it in per_class.items() if it["f1"] is not None])
    )
    with (work / "runs/sau/errors.csv").open(newline="") as file:
        wrong = list(csv.DictReader(file))
    assert {row["true"] for row in wrong}.isdisjoint(ABSENT)
    assert all(row["file"] == f"test/{row['true']}/{Path(row['file']).name}" for row in wrong) and wrong

    compared = document("compare", "--methods", "ce,ce+synth", "--seeds", "2", *SHORT, *at)
    for method in compared["methods"]:
        assert [value is None for value in method["per_class"]] == [name in ABSENT for name in COUNTS]
        assert 0 <= method["mean"]["balanced_accuracy"] <= 1
    assert "nan" not in (work / "comparisons/main/compare.md").read_text().lower()

    document("predict", work / "runs/sau", pictures / "train", "--out", tmp_path / "predicted.csv")
    with (tmp_path / "predicted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(train for train, _ in COUNTS.values()) and {row["class"] for row in rows} <= COUNTS.keys()
    for kind in ("hub", "onnx"):
        document("export", work / "runs/sau", "--format", kind, "--to", tmp_path / kind)
        classes = json.loads((tmp_path / kind / "classes.json").read_text())["classes"]
        assert list(classes) == list(COUNTS)
    assert "nan" not in (tmp_path / "hub/README.md").read_text().lower()

    document("report", *at)
    page = Page(work / "report.html")
    assert not page.problems
    for label in ("ce", "ce+synth", "sau"):
        column = page.tables["Accuracy of each class"].column(label)
        assert [value == "-" for value in column.values()] == [name.strip() in ABSENT for name in column]
        recall = page.tables[f"Precision, recall and F1 of {label}"].column("recall")
        assert [value == "-" for value in recall.values()] == [name.strip() in ABSENT for name in recall]
    assert "nan" not in page.text.lower().split()
