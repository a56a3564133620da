import functools
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import killed_after

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators import diffusion_training as trainer
from saukit.synthesis.stage import synthesize

pytestmark = pytest.mark.usefixtures("small_generator")

CONFIG = SynthConfig(
    per_class_target=30,
    train_steps=20,
    train_batch_size=4,
    sampler_steps=4,
    sample_batch_size=4,
    amp="off",
    preflight=0,
    audit=False,
)
MOMENTS = 10


def hashes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "source.json")]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_resumed_cache_is_the_same_to_the_bit(
    digits_root: Path, tmp_path: Path, cpu: torch.device
) -> None:
    quiet = Reporter(quiet=True)

    def workspace(name: str) -> Workspace:
        (tmp_path / name).mkdir()
        (tmp_path / name / "split").symlink_to(digits_root / "split")
        return Workspace(tmp_path / name)

    from diffusers import DPMSolverMultistepScheduler, UNet2DModel  # noqa: F401  # loading them is no part of the time

    undisturbed, began = workspace("undisturbed"), time.monotonic()
    synthesize(CONFIG, undisturbed, device=cpu, force=False, resume=False, reporter=quiet)
    whole = time.monotonic() - began

    def begun(root: Path) -> None:
        trainer.CHECKPOINT_SECONDS = 0.0
        synthesize(CONFIG, Workspace(root), device=cpu, force=False, resume=True, reporter=quiet)

    codes = []
    for moment, delay in enumerate(np.random.default_rng(0).uniform(0, 0.9 * whole, MOMENTS)):
        killed = workspace(f"killed-{moment}")
        codes.append(killed_after(delay, functools.partial(begun, killed.root)))
        synthesize(CONFIG, killed, device=cpu, force=False, resume=True, reporter=quiet)
        assert hashes_of(killed.synth) == hashes_of(undisturbed.synth), f"killed after {delay:.2f} s"
        assert {path.name for path in killed.root.iterdir()} == {"split", "synth"}
    print(f"killed {codes.count(-signal.SIGKILL)} of {MOMENTS}")
    assert codes.count(-signal.SIGKILL) >= MOMENTS // 2, codes  # on a busy machine some end before their kill
