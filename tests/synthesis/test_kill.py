import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Begun

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize

CONFIG = SynthConfig(
    per_class_target=20,
    train_steps=20,
    train_batch_size=4,
    sampler_steps=4,
    sample_batch_size=4,
    amp="off",
    preflight=0,
    audit=False,
)
MOMENTS = 10
SCRIPT = f"""
import sys
from pathlib import Path
import torch
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.synthesis.generators import diffusion_training as trainer
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize

trainer.CHECKPOINT_SECONDS = 0.0
synthesize({CONFIG!r}, Workspace(Path(sys.argv[1])), device=torch.device("cpu"), force=False, resume=True,
           reporter=Reporter(quiet=True))
"""


def hashes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "source.json")]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def killed_after(root: Path, delay: float) -> int:
    """Run the stage in a process of its own, kill it after `delay` seconds, and give its exit code."""
    process = Begun("-c", SCRIPT, root)
    time.sleep(delay)
    process.kill()
    return process.wait().returncode


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_resumed_cache_is_the_same_to_the_bit(
    digits_root: Path, tmp_path: Path, cpu: torch.device
) -> None:
    quiet = Reporter(quiet=True)

    def workspace(name: str) -> Workspace:
        (tmp_path / name).mkdir()
        (tmp_path / name / "split").symlink_to(digits_root / "split")
        return Workspace(tmp_path / name)

    undisturbed, began = workspace("undisturbed"), time.monotonic()
    synthesize(CONFIG, undisturbed, device=cpu, force=False, resume=False, reporter=quiet)
    whole = time.monotonic() - began

    codes = []
    for moment, delay in enumerate(np.random.default_rng(0).uniform(0, 0.9 * whole, MOMENTS)):
        killed = workspace(f"killed-{moment}")
        codes.append(killed_after(killed.root, delay))
        synthesize(CONFIG, killed, device=cpu, force=False, resume=True, reporter=quiet)
        assert hashes_of(killed.synth) == hashes_of(undisturbed.synth), f"killed after {delay:.2f} s"
        assert {path.name for path in killed.root.iterdir()} == {"split", "synth"}
    print(f"killed {codes.count(-signal.SIGKILL)} of {MOMENTS}")
    assert codes.count(-signal.SIGKILL) >= MOMENTS // 2, codes  # on a busy machine some end before their kill
