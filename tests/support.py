"""What tests of several rooms share: calling the program, looking at a tree of files, small configurations."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import Begun

from saukit.core.artifacts import write_sealed
from saukit.synthesis.config import SynthConfig
from saukit.training.config import ResolvedTrainConfig, TrainConfig

# Classes 5 to 9 of digits at ratio 50 have 16, 10, 6, 4, 2 images: 62 to make, in shards of 8.
MICRO = SynthConfig(
    per_class_target=20,
    train_steps=6,
    train_batch_size=4,
    sampler_steps=2,
    sample_batch_size=4,
    amp="off",
    preflight=0,
    audit=False,
)

# What readers of a manifest's summary want, of an artefact that a test made by hand.
SUMMARIES: dict[str, dict[str, Any]] = {
    "run": {"parameters": 1, "real_images": 1, "synthetic_images": 0, "steps": 1, "batch_size": 1, "views_per_step": 1,
            "chosen_step": 1, "chosen_by": "last step", "seconds": 1.0, "images_per_second": 1.0,
            "peak_memory_bytes": None},
    "synth": {"images": 1, "candidates": 1, "rejected": {}, "generator": {}, "sample_seconds": None,
              "images_per_second": None},
}  # fmt: skip

TIME_FIELDS = ("seconds", "images_per_second")


@dataclass(frozen=True)
class Outcome:
    """A finished call of the program."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """stderr on one line."""
        return " ".join(self.err.split())

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it has to be."""
        return json.loads(self.out)


Cli = Callable[..., Outcome]
Count = Callable[[str, object], None]  # pytest's record_property


def program(*arguments: str | Path) -> Outcome:
    """Call saukit in a process of its own, with one thread."""
    code = "from saukit.cli.main import run; run()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def torchrun(*command: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module after -m, under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


def job(*command: str | Path, processes: int = 2, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module after -m, in one process or under torchrun's agent; torch is loaded already."""
    return Begun(*command, processes=processes, restarts=restarts).wait()


def fit_job(root: Path, name: str, fault: str, config: Any, **how: int) -> subprocess.CompletedProcess[str]:
    given = json.dumps({key: value for key, value in asdict(config).items() if value is not None})
    return job(Path(__file__).with_name("rank_worker.py"), root, name, fault, given, **how)


def tree(root: Path) -> dict[str, str]:
    """Every path below `root`, with the SHA-256 of its bytes if it is a file."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def resealed(path: Path, **changes: Any) -> None:
    """Change fields of a manifest.json or classes.json, whose hash of itself then fits again."""
    document = json.loads(path.read_text("utf-8"))
    for name in ("sha256", "format_version"):
        del document[name]
    write_sealed(path, document | changes)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without what a clock wrote."""
    return [{name: value for name, value in line.items() if name not in TIME_FIELDS} for line in metrics(run)]


def resolved(**fields: Any) -> ResolvedTrainConfig:
    """A configuration that never met a split."""
    given = {"synthetic": True, "preset": "small", "backbone": "convnet-small", "steps": 4, "batch_size": 16,
             "drop_last": True, "lr": 0.05, "weight_decay": 1e-3, "schedule": "cosine-step", "warmup": 0.0,
             "flip": True, "amp": "off", "tune": "all", "multi_crop": False, "optimizer": "sgd",
             "head_share": 0.0, "layer_decay": 1.0, "freeze_bn": False}  # fmt: skip
    return ResolvedTrainConfig(**{**given, **fields})


def tiny(**fields: Any) -> TrainConfig:
    """A run of a second."""
    return TrainConfig(**{"method": "ce", "steps": 4, "batch_size": 16, "amp": "off", **fields})
