"""Encoded images: against Pillow, and indexed as a numpy array of the decoded ones is."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from saukit.core.artifacts import save_tensors
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace
from saukit.data import images as room
from saukit.data.images import Encoded, EncodedImages, chunks, mapped, shard_paths, write_shards
from saukit.data.split import load_split

SIZE = 16


def pictures(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours, which JPEG keeps nearly as they are."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large).transpose(0, 3, 1, 2)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodedImages:
    """23 images in several shards."""
    monkeypatch.setattr(room, "SHARD_BYTES", 4000)
    write_shards(tmp_path, "train", map(Encoded.of, pictures(23)))
    write_shards(tmp_path, "test", map(Encoded.of, pictures(3)))
    paths = shard_paths(tmp_path, "train")
    assert len(paths) > 2
    return EncodedImages(paths, (SIZE, SIZE))


def test_what_is_decoded_is_what_pillow_decodes(stored: EncodedImages) -> None:
    assert stored.shape == (23, 3, SIZE, SIZE) and len(stored) == 23
    expected = []
    for row in range(23):
        file = stored.encoded(row)
        with Image.open(io.BytesIO(file)) as image:
            assert image.format == "JPEG" and image.mode == "RGB"
            assert {layer[1:3] for layer in image.layer} == {(1, 1)}, "no chroma subsampling"  # type: ignore[attr-defined]
            expected.append(np.asarray(image).transpose(2, 0, 1))
    assert (np.asarray(stored) == np.stack(expected)).all()
    assert np.abs(np.asarray(stored).astype(int) - pictures(23)).mean() < 2
    assert stored.nbytes == stored.sizes.sum() == sum(len(stored.encoded(row)) for row in range(23))


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(3, 11),
        slice(20, 90),
        slice(0, 0),
        slice(None, None, -2),
        np.array([22, 0, 0, 7]),
        np.array([], np.int64),
        [5, -1],
        np.arange(23) % 3 == 0,
        np.array([[1, 2], [3, 22]]),
        4,
        -1,
    ],
)
def test_rows_are_those_of_an_array(stored: EncodedImages, rows: Any) -> None:
    assert np.array_equal(stored[rows], np.asarray(stored)[rows])


def test_a_row_that_is_not_there_is_an_error_and_iteration_ends(stored: EncodedImages) -> None:
    with pytest.raises(IndexError):
        stored[23]
    assert len(list(stored)) == 23  # type: ignore[call-overload]
    assert np.array_equal(np.concatenate(list(chunks(stored))), np.asarray(stored))


def test_several_threads_may_read(stored: EncodedImages) -> None:
    whole = np.asarray(stored)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda seed: stored[np.random.default_rng(seed).permutation(23)], range(16)):
            assert sorted(found.sum((1, 2, 3)).tolist()) == sorted(whole.sum((1, 2, 3)).tolist())


def test_moments_are_exact() -> None:
    image = pictures(1)[0]
    values = image.astype(object)  # Python's integers
    moments = Encoded.of(image).moments
    assert moments[:, 0].tolist() == [int(channel.sum()) for channel in values]
    assert moments[:, 1].tolist() == [int((channel**2).sum()) for channel in values]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 8 + 20])


def other(path: Path) -> None:
    path.write_bytes(b"no safetensors at all, but long enough to have a header")


@pytest.mark.parametrize("damage", [cut, other, Path.unlink])
def test_a_shard_that_is_none(stored: EncodedImages, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    paths = shard_paths(tmp_path, "train")
    damage(paths[1])
    with pytest.raises(CorruptArtifactError, match=r"train-00001.safetensors is not a shard of images"):
        EncodedImages(paths, (SIZE, SIZE))


def test_an_image_that_cannot_be_decoded_is_named(stored: EncodedImages, tmp_path: Path) -> None:
    path = shard_paths(tmp_path, "train")[0]
    content = path.read_bytes()
    at = content.index(stored.encoded(2))
    path.write_bytes(content[:at] + b"\0" * 40 + content[at + 40 :])
    with pytest.raises(CorruptArtifactError, match=r"image 2 of .*train-00000.safetensors cannot be decoded"):
        stored[[1, 2]]
    with pytest.raises(CorruptArtifactError, match="it is RGB of 16 x 16 pixels"):
        EncodedImages([path], (SIZE, 2 * SIZE))[0]


def test_raw_images_of_a_split_are_mapped_not_copied(shared_val_work: Path) -> None:
    """So processes on one machine share them: the array's memory is the file's."""
    images = load_split(Workspace(shared_val_work)).train.images
    assert isinstance(images, np.ndarray) and not isinstance(images, np.memmap)
    owner: Any = images
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap)
    tensor = torch.from_numpy(images)
    assert tensor.data_ptr() == images.ctypes.data
    stored = load_file(shared_val_work / "split" / "train.safetensors")["images"]
    assert np.array_equal(images, stored)


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    save_tensors(tmp_path / "none.safetensors", {"images": np.zeros((0, 3, 8, 8), np.uint8)}, {})
    assert mapped(tmp_path / "none.safetensors", "images").shape == (0, 3, 8, 8)
    whole = tmp_path / "whole.safetensors"
    save_tensors(whole, {"images": np.zeros((9, 3, 8, 8), np.uint8)}, {})
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(CorruptArtifactError, match=r"whole\.safetensors is not a shard of images"):
        mapped(whole, "images")
