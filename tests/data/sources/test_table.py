import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.data.config import SplitConfig
from saukit.data.source import Source
from saukit.data.sources.table import TABLE, open_source

from ..conftest import loaded


def opened(dataset: str, root: Path | None = None) -> Source:
    return open_source(SplitConfig(dataset=dataset), root)


def read(source: Source, part: str, positions: list[int], size: int) -> np.ndarray[Any, Any]:
    return loaded(source, size).read(part, np.array(positions), size)


def test_digits_are_exact() -> None:
    source = opened("digits")
    bunch = load_digits()
    images = read(source, "train", list(range(1797)), 8)
    assert images.shape == (1797, 3, 8, 8) and images.dtype == np.uint8
    for channel in range(3):
        assert (np.round(images[:, channel] * (16 / 255)) == bunch.images).all()
    assert sorted(np.unique(images)) == [round(value * 255 / 16) for value in range(17)]
    assert (source.train_labels == bunch.target).all() and source.test_labels is None
    assert source.classes == tuple("0123456789")


def test_another_size_is_resized_bicubically() -> None:
    source = opened("digits")
    native = read(source, "train", [5], 8)[0]
    expected = Image.fromarray(native.transpose(1, 2, 0)).resize((20, 20), Image.Resampling.BICUBIC)
    assert (read(source, "train", [5], 20)[0] == np.asarray(expected).transpose(2, 0, 1)).all()


def test_digits_refuse_a_root_but_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUKIT_DATA", "/data")
    with pytest.raises(UsageError, match=r"digits is embedded .* leave out --root /elsewhere"):
        opened("digits", Path("/elsewhere"))
    assert len(opened("digits", Path("/data")).train_labels) == 1797


@pytest.mark.parametrize("dataset", ["digits"])
def test_what_the_table_says_is_what_opening_shows(dataset: str) -> None:
    row, source = TABLE[dataset], opened(dataset)
    assert row.image_size == source.image_size and row.test_set == (source.test_labels is not None)
    assert not row.flip  # a mirrored digit is another one, or none


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "folder"])
def test_a_missing_root_names_the_two_ways_to_give_it(dataset: str) -> None:
    with pytest.raises(UsageError, match=rf"{dataset} lies in a folder: give it as --root DIR, or set SAUKIT_DATA=DIR"):
        opened(dataset)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("fashion-mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
        ("svhn", "train_32x32.mat, test_32x32.mat"),
    ],
)
def test_missing_files_are_named_with_their_folder_offline(dataset: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{dataset} is not in {tmp_path} \(looked for .*{file}.*SAUKIT_OFFLINE forbids"
    ):
        opened(dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_root_whose_parent_is_missing_is_no_place_to_download_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAUKIT_OFFLINE")
    with pytest.raises(DataError, match=f"not even {tmp_path / 'a'} exists"):
        opened("cifar10", tmp_path / "a" / "b")


def failing_dataset(error: Exception) -> Callable[..., None]:
    def create(root: Path, *, train: bool, download: bool) -> None:
        assert download
        (Path(root) / "half.tar.gz").write_bytes(b"half")
        raise error

    return create


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("corrupted"), OSError("reset"), TimeoutError("late")]
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_download_leaves_nothing_behind(
    error: Exception, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAUKIT_OFFLINE")
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", failing_dataset(error))
    root = tmp_path / "root"
    if existing:
        root.mkdir()
        (root / "mine.txt").write_text("mine")
    reason = str(error).strip("<>").split()[-1]
    with pytest.raises(
        EnvironmentFault, match=rf"looked for cifar-10-batches-py\), and it cannot be downloaded .*{reason}"
    ):
        opened("cifar10", root)
    assert root.exists() == existing
    assert not existing or [path.name for path in root.iterdir()] == ["mine.txt"]


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_fashion(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 30), ("t10k", 20)):
        arrays[part] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", arrays[part])
        write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return arrays


def test_fashion_mnist_is_read_with_its_names(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path)
    source = opened("fashion-mnist", tmp_path)
    assert source.classes[0] == "T-shirt/top" and len(source.classes) == 10
    assert TABLE["fashion-mnist"].flip and TABLE["fashion-mnist"].mean is None
    assert source.test_labels is not None and source.test_labels.tolist() == [index % 10 for index in range(20)]
    images = read(source, "test", [7, 3], 28)
    assert (images == arrays["t10k"][[7, 3], None]).all() and images.shape == (2, 3, 28, 28)


def test_a_damaged_file_of_a_known_data_set_is_a_data_error(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    file = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(
        DataError, match=r"fashion-mnist in .* cannot be read .*FashionMNIST/raw/train-images-idx3-ubyte"
    ):
        opened("fashion-mnist", tmp_path)


def test_a_downloaded_data_set_moves_in_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAUKIT_OFFLINE")
    real = torchvision.datasets.FashionMNIST

    def create(root: Path, *, train: bool, download: bool) -> Any:
        if download and train:
            write_fashion(Path(root))
        return None if download else real(root, train=train, download=False)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", create)
    monkeypatch.setattr(create, "classes", real.classes, raising=False)
    assert len(opened("fashion-mnist", tmp_path / "new").train_labels) == 30
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["FashionMNIST"]


def test_svhn_is_read_channels_first_and_is_never_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.arange(20)[:, None] % 10 + 1  # the published files call the digit 0 "10"
    for name in ("train", "test"):
        path = tmp_path / f"{name}_32x32.mat"
        savemat(path, {"X": images, "y": labels})
        record = ["url", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        monkeypatch.setitem(torchvision.datasets.SVHN.split_list, name, record)
    source = opened("svhn", tmp_path)
    assert source.train_labels.tolist() == [int(label) % 10 for label in labels[:, 0]]
    assert source.classes == tuple("0123456789")
    assert (read(source, "train", [4], 32)[0] == images[..., 4].transpose(2, 0, 1)).all()


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)
    names = [f"class {index}" for index in range(100)]
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": list(range(100))}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    source = opened("cifar100", tmp_path)
    assert source.classes == tuple(names) and TABLE["cifar100"].mean == (0.4914, 0.4822, 0.4465)
    assert (read(source, "test", [42], 32)[0] == data[42].reshape(3, 32, 32)).all()
