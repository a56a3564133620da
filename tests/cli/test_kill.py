"""`kill -9` in the middle of `saukit train`: the resumed run has the bits of an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import Begun
from support import timeless_metrics, tree

# Loads everything once and forks a real process for each job, which is killed from within at its n-th opening,
# renaming or removing of a file of the workspace, or from without after a share of the first job's time.
DRIVER = """
import json, os, signal, sys, time
import saukit.evaluation.evaluate
from saukit.cli.main import run
from saukit.models import dual_branch
from saukit.training import trainer

trainer.CHECKPOINT_SECONDS = -1.0
trainer.LOG_EVERY_STEPS = 4
dual_branch.PROJECTION_HIDDEN = 32
workspace, jobs = sys.argv[1], json.loads(sys.argv[2])
seconds = None
for job in jobs:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        touched = 0

        def count(event, arguments):
            global touched
            if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(workspace):
                touched += 1
                if touched == job["touch"]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        sys.argv = ["saukit", *job["arguments"]]
        try:
            run()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    if job["share"] is not None:
        time.sleep(job["share"] * seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = seconds or time.monotonic() - began
    print(json.dumps(status), flush=True)
"""
STEPS = 30


def job(work: Path, name: str, *, resume: bool, touch: int | None = None, share: float | None = None) -> dict[str, Any]:
    arguments = ["train", "-w", str(work), "--name", name, "--method", "sau", "--steps", str(STEPS), "--quiet",
                 "--batch-size", "16", "--amp", "off", *(["--resume"] if resume else [])]  # fmt: skip
    return {"arguments": arguments, "touch": touch, "share": share}


@pytest.mark.slow
def test_killed_at_ten_moments_a_run_resumes_to_the_same_bits(work: Path) -> None:
    draw = random.Random(20)
    touches = [1, *(draw.randrange(4, 40) for _ in range(4))]
    shares = [draw.uniform(0.05, 0.35) for _ in range(5)]
    jobs = [
        job(work, "undisturbed", resume=False),
        *(job(work, "touched", resume=bool(i), touch=touch) for i, touch in enumerate(touches)),
        job(work, "touched", resume=True),
        *(job(work, "timed", resume=bool(i), share=share) for i, share in enumerate(shares)),
        job(work, "timed", resume=True),
    ]
    done = Begun("-c", DRIVER, str(work), json.dumps(jobs)).wait()
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    assert codes[0] == codes[6] == codes[12] == 0, done.stderr
    assert codes[1:6] == [-signal.SIGKILL] * 5, done.stderr
    assert codes[7:12].count(-signal.SIGKILL) >= 3, codes  # on a busy machine a run may end before its kill
    runs = work / "runs"
    for name in ("touched", "timed"):
        files = ("model.safetensors", "config.yaml")
        assert all((runs / name / f).read_bytes() == (runs / "undisturbed" / f).read_bytes() for f in files), name
        assert timeless_metrics(runs / name) == timeless_metrics(runs / "undisturbed")
        assert sorted(tree(runs / name)) == ["config.yaml", "manifest.json", "metrics.jsonl", "model.safetensors"]
    assert not list(work.glob(".*"))
