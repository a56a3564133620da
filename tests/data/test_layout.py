"""The layouts of folders that people have: each is understood, or refused with the way out."""

import io
import itertools
import os
import socket
import threading
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError, SaukitError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.image_files import EXTENSIONS, HEIF_EXTENSIONS, image_files, say_ignored
from saukit.data.layout import Layout, read_layout
from saukit.data.part_names import ROLES, role_of
from saukit.data.plan import plan_split
from saukit.data.sources.folder import open_folder
from saukit.data.split import load_split, load_test, make_split

from .conftest import loaded


def encoded(kind: str = "PNG", colour: tuple[int, int, int] = (200, 30, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


PNG = encoded()
COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def build(root: Path, content: str) -> Path:
    """`content` as files in `root`: "train/cat:3" is three images in a folder, "a/b.png" one file, "a/" a folder."""
    for item in content.split(" "):
        name, _, count = item.partition(":")
        if item.endswith("/"):
            (root / item).mkdir(parents=True, exist_ok=True)
        elif count:
            (root / name).mkdir(parents=True, exist_ok=True)
            for index in range(int(count)):
                (root / name / f"{index:03}.png").write_bytes(PNG)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(PNG if Path(name).suffix in EXTENSIONS else b"text")
    return root


def look(root: Path, **options: Any) -> Layout:
    return read_layout(root, SplitConfig(dataset="folder", **options))


def counts(layout: Layout) -> dict[str, dict[str, int]]:
    """The images of each part and class; a part leaves out the classes of which it has none."""
    return {
        part: {name: len(files) for name, files in classes.items() if files} for part, classes in layout.parts.items()
    }


@dataclass(frozen=True)
class Case:
    """A layout, what is understood, and what is told of it; `told` are pieces of notes and warnings."""

    content: str
    parts: dict[str, dict[str, int]]
    told: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    taken: str | None = None  # the line that says what each part is taken from


CAT_DOG = {"cat": 2, "dog": 1}
LEAF = {"class_depth": "leaf"}
TOP = {"class_depth": "top"}
UNDERSTOOD = {
    "one tree": Case("cat:2 dog:1", {"train": CAT_DOG}),
    "train and test": Case(
        "train/cat:2 train/dog:1 test/cat:1 test/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        taken="training images from train/, test images from test/",
    ),
    "train, val and test": Case(
        "train/cat:2 train/dog:1 val/cat:1 test/cat:1 test/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}, "val": {"cat": 1}},
        taken="training images from train/, test images from test/, validation images from val/",
    ),
    "doubled folders and a folder to predict": Case(
        "seg_train/seg_train/cat:2 seg_train/seg_train/dog:1 seg_test/seg_test/cat:1 seg_pred/seg_pred:3",
        {"train": CAT_DOG, "test": {"cat": 1}},
        ("folders that are not part of the data set are left out: seg_pred/ (3 images)",),
        taken="training images from seg_train/seg_train/, test images from seg_test/seg_test/",
    ),
    "a folder of images between part and classes": Case(
        "train/images/cat:2 train/images/dog:1 test/images/cat:1 train/labels/x.txt",
        {"train": CAT_DOG, "test": {"cat": 1}},
    ),
    "names that share what they are about": Case(
        "cars_train/cat:2 cars_train/dog:1 cars_test/cat:1", {"train": CAT_DOG, "test": {"cat": 1}}
    ),
    "names that differ in what they say besides": Case(
        "my_train/cat:2 my_train/dog:1 test_images/cat:1", {"train": CAT_DOG, "test": {"cat": 1}}
    ),
    "a variant of train beside it": Case(
        "train/cat:2 train/dog:1 train_augmented/cat:5 test/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}},
        ("are left out: train_augmented/ (5 images)",),
    ),
    "val is the test set, as said": Case(
        "train/cat:2 train/dog:1 val/cat:1 val/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        options={"test_dir": "val"},
        taken="training images from train/, test images from val/",
    ),
    "val is the test set although there is a test folder": Case(
        "train/cat:2 train/dog:1 val/cat:1 val/dog:1 test/cat:5 test/dog:5",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        ("are left out: test/ (10 images)",),
        options={"test_dir": "val"},
    ),
    "any folder is the test set": Case(
        "train/cat:2 train/dog:1 holdout/cat:1 val/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1}, "val": {"dog": 1}},
        options={"test_dir": "holdout/"},
    ),
    "a test set beside the classes": Case(
        "cat:2 dog:1 holdout/cat:1", {"train": CAT_DOG, "test": {"cat": 1}}, options={"test_dir": "holdout"}
    ),
    "a test part off train, and val": Case(
        "train/cat:2 train/dog:1 val/cat:1",
        {"train": CAT_DOG, "val": {"cat": 1}},
        options={"test_fraction": 0.3},
        taken="training images from train/, validation images from val/",
    ),
    "a test part off train alone": Case("train/cat:2 train/dog:1", {"train": CAT_DOG}, options={"test_fraction": 0.3}),
    "images without labels in test, a test part off train": Case(
        "train/cat:2 train/dog:1 test:4",
        {"train": CAT_DOG},
        ("test/ of", "has 4 images without class folders, so the test part is taken from train/", "`saukit predict"),
        options={"test_fraction": 0.3},
    ),
    "val without class folders": Case(
        "train/cat:2 train/dog:1 test/cat:1 test/dog:1 val:3",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        ("val/ is not used: it has no class folders of train/",),
    ),
    "one loose image in train": Case(
        "train/cat:2 train/dog:1 train/banner.png test/cat:1 test/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        ("images beside the class folders in train/ are left out: 1 (banner.png)",),
    ),
    "one loose image in test": Case(
        "train/cat:2 train/dog:1 test/cat:1 test/dog:1 test/banner.png",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        ("images beside the class folders in test/ are left out: 1 (banner.png)",),
    ),
    "one loose image in one tree": Case(
        "cat:2 dog:1 banner.png", {"train": CAT_DOG}, ("images beside the class folders are left out: 1 (banner.png)",)
    ),
    "loose images beside the parts": Case(
        "train/cat:2 train/dog:1 test/cat:1 a.png b.png",
        {"train": CAT_DOG, "test": {"cat": 1}},
        ("images beside the parts are left out: 2 (a.png, b.png)",),
    ),
    "classes called train and test": Case(
        "bus:2 train:2 test:2",
        {"train": {"bus": 2, "test": 2, "train": 2}},
        ("train/ and test/ are taken as classes, like bus/ beside them",),
    ),
    "classes whose names are words of one part": Case("dev1:2 dev2:1", {"train": {"dev1": 2, "dev2": 1}}),
    "a class called train": Case(
        "bus:2 train:2", {"train": {"bus": 2, "train": 2}}, ("train/ is taken as a class, like bus/ beside it",)
    ),
    "a class called test": Case(
        "cat:2 dog:1 test:3",
        {"train": {"cat": 2, "dog": 1, "test": 3}},
        ("test/ is taken as a class, like cat/, dog/ beside it",),
    ),
    "a class called test in both parts": Case(
        "train/test:2 train/dog:1 test/test:1 test/dog:1",
        {"train": {"dog": 1, "test": 2}, "test": {"dog": 1, "test": 1}},
    ),
    "sets, with two words": Case(
        "training_set/training_set/cat:2 training_set/training_set/dog:1 test_set/test_set/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}},
    ),
    "numbered parts": Case(
        "1-train/cat:2 1-train/dog:1 2-val/cat:1 3-test/dog:1",
        {"train": CAT_DOG, "val": {"cat": 1}, "test": {"dog": 1}},
    ),
    "images in each part, of YOLO with classes": Case(
        "train/images/cat:2 train/images/dog:1 train/labels/a.txt valid/images/cat:1 test/images/cat:1 data.yaml",
        {"train": CAT_DOG, "val": {"cat": 1}, "test": {"cat": 1}},
    ),
    "masks beside the images": Case(
        "train/cat:2 train/dog:1 train_masks/cat:2 test/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}},
        ("are left out: train_masks/ (2 images)",),
    ),
    "files of systems and archives": Case(
        "cat:2 dog:1 .DS_Store cat/.DS_Store cat/Thumbs.db dog/desktop.ini archive.zip cat.tar.gz", {"train": CAT_DOG}
    ),
    "the training part of trainval": Case(
        "trainval/cat:2 trainval/dog:1 test/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}},
        taken="training images from trainval/, test images from test/",
    ),
    "train and val in one, beside them": Case(
        "train/cat:2 train/dog:1 val/cat:1 train_val/cat:3 train_val/dog:1 test/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}, "val": {"cat": 1}},
        ("are left out: train_val/ (4 images)",),
    ),
    "a test part beside the classes": Case(
        "cat:2 dog:1 test/cat:1 test/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}},
        taken="training images from tree/, test images from test/",
    ),
    "test and validation parts beside the classes": Case(
        "cat:2 dog:1 Test/cat:1 valid/dog:1",
        {"train": CAT_DOG, "test": {"cat": 1}, "val": {"dog": 1}},
        taken="training images from tree/, test images from Test/, validation images from valid/",
    ),
    "parts in another language, the test set as said": Case(
        "Trainingsdaten/cat:2 Trainingsdaten/dog:1 Testdaten/cat:1",
        {"train": CAT_DOG, "test": {"cat": 1}},
        options={"test_dir": "Testdaten"},
        taken="training images from Trainingsdaten/, test images from Testdaten/",
    ),
    "an empty folder in test": Case(
        "train/cat:2 train/dog:1 test/cat:1 test/eel/", {"train": CAT_DOG, "test": {"cat": 1}}
    ),
    "folds of the same classes, as classes": Case(
        "fold1/cat:2 fold1/dog:1 fold2/cat:1 fold2/dog:1", {"train": {"fold1": 3, "fold2": 2}}, options=TOP
    ),
    "numbered pieces, as classes": Case("part1:2 part2:1", {"train": {"part1": 2, "part2": 1}}, options=TOP),
    "numbered classes": Case("class_1:2 class_2:1", {"train": {"class_1": 2, "class_2": 1}}),
    "kinds inside one class": Case(
        "day/road/x:2 night/road/x:1", {"train": {"day": 2, "night": 1}}, ("day/road, night/road",)
    ),
    "classes that differ in case": Case(
        "Cat:2 cat:1", {"train": {"Cat": 2, "cat": 1}}, ("classes whose names differ in case alone: Cat, cat",)
    ),
    "a class called train with folders in it": Case(
        "bus/red:2 train/fast:2 plane:1", {"train": {"bus": 2, "plane": 1, "train": 2}}, ("bus/red, train/fast",)
    ),
    "classes whose names hold words of parts": Case(
        "train_station:2 test_tube:1 validation_stamp:1",
        {"train": {"test_tube": 1, "train_station": 2, "validation_stamp": 1}},
    ),
    "folders inside class folders": Case(
        "cat/a:2 cat/b:1 dog/a:1", {"train": {"cat": 3, "dog": 1}}, ("cat/a, cat/b, dog/a", "--class-depth leaf")
    ),
    "leaves": Case(
        "animals/cat:2 animals/dog:1 cars:3", {"train": {"cars": 3, "cat": 2, "dog": 1}}, options=LEAF
    ),
    "leaves of two parts": Case(
        "train/animals/cat:2 train/cars/taxi:1 test/cars/taxi:1",
        {"train": {"cat": 2, "taxi": 1}, "test": {"taxi": 1}},
        options=LEAF,
    ),
    "leaves of one name": Case(
        "train/red/cup:2 train/blue/cup:1 train/blue/fork:1 test/red/cup:1",
        {"train": {"blue/cup": 1, "fork": 1, "red/cup": 2}, "test": {"red/cup": 1}},
        options=LEAF,
    ),
    "images beside leaves": Case(
        "animals/cat:2 animals/dog:1 animals/x.png",
        {"train": {"animals": 1, "cat": 2, "dog": 1}},
        options=LEAF,
    ),
    "a class that test does not have": Case(
        "train/cat:2 train/dog:1 train/eel:1 test/cat:1", {"train": {"cat": 2, "dog": 1, "eel": 1}, "test": {"cat": 1}}
    ),
    "a class that train does not have is left out on request": Case(
        "train/cat:2 train/dog:1 test/cat:1 test/fox:1",
        {"train": CAT_DOG, "test": {"cat": 1, "fox": 1}},
        options={"min_images": 1},
    ),
    "folders of the system": Case(
        "cat:2 dog:1 __MACOSX/cat:1 @eaDir:1 $RECYCLE.BIN:1 lost+found:1 .ipynb_checkpoints:1 .git/x:1 cat/@eaDir:1 "
        "dog/.ipynb_checkpoints:1",
        {"train": CAT_DOG},
    ),
    "parts among folders of the system": Case(
        "train/cat:2 train/dog:1 train/.ipynb_checkpoints:1 test/cat:1 __MACOSX/train/cat:1 test/@eaDir:2",
        {"train": CAT_DOG, "test": {"cat": 1}},
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "train and val": (
        "train/cat:2 train/dog:1 val/cat:1 val/dog:1",
        r"has train/, val/ but no test set: --test-dir val tests on val/; --test-fraction 0.2 takes a test part off "
        r"train/, and val/ stays the validation part; or add test/$",
        {},
    ),
    "train alone": (
        "train/cat:2 train/dog:1",
        r"has train/ but no test set: --test-fraction 0.2 takes a test part off train/; or add test/$",
        {},
    ),
    "another name beside train": (
        "train/cat:2 train/dog:1 holdout/cat:1",
        r"has holdout/, train/ but no test set: --test-dir holdout tests on holdout/; --test-fraction 0.2",
        {},
    ),
    "a class with a blank at its end": (
        "train/cat:2 train/dog:1 test/cat\u2000:1 test/dog:1",
        r"without a training image: cat. \(only in test/, where train has cat\); fill",
        {},
    ),
    "a class in another case": (
        "train/Cat:2 train/dog:1 test/cat:1 test/dog:1",
        r"without a training image: cat \(only in test/, where train has Cat\); fill",
        {},
    ),
    "archives alone": ("train.zip test.zip", r"it has 0 and 2 .zip: unpack what is packed first$", {}),
    "images of YOLO": (
        "train/images/a.png train/images/b.png train/labels/a.txt valid/images/c.png data.yaml",
        r"train/ and valid/ of .* hold images, such as a.png, but no class folders",
        {},
    ),
    "parts in a folder of images, labels beside it": (
        "images/train/cat:1 images/train/dog:1 images/val/cat:1 labels/train/x.txt",
        r"has parts in images/: did you mean --root .*/tree/images\?$",
        {},
    ),
    "two names of one part in other cases": (
        "train/cat:1 train/dog:1 Val/cat:1 VALID/cat:1 test/cat:1", r"all look like the validation part: rename", {}
    ),
    "no train": ("test/cat:2 test/dog:1 val/cat:1", r"has test/, val/ but no train/: add or rename one, or give", {}),
    "images with their labels in the names": (
        "train/cat.0.png train/cat.1.png train/dog.0.png test/1.png test/2.png",
        r"train/ and test/ of .* hold images, such as cat.0.png, but no class folders \(the classes seem to stand in "
        r"the file names: cat, dog\): sort them into one folder per class, such as train/cat/, or name their labels",
        {},
    ),
    "images in doubled folders": ("train/train/cat.0.png test1/test1/1.png", r"hold.* images, such as cat.0.png", {}),
    "images in train alone": ("train/cat.0.png train/dog.0.png", r"train/ of .* holds images, such as cat.0.png", {}),
    "images in numbered folders": ("train/cat.0.png train/dog.0.png test1/1.png", r"train/ and test1/ of .* hold", {}),
    "two training folders": ("train1/cat:1 train2/dog:1 test/cat:1", r"all look like the training part: rename or", {}),
    "two sets": (
        "cars_train/a:1 cars_train/b:1 cars_test/a:1 dogs_train/c:1 dogs_train/d:1 dogs_test/c:1",
        r"has cars_train/, dogs_train/, cars_test/, dogs_test/ but no train/: add or rename one",
        {},
    ),
    "images in val and test": ("val/cat.0.png test/dog.0.png", r"val/ of .* hold images|test/ and val/ of .* hold", {}),
    "images and no folder": ("cat.0.png dog.0.png", r"holds images, such as cat.0.png, but no class folders \(", {}),
    "a test folder without labels": (
        "train/cat:2 train/dog:1 test:4",
        r"test/ of .* has 4 images without class folders: --test-fraction 0.2 takes a test part off train/; or give "
        r"them class folders. `saukit predict .*/test` classifies them once a network is trained$",
        {},
    ),
    "a test folder without labels in a folder": (
        "train/cat:2 train/dog:1 test/unknown:4 val/cat:1",
        r"has 4 images without class folders: --test-dir val tests on val/; --test-fraction 0.2",
        {},
    ),
    "one folder too many above parts": (
        "archive/train/cat:2 archive/train/dog:1 archive/test/cat:1 archive/test/dog:1",
        r"has parts in archive/: did you mean --root .*/tree/archive\?$",
        {},
    ),
    "one folder too many above parts, among others": (
        "archive/train/cat:2 archive/train/dog:1 archive/test/cat:1 results:3",
        r"did you mean --root .*/tree/archive\?$",
        {},
    ),
    "one folder too many above classes": (
        "archive/cat:2 archive/dog:1 __MACOSX:1 notes/readme.txt",
        r"has one folder with images, archive/: did you mean --root .*/tree/archive\?$",
        {},
    ),
    "two folders too many above classes": ("a/b/cat:2 a/b/dog:1", r"did you mean --root .*/tree/a/b\?$", {}),
    "parts below the classes": (
        "cat/train:2 cat/test:1 dog/train:1 dog/test:1",
        r"class folders of .* have parts inside \(cat/test/, cat/train/\): put the parts above the classes, such as ",
        {},
    ),
    "two validation folders": (
        "train/cat:2 train/dog:1 test/cat:1 val/cat:1 dev/cat:1",
        r"(dev/ and val/|val/ and dev/) of .* all look like the validation part: rename or remove all but one$",
        {},
    ),
    "two test folders": (
        "train/cat:2 train/dog:1 test/cat:1 testing/cat:1",
        r"all look like the test part: rename or remove all but one or name one with --test-dir$",
        {},
    ),
    "test has other classes": (
        "train/cat:2 train/dog:1 test/0:1 test/1:1",
        r"train/ and test/ of .* have no class in common \(cat, dog; 0, 1\): name their class folders alike$",
        {},
    ),
    "a class in test alone": (
        "train/cat:2 train/dog:1 test/cat:1 test/fox:1",
        r"classes of .* without a training image: fox \(only in test/\); .*--min-images 1$",
        {},
    ),
    "an empty class": ("cat:2 dog:1 eel/ fox/notes.txt", r"without an image \(.*\): eel, fox; fill or remove", {}),
    "one class": ("cat:2", r"needs at least two subfolders, one per class; it has 1$", {}),
    "one class in train": ("train/cat:2 test/cat:1", r"train needs at least two subfolders, one per class; it", {}),
    "nothing": ("notes.txt", r"needs at least two subfolders, one per class; it has 0$", {}),
    "more images outside the classes than inside": (
        "train/a:1 train/b:1 train:9 test/a:1",
        r"train has 9 images beside its class folders and 2 inside: move each to the folder of its class, or away$",
        {},
    ),
    "folds of the same classes": (
        "fold1/cat:2 fold1/dog:1 fold2/cat:1 fold2/dog:1",
        r"fold1/, fold2/ of .* have the same folders inside \(cat, dog\): if those are the classes, give --root "
        r".*/tree/fold1; if one is the test set, --test-dir fold2; --class-depth top takes fold1/, fold2/ as classes$",
        {},
    ),
    "domains of nearly the same classes": (
        "art/cat:2 art/dog:1 photo/cat:1 photo/dog:1 sketch/cat:1 sketch/dog:1 sketch/eel:1",
        r"art/, photo/, sketch/ of .* have the same folders inside \(cat, dog\): .*--root .*/tree/art; --class-depth",
        {},
    ),
    "domains with a folder of images between": (
        "amazon/images/cat:2 amazon/images/dog:1 webcam/images/cat:1 webcam/images/dog:1",
        r"amazon/, webcam/ of .* have the same folders inside \(cat, dog\)",
        {},
    ),
    "a folder of images alone": ("jpg:3 setid.txt", r"jpg/ of .* holds images, such as 000.png, but no class fold", {}),
    "a folder of images, and annotations": (
        "JPEGImages:3 Annotations/a.xml ImageSets/Main/train.txt", r"JPEGImages/ of .* holds images, such as 000", {}
    ),
    "images and masks in each class": (
        "cat/images:2 cat/masks:2 dog/images:1 dog/masks:1", r"have the same folders inside \(images, masks\)", {}
    ),
    "folds in train": (
        "train/a/cat:1 train/a/dog:1 train/b/cat:1 train/b/dog:1 test/a/cat:1",
        r"a/, b/ of .*/tree/train have the same folders inside \(cat, dog\).*--root .*/tree/train/a; --class-depth",
        {},
    ),
    "numbered pieces": (
        "images_part_1:2 images_part_2:1 labels.csv sample.csv",
        r"images_part_1/, images_part_2/ of .* differ in a number alone and seem to be pieces of one set: name their "
        r"labels in a list \(--dataset list --train-list FILE; there is labels.csv, sample.csv\); --class-depth top ",
        {},
    ),
    "numbered pieces with a folder inside": ("img_001/images:2 img_002/images:1", r"differ in a number alone", {}),
    "a class and a part in one name": (
        "cat_train:2 dog_train:1 cat_test:1 dog_test:1",
        r"cat_train/ and dog_train/ of .* name a class and a part: .* such as train/cat/ and test/cat/$",
        {},
    ),
    "a letter and a part in one name": ("trainA:2 trainB:1 testA:1 testB:1", r"such as train/a/ and test/a/$", {}),
    "two test folders, named in two words": (
        "Training/cat:2 Training/dog:1 PublicTest/cat:1 PrivateTest/cat:1",
        r"PrivateTest/ and PublicTest/ of .* all look like the test part: .*--test-dir$",
        {},
    ),
    "a validation part among the classes of train": (
        "train/cat:2 train/dog:1 train/val/cat:1 train/val/dog:1 test/cat:1",
        r"val/ lies among the classes of .*/train and has folders of their names inside \(cat, dog\): move it out of "
        r"train/; --class-depth top takes it as a class$",
        {},
    ),
    "another test set beside the classes": (
        "cat:2 dog:1 holdout/cat:1", r"holdout/ lies among the classes .* \(cat\): --test-dir holdout tests on it", {}
    ),
    "a validation part beside the classes": (
        "cat:2 dog:1 val/cat:1", r"has cat/, dog/, val/ but no test set: --test-dir val tests on val/; --test-", {}
    ),
    "one folder above the classes of train": (
        "train/animals/cat:2 train/animals/dog:1 test/animals/cat:1",
        r"train needs at least two subfolders, .*; it has 1: --class-depth leaf takes the folders in animals/ as",
        {},
    ),
    "images of a competition, labels in a table": (
        "train_images:4 test_images:2 train.csv",
        r"or name .* \(--dataset list --train-list FILE; there is train.csv\)$",
        {},
    ),
    "a test folder that is not there": (
        "train/cat:2 train/dog:1 val/cat:1",
        r"--test-dir test: .* has no such folder with images; it has train/, val/$",
        {"test_dir": "test"},
    ),
    "a test folder that is train": (
        "train/cat:2 train/dog:1", r"--test-dir train is the training part of .*: name another", {"test_dir": "train"}
    ),
    "a test folder without class folders": (
        "train/cat:2 train/dog:1 val:2", r"--test-dir val: .*/val has no class folder of .*/train", {"test_dir": "val"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_what_is_understood(tmp_path: Path, case: Case) -> None:
    layout = look(build(tmp_path / "tree", case.content), **case.options)
    assert counts(layout) == case.parts
    classes = sorted({name for part in case.parts.values() for name in part})
    assert all(list(part) == classes for part in layout.parts.values())
    told = "\n".join([*layout.notes, *layout.warnings])
    for piece in case.told:
        assert piece in told
    if case.taken is not None:
        assert case.taken in layout.notes
    if not case.told and len(case.parts) == 1 and not case.options:
        assert told == ""


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_with_the_way_out(tmp_path: Path, case: tuple[str, str, dict[str, Any]]) -> None:
    content, message, options = case
    with pytest.raises(SaukitError, match=message):
        look(build(tmp_path / "tree", content), **options)


CASES = (str.lower, str.title, str.upper)
FORMS = ("{}", "seg_{}", "{}_set", "{}-images", "{}2017", "{} data", "01.{}", "{0}/{0}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_parts_under_all_their_names(tmp_path: Path, case: Any, form: str) -> None:
    at = {part: build(tmp_path / part, f"cat/{part}.png dog/{part}.png") for part in ROLES}
    for number, words_of_parts in enumerate(itertools.product(*ROLES.values())):
        named = {part: form.format(case(word)) for part, word in zip(ROLES, words_of_parts, strict=True)}
        root = tmp_path / str(number)
        for part, folder in named.items():
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            at[part] = at[part].rename(root / folder)
        layout = look(root)
        found = {
            part: [path.relative_to(root).as_posix() for name in ("cat", "dog") for path in classes[name]]
            for part, classes in layout.parts.items()
        }
        assert found == {
            part: [f"{folder}/{name}/{part}.png" for name in ("cat", "dog")] for part, folder in named.items()
        }
        words = {"train": "training", "test": "test", "val": "validation"}
        taken = ", ".join(f"{word} images from {named[part]}/" for part, word in words.items())
        assert layout.notes == (taken,)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", ("train", ())), ("Training", ("train", ())), ("seg_train", ("train", ("seg",))),
        ("TestSet", ("test", ())), ("val2017", ("val", ())), ("dev", ("val", ())),
        ("test_tube", ("test", ("tube",))), ("trainer", None), ("device", None), ("latest", None), ("contest", None),
        ("train_val", ("train", ("val",))), ("trainval2007", ("train", ("val",))),
        ("test_val", None),
        ("trainA", ("train", ("a",))), ("PublicTest", ("test", ("public",))), ("TRAINING", ("train", ())),
        ("cat", None), ("", None), ("猫", None),
    ],
)  # fmt: skip
def test_what_a_name_says(name: str, role: Any) -> None:
    assert role_of(name) == role


# Files and links


@pytest.mark.parametrize(
    "junk",
    ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".ipynb_checkpoints", ".git"],
)
@pytest.mark.parametrize("where", [".", "train", "train/cat"])
def test_system_folders_are_ignored_wherever_they_are(tmp_path: Path, junk: str, where: str) -> None:
    root = build(tmp_path, "train/cat:2 train/dog:1 test/cat:1 test/dog:1")
    for inner in (root / where / junk / "cat", root / where / junk.swapcase()):
        inner.mkdir(parents=True)
        (inner / "000.png").write_bytes(PNG)
    assert counts(look(root)) == {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}}


@pytest.mark.parametrize("train", ["NFC", "NFD"])
@pytest.mark.parametrize("test", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one_class(tmp_path: Path, train: Any, test: Any) -> None:
    for part, form in (("train", train), ("test", test), ("val", train)):
        build(tmp_path, f"{part}/{unicodedata.normalize(form, COMPOSED)}:2 {part}/dog:1")
    layout = look(tmp_path)
    assert counts(layout) == {part: {COMPOSED: 2, "dog": 1} for part in ("train", "test", "val")}


def test_both_forms_of_a_name_in_one_part_are_one_class(tmp_path: Path) -> None:
    build(tmp_path, f"{COMPOSED}:2 {DECOMPOSED}:3 dog:1")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system makes them one")
    assert counts(look(tmp_path)) == {"train": {COMPOSED: 5, "dog": 1}}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    root = build(tmp_path / "tree", "cat:2 dog:1")
    try:
        (root / "cat" / "probe").symlink_to(root)
    except OSError:
        pytest.skip("no links here")
    (root / "cat" / "probe").unlink()
    return root


def test_links_to_files_and_folders_are_followed(linked: Path, tmp_path: Path) -> None:
    build(tmp_path / "elsewhere", "more:3 eel:2")
    (linked / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (linked / "eel").symlink_to(tmp_path / "elsewhere" / "eel")
    (linked / "dog" / "again.png").symlink_to(linked / "cat" / "000.png")
    assert counts(look(linked)) == {"train": {"cat": 5, "dog": 2, "eel": 2}}


@pytest.mark.parametrize("target", [".", "..", "cat", "/", "cat/self"])
def test_links_back_are_not_followed(linked: Path, target: str) -> None:
    link = linked / "cat" / "self"
    link.symlink_to({".": linked / "cat", "..": linked.parent, "cat": Path("../cat")}.get(target, Path(target)))
    if target == "cat/self":
        link.unlink()
        link.symlink_to(link)  # to itself: no folder at all
    layout = look(linked)
    assert counts(layout) == {"train": CAT_DOG}
    assert layout.passed_over.loops == ([] if target == "cat/self" else [link])


def test_folders_that_link_to_each_other_end(linked: Path) -> None:
    (linked / "cat" / "dogs").symlink_to(linked / "dog")
    (linked / "dog" / "cats").symlink_to(linked / "cat")
    assert counts(look(linked)) == {"train": {"cat": 3, "dog": 3}}
    for name, other in itertools.permutations("abcdefghijkl", 2):
        (linked / name).mkdir(exist_ok=True)
        (linked / name / other).symlink_to(linked / other)
    with pytest.raises(DataError, match=r"lead to .* again and again: remove some of them"):
        look(linked)


def test_what_is_no_file_is_unreadable_and_nothing_waits(linked: Path, workspace: Workspace) -> None:
    (linked / "cat" / "broken.png").symlink_to(linked / "nowhere")
    (linked / "dog" / "self.jpg").symlink_to(linked / "dog" / "self.jpg")
    expected = {"cat/broken.png": "No such file or directory", "dog/self.jpg": "Too many levels of symbolic links"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(linked / "cat" / "pipe.png")
        os.mkfifo(linked / "cat" / "pipe")
        expected["cat/pipe.png"] = "not a regular file"
    if hasattr(socket, "AF_UNIX"):
        before = Path.cwd()
        os.chdir(linked / "dog")  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("s.png")
        finally:
            os.chdir(before)
        expected["dog/s.png"] = "not a regular file"
    done: list[Any] = []

    def work() -> None:
        config = SplitConfig(dataset="folder", test_fraction=0.5)
        try:
            make_split(config, workspace, root=linked, force=False, reporter=Reporter(quiet=True))
        except DataError as error:
            done.append(error)
        skipping = SplitConfig(dataset="folder", test_fraction=0.5, skip_bad=True)
        done.append(make_split(skipping, workspace, root=linked, force=False, reporter=Reporter(quiet=True)))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and len(done) == 2
    assert f"{len(expected)} images cannot be read" in str(done[0])
    for name, reason in expected.items():
        assert f"{name} ({reason})" in str(done[0])
    assert done[1].summary["skipped"] == len(expected)
    assert load_split(workspace).class_counts.tolist() == [1, 1]


def test_a_file_without_permission_is_unreadable(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path / "tree", "cat:4 dog:4")
    closed, real = root / "cat" / "001.png", Image.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:  # root may read anything, so chmod proves nothing
        if file == closed:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"1 image cannot be read.*--skip-bad:\s+cat/001.png \(Permission denied\)"):
        make_split(SplitConfig(dataset="folder"), workspace, root=root, force=False, reporter=Reporter(quiet=True))


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = build(tmp_path / "tree", "cat:2 dog:1"), os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == root / "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"cannot read the folder .*/dog: Permission d"):
        patch.setattr(os, "scandir", refuse)  # no longer than that: pytest removes folders with it
        look(root)


# Extensions

# What Pillow knows and is no still picture of its own: animations, vectors, containers of other data, formats that
# it only writes.
OTHERS = {
    ".flc", ".fli", ".mpeg", ".mpg", ".eps", ".ps", ".pdf", ".palm", ".emf", ".wmf", ".bufr", ".grib", ".h5", ".hdf",
}  # fmt: skip


def test_every_still_picture_that_pillow_opens_counts() -> None:
    Image.init()
    known = {name for name in Image.registered_extensions() if name not in HEIF_EXTENSIONS}
    assert known - OTHERS <= EXTENSIONS
    assert EXTENSIONS - HEIF_EXTENSIONS - known <= {".avif", ".avifs", ".qoi", ".pfm"}  # formats of newer versions
    assert not OTHERS & EXTENSIONS


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
        mode = {"XBM": "1", "MSP": "1", "BLP": "P"}.get(kind, "RGB")
        picture = Image.fromarray(np.full((16, 16, 3), value, np.uint8)).convert(mode)
        if kind == "PFM":
            pytest.skip("Pillow writes it in float only")
        picture.save(tmp_path / name / f"x{extension.upper()}", format=kind)
    pixels = loaded(open_folder(SplitConfig(dataset="folder"), tmp_path), 16)
    assert not pixels.bad
    assert abs(float(pixels.read("train", np.array([0, 1]), 16).mean()) - value) < 3


def test_there_are_many_extensions() -> None:
    assert len(WRITABLE) > 20
    assert {".jfif", ".jpe", ".avif", ".tif", ".webp"} <= EXTENSIONS


def test_heic_with_its_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    from saukit.data.decoding import decode_image

    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "a.heic")
    found = image_files(tmp_path)
    assert [path.name for path in found.images] == ["a.heic"] and not found.ignored
    assert np.abs(decode_image(found.images[0], 64).mean((1, 2)) - [200, 30, 60]).max() < 6


@pytest.mark.parametrize(
    ("name", "content", "is_image"),
    [
        ("0001", PNG, True),
        ("a.dat", encoded("JPEG"), True),
        ("a.jpg_large", encoded("WEBP"), True),
        ("a.bmp_", encoded("BMP"), True),
        ("a.x", encoded("TIFF"), True),
        ("a.gif1", encoded("GIF"), True),
        ("a.hevc", b"\0\0\0\x18ftypheic\0\0\0\0", True),
        ("a.txt", b"cat", False),
        ("a.html", b"<html>", False),
        ("empty", b"", False),
    ],
)
def test_images_by_their_first_bytes_are_a_warning(
    tmp_path: Path, name: str, content: bytes, is_image: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build(tmp_path, "cat:2 dog:1")
    path = root / "dog" / name
    for index in range(3):
        path.with_stem(f"{path.stem}{index}").write_bytes(content)
    layout = look(root)
    assert counts(layout) == {"train": CAT_DOG}
    say_ignored(layout.passed_over, Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert "files without an image extension are ignored: 3 " in told
    warning = "3 of them are images by the first bytes"
    assert (warning in told and "give them the extension of their format" in told) if is_image else warning not in told


@pytest.mark.parametrize("name", ["a.NEF", "b.cr2", "c.dng"])
def test_raw_photos_are_told(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = build(tmp_path, "cat:2 dog:1")
    (root / "cat" / name).write_bytes(b"II*\0" + bytes(100))
    say_ignored(look(root).passed_over, Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert f"raw photos of cameras ({Path(name).suffix.lower()}) are not read" in told and "first bytes" not in told


@pytest.mark.parametrize("name", ["a.heic", "b.HEIF"])
def test_heic_without_its_extra_is_told(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("saukit.data.image_files.missing_packages", lambda extra: ["pillow_heif"])
    root = build(tmp_path, "cat:2 dog:1")
    (root / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    say_ignored(look(root).passed_over, Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert "HEIC images are read with the extra heif: pip install 'saukit[heif]'" in told
    assert "first bytes" not in told


def test_of_many_files_of_a_kind_only_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(100):
        (tmp_path / f"{index:03}.txt").write_text("a label")
        (tmp_path / f"{index:03}").write_bytes(PNG if index % 7 == 3 else b"x")
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args: opened.append(path.suffix) or real(path, *args))  # type: ignore[func-returns-value]
    found = image_files(tmp_path)
    assert len(found.misnamed) == len(range(3, 100, 7)) and found.ignored == {"": 100, ".txt": 100}
    assert Counter(opened) == {"": 100, ".txt": 20}


def test_a_page_with_an_image_extension_is_unreadable(tmp_path: Path, workspace: Workspace) -> None:
    root = build(tmp_path / "tree", "cat:3 dog:3")
    (root / "cat" / "error.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"cat/error.jpg \(unknown image format\)"):
        make_split(SplitConfig(dataset="folder"), workspace, root=root, force=False, reporter=Reporter(quiet=True))


# Small classes


def test_small_classes_are_left_out_and_named(tmp_path: Path, workspace: Workspace) -> None:
    root = build(
        tmp_path / "tree", "train/cat:5 train/dog:3 train/eel:1 train/fox/ test/cat:2 test/eel:1 test/yak:1 val/dog:1"
    )
    plan = plan_split(SplitConfig(dataset="folder", min_images=2), root)
    assert (plan.classes, plan.train_counts, plan.test_counts) == (("cat", "dog"), (5, 3), (2, 0))
    assert plan.val_counts == (0, 1)
    assert "classes with fewer than 2 training images are left out: eel (1), fox (0), yak (0)" in plan.notes
    assert plan.warnings == ("classes without a test image, whose accuracy will be absent: dog",)
    (root / "train" / "dog" / "000.png").write_bytes(b"")
    (root / "train" / "dog" / "001.png").write_bytes(b"")
    build(root, "train/gnu:2 test/gnu:2")
    config = SplitConfig(dataset="folder", min_images=2, skip_bad=True)
    make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
    split, test = load_split(workspace), load_test(workspace)
    assert split.classes == ("cat", "gnu") and split.class_counts.tolist() == [5, 2]  # dog: one that can be read
    assert test.labels.tolist() == [0, 0, 1, 1] and split.val is None


def test_too_few_classes_left_is_told(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "cat:5 dog:3 eel:1")
    with pytest.raises(DataError, match=r"min_images 4 leaves 1 of 3 classes, .* the second largest has 3 images"):
        plan_split(SplitConfig(dataset="folder", min_images=4), root)


def test_a_class_of_one_image_trains_and_has_no_accuracy(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "cat:5 dog:1 eel:2")
    plan = plan_split(SplitConfig(dataset="folder"), root)
    assert (plan.train_counts, plan.test_counts) == ((4, 1, 1), (1, 0, 1))
    assert plan.warnings == ("classes without a test image, whose accuracy will be absent: dog",)
    with pytest.raises(DataError, match="there is no test image"):
        plan_split(SplitConfig(dataset="folder"), build(tmp_path / "ones", "cat:1 dog:1"))
