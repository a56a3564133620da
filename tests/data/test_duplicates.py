"""Copies against a loop over all pairs, and in splits of folders that hold some."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.workspace import Workspace
from saukit.data import duplicates as room
from saukit.data import images as image_stores
from saukit.data.config import SplitConfig
from saukit.data.duplicates import NEAR, Pool, find_duplicates
from saukit.data.fingerprints import fingerprints
from saukit.data.pair_distance import as_compared, pair_distance
from saukit.data.split import load_split, make_split

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


def pool(images: Any, labels: Any, part: str = "train") -> Pool:
    read = lambda rows: fingerprints(images[rows])  # noqa: E731
    return Pool([part] * len(labels), range(len(labels)), np.asarray(labels, np.int64), read)


def structured(count: int, seed: int, size: int = 32) -> Any:
    """Images with smooth shapes and fine noise, no two alike."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in coarse]
    smooth = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def altered(image: Any, how: str) -> Any:
    if how == "noised":
        return np.clip(image + np.random.default_rng(1).normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    if how == "brighter":
        return np.clip(image * 0.9 + 15, 0, 255).astype(np.uint8)
    return image[..., ::-1] if how == "mirrored" else image


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("how", ["same", "noised", "brighter", "mirrored"])
def test_copies_are_those_of_a_loop_over_all_pairs(how: str, flip: bool) -> None:
    ours, theirs = structured(60, 0), structured(40, 1)
    for row, at in ((3, 7), (20, 0), (59, 39)):
        ours[row] = altered(theirs[at], how)
    found = find_duplicates(
        pool(ours, np.arange(60) % 4), pool(theirs, np.zeros(40), "test"), flip=flip, reporter=QUIET
    )
    a, b = as_compared(ours, CPU), as_compared(theirs, CPU)
    expected = {}
    for row in range(60):
        distances = pair_distance(a[row : row + 1].expand(40, -1, -1, -1), b)
        if flip:
            distances = torch.minimum(distances, pair_distance(a[row : row + 1].expand(40, -1, -1, -1), b.flip(3)))
        if distances.min() < NEAR:
            expected[row] = int(distances.argmin())
    assert dict(zip(found.of_test.index.tolist(), found.of_test.other.tolist(), strict=True)) == expected
    assert expected == ({} if how == "mirrored" and not flip else {3: 7, 20: 0, 59: 39})
    assert ((found.of_test.distance == 0) == (how == "same")).all() or how == "mirrored"
    assert not len(found.two_labels)


def test_copies_under_two_labels() -> None:
    images, labels = structured(50, 2), np.arange(50) % 5
    images[[10, 30]] = images[0]  # labels 0: no harm
    images[41] = images[0]  # label 1
    images[22] = altered(images[24], "noised")  # labels 2 and 4
    found = find_duplicates(pool(images, labels), pool(structured(5, 3), np.zeros(5)), flip=True, reporter=QUIET)
    assert dict(zip(found.two_labels.index.tolist(), found.two_labels.other.tolist(), strict=True)) == {
        0: 41, 10: 41, 30: 41, 41: 0, 22: 24, 24: 22,
    }  # fmt: skip
    assert np.flatnonzero(~found.kept).tolist() == [0, 10, 22, 24, 30, 41]
    (line,) = found.sentences("abcde")
    assert line.startswith("6 training images have a copy under another label, 4 of them exactly: train image 0 (a) = ")


@pytest.mark.parametrize(("size", "flip"), [(32, True), (64, False), (224, True)])
def test_blocks_find_what_a_loop_over_all_pairs_finds(monkeypatch: pytest.MonkeyPatch, size: int, flip: bool) -> None:
    """Copies of every kind anywhere among images in blocks of odd sizes, also several of one image."""
    monkeypatch.setattr(image_stores, "CHUNK", 7)
    monkeypatch.setattr(room, "BLOCK", 11)
    images, labels = structured(90, 5, size), np.arange(90) % 3
    for row, of, how in (
        (80, 4, "same"),
        (41, 4, "noised"),
        (12, 4, "brighter"),
        (33, 60, "mirrored"),
        (2, 60, "noised"),
    ):
        images[row] = altered(images[of], how)
    found = find_duplicates(pool(images, labels), pool(images[:1], labels[:1]), flip=flip, reporter=QUIET)
    compared = as_compared(images, CPU)
    expected = {}
    for row in range(90):
        mine = compared[row : row + 1].expand(90, -1, -1, -1)
        distances = pair_distance(mine, compared)
        if flip:
            distances = torch.minimum(distances, pair_distance(mine, compared.flip(3)))
        distances[torch.from_numpy(labels == labels[row])] = torch.inf
        if distances.min() < NEAR:
            expected[row] = distances.min().item()
    assert found.two_labels.index.tolist() == sorted(expected) and len(expected) >= 4
    np.testing.assert_allclose(found.two_labels.distance, list(expected.values()), atol=0.004)


def test_the_nearest_of_many_near_ones_under_another_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 16 nearer ones under the image's own label, and more than 16 under another, hide no copy."""
    images, labels = np.repeat(structured(1, 6), 60, 0), np.repeat([0, 1], 30)
    noise = np.random.default_rng(2).normal(0, 1, images.shape) * np.linspace(1, 6, 60)[:, None, None, None]
    images = np.clip(images + noise, 0, 255).astype(np.uint8)
    found = find_duplicates(pool(images, labels), pool(structured(5, 3), np.zeros(5)), flip=False, reporter=QUIET)
    assert found.two_labels.index.tolist() == list(range(60))
    assert set(found.two_labels.other[:30].tolist()) <= set(range(30, 60))


@pytest.mark.parametrize("size", [40, 96, 224])
def test_fingerprints_are_area_means_of_the_pixels(size: int) -> None:
    images = structured(4, 7, size)
    small, hashes = fingerprints(images)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(images).double(), small.shape[2])
    assert small.shape[2] == (size if size <= 64 else 32)
    assert np.abs(small - expected.numpy()).max() <= 1
    again = images.copy()
    again[2, 0, 3, 3] ^= 1
    assert (fingerprints(again)[1] != hashes).tolist() == [False, False, True, False]


def test_small_drawings_are_copies_only_if_every_pixel_is() -> None:
    bunch = load_digits()
    images = np.repeat((bunch.images * 255 / 16).astype(np.uint8)[:, None], 3, 1)
    labels = bunch.target
    found = find_duplicates(
        pool(images[:1400], labels[:1400]), pool(images[1400:], labels[1400:]), flip=False, reporter=QUIET
    )
    assert found.summary == {"of_test": 0, "two_labels": 0}
    images[5] = images[1500]
    found = find_duplicates(
        pool(images[:1400], labels[:1400]), pool(images[1400:], labels[1400:]), flip=False, reporter=QUIET
    )
    assert found.of_test.index.tolist() == [5] and found.of_test.other.tolist() == [100]


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[], Path]:
    """train/ and test/ of 96 pixels, with a training copy of a test image and an image under two labels."""

    def make() -> Path:
        root, every = tmp_path / "pictures", structured(30, 4, size=96)
        places = [f"{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")]
        for at, image in enumerate(every):
            folder = root / places[at % 4]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{at:02}.png")
        Image.open(root / "test/cat/02.png").save(root / "train/cat/leak.jpg", quality=80)
        Image.open(root / "train/cat/00.png").save(root / "train/dog/also.png")
        return root

    return make


@pytest.mark.parametrize("dropped", [False, True])
def test_a_split_tells_them_and_leaves_them_out_if_asked(
    pictures: Callable[[], Path], workspace: Workspace, capsys: pytest.CaptureFixture[str], dropped: bool
) -> None:
    config = SplitConfig(dataset="folder", drop_duplicates=dropped)
    result = make_split(config, workspace, root=pictures(), force=False, reporter=Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "1 training images are copies of test images, 0 of them exactly: train/cat/leak.jpg (cat) = test/cat/02.png"
        in told
    )
    assert "2 training images have a copy under another label, 2 of them exactly: train/cat/00.png" in told
    assert ("3 images are left out" if dropped else "--drop-duplicates leaves them out") in told
    assert result.summary["duplicates"] == {"of_test": 1, "two_labels": 2}
    split = load_split(workspace)
    assert split.class_counts.tolist() == ([7, 8] if dropped else [9, 9])
    rows = list(csv.DictReader((workspace.split / "duplicates.csv").open(newline="")))
    files = [row["file"] for row in rows]
    assert files == ["train/cat/leak.jpg", "train/cat/00.png", "train/dog/also.png"]
    assert rows[0]["other_file"] == "test/cat/02.png" and 0 < float(rows[0]["distance"]) < NEAR
    names = list(csv.DictReader((workspace.split / "files.csv").open(newline="")))
    index = {row["file"]: row["index"] for row in names if row["part"] == "train"}
    assert [row["index"] for row in rows] == [index.get(file, "") for file in files]
    assert "duplicates.csv" in split.manifest.files


def test_a_class_of_copies_alone_cannot_be_left_out(tmp_path: Path, workspace: Workspace) -> None:
    images = structured(8, 5)
    for part, name, chosen in (("train", "a", images[:3]), ("test", "a", images[3:6]), ("train", "b", images[6:7]),
                               ("test", "b", images[6:8])):  # fmt: skip
        folder = tmp_path / "p" / part / name
        folder.mkdir(parents=True)
        for at, image in enumerate(chosen):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{at}.png")
    config = SplitConfig(dataset="folder", drop_duplicates=True)
    with pytest.raises(DataError, match="drop_duplicates leaves no training image of: b; fix"):
        make_split(config, workspace, root=tmp_path / "p", force=False, reporter=QUIET)
    assert not workspace.split.exists()
