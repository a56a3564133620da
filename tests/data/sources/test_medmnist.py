import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig, settled
from saukit.data.source import Source
from saukit.data.sources import medmnist as room
from saukit.data.sources.table import open_source
from saukit.data.split import load_split, load_test, make_split

from ..conftest import loaded

COUNTS = {"train": 20, "val": 6, "test": 8}


def arrays(shape: tuple[int, ...] = (28, 28, 3), **changes: Any) -> dict[str, Any]:
    """The arrays of a set as MedMNIST saves them: labels uint8 [N, 1]."""
    random = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, count in COUNTS.items():
        made[f"{part}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def saved(tmp_path: Path, content: dict[str, Any], name: str = "pathmnist.npz") -> Path:
    np.savez_compressed(tmp_path / name, **content)
    return tmp_path / name


def opened(root: Path, **options: Any) -> Source:
    return open_source(SplitConfig(dataset="medmnist", **options), root)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (28, 28, 3), (64, 64, 3), (128, 128), (224, 224)], ids=str)
def test_a_set_is_its_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = arrays(shape)
    source = opened(saved(tmp_path, content))
    assert source.classes == ("0", "1", "2") and source.image_size == shape[0] and source.files is None
    pixels = loaded(source, shape[0])
    for part, labels in (("train", source.train_labels), ("val", source.val_labels), ("test", source.test_labels)):
        assert labels is not None and labels.tolist() == content[f"{part}_labels"].ravel().tolist()
        for position in (0, 3):
            picture = np.asarray(
                Image.fromarray(
                    content[f"{part}_images"][position].reshape(shape[:2] + shape[2:3] * (shape[-1] == 3))
                ).convert("RGB")
            )
            assert (pixels.read(part, np.array([position]), shape[0])[0] == picture.transpose(2, 0, 1)).all()
        assert pixels.ok[part].all() and len(pixels.ok[part]) == COUNTS[part]


def test_a_split_keeps_the_three_parts_and_the_imbalance(tmp_path: Path) -> None:
    content = arrays((28, 28))
    config = SplitConfig(dataset="medmnist")
    assert settled(config).profile == "none" and settled(config).flip is False
    workspace = Workspace(tmp_path / "work")
    root = saved(tmp_path, content)
    make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
    split, test = load_split(workspace), load_test(workspace)
    assert split.class_counts.tolist() == [7, 7, 6] and split.val is not None
    assert split.val.labels.tolist() == content["val_labels"].ravel().tolist()
    assert test.labels.tolist() == content["test_labels"].ravel().tolist()
    again = make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
    assert again.state == "complete"


def test_a_folder_with_one_file_will_do(tmp_path: Path) -> None:
    root = saved(tmp_path, arrays())
    assert opened(tmp_path).fingerprint == opened(root).fingerprint
    shutil.copy(root, tmp_path / "other.npz")
    with pytest.raises(
        DataError, match=r"needs one .npz file, but it has other.npz, pathmnist.npz: give the file itself"
    ):
        opened(tmp_path)


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    content = arrays()
    first = opened(saved(tmp_path, content)).fingerprint
    content["test_images"][0, 0, 0, 0] ^= 1
    assert opened(saved(tmp_path, content)).fingerprint != first


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("adipose\nbackground\ndebris\n")
    source = opened(saved(tmp_path, arrays()), class_names=str(tmp_path / "names.txt"))
    assert source.classes == ("adipose", "background", "debris")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (arrays(val_images=None), "is not a set of MedMNIST: it has no val_images"),
        ({"images": np.zeros(3)}, "it has no train_images, train_labels, val_images"),
        (arrays(train_labels=np.zeros((20, 14), np.uint8)), r"has 14 labels per image \(a multi-label set\)"),
        (arrays(train_labels=np.zeros((7, 1), np.uint8)), "has 7 labels of type uint8 for 20 images"),
        (arrays(train_labels=np.full((20, 1), np.nan)), "labels of type float64 for 20 images: expected integers"),
        (arrays(train_labels=np.full((20, 1), -1)), "labels such as -1"),
        (arrays(train_labels=np.zeros((20, 1), np.uint8)), "at least two classes; it has 0"),
        (arrays(test_labels=np.full((8, 1), 9)), r"test_labels of .* has classes without a training image: 9"),
        (arrays((28, 28, 28)), r"have shape \[20, 28, 28, 28\]: expected square grey or RGB images \(not volumes\)"),
        (arrays((28, 30)), r"have shape \[20, 28, 30\]"),
        (arrays(train_images=np.zeros((20, 28, 28))), "are float64 of 28 pixels: expected uint8"),
        (arrays(train_images=np.array([{}] * 20)), r"have shape \[20\]"),
        (arrays(train_labels=np.array([[{}]] * 20)), "cannot be read"),
    ],
)  # fmt: skip
def test_other_sets_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(saved(tmp_path, content))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is not a file: give the set's .npz file, such as pathmnist_64.npz, as --root"
    ):
        opened(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"needs one .npz file, but it has none"):
        opened(tmp_path)
    (tmp_path / "text.npz").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"text.npz cannot be read \(.*\): download it again"):
        opened(tmp_path / "text.npz")


def test_damage_and_too_little_memory_are_told_when_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "set.npz", **arrays())
    data = bytearray((tmp_path / "set.npz").read_bytes())
    data[5000] ^= 1  # in the first array, the training images
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"set.npz cannot be read \(Bad CRC-32.*download it again"):
        loaded(opened(tmp_path / "set.npz"), 28)
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    with pytest.raises(EnvironmentFault, match=r"images of train need 46 KiB of memory, but 1000 B are free"):
        loaded(opened(saved(tmp_path, arrays())), 28)
