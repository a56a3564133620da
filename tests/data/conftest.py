from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace

TreeMaker = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")


@pytest.fixture
def reporter() -> Reporter:
    return Reporter()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


@pytest.fixture
def make_tree(tmp_path: Path) -> TreeMaker:
    """Writes PNGs of random colours: make_tree({"cat": 3, "dog": 2}, size=(8, 8), under="train")."""

    def make(counts: dict[str, int], *, size: tuple[int, int] = (8, 8), under: str = "", name: str = "tree") -> Path:
        root = tmp_path / name
        generator = np.random.default_rng(0)
        for class_name, count in counts.items():
            folder = root / under / class_name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return root

    return make
