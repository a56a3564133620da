import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.data.config import SplitConfig
from saukit.data.source import Source
from saukit.data.sources.folder import open_folder

from ..conftest import TreeMaker, loaded

COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def opened(root: Path, **options: Any) -> Source:
    return open_folder(SplitConfig(dataset="folder", **options), root)


def test_one_tree_is_read_in_the_order_of_names(make_tree: TreeMaker) -> None:
    root = make_tree({"dog": 2, "cat": 3, ".hidden": 1})
    nested = root / "cat" / "a" / "b"
    nested.mkdir(parents=True)
    Image.fromarray(COLOUR).save(nested / "deep.PNG")
    (root / "cat" / ".trash").mkdir()
    Image.fromarray(COLOUR).save(root / "cat" / ".trash" / "no.png")
    (root / "cat" / ".no.png").write_bytes(b"no")
    (root / "dog" / "notes.txt").write_text("no image")
    source = opened(root)
    assert source.classes == ("cat", "dog") and source.train_labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert source.test_labels is None and source.image_size == 8 and source.size_reason is None
    pixels = loaded(source, 8)
    assert list(pixels.ok) == ["train"] and pixels.ok["train"].all() and not pixels.bad
    first = np.asarray(Image.open(root / "dog" / "001.png")).transpose(2, 0, 1)
    assert (pixels.read("train", np.array([5]), 8)[0] == first).all()
    assert (pixels.read("train", np.array([3]), 8)[0] == COLOUR.transpose(2, 0, 1)).all()  # 000 001 002 a/b/deep


def test_ignored_files_are_counted(make_tree: TreeMaker, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    for name in ("a.mp4", "b.mp4", "c.txt"):
        (root / "cat" / name).write_text("x")
    loaded(opened(root), 8, Reporter())
    assert "files without an image extension are ignored: 2 .mp4, 1 .txt" in capsys.readouterr().err


def test_train_and_test_folders_are_two_parts(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2}, under="train")
    root = make_tree({"cat": 1, "dog": 1}, under="test")
    source = opened(root)
    assert source.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert source.test_labels is not None and source.test_labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(root / "test" / "dog" / "000.png")).transpose(2, 0, 1)
    assert (loaded(source, 8).read("test", np.array([1]), 8)[0] == expected).all()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_a_validation_folder_is_a_part_of_its_own(make_tree: TreeMaker, name: str) -> None:
    make_tree({"cat": 3, "dog": 2, "eel": 1}, under="train")
    make_tree({"cat": 1, "dog": 1, "eel": 1}, under="test")
    root = make_tree({"cat": 2, "eel": 2}, under=name)
    source = opened(root)
    assert source.val_labels is not None and source.val_labels.tolist() == [0, 0, 2, 2]
    assert source.notes == (f"training images from train/, test images from test/, validation images from {name}/",)
    assert source.files is not None
    files = source.files()
    assert list(files) == ["train", "test", "val"] and files["val"][2] == f"{name}/eel/000.png"
    expected = np.asarray(Image.open(root / files["val"][3])).transpose(2, 0, 1)
    pixels = loaded(source, 8)
    assert (pixels.read("val", np.array([3]), 8)[0] == expected).all()
    assert {part: len(flags) for part, flags in pixels.ok.items()} == {"train": 6, "test": 3, "val": 4}


def test_a_named_folder_is_the_test_set(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2}, under="train")
    root = make_tree({"cat": 1, "dog": 1}, under="val")
    source = opened(root, test_dir="val")
    assert source.test_labels is not None and source.test_labels.tolist() == [0, 1] and source.val_labels is None


def test_a_class_may_be_called_train(make_tree: TreeMaker) -> None:
    assert opened(make_tree({"bus": 2, "test": 2, "train": 2})).classes == ("bus", "test", "train")


def test_empty_class_folders_are_all_listed(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    (root / "eel").mkdir()
    (root / "fox").mkdir()
    (root / "fox" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"class folders of .* without an image .*png.*: eel, fox; fill or remove them"):
        opened(root)


def test_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder: give the folder with one subfolder per class as --root"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs at least two subfolders, one per class; it has 0"):
        opened(tmp_path)


def test_a_name_that_is_no_text_is_told(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    try:
        (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/d\xffg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match="not UTF-8 cannot name classes"):
        opened(root)


@pytest.mark.parametrize(
    ("sizes", "size", "reason"),
    [
        ([(224, 224), (224, 224)], 224, None),
        ([(225, 225), (225, 225)], 224, "the images are 225 x 225"),
        ([(128, 200), (128, 200)], 224, "the images are 128 x 200"),
        ([(127, 200), (127, 200)], 64, "the images are 127 x 200"),
        ([(100, 900), (128, 300)], 224, "the images differ in size (100 x 900, 128 x 300 ...)"),
        ([(30, 40), (30, 40)], 64, "the images are 30 x 40"),
        ([(32, 32), (48, 48)], 64, "the images differ in size (32 x 32, 48 x 48 ...)"),
        ([(2, 2), (2, 2)], 64, "the images are 2 x 2"),
    ],
)
def test_the_size_is_the_images_own_where_they_share_one(
    make_tree: TreeMaker, sizes: list[tuple[int, int]], size: int, reason: str | None
) -> None:
    for name, own in zip(("cat", "dog"), sizes, strict=True):
        root = make_tree({name: 1}, size=own)
    source = opened(root)
    assert source.image_size == size
    assert source.size_reason == reason


def test_unreadable_images_are_all_found(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 3, "dog": 3}, size=(32, 32))
    (root / "cat" / "000.png").write_bytes(b"no image at all")
    (root / "cat" / "zero.png").touch()
    half = root / "dog" / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    torn = root / "dog" / "001.png"
    torn.write_bytes(torn.read_bytes()[:-200])
    pixels = loaded(opened(root), 32)
    reasons = dict(pixels.bad)
    assert list(reasons) == ["cat/000.png", "cat/zero.png", "dog/001.png", "dog/half.jpg"]
    assert (
        reasons["cat/000.png"] == "unknown image format"
        and reasons["cat/zero.png"] == "an empty file"
        and "truncated" in reasons["dog/half.jpg"]
    )
    assert pixels.ok["train"].tolist() == [False, True, True, False, True, False, True, False]


def test_a_decompression_bomb_is_unreadable_before_it_is_decoded(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    bomb = bytearray((root / "cat" / "000.png").read_bytes())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (root / "cat" / "000.png").write_bytes(bomb)
    ((name, reason),) = loaded(opened(root), 8).bad
    assert name == "cat/000.png" and reason.startswith("100000 x 100000 are 10000 million pixels, above the limit of")


def test_the_fingerprint_follows_names_and_sizes_not_the_place(make_tree: TreeMaker) -> None:
    first = opened(make_tree({"cat": 2, "dog": 2}, name="one")).fingerprint
    copy = make_tree({"cat": 2, "dog": 2}, name="two")
    assert opened(copy).fingerprint == first
    (copy / "cat" / "000.png").rename(copy / "cat" / "0.png")
    renamed = opened(copy).fingerprint
    comment = PngInfo()
    comment.add_text("note", "longer")
    Image.fromarray(COLOUR).save(copy / "cat" / "0.png", pnginfo=comment)
    assert len({first, renamed, opened(copy).fingerprint}) == 3
