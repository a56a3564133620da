import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from support import MICRO

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, make_split
from saukit.synthesis.config import SynthConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose much where other processes use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    make_split(SplitConfig(imb=50), Workspace(root), root=None, force=False, reporter=Reporter(quiet=True))
    return root


@pytest.fixture
def workspace(digits_root: Path, tmp_path: Path) -> Workspace:
    """A workspace of its own that holds the split of digits at ratio 50."""
    root = tmp_path / "work"
    root.mkdir()
    (root / "split").symlink_to(digits_root / "split")
    return Workspace(root)


@pytest.fixture(scope="session")
def split(digits_root: Path) -> Split:
    return load_split(Workspace(digits_root))


@pytest.fixture
def micro() -> SynthConfig:
    """The smallest run that makes several shards."""
    return replace(MICRO)


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(quiet=True)


@pytest.fixture
def cpu() -> torch.device:
    return CPU


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models: the folders sd, xl, flux, dit, and lora (for sd)."""
    root = tmp_path_factory.mktemp("models")
    tiny_pipelines.save_stable_diffusion(root / "sd")
    tiny_pipelines.save_stable_diffusion_xl(root / "xl")
    tiny_pipelines.save_flux(root / "flux")
    tiny_pipelines.save_dit(root / "dit")
    tiny_pipelines.save_lora(root / "sd", root / "lora")
    return root


@pytest.fixture
def sd(models: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Stable Diffusion that a test may spoil."""
    return shutil.copytree(models / "sd", tmp_path / "model")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, empty, as HF_HUB_OFFLINE=1 sees it."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
