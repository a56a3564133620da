"""`kill -9` in the middle of `saukit train`: the resumed run has the bits of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from processes import Forked, command
from support import timeless_metrics, tree

from saukit.models import dual_branch
from saukit.training import trainer

STEPS = 30


def arguments(work: Path, name: str, *, resume: bool) -> list[str]:
    return ["train", "-w", str(work), "--name", name, "--method", "sau", "--steps", str(STEPS), "--quiet",
            "--batch-size", "16", "--amp", "off", *(["--resume"] if resume else [])]  # fmt: skip


@pytest.mark.slow
def test_killed_at_ten_moments_a_run_resumes_to_the_same_bits(work: Path) -> None:
    draw = random.Random(20)
    touches = [1, *(draw.randrange(4, 40) for _ in range(4))]
    shares = [draw.uniform(0.05, 0.35) for _ in range(5)]
    said = []

    def process(name: str, *, resume: bool, touch: int = 0) -> Forked:
        def work_as_program() -> None:
            trainer.CHECKPOINT_SECONDS, trainer.LOG_EVERY_STEPS = -1.0, 4
            dual_branch.PROJECTION_HIDDEN = 32
            command(*arguments(work, name, resume=resume), below=str(work), touch=touch)

        return Forked(work_as_program)

    def ended(process: Forked) -> int:
        done = process.wait()
        said.append(done.stderr)
        return done.returncode

    began = time.monotonic()
    assert ended(process("undisturbed", resume=False)) == 0, said
    whole = time.monotonic() - began
    codes = [ended(process("touched", resume=bool(i), touch=touch)) for i, touch in enumerate(touches)]
    assert codes == [-signal.SIGKILL] * 5, said
    codes = []
    for i, share in enumerate(shares):
        timed = process("timed", resume=bool(i))
        time.sleep(share * whole)
        timed.kill()
        codes.append(ended(timed))
    assert codes.count(-signal.SIGKILL) >= 3, codes  # on a busy machine a run may end before its kill
    for name in ("touched", "timed"):
        assert ended(process(name, resume=True)) == 0, said
    runs = work / "runs"
    for name in ("touched", "timed"):
        files = ("model.safetensors", "config.yaml")
        assert all((runs / name / f).read_bytes() == (runs / "undisturbed" / f).read_bytes() for f in files), name
        assert timeless_metrics(runs / name) == timeless_metrics(runs / "undisturbed")
        assert sorted(tree(runs / name)) == ["config.yaml", "manifest.json", "metrics.jsonl", "model.safetensors"]
    assert not list(work.glob(".*"))
