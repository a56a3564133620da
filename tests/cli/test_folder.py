"""A user's own folder of images, and counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import Cli, tree

from saukit.core.workspace import Workspace
from saukit.data.split import load_split, load_test

Pictures = Callable[..., Path]
FOLDER = ("make-lt", "--dataset", "folder")


def test_all_four_commands_on_a_folder(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root, work = pictures({"cat": 20, "cow": 10, "dog": 5}), tmp_path / "w"
    split = cli(*FOLDER, "--root", root, "-w", work, "--json").document
    assert (split["classes"], split["counts"], split["test_images"]) == (["cat", "cow", "dog"], [16, 8, 4], 7)
    assert (split["config"]["profile"], split["image_size"]) == ("none", 16)
    micro = ("--train-steps", "2", "--train-batch-size", "4", "--sampler-steps", "2", "--no-audit", "--preflight", "0")
    cache = cli("synth", *micro, "-w", work, "--json")
    assert cache.document["images_per_class"] == {"cat": 0, "cow": 8, "dog": 12}
    run = cli("train", "--method", "ce", "--steps", "30", "--batch-size", "16", "-w", work, "--json").document
    assert (run["name"], run["real_images"], run["synthetic_images"]) == ("ce+synth", 28, 20)
    result = cli("eval", "-w", work, "--json").document
    assert result["test_images"] == 7 and result["top5"] is None  # three classes have no top-5
    assert "│ - " in cli("eval", "-w", work).out.replace("│     - ", "│ - ")


def test_train_and_test_folders_are_taken_as_they_are(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    pictures({"cat": 6, "dog": 3}, under="train")
    root, work = pictures({"cat": 2, "dog": 2}, under="test"), tmp_path / "w"
    assert cli(*FOLDER, "--root", root, "-w", work, "-q").code == 0
    split, test = load_split(Workspace(work)), load_test(Workspace(work))
    assert split.class_counts.tolist() == [6, 3]
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert split.train.images[split.train.labels == 0].mean((0, 2, 3)).argmax() == 0  # cats are red
    refused = cli(*FOLDER, "--root", root, "-w", tmp_path / "v", "--test-fraction", "0.5")
    assert refused.code == 2
    assert "has a test set of its own: leave test_fraction out" in refused.error


def test_one_tree_is_split_by_a_fraction_of_each_class(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root = pictures({"cat": 12, "dog": 6})
    documents = [
        cli(*FOLDER, "--root", root, "-w", tmp_path / name, "--test-fraction", "0.5", "--seed", seed, "--json").document
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    ]
    assert [document["counts"] for document in documents] == [[6, 3]] * 3
    files = [tree(tmp_path / name)["split/train.safetensors"] for name in "abc"]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("form", [("cat=5", "dog=2"), ("cat=5,dog=2",), ("cat=5", "--counts", "dog=2")], ids=" ".join)
def test_counts_by_hand(cli: Cli, pictures: Pictures, tmp_path: Path, form: tuple[str, ...]) -> None:
    root = pictures({"cat": 20, "cow": 10, "dog": 10})
    outcome = cli(*FOLDER, "--root", root, "-w", tmp_path / "w", "--json", "--counts", *form)
    assert outcome.code == 0, outcome.error
    assert outcome.document["counts"] == [5, 8, 2]
    assert outcome.document["config"]["counts"] == {"cat": 5, "dog": 2}
    assert load_split(Workspace(tmp_path / "w")).class_counts.tolist() == [5, 8, 2]


def test_counts_may_stand_before_other_options(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root = pictures({"cat": 20, "dog": 10})
    outcome = cli(*FOLDER, "--counts", "cat=5", "dog=2", "--root", root, "-w", tmp_path / "w", "--json")
    assert outcome.document["counts"] == [5, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--counts", "cat"), "'cat' is not a count: write CLASS=N, such as --counts cat=50 dog=7"),
        (("--counts", "cat=many"), "'cat=many' is not a count: write CLASS=N"),
        (("--counts", "cat=-1"), "'cat=-1' is not a count: write CLASS=N"),
        (("--counts", "cat=1.5"), "'cat=1.5' is not a count: write CLASS=N"),
        (("--counts", "=5"), "'=5' is not a count: write CLASS=N"),
        (("--counts", "cat=5", "dog"), "'dog' is not a count: write CLASS=N"),
        (("--counts", "cat=0"), "counts do not fit the data: cat=0 (1 to 16 are possible)"),
        (("--counts", "cat=17", "dog=9"), "cat=17 (1 to 16 are possible), dog=9 (1 to 8 are possible)"),
        (("--counts", "rat=5"), "counts name unknown classes 'rat': there are cat, dog"),
        (("--counts", "cat=5", "0=5"), "counts name a class twice: cat"),
        (("--counts", "cat=5", "--imb", "10"), "imb has no effect with profile counts"),
        (("--counts", "cat=5", "--profile", "exp"), "counts has no effect with profile exp: use profile counts"),
        (("--profile", "counts"), "profile counts needs counts: write CLASS=N"),
        (("cat=5",), "unexpected argument 'cat=5': class counts follow --counts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_counts(cli: Cli, pictures: Pictures, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    root = pictures({"cat": 20, "dog": 10}, size=8)
    outcome = cli(*FOLDER, "--root", root, "-w", tmp_path / "w", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "w").exists()


def test_a_changed_folder_is_not_the_same_split(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root, work = pictures({"cat": 6, "dog": 3}), tmp_path / "w"
    arguments: tuple[Any, ...] = (*FOLDER, "--root", root, "-w", work)
    assert cli(*arguments, "-q").code == 0
    assert "nothing to do" in cli(*arguments).out
    before = tree(work)
    pictures({"cat": 7, "dog": 3})
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert "was made from other files" in outcome.error and "replace it with --force" in outcome.error
    assert tree(work) == before


def test_a_tilde_is_the_home_folder(
    cli: Cli, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    pictures({"cat": 6, "dog": 3})
    assert cli(*FOLDER, "--root", "~/pictures", "-w", "~/w", "-q").code == 0
    again = cli(*FOLDER, "--config=~/w/split/config.yaml", "--root", tmp_path / "pictures", "-w", tmp_path / "w")
    assert "nothing to do" in again.out
    monkeypatch.setenv("SAUKIT_WORKSPACE", "~/w")
    monkeypatch.setenv("SAUKIT_DATA", "~/pictures")
    assert "nothing to do" in cli(*FOLDER).out
    assert not Path("~").exists()


def test_12_bits_in_files_of_16_keep_one_range_from_split_to_prediction(cli: Cli, tmp_path: Path) -> None:
    root, work = tmp_path / "pictures", tmp_path / "w"
    for name, top in (("dark", 1000), ("bright", 4000)):
        (root / name).mkdir(parents=True)
        for index in range(6):
            values = np.random.default_rng(index).integers(top // 2, top, (8, 8)).astype(np.uint16)
            Image.fromarray(values).save(root / name / f"{index}.png")
    assert "would" in cli(*FOLDER, "--root", root, "-w", work, "--dry-run").out
    made = cli(*FOLDER, "--root", root, "-w", work)
    assert "16-bit images: 4,095 is white in all of them; --white-level sets another value" in made.error
    split = load_split(Workspace(work))
    means = [split.train.images[split.train.labels == label].mean() for label in (0, 1)]
    assert means == pytest.approx([0.75 * 4000 / 4095 * 255, 0.75 * 1000 / 4095 * 255], rel=0.05)
    assert "nothing to do" in cli(*FOLDER, "--root", root, "-w", work).out
    assert cli("train", "--method", "ce", "--steps", "30", "--batch-size", "8", "-w", work, "-q").code == 0
    found = cli("predict", "ce", root, "-w", work, "--json").document["predictions"]
    assert np.mean([entry["class"] == Path(entry["image"]).parent.name for entry in found]) > 0.8
    asked = cli(*FOLDER, "--root", root, "-w", tmp_path / "v", "--white-level", "65535", "--json")
    assert asked.document["config"]["white_level"] == 65535


def test_01_and_1_are_two_classes_and_unquoted_in_yaml_is_told(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root, work = pictures({"01": 8, "1": 6}), tmp_path / "w"
    made = cli(*FOLDER, "--root", root, "-w", work, "--counts", "01=4", "1=2", "--json").document
    assert (made["classes"], made["counts"]) == (["01", "1"], [4, 2])
    again = cli("make-lt", "--config", work / "split/config.yaml", "--root", root, "-w", work)
    assert "nothing to do" in again.out
    config = tmp_path / "config.yaml"
    config.write_text("dataset: folder\nprofile: counts\ncounts: {01: 4}\n")
    refused = cli("make-lt", "--config", config, "--root", root, "-w", tmp_path / "v")
    assert refused.code == 2 and "text that looks like a number or yes needs quotes: YAML reads 01" in refused.error
