import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.decoding import CROP
from saukit.data.encoding import StoredFiles
from saukit.data.source import Pixels, Source

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


def loaded(source: Source, size: int, reporter: Reporter | None = None) -> Pixels:
    """All images of a source, of at most 64 pixels a side, in memory."""
    reporter = reporter or Reporter(quiet=True)
    if source.originals is None:
        assert source.load is not None
        return source.load(size, reporter)
    with tempfile.TemporaryDirectory() as folder:
        store = StoredFiles(Path(folder), source.originals, size=size, fitting=CROP, fingerprint=None)
        pixels = store.read(reporter)
        images = {part: pixels.read(part, np.arange(len(ok)), size) for part, ok in pixels.ok.items()}
    return dataclasses.replace(pixels, read=lambda part, positions, size: images[part][positions])
