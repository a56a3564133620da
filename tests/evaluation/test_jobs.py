"""Runs side by side: the bits of runs alone, what happens to the others if one fails, and how all are stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Begun
from support import timeless_metrics

from saukit.core import device as devices_room
from saukit.core.console import Reporter
from saukit.core.errors import DataError, EnvironmentFault, LockHeldError, UsageError
from saukit.core.workspace import Workspace
from saukit.evaluation import jobs as room
from saukit.evaluation.compare import compare
from saukit.evaluation.config import CompareConfig
from saukit.evaluation.contenders import PlannedRun, plan_comparison
from saukit.evaluation.jobs import FinishedRun, Jobs, finish_run, job_devices

CPU = torch.device("cpu")
TINY = {"steps": 4, "batch_size": 16, "amp": "off"}
ENDLESS = {**TINY, "steps": 1_000_000}


def planned(work: Path, *methods: str, **train: object) -> list[PlannedRun]:
    config = CompareConfig(methods=methods, seeds=1, train={**TINY, **train})
    return plan_comparison(config, Workspace(work), device=CPU).runs


def unheard(run: PlannedRun, news: str | float) -> None:
    """Nobody listens."""


# --- devices ------------------------------------------------------------------------------------------------------


def test_on_a_processor_a_job_has_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "usable_cores", lambda: 3)
    assert job_devices("cpu") == ["cpu"] * 3
    assert job_devices("cpu", 5) == ["cpu"] * 5
    for jobs in (0, -1):
        with pytest.raises(UsageError, match=rf"^jobs must be from 1 to 1024 \(trainings side by side\), got {jobs}$"):
            job_devices("cpu", jobs)


def test_a_job_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (devices_room.torch.cuda, room.torch.cuda):
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(module, "device_count", lambda: 2)
    assert job_devices("auto") == job_devices("cuda") == ["cuda:0", "cuda:1"]
    assert job_devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert job_devices("cuda", 1) == ["cuda:0"]
    assert (job_devices("cuda:1"), job_devices("cuda:1", 2)) == (["cuda:1"], ["cuda:1", "cuda:1"])


# --- one run ------------------------------------------------------------------------------------------------------


def test_an_error_names_its_run_and_a_held_lock_does_not(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = planned(work, "balanced-softmax")
    for error, message in ((DataError("no"), "balanced-softmax seed 0: no"), (LockHeldError("held"), "held")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(room, "fit", fail)
        with pytest.raises(type(error)) as caught:
            finish_run(run, Workspace(work), CPU, unheard)
        assert str(caught.value) == message


def test_progress_and_warnings_of_a_run_are_heard(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = planned(work, "balanced-softmax")
    fit, news = room.fit, []

    def warn(*arguments: Any, reporter: Reporter, **options: Any) -> object:
        reporter.warn("mind this")
        return fit(*arguments, reporter=reporter, **options)

    monkeypatch.setattr(room, "fit", warn)
    made = finish_run(run, Workspace(work), CPU, lambda run, said: news.append((run.title, said)))
    assert news == [("balanced-softmax seed 0", said) for said in ("mind this", 0.25, 0.5, 0.75, 1.0)]
    assert (made.name, made.reused, made.manifest.summary["steps"]) == ("balanced-softmax", False, 4)


def test_one_device_is_this_process(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.subprocess, "Popen", None)
    runs = planned(work, "balanced-softmax", "ce")
    with Jobs(Workspace(work), ["cpu"]) as jobs:
        outcomes = list(jobs.finish(runs, unheard))
    assert [run.title for run, _ in outcomes] == ["balanced-softmax seed 0", "ce seed 0"]
    assert [isinstance(made, FinishedRun) and made.reused for _, made in outcomes] == [False, True]


# --- side by side -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_side_by_side_runs_have_the_bits_that_they_have_alone(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(work, tmp_path / "other")
    config = CompareConfig(methods=("ce", "sau+synth", "bcl"), seeds=2, train=TINY)
    documents = [
        compare(config, Workspace(root), name="main", devices=["cpu"] * jobs, force=False, reporter=Reporter()).document
        for root, jobs in ((work, 1), (other, 2))
    ]
    names = sorted(path.name for path in (work / "runs").iterdir())
    assert names == sorted(path.name for path in (other / "runs").iterdir()) and len(names) == 6
    for name in names:
        for file in ("model.safetensors", "config.yaml"):
            assert (work / "runs" / name / file).read_bytes() == (other / "runs" / name / file).read_bytes(), name
        assert timeless_metrics(work / "runs" / name) == timeless_metrics(other / "runs" / name)
        devices = {json.loads((root / "runs" / name / "manifest.json").read_text())["device"] for root in (work, other)}
        assert devices == {"cpu (1 thread)"}
    for one, two in zip(*(document["methods"] for document in documents), strict=True):
        assert (one["mean"], one["std"], one["difference"]) == (two["mean"], two["std"], two["difference"])
    said = capsys.readouterr().err
    assert said.count("/6 ") == 8 and "6/6 " in said  # four runs to train, in two workspaces
    assert not list(other.glob(".*"))


@pytest.mark.slow
def test_a_failed_run_stops_the_others_which_save(split_work: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    variants = {
        "endless": {"method": "ce", **ENDLESS},
        "bad": {"method": "ce", "lr": 1e30, "steps": 400, "batch_size": 256},
    }  # late enough
    sweep.write_text(json.dumps({"variants": variants, "seeds": 1, "train": TINY}))
    outcome = Begun("-m", "saukit", "compare", "--config", sweep, "--jobs", "2", "-w", split_work).wait()
    assert outcome.returncode == 1
    assert "error: bad seed 0: the loss is not finite" in " ".join(outcome.stderr.split())
    assert (split_work / "runs" / "endless" / "checkpoint.pt").exists() and not list(split_work.glob(".*"))


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_so(split_work: Path) -> None:
    runs = planned(split_work, "ce", "balanced-softmax", **ENDLESS)
    heard: set[str] = set()
    with Jobs(Workspace(split_work), ["cpu", "cpu"]) as jobs:

        def kill(run: PlannedRun, news: str | float) -> None:
            heard.add(run.title)
            if len(heard) == 2:  # both have taken a step
                jobs._workers[0]._process.kill()

        with pytest.raises(EnvironmentFault, match=r"its process was killed \(signal 9\).*give a smaller --jobs$"):
            list(jobs.finish(runs, kill))
    (_,) = split_work.glob("runs/*/checkpoint.pt")  # of the other worker, which was stopped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopped_or_killed_a_comparison_leaves_saved_runs_and_no_process(
    split_work: Path, number: signal.Signals, code: int
) -> None:
    """A terminal's Ctrl-C reaches the whole process group; SIGTERM and SIGKILL the comparison alone."""
    arguments = ["compare", "--methods", "ce,balanced-softmax", "--seeds", "1", "--steps", "1000000", "--batch-size",
                 "16", "--jobs", "2", "-w", str(split_work)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from saukit.cli.main import run; run()", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while sum(log.stat().st_size > 0 for log in split_work.glob("runs/*/metrics.jsonl")) < 2:  # both have taken steps
        assert time.monotonic() < deadline and process.poll() is None, "the runs did not start"
        time.sleep(0.1)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert said.splitlines()[-1].endswith(f"stopped and saved; continue with: saukit {' '.join(arguments)}")
    while list(split_work.glob(".runs-*")):  # the locks of workers that are still at it
        assert time.monotonic() < deadline, "a worker did not end"
        time.sleep(0.1)
    assert len(list(split_work.glob("runs/*/checkpoint.pt"))) == 2
