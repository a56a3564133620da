"""Sets of Hugging Face, generated here and read offline."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core import extras
from saukit.core.errors import DataError, EnvironmentFault
from saukit.data.config import SplitConfig
from saukit.data.source import Source
from saukit.data.sources.table import open_source

from ..conftest import loaded

datasets: Any = pytest.importorskip("datasets")

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(index: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def dataset(labels: list[Any], first: int = 0, kind: Any = None, **columns: list[Any]) -> Any:
    values = {"image": [picture(first + index) for index in range(len(labels))], "label": labels, **columns}
    kinds = {"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=NAMES)}
    kinds |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))


def opened(root: Path, **options: Any) -> Source:
    return open_source(SplitConfig(dataset="huggingface", **options), root)


def saved(tmp_path: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def first_images(source: Source, part: str, count: int) -> Any:
    return loaded(source, 8).read(part, np.arange(count), 8)


def expected(*indices: int) -> Any:
    return np.stack([np.asarray(picture(index)).transpose(2, 0, 1) for index in indices])


def test_a_saved_set_with_three_parts(tmp_path: Path) -> None:
    root = saved(tmp_path, train=dataset([0, 1, 2, 0]), validation=dataset([2, 1], 10), test=dataset([1], 20))
    source = opened(root)
    assert source.classes == tuple(NAMES) and source.train_labels.tolist() == [0, 1, 2, 0]
    assert source.val_labels is not None and source.val_labels.tolist() == [2, 1]
    assert source.test_labels is not None and source.test_labels.tolist() == [1]
    assert source.image_size == 8 and source.files is None and source.groups is None
    assert (first_images(source, "train", 4) == expected(0, 1, 2, 3)).all()
    assert (first_images(source, "val", 2) == expected(10, 11)).all()
    assert (first_images(source, "test", 1) == expected(20)).all()
    assert opened(root).fingerprint == source.fingerprint


def test_one_saved_split_is_the_training_part_also_where_rows_are_chosen(tmp_path: Path) -> None:
    dataset([0, 1, 2, 0, 1]).select([4, 0, 2]).save_to_disk(tmp_path / "one")
    source = opened(tmp_path / "one")
    assert source.train_labels.tolist() == [1, 0, 2] and source.test_labels is None
    assert (first_images(source, "train", 3) == expected(4, 0, 2)).all()


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, part in (("train-00000", dataset([0, 1, 2])), ("test-00000", dataset([2], 5))):
        part.to_parquet(tmp_path / "set" / f"{name}.parquet")
    source = opened(tmp_path / "set")
    assert source.classes == tuple(NAMES) and source.test_labels is not None and source.test_labels.tolist() == [2]
    assert (first_images(source, "test", 1) == expected(5)).all()
    one = opened(tmp_path / "set" / "train-00000.parquet")
    assert one.train_labels.tolist() == [0, 1, 2] and one.test_labels is None


@pytest.mark.parametrize("alone", [False, True])
def test_parquet_from_elsewhere_has_images_as_bytes(tmp_path: Path, alone: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    def encoded(index: int) -> dict[str, Any] | bytes:
        stream = io.BytesIO()
        picture(index).save(stream, "PNG")
        return stream.getvalue() if alone else {"bytes": stream.getvalue(), "path": f"{index}.png"}

    columns = {"img": [encoded(index) for index in range(3)], "class": ["b", "a", "b"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    source = opened(tmp_path / "train.parquet")
    assert source.classes == ("a", "b") and source.train_labels.tolist() == [1, 0, 1]
    assert (first_images(source, "train", 3) == expected(0, 1, 2)).all()


def test_a_folder_of_images_has_file_names(tmp_path: Path) -> None:
    for index, name in enumerate(
        ("train/cat/p1_a.png", "train/cat/p2_b.png", "train/dog/p1_c.png", "test/dog/p9_d.png")
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / "set" / name)
    source = opened(tmp_path / "set")
    assert source.classes == ("cat", "dog") and source.files is not None
    files = {part: list(names) for part, names in source.files().items()}
    assert sorted(files["train"]) == ["train/cat/p1_a.png", "train/cat/p2_b.png", "train/dog/p1_c.png"]
    assert files["test"] == ["test/dog/p9_d.png"]
    assert (first_images(source, "test", 1) == expected(3)).all()


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [([3, 1, 20, 1], "int64", ("1", "3", "20")), (["01", "1", "x", "x"], "string", ("01", "1", "x"))],
)
def test_labels_without_a_type_of_their_own(
    tmp_path: Path, labels: list[Any], kind: str, classes: tuple[str, ...]
) -> None:
    assert opened(saved(tmp_path, train=dataset(labels, kind=datasets.Value(kind)))).classes == classes


def test_groups_are_a_column(tmp_path: Path) -> None:
    root = saved(tmp_path, train=dataset([0, 1, 2], who=["p1", "p2", "p1"]), test=dataset([0], 4, who=["p3"]))
    assert opened(root).groups is None
    for options in ({"group_by": "who"}, {"columns": {"group": "who"}}):
        assert opened(root, **options).groups == {"train": ["p1", "p2", "p1"], "test": ["p3"]}


def test_another_split_may_be_the_test_set(tmp_path: Path) -> None:
    root = saved(tmp_path, train=dataset([0, 1, 2]), validation=dataset([1], 5), extra=dataset([0], 9))
    source = opened(root, test_dir="validation")
    assert source.test_labels is not None and source.test_labels.tolist() == [1] and source.val_labels is None
    assert source.notes == ("splits left out: extra (train, validation and test are used)",)
    with pytest.raises(DataError, match="has no split 'holdout' for --test-dir: it has train, validation, extra"):
        opened(root, test_dir="holdout")


def test_a_test_part_without_labels_is_left_out(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, train=dataset([0, 1, 2]), test=dataset([-1, -1], 5)))
    assert source.test_labels is None
    assert source.notes == ("the test part has no labels and is left out: `saukit predict` classifies such images",)


def test_names_of_absent_classes_are_left_out(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, train=dataset([0, 2, 2])))
    assert source.classes == ("cat", "eel") and source.train_labels.tolist() == [0, 1, 1]
    assert source.notes == ("classes without a training image are left out: dog",)


def test_an_image_that_is_missing_or_damaged_is_listed(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": b"no image", "path": "x.png"}, None, picture(2)], "label": [0, 1, 2]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    pixels = loaded(opened(saved(tmp_path, train=datasets.Dataset.from_dict(columns, features=kinds))), 8)
    assert pixels.ok["train"].tolist() == [False, False, True]
    assert pixels.bad == (
        ("image 0 of train (x.png)", "unknown image format"),
        ("image 1 of train", "an empty file"),
    )


def two_labels() -> Any:
    features = datasets.Features({name: datasets.ClassLabel(names=NAMES) for name in ("fine", "coarse")})
    values = {"fine": [0, 1], "coarse": [0, 0], "image": [picture(0), picture(1)]}
    return datasets.Dataset.from_dict(values, features=datasets.Features({**features, "image": datasets.Image()}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataset([0, -1, 2]), r"1 images of the train part of .* have no label \(row 1\); remove them"),
        (lambda: dataset([0, 0]), "at least two classes; it has cat alone"),
        (lambda: dataset([0, 1]).remove_columns("label"), "no column called like a label: there are 'image'; name it"),
        (lambda: dataset([0, 1]).remove_columns("image"), "no column called like a path"),
        (lambda: dataset([0, 1], path=["a", "b"]).remove_columns("image"),
         "column 'path' of .* holds no images .*--dataset list --train-list"),
        (two_labels, "no column called like a label: there are 'fine', 'coarse', 'image'; name it"),
        (lambda: dataset([[0], [1]], kind=datasets.Sequence(datasets.ClassLabel(names=NAMES))), "not one label per"),
        (lambda: dataset([0.5, 1.5], kind=datasets.Value("float32")), "labels such as 0.5, 1.5"),
    ],
)  # fmt: skip
def test_sets_that_do_not_fit_are_told(tmp_path: Path, make: Any, message: str) -> None:
    root = saved(tmp_path, train=make())
    with pytest.raises(DataError, match=message):
        opened(root)


def test_two_label_columns_are_chosen_from(tmp_path: Path) -> None:
    assert opened(saved(tmp_path, train=two_labels()), columns={"label": "fine"}).train_labels.tolist() == [0, 1]


def test_parts_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the test part of .* has classes without a training image: eel"):
        opened(saved(tmp_path, train=dataset([0, 1]), test=dataset([2], 5)))


def test_splits_without_train_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split called train: it has a, b"):
        opened(saved(tmp_path, a=dataset([0, 1]), b=dataset([0, 1])))


def test_two_splits_for_one_part_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has several splits for val: train, val, validation; save those to use, alone"):
        opened(saved(tmp_path, train=dataset([0, 1]), val=dataset([0], 3), validation=dataset([0], 4)))


def test_what_is_no_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read as a data set of Hugging Face: "):
        opened(tmp_path / "empty")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as a data set of Hugging Face: "):
        opened(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="is neither a folder nor the name of a data set on the Hub"):
        opened(tmp_path / "not there")


def test_offline_a_name_on_the_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it asks the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    with pytest.raises(
        EnvironmentFault, match=r"nobody/none is not a folder here and cannot be fetched .*HF_HUB_OFFLINE"
    ):
        opened(Path("nobody/none"))
    assert not datasets.config.HF_HUB_OFFLINE  # as it was


def test_hf_hub_offline_is_respected(tmp_path: Path) -> None:
    code = (
        "import socket; from pathlib import Path\n"
        "def refuse(*_, **__): raise SystemExit('it asks the network')\n"
        "socket.getaddrinfo = refuse\n"
        "from saukit.data.config import SplitConfig; from saukit.data.sources.table import open_source\n"
        "open_source(SplitConfig(dataset='huggingface'), Path('nobody/none'))"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "EnvironmentFault: nobody/none is not a folder here" in done.stderr and "it asks" not in done.stderr


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "datasets", ("a_package_that_is_not_there",))
    with pytest.raises(EnvironmentFault, match=r"needs a_package_that_is_not_there: pip install 'saukit\[datasets\]'"):
        opened(tmp_path)
