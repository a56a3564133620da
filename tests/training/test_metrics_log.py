"""The log as JSON lines, and as TensorBoard reads it back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saukit.core.console import Reporter
from saukit.core.errors import EnvironmentFault
from saukit.core.workspace import Workspace
from saukit.training.metrics_log import MetricsLog, scalars
from saukit.training.stage import fit


def line(step: int, **fields: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "lr": 0.5 / step, "losses": {"ce": 1 / step, "sc": 2.0}, **fields}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by tag."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_shows_what_the_lines_say(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0, tensorboard=True)
    written = [
        line(20, images_per_second=100.0, trusted_share=None),
        line(40, images_per_second=200.0, trusted_share=0.25, val_balanced_accuracy=0.5),
    ]
    for entry in written:
        log.append(entry)
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == written
    shown = events(tmp_path / "tensorboard")
    assert shown.keys() == {
        "losses/ce", "losses/sc", "lr", "images_per_second", "trusted_share", "val/balanced_accuracy"
    }  # fmt: skip
    assert shown["losses/ce"] == [(20, pytest.approx(0.05)), (40, pytest.approx(0.025))]
    assert shown["lr"] == [(20, pytest.approx(0.025)), (40, pytest.approx(0.0125))]
    assert shown["images_per_second"] == [(20, 100.0), (40, 200.0)]
    assert shown["trusted_share"] == [(40, 0.25)] and shown["val/balanced_accuracy"] == [(40, 0.5)]


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path, keep_steps=0, tensorboard=True)
    for step in (20, 40, 60):
        first.append(line(step))
    first.sync()  # and then it is killed
    second = MetricsLog(path, keep_steps=40, tensorboard=True)
    for step in (60, 80):
        second.append(line(step, images_per_second=7.0))
    second.close()
    assert [entry["step"] for entry in lines(path)] == [20, 40, 60, 80]
    shown = events(tmp_path / "tensorboard")
    assert [step for step, _ in shown["losses/ce"]] == [20, 40, 60, 80]
    assert shown["images_per_second"] == [(60, 7.0), (80, 7.0)]  # those of the second part


def test_without_tensorboard_there_is_no_folder(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0)
    log.append(line(20))
    log.sync()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert lines(tmp_path / "metrics.jsonl") == [line(20)]


def test_a_missing_extra_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentFault, match=r"^--tensorboard needs tensorboard: pip install 'saukit\[tensorboard\]'"
    ):
        MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_absent_figures_are_not_drawn() -> None:
    assert dict(scalars(line(10, trusted_share=None))) == {"losses/ce": 0.1, "losses/sc": 2.0, "lr": 0.05}


def test_a_torn_line_and_later_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(line(20))}\n{json.dumps(line(40))}\n" + '{"step": 60, "lo')
    MetricsLog(path, keep_steps=100).close()
    assert lines(path) == [line(20), line(40)]
    MetricsLog(path, keep_steps=20).close()
    assert lines(path) == [line(20)]


def test_a_complete_run_minds_no_events_and_force_removes_them(work: Path) -> None:
    run = work / "runs" / "ce"
    log = MetricsLog(run / "metrics.jsonl", keep_steps=4, tensorboard=True)
    log.append(line(5))
    log.close()
    MetricsLog(run / "metrics.jsonl", keep_steps=4).close()  # the lines as they were
    assert (run / "tensorboard").is_dir()

    def again(force: bool) -> str:
        config = tiny(method="ce", synthetic=False)
        quiet = Reporter(quiet=True)
        return fit(
            config, Workspace(work), name="ce", device=torch.device("cpu"), force=force, resume=False, reporter=quiet
        ).state

    assert again(force=False) == "complete" and (run / "tensorboard").is_dir()
    assert again(force=True) == "new" and not (run / "tensorboard").exists()
