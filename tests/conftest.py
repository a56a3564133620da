"""Small workspaces on digits, made once a session. Tests copy them and never write into the shared ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import tiny

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.trainer import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread_everywhere() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for each other make tests many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_val_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only a split: digits at ratio 50 (142 to 2 images a class) with a validation part."""
    root = tmp_path_factory.mktemp("shared-val")
    make_split(SplitConfig(imb=50, val_fraction=0.2), Workspace(root), root=None, force=False, reporter=QUIET)
    return root


@pytest.fixture(scope="session")
def shared_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at ratio 50, 62 synthetic images (20 a class), and the runs `ce` and `sau`; `ce` is evaluated."""
    root = tmp_path_factory.mktemp("shared")
    workspace = Workspace(root)
    make_split(SplitConfig(imb=50), workspace, root=None, force=False, reporter=QUIET)
    micro = SynthConfig(
        per_class_target=20, train_steps=3, train_batch_size=4, sampler_steps=2, amp="off", preflight=0, audit=False
    )
    synthesize(micro, workspace, device=CPU, force=False, resume=False, reporter=QUIET)
    for method, synthetic in (("sau", True), ("ce", False)):
        config = tiny(method=method, synthetic=synthetic)
        fit(config, workspace, name=method, device=CPU, force=False, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="ce"), workspace, device=CPU, force=False, reporter=QUIET)
    return root


@pytest.fixture
def work(shared_work: Path, tmp_path: Path) -> Path:
    """A copy of the shared workspace: split, cache and two runs."""
    return shutil.copytree(shared_work, tmp_path / "copied-work")


@pytest.fixture
def split_work(shared_work: Path, tmp_path: Path) -> Path:
    """A workspace with a copy of the shared split alone."""
    shutil.copytree(shared_work / "split", tmp_path / "split-work" / "split")
    return tmp_path / "split-work"


@pytest.fixture
def val_work(shared_val_work: Path, tmp_path: Path) -> Path:
    """A copy of the shared workspace that has a validation part, and nothing but its split."""
    return shutil.copytree(shared_val_work, tmp_path / "val-work")
