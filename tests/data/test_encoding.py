"""Files on their way into the shards of a split: read once, resumed after a kill, told where they are bad."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.workspace import Workspace
from saukit.data import encoding as room
from saukit.data import images
from saukit.data.config import SplitConfig
from saukit.data.decoding import Fitting, decode_image
from saukit.data.encoding import statistics_of
from saukit.data.images import EncodedImages
from saukit.data.source_config import Fit
from saukit.data.split import STORE_NAME, Part, Split, load_split, load_test, make_split

TreeMaker = Callable[..., Path]

SIZE = 72
CONFIG = SplitConfig(dataset="folder", image_size=SIZE, test_fraction=0.25, val_fraction=0.2)


@pytest.fixture
def root(make_tree: TreeMaker) -> Path:
    return make_tree({"cat": 12, "dog": 8, "eel": 5}, size=(100, 80))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FILES_PER_SHARD", 4)


def make(workspace: Workspace, root: Path, config: SplitConfig = CONFIG, *, force: bool = False) -> None:
    make_split(config, workspace, root=root, force=force, reporter=Reporter())


def parts_of(workspace: Workspace) -> tuple[Split, list[Part]]:
    split = load_split(workspace)
    assert split.val is not None
    return split, [split.train, split.val, load_test(workspace)]


def decodings(monkeypatch: pytest.MonkeyPatch, *, fail_after: int | None = None) -> Counter[str]:
    """Counts how often each file is decoded; from one on it fails as if the process were interrupted."""
    seen: Counter[str] = Counter()
    decode = room.decode_or_reason

    def counting(file: Any, *rest: Any) -> Any:
        if fail_after is not None and seen.total() >= fail_after:
            raise KeyboardInterrupt
        seen[str(file)] += 1
        return decode(file, *rest)

    monkeypatch.setattr(room, "decode_or_reason", counting)
    return seen


def test_parts_are_the_files_encoded_and_each_is_read_once(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decodings(monkeypatch)
    make(workspace, root)
    files = sorted(root.rglob("*.png"))
    assert seen == Counter(map(str, files))
    split, parts = parts_of(workspace)
    assert split.image_size == (SIZE, SIZE) and sum(len(part.labels) for part in parts) == 25
    for part in parts:
        assert isinstance(part.images, EncodedImages)
        for image, label, index in zip(np.asarray(part.images), part.labels, part.source_indices, strict=True):
            assert files[index].parent.name == split.classes[label]
            expected = decode_image(files[index], SIZE).astype(int)
            assert np.abs(image - expected).mean() < 12, "noise is what JPEG keeps worst"
    assert not (workspace.root / STORE_NAME).exists()


def test_small_images_stay_as_they_are_and_each_is_read_once(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decodings(monkeypatch)
    monkeypatch.setattr(images, "CHUNK", 5)
    make(workspace, root, replace(CONFIG, image_size=40))
    files = sorted(root.rglob("*.png"))
    assert seen == Counter(map(str, files)) and not (workspace.root / STORE_NAME).exists()
    for part in parts_of(workspace)[1]:
        assert isinstance(part.images, np.ndarray)
        for image, index in zip(part.images, part.source_indices, strict=True):
            assert (image == decode_image(files[index], 40)).all()


@pytest.mark.parametrize("size", [40, SIZE])
def test_mean_and_deviation_are_those_of_the_training_images(workspace: Workspace, root: Path, size: int) -> None:
    make(workspace, root, replace(CONFIG, image_size=size))
    split, files = load_split(workspace), sorted(root.rglob("*.png"))
    pixels = np.stack([decode_image(files[index], size) for index in split.train.source_indices]) / 255
    np.testing.assert_allclose(split.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(split.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_one_colour_has_no_deviation() -> None:
    assert statistics_of(np.array([[[510, 255 * 510]] * 3]), 2) == ((1.0,) * 3, (1.0,) * 3)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize(("done", "size"), [(0, SIZE), (9, SIZE), (24, SIZE), (9, 40)])
def test_a_killed_run_goes_on_behind_its_last_shard(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    done: int,
    size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, resumed = Workspace(tmp_path / "whole"), Workspace(tmp_path / "resumed")
    config = replace(CONFIG, image_size=size)
    make(whole, root, config)
    with monkeypatch.context() as patch:
        decodings(patch, fail_after=done)
        with pytest.raises(KeyboardInterrupt):
            make(resumed, root, config)
    kept = 4 * len(list((resumed.root / STORE_NAME).glob("*.safetensors"))) if done else 0
    assert kept <= done and not (resumed.split).exists()
    capsys.readouterr()
    seen = decodings(monkeypatch)
    make(resumed, root, config)
    assert seen.total() == 25 - kept
    assert (f"{kept} of 25 images had been decoded before" in capsys.readouterr().err) == (kept > 0)
    assert tree(resumed.split) == tree(whole.split)


def flip_byte(store: Path, root: Path) -> None:
    path = store / "00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut_off(store: Path, root: Path) -> None:
    (store / "00000.safetensors").write_bytes(b"\0" * 30)


def other_file(store: Path, root: Path) -> None:
    Image.new("RGB", (90, 90)).save(next(iter(sorted(root.rglob("*.png")))))


@pytest.mark.parametrize(("change", "again"), [(flip_byte, 21), (cut_off, 21), (other_file, 25)])
def test_what_is_damaged_or_of_other_files_is_not_gone_on_with(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch, change: Any, again: int
) -> None:
    with monkeypatch.context() as patch:
        decodings(patch, fail_after=9)
        with pytest.raises(KeyboardInterrupt):
            make(workspace, root)
    store = workspace.root / STORE_NAME
    kept = 4 * len(list(store.glob("*.safetensors")))
    change(store, root)
    seen = decodings(monkeypatch)
    make(workspace, root)
    assert seen.total() == (25 if again == 25 else 25 - kept + 4)


def test_another_size_starts_over(workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        decodings(patch, fail_after=20)
        with pytest.raises(KeyboardInterrupt):
            make(workspace, root)
    seen = decodings(monkeypatch)
    make(workspace, root, SplitConfig(dataset="folder", image_size=80))
    assert seen.total() == 25 and load_split(workspace).image_size == (80, 80)


def test_bad_images_are_all_listed_or_skipped(
    workspace: Workspace, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "cat" / "003.png").write_bytes(b"not an image")
    whole = (root / "eel" / "001.png").read_bytes()
    (root / "eel" / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 images cannot be read; no split was written.*\n.*cat/003.*\n.*eel/001"):
        make(workspace, root)
    assert not workspace.split.exists()
    seen = decodings(monkeypatch)
    make(workspace, root, SplitConfig(dataset="folder", image_size=SIZE, skip_bad=True))
    assert not seen, "what was read before the error is not read again"
    assert "2 images cannot be read, skipped" in capsys.readouterr().err
    split, test = load_split(workspace), load_test(workspace)
    assert split.manifest.summary["skipped"] == 2 and len(split.train.labels) + len(test.labels) == 23
    files = sorted(root.rglob("*.png"))
    for part in (split.train, test):
        assert {files[index].relative_to(root).as_posix() for index in part.source_indices}.isdisjoint(
            {"cat/003.png", "eel/001.png"}
        )
        np.asarray(part.images)


def test_a_shard_of_bad_images_alone(workspace: Workspace, root: Path) -> None:
    for index in range(4):
        (root / "cat" / f"{index:03}.png").write_bytes(b"")
    make(workspace, root, SplitConfig(dataset="folder", image_size=SIZE, skip_bad=True))
    assert load_split(workspace).manifest.summary["skipped"] == 4


def test_arrays_above_64_pixels_are_encoded_too(workspace: Workspace) -> None:
    make_split(SplitConfig(image_size=80), workspace, root=None, force=False, reporter=Reporter())
    images = load_split(workspace).train.images
    assert isinstance(images, EncodedImages) and images.shape[1:] == (3, 80, 80)
    raw = Workspace(workspace.root.with_name("raw"))
    make_split(SplitConfig(image_size=64), raw, root=None, force=False, reporter=Reporter())
    smaller = load_split(raw).train.images
    assert isinstance(smaller, np.ndarray)
    picture = Image.fromarray(np.ascontiguousarray(images[7].transpose(1, 2, 0))).resize((64, 64))
    assert np.abs(np.asarray(picture).transpose(2, 0, 1).astype(int) - smaller[7]).mean() < 6


def test_the_manifest_vouches_for_the_shards(workspace: Workspace, root: Path) -> None:
    make(workspace, root)
    manifest = json.loads((workspace.split / "manifest.json").read_text())
    assert {"train-00000.safetensors", "test-00000.safetensors", "val-00000.safetensors"} < set(manifest["files"])


@pytest.mark.parametrize("size", [40, SIZE])
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_fit_is_the_splits_whatever_its_size(workspace: Workspace, root: Path, fit: Fit, size: int) -> None:
    make(workspace, root, SplitConfig(dataset="folder", image_size=size, fit=fit, background="red"))
    split, files = load_split(workspace), sorted(root.rglob("*.png"))
    assert split.fitting == Fitting(fit, "red")
    for image, index in zip(np.asarray(split.train.images), split.train.source_indices, strict=True):
        expected = decode_image(files[index], size, split.fitting).astype(int)
        assert np.abs(image - expected).mean() < (12 if size > 64 else 1e-9)
        if fit == "pad":
            assert np.abs(image[:, 0, 0].astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("size", [40, SIZE])
def test_what_the_centre_square_loses_and_single_colours_are_told(
    workspace: Workspace, make_tree: TreeMaker, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree({"cat": 4, "dog": 4}, size=(100, 50))
    Image.new("RGB", (100, 50), "blue").save(root / "dog" / "001.png")
    make(workspace, root, SplitConfig(dataset="folder", image_size=size))
    error = " ".join(capsys.readouterr().err.split())
    assert "the centre square keeps 50 % of the pictures on average; --fit pad keeps all of them" in error
    assert "1 image has a single colour: dog/001.png" in error
    make(workspace, root, SplitConfig(dataset="folder", image_size=size, fit="stretch"), force=True)
    assert "centre square" not in capsys.readouterr().err
