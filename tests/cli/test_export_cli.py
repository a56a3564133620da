"""`saukit export` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Cli

from saukit.deploy import export as stage
from saukit.models.classifier import load_classifier


def test_an_export_prints_how_far_it_is_from_the_model(cli: Cli, shared_work: Path, tmp_path: Path) -> None:
    outcome = cli("export", "ce", "--to", tmp_path / "out", "--format", "hub, torch", "-w", shared_work)
    assert outcome.code == 0
    assert "checked on 32 training images" in outcome.out
    assert "largest difference of a logit" in outcome.out and "hub" in outcome.out and "torch" in outcome.out
    assert f"written to {tmp_path / 'out'}: README.md, classes.json, config.json, model.pt2" in outcome.out
    assert load_classifier(tmp_path / "out").spec.method == "ce"


def test_the_document_of_an_export(cli: Cli, shared_work: Path, tmp_path: Path) -> None:
    outcome = cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work, "--json")
    document = outcome.document
    assert document["folder"] == str(tmp_path / "out") and document["model"] == str(shared_work / "runs" / "ce")
    assert document["files"] == ["README.md", "classes.json", "config.json", "model.safetensors"]
    assert document["checks"] == {"hub": 0} and document["tolerance"] == 1e-4
    again = cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work)
    assert again.code == 2 and "holds an export already: replace it with --force" in again.error
    assert cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work, "--force", "-q").out == ""


@pytest.mark.parametrize("formats", ["hub,tflite", "torch onnx"])
def test_unknown_formats(cli: Cli, shared_work: Path, tmp_path: Path, formats: str) -> None:
    outcome = cli("export", "ce", "--to", tmp_path / "out", "--format", formats, "-w", shared_work)
    assert outcome.code == 2 and "is not a list, each one of torch, onnx, hub, transformers" in outcome.error


def test_no_format_at_all(cli: Cli, shared_work: Path, tmp_path: Path) -> None:
    outcome = cli("export", "ce", "--to", tmp_path / "out", "--format", ",", "-w", shared_work)
    assert (
        outcome.code == 2
        and "formats must be one or more of torch, onnx, hub, transformers, each once, got none" in outcome.error
    )


def test_a_folder_has_to_be_given(cli: Cli, shared_work: Path) -> None:
    outcome = cli("export", "ce", "-w", shared_work)
    assert outcome.code == 2 and "Missing option '--to'" in outcome.error


def test_a_failed_check_is_a_failed_run(
    cli: Cli, shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "largest_difference", lambda *_: 0.5)
    outcome = cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work)
    assert outcome.code == 1 and "they differ by 0.5, at most 0.0001 is allowed" in outcome.error
    assert not (tmp_path / "out").exists()
