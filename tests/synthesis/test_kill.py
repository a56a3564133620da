import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saukit.core.artifacts import sha256_file
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generate import synthesize

CONFIG = SynthConfig(
    per_class_target=30, train_steps=20, train_batch_size=4, sampler_steps=4, sample_batch_size=4, amp="off"
)
SCRIPT = f"""
import sys
from pathlib import Path
import torch
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.synthesis import trainer
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generate import synthesize

torch.set_num_threads(1)
trainer.CHECKPOINT_SECONDS = 0.0
synthesize({CONFIG!r}, Workspace(Path(sys.argv[1])), device=torch.device("cpu"), force=False, resume=True,
           reporter=Reporter(quiet=True))
"""


def hashes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def killed_once(root: Path, seen: str, delay: float) -> None:
    """Run the stage in a process of its own and kill it `delay` seconds after the file `seen` is there."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    limit = time.monotonic() + 300
    while not (root / "synth" / seen).exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)


@pytest.mark.slow
def test_killed_at_random_moments_the_resumed_cache_is_the_same_to_the_bit(
    workspace: Workspace, digits_root: Path, tmp_path: Path, cpu: torch.device
) -> None:
    undisturbed = Workspace(tmp_path / "undisturbed")
    undisturbed.root.mkdir()
    (undisturbed.root / "split").symlink_to(digits_root / "split")
    quiet = Reporter(quiet=True)
    synthesize(CONFIG, undisturbed, device=cpu, force=False, resume=False, reporter=quiet)

    delays = np.random.default_rng(0).uniform(0, 0.3, 4)
    for seen, delay in zip(("config.yaml", "generator/checkpoint.pt", "shard-00000.safetensors"), delays, strict=False):
        killed_once(workspace.root, seen, delay)
    result = synthesize(CONFIG, workspace, device=cpu, force=False, resume=True, reporter=quiet)
    assert result.state in ("partial", "complete")
    assert hashes_of(workspace.synth) == hashes_of(undisturbed.synth)
    assert not [path for path in workspace.root.iterdir() if path.name not in ("split", "synth")]
