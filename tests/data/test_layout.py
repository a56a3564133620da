"""Folders as people have them: each is understood, or refused with the way on; none is mistaken for another."""

from __future__ import annotations

import itertools
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError, SaukitError
from saukit.data.config import SplitConfig
from saukit.data.image_files import EXTENSIONS, image_files
from saukit.data.layout import part_of, read_layout
from saukit.data.plan import plan_split
from saukit.data.sources.folder import open_folder

from .conftest import TreeMaker

CLASSES = {"cat": 3, "dog": 2}
TRAIN = ("train", "Train", "TRAINING", "training", "seg_train", "train_set", "train-images", "imgs_train")
TEST = ("test", "Test", "testing", "TESTING", "seg_test", "test_set", "test-images", "imgs_test")
VAL = ("val", "Val", "valid", "VALIDATION", "validation", "dev", "val_set", "images_val")


def config(**fields: Any) -> SplitConfig:
    return SplitConfig(dataset="folder", **fields)


def counts(root: Path, **fields: Any) -> dict[str, dict[str, int]]:
    layout = read_layout(root, config(**fields))
    return {part: {name: len(files) for name, files in classes.items()} for part, classes in layout.parts.items()}


def notes(root: Path, **fields: Any) -> str:
    return "\n".join(read_layout(root, config(**fields)).notes)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), len(path.name), np.uint8)).save(path, format="PNG")


@pytest.mark.parametrize(("train", "test", "val"), list(zip(TRAIN, TEST, VAL, strict=True)))
def test_parts_are_known_by_every_usual_name(make_tree: TreeMaker, train: str, test: str, val: str) -> None:
    for name, size in ((train, CLASSES), (test, {"cat": 1, "dog": 1})):
        root = make_tree(size, under=name)
    assert counts(root) == {"train": CLASSES, "test": {"cat": 1, "dog": 1}}
    make_tree({"cat": 2, "dog": 2}, under=val)
    assert counts(root) == {"train": CLASSES, "test": {"cat": 1, "dog": 1}, "val": {"cat": 2, "dog": 2}}
    assert f"training images from {train}/, test images from {test}/, validation images from {val}/" in notes(root)
    plan = plan_split(config(), root)
    assert (plan.train_counts, plan.val_counts, plan.test_counts) == ((3, 2), (2, 2), (1, 1))
    with pytest.raises(SaukitError, match="has a validation part of its own: leave val_fraction out"):
        plan_split(config(val_fraction=0.1), root)


@pytest.mark.parametrize("name", ["trainer", "latest", "contest", "steam engine", "evaluate", "valley", "devil", "cat"])
def test_other_names_are_no_parts(name: str) -> None:
    assert part_of(name) is None


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_doubled_folders_are_looked_through(make_tree: TreeMaker, depth: int) -> None:
    make_tree(CLASSES, under="/".join(["seg_train"] * depth))
    root = make_tree(CLASSES, under="/".join(["seg_test"] * depth))
    assert counts(root) == {"train": CLASSES, "test": CLASSES}


def test_train_and_val_offer_val_as_the_test_part(make_tree: TreeMaker) -> None:
    make_tree(CLASSES, under="train")
    root = make_tree({"cat": 1, "dog": 1}, under="validation")
    with pytest.raises(DataError, match=r"use the validation part with --test-dir validation, or give .*/train as"):
        read_layout(root, config())
    assert counts(root, test_dir="validation") == {"train": CLASSES, "test": {"cat": 1, "dog": 1}}


def test_any_folder_may_be_tested_on(make_tree: TreeMaker) -> None:
    make_tree(CLASSES, under="train")
    make_tree({"cat": 9, "dog": 9}, under="test")
    root = make_tree({"cat": 1, "dog": 1}, under="holdout 2024")
    assert counts(root, test_dir="holdout 2024")["test"] == {"cat": 1, "dog": 1}
    with pytest.raises(SaukitError, match=r"--test-dir nowhere: .* has no such folder; it has holdout 2024/, test/"):
        read_layout(root, config(test_dir="nowhere"))


@pytest.mark.parametrize("names", [("train", "test"), ("training", "val"), ("Train", "Test", "Valid")])
def test_labels_in_file_names_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, index in itertools.product(names, range(3)):
        image(tmp_path / name / f"cat.{index}.png")
    with pytest.raises(DataError, match=r"hold images but no class folders: sort the images into one folder per class"):
        read_layout(tmp_path, config())


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_loose_image_does_not_undo_the_classes(make_tree: TreeMaker, part: str) -> None:
    make_tree(CLASSES, under="train")
    root = make_tree(CLASSES, under="test")
    image(root / part / "stray.png")
    assert counts(root) == {"train": CLASSES, "test": CLASSES}
    assert f"1 images beside the class folders in {part}/ are left out: stray.png" in notes(root)


def test_loose_images_beside_one_tree_are_told(make_tree: TreeMaker) -> None:
    root = make_tree(CLASSES)
    image(root / "cover.jpg")
    assert counts(root) == {"train": CLASSES}
    assert "1 images beside the class folders are left out: cover.jpg" in notes(root)


def test_an_unlabelled_test_folder_is_for_predict(make_tree: TreeMaker) -> None:
    root = make_tree(CLASSES, under="train")
    for index in range(5):
        image(root / "test" / f"{index}.png")
    with pytest.raises(DataError, match=r"test/ has no labels: classify it with `saukit predict RUN .*/test`"):
        read_layout(root, config())
    make_tree(CLASSES, under="val")
    with pytest.raises(DataError, match="--test-dir val"):
        read_layout(root, config())
    assert counts(root, test_dir="val") == {"train": CLASSES, "test": CLASSES}
    assert "saukit predict" in notes(root, test_dir="val")


@pytest.mark.parametrize("inner", [("train", "test"), ("cat", "dog", "eel")])
def test_one_folder_too_many_is_pointed_out(make_tree: TreeMaker, inner: tuple[str, ...]) -> None:
    for name in inner:
        root = make_tree(CLASSES, under=f"archive/{name}")
    with pytest.raises(DataError, match=r"holds one folder, archive/: did you mean --root .*archive\?"):
        read_layout(root, config())


def test_folders_in_class_folders(make_tree: TreeMaker) -> None:
    make_tree({"cat": 1, "dog": 1})
    make_tree({"persian": 2, "siamese": 3}, under="cat")
    root = make_tree({"poodle": 4}, under="dog")
    assert counts(root) == {"train": {"cat": 6, "dog": 5}}
    assert "with --class-depth leaf each innermost folder is a class" in notes(root)
    leaves = {"cat": 1, "dog": 1, "persian": 2, "poodle": 4, "siamese": 3}
    assert counts(root, class_depth="leaf") == {"train": leaves}
    make_tree({"young": 2}, under="cat")
    make_tree({"young": 1}, under="dog")  # two of one name are told apart by their paths
    assert counts(root, class_depth="leaf")["train"] == {
        "cat": 1, "cat/persian": 2, "cat/siamese": 3, "cat/young": 2, "dog": 1, "dog/poodle": 4, "dog/young": 1
    }  # fmt: skip


def test_small_classes_are_left_out_on_demand(make_tree: TreeMaker) -> None:
    make_tree({"cat": 5, "dog": 3, "eel": 1}, under="train")
    root = make_tree({"cat": 1, "dog": 1, "eel": 1, "fox": 1}, under="test")
    with pytest.raises(DataError, match=r"fox only in test/; .*leave such classes out with --min-images 1"):
        read_layout(root, config())
    assert counts(root, min_images=1)["test"] == {"cat": 1, "dog": 1, "eel": 1}
    assert counts(root, min_images=2) == {"train": {"cat": 5, "dog": 3}, "test": {"cat": 1, "dog": 1}}
    assert "classes with fewer than 2 images are left out: eel (1)" in notes(root, min_images=2)
    with pytest.raises(DataError, match="has 1 classes with at least 4 images: at least two are needed"):
        read_layout(root, config(min_images=4))


def test_empty_class_folders_are_refused_or_left_out(make_tree: TreeMaker) -> None:
    root = make_tree(CLASSES)
    (root / "eel").mkdir()
    with pytest.raises(DataError, match=r"without an image .*: eel; fill or remove them, or .* --min-images 1"):
        read_layout(root, config())
    assert counts(root, min_images=1) == {"train": CLASSES}


def test_a_class_without_test_images_is_kept_and_told(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2}, under="train")
    root = make_tree({"cat": 2}, under="test")
    (root / "test" / "dog").mkdir()
    assert counts(root)["test"] == {"cat": 2, "dog": 0}
    assert plan_split(config(), root).notes[-1].endswith("whose accuracy will be absent: dog")


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", ".git"])
@pytest.mark.parametrize("where", [".", "train", "train/cat"])
def test_system_folders_are_ignored(make_tree: TreeMaker, junk: str, where: str) -> None:
    make_tree(CLASSES, under="train")
    root = make_tree(CLASSES, under="test")
    image(root / where / junk / "cat" / "000.png")
    assert counts(root) == {"train": CLASSES, "test": CLASSES}


def test_links_are_followed_but_never_in_a_circle(make_tree: TreeMaker, tmp_path: Path) -> None:
    root = make_tree(CLASSES)
    elsewhere = make_tree({"more": 2}, name="elsewhere")
    (root / "cat" / "linked").symlink_to(elsewhere / "more", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat", target_is_directory=True)
    found = image_files(root / "cat")
    assert {path.relative_to(root / "cat").as_posix() for path in found.loops} >= {"self", "up/cat/up", "up/cat/self"}
    assert {path.parent.name for path in found.images} == {"cat", "dog", "linked"}


def test_what_is_no_file_is_unreadable_not_a_hang(make_tree: TreeMaker) -> None:
    root = make_tree(CLASSES)
    (root / "cat" / "broken.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "round.png").symlink_to(root / "cat" / "round.png")
    (root / "dog" / "folder.png").symlink_to(root / "round", target_is_directory=True)
    expected = {"cat/broken.png": "No such file", "cat/round.png": "symbolic links", "dog/folder.png": "No such file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "dog" / "pipe.jpg")
        expected["dog/pipe.jpg"] = "not a regular file"
    bad = dict(open_folder(config(), root).load(8, Reporter(quiet=True)).bad)
    assert bad.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in bad[name], bad[name]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one_class(make_tree: TreeMaker, form: Any) -> None:
    other: Any = {"NFC": "NFD", "NFD": "NFC"}[form]
    make_tree({unicodedata.normalize(form, "Äpfel"): 3, "Birnen": 2}, under="train")
    root = make_tree({unicodedata.normalize(other, "Äpfel"): 1, "Birnen": 1}, under="test")
    name = unicodedata.normalize("NFC", "Äpfel")
    assert counts(root) == {"train": {"Birnen": 2, name: 3}, "test": {"Birnen": 1, name: 1}}


def test_two_folders_for_one_part_are_refused(make_tree: TreeMaker) -> None:
    for name in ("train", "training", "test"):
        root = make_tree(CLASSES, under=name)
    with pytest.raises(DataError, match="has train/, training/: keep one of them"):
        read_layout(root, config())


def test_a_folder_beside_the_parts_is_told(make_tree: TreeMaker) -> None:
    for name in ("train", "test"):
        root = make_tree(CLASSES, under=name)
    (root / "annotations").mkdir()
    assert counts(root) == {"train": CLASSES, "test": CLASSES}
    assert "folders that are no part of the data set are left out: annotations/" in notes(root)


def test_images_by_their_first_bytes_but_not_by_name_are_told(
    make_tree: TreeMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(CLASSES)
    for name, kind in (("a", "PNG"), ("b.dat", "JPEG"), ("c.webp_", "WEBP"), ("d.x", "GIF"), ("e.y", "TIFF")):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "cat" / name, format=kind)
    (root / "cat" / "notes.txt").write_text("no image")
    open_folder(config(), root).load(8, Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert "5 of them are images by the first bytes" in told and "give them the extension of their format" in told


WRITABLE = sorted(
    extension
    for extension in EXTENSIONS
    if (kind := Image.registered_extensions().get(extension)) in Image.SAVE and kind in Image.OPEN
)


@pytest.mark.parametrize("extension", WRITABLE)
def test_every_extension_is_read(tmp_path: Path, extension: str) -> None:
    kind = Image.registered_extensions()[extension]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        value = 255 if kind in ("XBM", "MSP") else 200
        picture = Image.fromarray(np.full((16, 16, 3), value, np.uint8)).convert("1" if value == 255 else "RGB")
        if kind == "PFM":
            pytest.skip("Pillow writes it in float only")
        picture.save(tmp_path / name / f"x{extension.upper()}", format=kind)
    pixels = open_folder(config(), tmp_path).load(16, Reporter(quiet=True))
    assert not pixels.bad
    assert abs(float(pixels.read("train", np.array([0, 1]), 16).mean()) - value) < 3


def test_there_are_many_extensions() -> None:
    assert len(WRITABLE) > 20
    assert {".jfif", ".jpe", ".avif", ".tif", ".webp"} <= EXTENSIONS
