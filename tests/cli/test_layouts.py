"""Folders as people have them, from the command line: exit codes, messages, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli

from saukit.core.workspace import Workspace
from saukit.data.split import load_split, load_test

Pictures = Callable[..., Path]
FOLDER = ("make-lt", "--dataset", "folder")


@pytest.mark.parametrize(
    ("parts", "arguments", "message"),
    [
        (("train", "val"), (), "has train/, val/ but no test set: --test-dir val tests on val/; --test-fraction 0.2"),
        (("train",), (), "has train/ but no test set: --test-fraction 0.2 takes a test part off train/; or add test/"),
        (("archive/train", "archive/test"), (), "did you mean --root"),
        (("archive",), (), "has one folder with images, archive/: did you mean --root"),
        (("train", "test", "testing"), (), "all look like the test part: rename or remove all but one or name one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_refusals(
    cli: Cli, pictures: Pictures, tmp_path: Path, parts: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    for part in parts:
        root = pictures({"cat": 2, "dog": 2}, under=part, size=8)
    outcome = cli(*FOLDER, "--root", root, "-w", tmp_path / "w", *arguments)
    assert outcome.code == 3 and message in outcome.error
    assert not (tmp_path / "w").exists()
    assert cli(*FOLDER, "--root", root, "-w", tmp_path / "w", *arguments, "--dry-run").code == 3


def test_images_with_their_labels_in_the_names(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root = pictures({"train": 4, "test": 4})
    for path in sorted((root / "train").iterdir()):
        path.rename(path.with_name(f"{('cat', 'dog')[int(path.stem) % 2]}.{path.name}"))
    outcome = cli(*FOLDER, "--root", root, "-w", tmp_path / "w")
    assert outcome.code == 3
    assert (
        "train/ and test/ of" in outcome.error
        and "(the classes seem to stand in the file names: cat, dog)" in outcome.error
    )
    assert "sort them into one folder per class, such as train/cat/, or name their labels in a list" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "digits", "--test-dir", "val"), "test_dir has no effect with dataset digits: use dataset"),
        (("--dataset", "digits", "--class-depth", "leaf"), "class_depth has no effect with dataset digits: use"),
        ((*FOLDER[1:], "--test-dir", "val", "--test-fraction", "0.1"), "give test_dir or test_fraction, not both"),
        ((*FOLDER[1:], "--min-images", "-1"), "min_images must be at least 0, got -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_options_that_make_no_sense(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("make-lt", *arguments, "-w", tmp_path / "w")
    assert outcome.code == 2 and message in outcome.error


def test_a_validation_part_of_its_own(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    for part, counts in (
        ("Train", {"cat": 6, "dog": 3}),
        ("TEST", {"cat": 2, "dog": 2}),
        ("valid", {"cat": 2, "dog": 1}),
    ):
        root = pictures(counts, under=part)
    work = tmp_path / "w"
    outcome = cli(*FOLDER, "--root", root, "-w", work)
    assert outcome.code == 0
    assert "training images from Train/, test images from TEST/, validation images from valid/" in outcome.error
    split = load_split(Workspace(work))
    assert split.val is not None and split.val.labels.tolist() == [0, 0, 1]
    assert split.val.source_indices.tolist() == [0, 1, 2]
    assert split.val.images[:2].mean((0, 2, 3)).argmax() == 0 and split.val.images[2].mean((1, 2)).argmax() == 1
    refused = cli(*FOLDER, "--root", root, "-w", tmp_path / "v", "--val-fraction", "0.1")
    assert refused.code == 2 and "this folder has a validation part of its own: leave val_fraction out" in refused.error


def test_a_class_without_a_test_image_from_one_end_to_the_other(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    pictures({"cat": 8, "dog": 6, "eel": 4}, under="train")
    root, work = pictures({"cat": 4, "eel": 4}, under="test"), tmp_path / "w"
    made = cli(*FOLDER, "--root", root, "-w", work)
    assert made.code == 0 and "classes without a test image, whose accuracy will be absent: dog" in made.error
    assert (
        cli("train", "--method", "ce", "--no-synthetic", "--steps", "4", "--batch-size", "8", "-w", work, "-q").code
        == 0
    )
    result = cli("eval", "-w", work, "--json").document
    cat, dog, eel = (row["top1"] for row in result["per_class"])
    assert dog is None and result["balanced_accuracy"] == pytest.approx((cat + eel) / 2)
    assert cli("eval", "-w", work).code == 0
    assert cli("report", "-w", work, "-q").code == 0
    few = cli(*FOLDER, "--root", root, "-w", tmp_path / "v", "--min-images", "5", "--json")
    assert few.code == 0 and few.document["classes"] == ["cat", "dog"]
    assert "classes with fewer than 5 training images are left out: eel (4)" in few.error
    assert load_test(Workspace(tmp_path / "v")).labels.tolist() == [0] * 4
