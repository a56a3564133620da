"""The demo with small budgets: every stage, one table, one page; and again, which finds all of it there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support import MICRO, Cli

from saukit.cli import demo


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"preset": "small", "steps": 3, "batch_size": 16, "amp": "off"}
    monkeypatch.setattr(demo, "DEMO_COMPARISON", dataclasses.replace(demo.DEMO_COMPARISON, train=train))
    monkeypatch.setattr(demo, "DEMO_SYNTH", dataclasses.replace(MICRO, audit=True, preflight=4))


@pytest.mark.slow
def test_the_demo_makes_everything_and_finds_it_again(cli: Cli, tmp_path: Path) -> None:
    work = tmp_path / "demo"
    first = cli("demo", "-w", work, "--seeds", "2", "--json")
    assert first.code == 0, first.err
    document = first.document["comparison"]
    assert [method["label"] for method in document["methods"]] == list(demo.DEMO_COMPARISON.methods)
    assert all([run["seed"] for run in method["runs"]] == [0, 1] for method in document["methods"])
    # The judge of the synthetic images is a run of the table, and no other run was made for it.
    audit = json.loads((work / "synth" / "audit.json").read_text())
    assert audit["classifier"] == "balanced-softmax"
    assert len(list((work / "runs").iterdir())) == 10
    page = Path(first.document["report"]).read_text(encoding="utf-8")
    assert "sau+synth-prior1-finish0.5" in page

    made = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    again = cli("demo", "-w", work, "--seeds", "2", "--json")
    assert again.code == 0, again.err
    for then, now in zip(document["methods"], again.document["comparison"]["methods"], strict=True):
        assert (now["mean"], now["std"], now["difference"]) == (then["mean"], then["std"], then["difference"])
        assert all(run["reused"] for run in now["runs"])
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == made
    fewer = cli("demo", "-w", work, "--seeds", "1", "--json").document["comparison"]
    assert [len(method["runs"]) for method in fewer["methods"]] == [1] * 5
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == made
