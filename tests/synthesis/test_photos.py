"""A cache of photos: encoded as those of a split are, judged as it is kept, read when it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny, tree

from saukit.core.artifacts import load_tensors
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.decoding import decode_image
from saukit.data.images import RowsOf, as_stored
from saukit.data.split import load_split, make_split
from saukit.data.synthetic import load_cache, shard_path
from saukit.synthesis import cache as room
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.stage import fit
from saukit.training.training_set import build_training_set

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
SIZE = 72


def photo(folder: Path, index: int, seed: int) -> None:
    coarse = np.random.default_rng([seed, index]).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{index}.png")


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Workspace, SynthConfig]:
    """A split of photos of 72 pixels, and a cache of it that is to come from a folder, some of it black."""
    for name, seed in (("cat", 0), ("dog", 1)):
        for index in range(12 if name == "cat" else 5):
            photo(tmp_path / "real" / name, index, seed)
        for index in range(9):
            photo(tmp_path / "made" / name, index, 10 + seed)
    Image.new("RGB", (96, 80)).save(tmp_path / "made" / "dog" / "9.png")
    workspace = Workspace(tmp_path / "work")
    split = SplitConfig(dataset="folder", image_size=SIZE, test_fraction=0.2)
    make_split(split, workspace, root=tmp_path / "real", force=False, reporter=QUIET)
    made = str(tmp_path / "made")
    config = SynthConfig(generator="folder", from_folder=made, preflight=0, audit=False, reject_copies=True)
    return workspace, config


def made(workspace: Workspace, config: SynthConfig, *, resume: bool = False) -> None:
    synthesize(config, workspace, device=CPU, force=False, resume=resume, reporter=QUIET)


def test_it_is_stored_encoded_and_read_when_asked_for(photos: tuple[Workspace, SynthConfig], tmp_path: Path) -> None:
    workspace, config = photos
    made(workspace, config)
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    assert isinstance(cache.images, RowsOf) and cache.images.shape == (len(cache.labels), 3, SIZE, SIZE)
    expected = {
        as_stored(decode_image(path, SIZE)).tobytes() for path in sorted((tmp_path / "made" / "dog").glob("*.png"))
    }
    found = [image.tobytes() for image in cache.images[np.flatnonzero(cache.labels == 1)]]
    assert len(set(found)) == len(found) > 0 and expected.issuperset(found)
    tensors, _ = load_tensors(shard_path(workspace.synth, 0))
    assert "images" not in tensors and len(tensors["bytes"]) < 0.2 * len(tensors["labels"]) * 3 * SIZE**2


def test_training_reads_it_beside_the_split(photos: tuple[Workspace, SynthConfig]) -> None:
    workspace, config = photos
    made(workspace, config)
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    data = build_training_set(split, cache, CPU)
    assert data.residence == "disk" and len(data) == len(split.train.labels) + len(cache.labels)
    assert np.array_equal(data.images[torch.tensor([len(split.train.labels) + 2])][0], cache.images[[2]][0])
    settings = tiny(steps=2, backbone="convnet-small", synthetic=True)
    fit(settings, workspace, name="run", device=CPU, force=False, resume=False, reporter=QUIET)


def test_a_kill_and_a_resume_give_the_same_bytes(
    photos: tuple[Workspace, SynthConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, config = photos
    again = Workspace(tmp_path / "again")
    shutil.copytree(workspace.root, again.root)
    made(workspace, config)
    real, written = room.save_shard, list[Path]()

    def dies(path: Path, *arguments: object, **others: object) -> None:
        if written:  # after the images, before their scores
            raise KeyboardInterrupt
        written.append(path)
        real(path, *arguments, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(room, "save_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            made(again, config)
    assert written and not (again.synth / "manifest.json").exists()
    made(again, config, resume=True)
    shards = [{name: of for name, of in tree(w.synth).items() if name.startswith("s")} for w in (workspace, again)]
    assert shards[0].keys() == shards[1].keys()
    for name in ("shard-00000.safetensors", "selection.safetensors"):
        assert shards[0][name] == shards[1][name]


def test_a_raw_cache_of_an_earlier_saukit_is_read(
    photos: tuple[Workspace, SynthConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, config = photos
    with monkeypatch.context() as patch:
        patch.setattr(room, "RAW_UP_TO", 1000)
        patch.setattr("saukit.synthesis.sampling.RAW_UP_TO", 1000)
        made(workspace, config)
    cache = load_cache(workspace, load_split(workspace))
    assert isinstance(cache.images, np.ndarray) and cache.images.shape == (len(cache.labels), 3, SIZE, SIZE)
    assert "images" in load_tensors(shard_path(workspace.synth, 0))[0]
