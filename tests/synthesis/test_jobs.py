"""Several jobs over one plan: each samples its shards, a resume completes the cache; it is that of one process."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import Begun
from support import MICRO, fit_job, tiny

from saukit.core.console import Reporter
from saukit.core.errors import LockHeldError, UsageError
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.synthesis.jobs import Job
from saukit.synthesis.stage import SynthesisResult, synthesize
from saukit.training.stage import fit

Go = Callable[..., SynthesisResult]
TIMED = ("manifest.json", "source.json")
SCRIPT = """
import sys
from pathlib import Path
import torch
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.synthesis.generators import diffusion_training as trainer
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.synthesis.jobs import Job

trainer.CHECKPOINT_SECONDS = 0.0
synthesize({config!r}, Workspace(Path({root!r})), device=torch.device("cpu"), force=False, resume=False,
           reporter=Reporter(quiet=True), job=Job.parse({job!r}))
"""


def hashes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def workspace_beside(digits_root: Path, root: Path) -> Workspace:
    root.mkdir()
    (root / "split").symlink_to(digits_root / "split")
    return Workspace(root)


@pytest.fixture
def in_one_go(digits_root: Path, tmp_path: Path, cpu: torch.device, reporter: Reporter) -> Workspace:
    whole = workspace_beside(digits_root, tmp_path / "whole")
    synthesize(MICRO, whole, device=cpu, force=False, resume=False, reporter=reporter)
    return whole


@pytest.fixture
def go(workspace: Workspace, cpu: torch.device, reporter: Reporter) -> Go:
    def call(job: str | None, *, force: bool = False, resume: bool = False) -> SynthesisResult:
        return synthesize(
            MICRO,
            workspace,
            device=cpu,
            force=force,
            resume=resume,
            reporter=reporter,
            job=None if job is None else Job.parse(job),
        )

    return call


def test_three_jobs_and_a_resume_make_the_cache_of_one_go(go: Go, workspace: Workspace, in_one_go: Workspace) -> None:
    for job, shards in (("2/3", {2, 5}), ("0/3", {0, 2, 3, 5, 6}), ("1/3", set(range(8)))):
        result = go(job)
        assert result.manifest is None
        there = {int(path.stem.removeprefix("shard-")) for path in workspace.synth.glob("shard-*.safetensors")}
        assert there == shards
    assert go(None, resume=True).state == "partial"
    assert hashes_of(workspace.synth) == hashes_of(in_one_go.synth)
    assert go("0/3").state == "complete"


@pytest.mark.slow
def test_three_processes_one_killed_and_resumed_make_the_cache_of_one_go(
    go: Go, workspace: Workspace, in_one_go: Workspace
) -> None:
    def started(job: str) -> Begun:
        return Begun("-c", SCRIPT.format(config=MICRO, root=str(workspace.root), job=job))

    jobs = {job: started(job) for job in ("0/3", "1/3", "2/3")}
    try:
        # The first to get the lock trains; kill the middle one once there is a shard, whatever it is doing then.
        while not list(workspace.synth.glob("shard-*.safetensors")):
            assert any(job.poll() is None for job in jobs.values())
            time.sleep(0.005)
        jobs["1/3"].kill()
        codes = {name: job.wait(120).returncode for name, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.kill()
    assert [codes[name] for name in ("0/3", "2/3")] == [0, 0]
    assert started("1/3").wait(120).returncode == 0
    go(None, resume=True)
    assert hashes_of(workspace.synth) == hashes_of(in_one_go.synth)
    assert {path.name for path in workspace.root.iterdir()} == {"split", "synth"}


@pytest.mark.slow
def test_two_processes_one_killed_make_the_cache_of_one(digits_root: Path, tmp_path: Path, reporter: Reporter) -> None:
    """Torchrun starts them again; steps 0 to 5 are those of the generator's training, later ones batches."""
    config = replace(MICRO, train_batch_size=5, train_parts=3, filter="classifier", classifier="judge", max_tries=2.0)
    config = replace(config, min_confidence=0.1)
    judge = tiny(method="balanced-softmax", synthetic=False)
    whole = workspace_beside(digits_root, tmp_path / "whole")
    fit(judge, whole, name="judge", device=torch.device("cpu"), force=False, resume=False, reporter=reporter)
    for root in ("training", "sampling"):
        shutil.copytree(whole.root, tmp_path / root, symlinks=True)
    synthesize(config, whole, device=torch.device("cpu"), force=False, resume=False, reporter=reporter)
    assert len(json.loads((whole.synth / "plan.json").read_text())["rounds"]) == 2
    for root, fault in (("training", "kill:3"), ("sampling", "kill:9")):
        done = fit_job(tmp_path / root, "synth", fault, config, restarts=1)
        assert done.returncode == 0, done.stderr
        assert hashes_of(tmp_path / root / "synth") == hashes_of(whole.synth)


@pytest.mark.slow
def test_two_processes_of_which_one_trains_make_the_cache_of_one(workspace: Workspace, in_one_go: Workspace) -> None:
    done = fit_job(workspace.root, "synth", "none", MICRO)
    assert done.returncode == 0, done.stderr
    assert hashes_of(workspace.synth) == hashes_of(in_one_go.synth)


def test_what_a_job_has_not_sampled_or_was_damaged_is_sampled_by_the_resume(
    go: Go, workspace: Workspace, in_one_go: Workspace
) -> None:
    go("1/2")
    (workspace.synth / "shard-00003.safetensors").write_bytes(b"cut off")
    go(None, resume=True)
    assert hashes_of(workspace.synth) == hashes_of(in_one_go.synth)


def test_nothing_is_completed_and_no_job_is_doubled_while_it_runs(go: Go, workspace: Workspace) -> None:
    go("0/2")
    with workspace.lock(workspace.synth / "job-1-of-2"):
        with pytest.raises(LockHeldError, match="job-1-of-2 is being written by process"):
            go("1/2")
        with pytest.raises(LockHeldError, match="job-1-of-2 is being written by process"):
            go(None, resume=True)


def test_jobs_cannot_be_forced_over_each_other(go: Go, workspace: Workspace) -> None:
    go("0/2")
    before = hashes_of(workspace.synth)
    with pytest.raises(UsageError, match=r"--force with --shard would remove what other jobs sampled: remove .*synth"):
        go("1/2", force=True)
    with pytest.raises(UsageError, match=r"interrupted synth: continue it with --resume"):
        go(None)
    assert hashes_of(workspace.synth) == before


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "a/b", "0/0", "1/2/3", ""])
def test_a_shard_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"shard must be i/n with i from 0 to n - 1, such as 0/3, got"):
        Job.parse(text)
