from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
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
