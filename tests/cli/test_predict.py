"""`saukit predict` as it is typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from support import Cli

from saukit.core.workspace import Workspace
from saukit.data.split import load_test


@pytest.fixture
def digits(shared_work: Path, tmp_path: Path) -> Path:
    """Six test images as PNGs, in a folder a class."""
    test = load_test(Workspace(shared_work))
    for index in range(6):
        file = tmp_path / "digits" / str(test.labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[index].transpose(1, 2, 0)).save(file)
    return tmp_path / "digits"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_lines_go_to_standard_output(cli: Cli, shared_work: Path, digits: Path, quiet: list[str]) -> None:
    outcome = cli("predict", "ce", digits, "-w", shared_work, *quiet)
    assert (outcome.code, outcome.err) == (0, "")
    lines = rows(outcome.out)
    assert [line["image"] for line in lines] == [str(path) for path in sorted(digits.rglob("*.png"))]
    assert all(line["class"] in "0123456789" and 0.1 <= float(line["probability"]) <= 1 for line in lines)


def test_json_is_one_document_however_it_is_asked_for(cli: Cli, shared_work: Path, digits: Path) -> None:
    one = cli("predict", "ce", digits, "-w", shared_work, "--format", "json", "--top", "2", "-q")
    other = cli("predict", "ce", digits, "-w", shared_work, "--json", "--top", "2")
    assert (one.code, other.code, one.document) == (0, 0, other.document)
    assert len(one.document["predictions"]) == 6
    assert {len(entry["top"]) for entry in one.document["predictions"]} == {2}


def test_a_file_has_the_format_of_its_name(cli: Cli, shared_work: Path, digits: Path, tmp_path: Path) -> None:
    printed = cli("predict", "ce", digits, "-w", shared_work)
    outcome = cli("predict", "ce", digits, "-w", shared_work, "--out", tmp_path / "deep" / "a.CSV")
    assert outcome.code == 0 and "6 images by" in outcome.out and "written to" in outcome.out
    assert (tmp_path / "deep" / "a.CSV").read_text() == printed.out
    outcome = cli("predict", "ce", digits, "-w", shared_work, "--out", tmp_path / "a.json", "--json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert outcome.document == {"out": str(tmp_path / "a.json"), **document}
    assert len(document["predictions"]) == 6
    cli("predict", "ce", digits, "-w", shared_work, "--out", tmp_path / "a.json", "--format", "csv", "-q")
    assert (tmp_path / "a.json").read_text() == printed.out  # --format wins, and an older file is replaced


def test_every_kind_of_model(cli: Cli, shared_work: Path, digits: Path, tmp_path: Path) -> None:
    expected = rows(cli("predict", "sau", digits, "-w", shared_work).out)
    assert cli("export", "sau", "--to", tmp_path / "out", "-w", shared_work).code == 0
    run = shared_work / "runs" / "sau"
    for model in (run, run / "model.safetensors", tmp_path / "out"):
        outcome = cli("predict", model, digits, "-w", tmp_path / "nowhere")
        assert outcome.code == 0 and rows(outcome.out) == expected, model
    assert not (tmp_path / "nowhere").exists()


def test_unreadable_images(cli: Cli, shared_work: Path, digits: Path, tmp_path: Path) -> None:
    (digits / "bad.jpg").write_text("no image")
    outcome = cli("predict", "ce", digits, "-w", shared_work, "--out", tmp_path / "a.csv")
    assert outcome.code == 3 and outcome.out == "" and not (tmp_path / "a.csv").exists()
    assert "1 image cannot be read; nothing was written" in outcome.error and "bad.jpg (unknown image" in outcome.error
    outcome = cli("predict", "ce", digits, "-w", shared_work, "--skip-bad", "--json")
    assert outcome.code == 0 and "1 image cannot be read, skipped" in outcome.error
    assert [Path(entry["image"]).name for entry in outcome.document["skipped"]] == ["bad.jpg"]
    assert len(outcome.document["predictions"]) == 6


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--top", "11"], 2, "top must be at most 10"),
        (["--batch-size", "0"], 2, "batch_size must be at least 1, got 0"),
        (["--json", "--format", "csv"], 2, "--json prints a JSON document, --format csv lines: leave one out"),
        (["--out", "a.txt"], 2, "--out a.txt ends neither in .csv nor in .json: give --format csv or --format json"),
        (["--out", "."], 2, "--out . is a folder: give a file, such as predictions.csv"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
        (["missing.png"], 3, "no such file or folder: missing.png"),
    ],
)
def test_bad_options(cli: Cli, shared_work: Path, digits: Path, options: list[str], code: int, message: str) -> None:
    outcome = cli("predict", "ce", digits, *options, "-w", shared_work)
    assert outcome.code == code and message in outcome.error and outcome.out == ""
    assert list(Path().iterdir()) == []


def test_an_unknown_model_names_the_runs(cli: Cli, shared_work: Path, digits: Path) -> None:
    outcome = cli("predict", "sou", digits, "-w", shared_work)
    assert outcome.code == 3
    assert "no model 'sou': no complete run of" in outcome.error and "complete runs: " in outcome.error


def test_images_have_to_be_given(cli: Cli, shared_work: Path) -> None:
    outcome = cli("predict", "ce", "-w", shared_work)
    assert outcome.code == 2 and "Missing argument" in outcome.error and "images" in outcome.error.lower()
