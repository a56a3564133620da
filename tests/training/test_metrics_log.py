"""The log as JSON lines, and as each tracker's own package reads it back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saukit.core import extras
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, EnvironmentFault, UsageError
from saukit.core.workspace import Workspace
from saukit.training import trackers
from saukit.training.metrics_log import MetricsLog, describe_line, scalars
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
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0, tracker="tensorboard")
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
    first = MetricsLog(path, keep_steps=0, tracker="tensorboard")
    for step in (20, 40, 60):
        first.append(line(step))
    first.sync()  # and then it is killed
    second = MetricsLog(path, keep_steps=40, tracker="tensorboard")
    for step in (60, 80):
        second.append(line(step, images_per_second=7.0))
    second.close()
    assert [entry["step"] for entry in lines(path)] == [20, 40, 60, 80]
    shown = events(tmp_path / "tensorboard")
    assert [step for step, _ in shown["losses/ce"]] == [20, 40, 60, 80]
    assert shown["images_per_second"] == [(60, 7.0), (80, 7.0)]  # those of the second part


def test_without_a_tracker_there_is_no_folder(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0)
    log.append(line(20))
    log.sync()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert lines(tmp_path / "metrics.jsonl") == [line(20)]


def wandb_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the file of an offline run, a log of LevelDB's with protobuf records, holds: steps and values by tag."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at a process's end: its service writes the file
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, at = file.read_bytes(), 7
    found: dict[str, list[tuple[int, float]]] = {}
    assert content[:4] == b":W&B" and len(content) < 32_768  # one block, and so no record in parts
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 6], "little")  # after a checksum
        record = Record.FromString(content[at + 7 : at + 7 + size])
        at += 7 + size
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for tag, value in items.items():
            if not tag.startswith("_"):
                found.setdefault(tag, []).append((items["_step"], value))
    return found


def test_weights_and_biases_keeps_the_lines_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_steps=0, tracker="wandb", config={"lr": 0.5})
    log.append(line(20, images_per_second=100.0))
    log.append(line(40, val_balanced_accuracy=0.5))
    log.close()
    assert wandb_history(tmp_path) == {
        "losses/ce": [(20, 0.05), (40, 0.025)], "losses/sc": [(20, 2.0), (40, 2.0)], "lr": [(20, 0.025), (40, 0.0125)],
        "images_per_second": [(20, 100.0)], "val/balanced_accuracy": [(40, 0.5)],
    }  # fmt: skip
    assert "wandb" in {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_mlflow_keeps_the_lines_in_a_file_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "it's" / "runs" / "ce"
    folder.mkdir(parents=True)
    path = folder / "metrics.jsonl"
    first = MetricsLog(path, keep_steps=0, tracker="mlflow", config={"method": "ce", "head": None, "lr": 0.5})
    for step in (20, 40):
        first.append(line(step))
    first.sync()  # and then it is killed
    second = MetricsLog(path, keep_steps=40, tracker="mlflow", config={})
    second.append(line(60, val_balanced_accuracy=0.5))
    second.close()
    MetricsLog(path, keep_steps=0, tracker="mlflow", config={}).close()  # begun again: another run
    client = MlflowClient(f"sqlite:///{tmp_path}/it's/mlflow.db")
    experiment = client.get_experiment_by_name("saukit")
    assert experiment is not None
    again, run = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == ("ce", "FINISHED", {"method": "ce", "lr": "0.5"})
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "losses/ce")]
    assert history == [(20, 0.05), (40, 0.025), (60, pytest.approx(1 / 60))]
    assert run.data.metrics["val/balanced_accuracy"] == 0.5 and again.data.metrics == {}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_extra_is_told(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, name, ("a_package_that_is_not_there",))
    with pytest.raises(
        EnvironmentFault, match=rf"^--tracker {name} needs a_package_that_is_not_there: pip install 'saukit\[{name}\]'"
    ):
        trackers.require_tracker(name)


def test_an_unknown_tracker_and_one_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^tracker must be one of tensorboard, wandb, mlflow, got neptune"):
        trackers.require_tracker("neptune")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(EnvironmentFault, match=r"^mlflow cannot be opened \(.*\): check MLFLOW_TRACKING_URI, or leave"):
        trackers.open_tracker("mlflow", tmp_path / "runs" / "ce", {}, keep_steps=0)


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
    log = MetricsLog(run / "metrics.jsonl", keep_steps=4, tracker="tensorboard")
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


def test_a_log_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, keep_steps=0)
    assert log.digest == hashlib.sha256().hexdigest()
    for step in (1, 2, 3):
        log.append({"step": step, "losses": {"ce": 0.5}, "lr": 0.1})
    log.close()
    assert log.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    whole = path.read_text()
    MetricsLog(path, keep_steps=3, digest=log.digest).close()
    assert path.read_text() == whole
    path.write_text(whole.replace("0.5", "0.4", 1))
    with pytest.raises(
        CorruptArtifactError, match=rf"^{path} was changed after it was written: start over with --force$"
    ):
        MetricsLog(path, keep_steps=3, digest=log.digest)
    for line in ('{"losses": {}}', '{"step": "2"}', '{"step": null}'):
        path.write_text(f"{line}\n")
        with pytest.raises(CorruptArtifactError, match=rf"^{path} is damaged: a line has no step; start over"):
            MetricsLog(path, keep_steps=3)


def test_a_line_in_words() -> None:
    line = {"losses": {"mix": 1.23456, "sc": 7.0}, "trusted_share": 0.256, "val_balanced_accuracy": 0.8766}
    assert describe_line(line) == "mix 1.235  sc 7.000  trusted 26%  val 87.7"
    assert describe_line({"losses": {"ce": 0.5}, "trusted_share": None}) == "ce 0.500"
