"""Lists, tables and MedMNIST's files through the program: what is made of them, and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli

from saukit.core import extras
from saukit.core.config import load_config
from saukit.core.workspace import Workspace
from saukit.data.config import ResolvedSplitConfig
from saukit.data.split import load_split, load_test

Pictures = Callable[..., Path]
COUNTS = {"cat": 20, "cow": 10, "dog": 6}


@pytest.fixture
def root(pictures: Pictures) -> Path:
    return pictures(COUNTS)


def lines(root: Path) -> list[str]:
    return [f"{path.relative_to(root)} {path.parent.name}" for path in sorted(root.rglob("*.png"))]


def test_a_list_is_split_trained_on_and_evaluated(cli: Cli, root: Path, tmp_path: Path) -> None:
    (root / "train.txt").write_text("\n".join(lines(root)))
    make = ("make-lt", "--dataset", "list", "--root", root, "--train-list", "train.txt", "-w", tmp_path / "w", "--json")
    plan = cli(*make, "--dry-run").document
    split = cli(*make).document
    assert plan["counts"] == split["counts"] == [16, 8, 5] and split["classes"] == ["cat", "cow", "dog"]
    assert split["config"]["profile"] == "none" and split["config"]["train_list"] == "train.txt"
    assert cli(*make).document["state"] == "complete"
    train = cli("train", "--method", "ce", "--steps", "10", "--batch-size", "8", "-w", tmp_path / "w", "--json")
    assert train.document["real_images"] == 29
    assert cli("eval", "-w", tmp_path / "w", "--json").document["test_images"] == 7
    (root / "train.txt").write_text("\n".join(lines(root)[1:]))
    changed = cli(*make)
    assert changed.code == 2 and "was made from other files" in changed.error
    repeated = cli(
        "make-lt", "--config", tmp_path / "w" / "split" / "config.yaml", "--root", root, "-w", tmp_path / "v"
    )
    assert repeated.code == 0


@pytest.mark.parametrize("way", ["column", "expression", "folder"])
def test_groups_are_on_one_side(cli: Cli, root: Path, tmp_path: Path, way: str) -> None:
    for path in root.rglob("*.png"):  # four images of each patient
        path.rename(path.with_name(f"p{int(path.stem) // 4}-{path.name}"))
    table = ["file,species,who", *(f"{line.replace(' ', ',')},{line.split('/')[1][:2]}" for line in lines(root))]
    (root / "all.csv").write_text("\n".join(table))
    given: dict[str, tuple[str, ...]] = {
        "column": ("--dataset", "list", "--train-list", "all.csv", "--group-by", "who"),
        "expression": ("--dataset", "list", "--train-list", "all.csv", "--group-by", r"/(p\d+)-"),
        "folder": ("--dataset", "folder", "--group-by", r"/(p\d+)-"),
    }
    arguments = (*given[way], "--test-fraction", "0.4", "--root", root, "-w", tmp_path / "w")
    made = cli("make-lt", *arguments)
    assert made.code == 0 and "5 groups, each in one part" in made.err
    split, test = load_split(Workspace(tmp_path / "w")), load_test(Workspace(tmp_path / "w"))
    names = [line.rpartition(" ")[0] for line in lines(root)]
    sides = [{names[i].split("/")[1][:2] for i in part.source_indices} for part in (split.train, test)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert load_config(ResolvedSplitConfig, tmp_path / "w" / "split" / "config.yaml").group_by == given[way][-1]


def test_a_set_of_medmnist(cli: Cli, tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        content[f"{part}_images"] = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        content[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    np.savez(tmp_path / "set.npz", **content)
    made = cli(
        "make-lt", "--dataset", "medmnist", "--root", tmp_path / "set.npz", "-w", tmp_path / "w", "--json"
    ).document
    assert (made["counts"], made["val_images"], made["test_images"], made["image_size"]) == ([6, 6], 4, 4, 28)
    refused = cli(
        "make-lt", "--dataset", "medmnist", "--root", tmp_path / "set.npz", "--skip-bad", "-w", tmp_path / "w"
    )
    assert refused.code == 2 and "skip_bad has no effect with dataset medmnist" in refused.error


def test_missing_images_are_skipped_and_counted(cli: Cli, root: Path, tmp_path: Path) -> None:
    (root / "train.txt").write_text("\n".join([*lines(root), "cat/none.png cat", "dog/none.png dog"]))
    make = ("make-lt", "--dataset", "list", "--root", root, "--train-list", "train.txt", "-w", tmp_path / "w")
    refused = cli(*make)
    assert refused.code == 3 and not (tmp_path / "w" / "split").exists()
    assert (
        "2 of the 38 listed images are not in" in refused.error and "dog/none.png (train.txt, line 38)" in refused.error
    )
    made = cli(*make, "--skip-bad", "--json")
    assert made.document["skipped"] == 2 and sum(made.document["counts"]) + made.document["test_images"] == 36
    assert "2 images cannot be read, skipped" in made.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--dataset", "list"), 2, "dataset list needs train_list: give --train-list FILE"),
        (
            ("--dataset", "folder", "--train-list", "x"),
            2,
            "train_list has no effect with dataset folder: use dataset list",
        ),
        (("--dataset", "folder", "--columns", "path=x"), 2, "columns has no effect with dataset folder"),
        (("--dataset", "list", "--train-list", "x", "--columns", "a"), 2, "'a' is not one of path=NAME"),
        (("--dataset", "folder", "--group-by", "("), 2, "group_by '(' is not a regular expression"),
        (("--dataset", "folder", "--group-by", "none"), 3, "group_by 'none' does not match 36 of 36 paths"),
        (
            ("--dataset", "folder", "--group-by", "^([a-z]+)/"),
            3,
            "groups cannot be kept on one side with images of each",
        ),
        (("--dataset", "list", "--train-list", "none.txt"), 3, "there is no list none.txt"),
        (("--dataset", "list", "--train-list", "empty.txt"), 3, "lists no image"),
        (("--dataset", "list", "--train-list", "header.csv"), 3, "has a header but no rows"),
        (("--dataset", "list", "--train-list", "t.parquet"), 5, "pip install 'saukit[parquet]'"),
        (("--dataset", "huggingface"), 5, "pip install 'saukit[datasets]'"),
        (("--dataset", "imagenet-lt"), 3, "needs ImageNet_LT_train.txt, ImageNet_LT_val.txt, ImageNet_LT_test.txt in"),
        (("--dataset", "medmnist"), 3, "needs one .npz file, but it has none"),
    ],
)
def test_bad_input_has_an_exit_code(
    cli: Cli,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    for extra in ("parquet", "datasets"):
        monkeypatch.setitem(extras.EXTRAS, extra, ("a_package_that_is_not_there",))
    (root / "empty.txt").write_text("")
    (root / "header.csv").write_text("path,label\n")
    (root / "t.parquet").write_text("")
    outcome = cli("make-lt", *arguments, "--root", root, "-w", tmp_path / "w")
    assert outcome.code == code and message in outcome.error, outcome
    assert not (tmp_path / "w" / "split").exists()
