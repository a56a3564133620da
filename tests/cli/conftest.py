"""An environment of its own for each test, and folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Pictures = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAUKIT_DATA", "SAUKIT_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    elsewhere = tmp_path / "current-folder"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Writes PNGs: pictures({"cat": 5, "dog": 3}, under="train"); each class has its own colour."""

    def make(counts: dict[str, int], *, under: str = "", size: int = 16, name: str = "pictures") -> Path:
        root = tmp_path / name
        draw = np.random.default_rng(len(under))
        for label, (class_name, count) in enumerate(counts.items()):
            folder = root / under / class_name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = draw.integers(0, 60, (size, size, 3), dtype=np.uint8)
                pixels[..., label % 3] += 150
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return root

    return make
