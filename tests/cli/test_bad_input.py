"""Bad input: a message with the remedy, the documented exit code, and earlier artefacts as they were."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Cli, tree

from saukit.training import stage as stage_room
from saukit.training import trainer as training_room

Pictures = Callable[..., Path]
FOLDER = ("make-lt", "--dataset", "folder")
SYNTH = ("--train-steps", "2", "--train-batch-size", "4", "--sampler-steps", "2", "--no-audit", "--preflight", "0")
TRAIN = ("--method", "ce", "--steps", "3", "--batch-size", "16", "--amp", "off", "--no-synthetic")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("make-lt", "--dataset", "cifar-10"),
            2,
            "unknown dataset 'cifar-10' (did you mean cifar10?): use one of digits, cifar10",
        ),
        (
            ("make-lt", "--dataset", "cifar10"),
            2,
            "cifar10 lies in a folder: give it as --root DIR, or set SAUKIT_DATA=DIR",
        ),
        (
            ("make-lt", "--dataset", "cifar10", "--root", "nowhere"),
            3,
            "cifar10 is not in nowhere (looked for cifar-10-batches-py), and SAUKIT_OFFLINE forbids a download: give "
            "the folder that holds it as --root DIR or SAUKIT_DATA=DIR",
        ),
        (("make-lt", "--dataset", "folder"), 2, "folder lies in a folder: give it as --root DIR"),
        (
            ("make-lt", "--dataset", "folder", "--root", "nowhere"),
            3,
            "nowhere is not a folder: give the folder with one subfolder per class as --root",
        ),
        (("make-lt", "--root", "nowhere"), 2, "digits is embedded in saukit's dependencies and has no root"),
        (
            ("make-lt", "--imb", "0"),
            2,
            "imb must be above 0 (largest / smallest class, or its inverse), got 0",
        ),
        (("make-lt", "--imb", "-1"), 2, "imb must be above 0 (largest / smallest class, or its inverse), got -1"),
        (
            ("make-lt", "--imb", "nan"),
            2,
            "options: imb: nan is not a number",
        ),
        (("make-lt", "--imb", "inf"), 2, "imb must be above 0 (largest / smallest class, or its inverse), got inf"),
        (("make-lt", "--imb", "1000"), 2, "imb 1000 leaves the smallest class without an image"),
        (("make-lt", "--imb", "1000"), 2, "imb can be 142 at most"),
        (("make-lt", "--imb", "ten"), 2, "Invalid value for '--imb'"),
        (("make-lt", "--groups", "20,100"), 2, "groups '20,100': the first number (many above) must not be below"),
        (("make-lt", "--image-size", "2"), 2, "image_size must be at least 4 and at most 1024, got 2"),
        (("make-lt", "--val-fraction", "0.9"), 2, "val_fraction must be at least 0 and at most 0.5, got 0.9"),
        (
            ("make-lt", "--skip-bad"),
            2,
            "skip_bad has no effect with dataset digits: use dataset imagenet-lt, places-lt, inat2018",
        ),
        (("make-lt", "--colour", "red"), 2, "No such option: --colour"),
        (("make-lt", "--device", "tpu"), 2, "unknown device 'tpu': use auto, cpu, cuda, cuda:0, mps, xpu or xpu:0"),
        (
            ("synth", "--per-class-target", "2"),
            2,
            "needs no synthetic image: the smallest class has 2 real images already, the largest 142; "
            "give a --per-class-target above 2",
        ),
        (("synth", "--per-class-target", "0"), 2, "per_class_target must be at least 1"),
        (
            ("synth", "--guidance", "0.5", "--sampler-steps", "1"),
            2,
            "guidance must be at least 1 (none) and at most 20",
        ),
        (("synth", "--guidance", "0.5", "--sampler-steps", "1"), 2, "sampler_steps must be at least 2 with generator"),
        (("synth", "--generator", "gan"), 2, "unknown generator 'gan': use one of diffusion, pipeline, folder, cmo"),
        (("synth", "--variation", "1.5"), 2, "variation must be at least 0.05 and at most 1 (the share of noise), got"),
        (
            ("synth", "--min-confidence", "0.6"),
            2,
            "min_confidence has no effect with filter none: use filter classifier",
        ),
        (("synth", "--model", "x", "--train-steps", "9"), 2, "train_steps has no effect with model: leave one of them"),
        (("synth", "--from", "x"), 2, "from_folder has no effect with generator diffusion: use generator folder, or"),
        (("synth", "--refilter", "--force"), 2, "--refilter samples nothing: leave out --force, --resume and --shard"),
        (("synth", "--device", "tpu"), 2, "unknown device 'tpu'"),
        (("synth", "--device", "cuda:99"), 5, "device cuda:99 asked for, but"),
        (("train", "--device", "tpu"), 2, "unknown device 'tpu': use auto, cpu, cuda, cuda:0, mps, xpu or xpu:0"),
        (("train", "--device", "cuda:99"), 5, "use --device cpu"),
        (("train", "--device", "cpu", "--amp", "fp16"), 5, "fp16 needs a GPU: use --amp bf16, --amp off or --amp auto"),
        (("train", "--backbone", "vit"), 2, "unknown backbone 'vit': use one of resnet32-w64"),
        (
            ("train", "--epochs", "1", "--steps", "1"),
            2,
            "give epochs or steps, not both",
        ),
        (("train", "--lr", "-1", "--batch-size", "1"), 2, "batch_size must be at least 2 (BatchNorm needs two images)"),
        (("train", "--lr", "-1", "--batch-size", "1"), 2, "lr must be above 0, got -1.0"),
        (
            ("train", "--method", "balanced-softmax", "--prior-correction", "0.5"),
            2,
            "prior_correction has no effect with method balanced-softmax: use method sau, sau-aware, mixup-cutmix",
        ),
        (("train", "--prior-correction", "-1"), 2, "prior_correction must be at least 0"),
        (("train", "--synthetic-weight", "2"), 2, "synthetic_weight must be above 0 and at most 1"),
        (
            ("train", "--no-synthetic", "--synthetic-weight", "0.5"),
            2,
            "synthetic_weight has no effect without synthetic: set synthetic, or leave it out",
        ),
        (("train", "--name", "../b"), 2, "run name '../b': use letters, digits"),
        (("train", "--select", "val"), 3, "make the split with `saukit make-lt --val-fraction 0.1 -w"),
        (("eval", "--run", "none"), 3, "no complete run 'none' in"),
        (("eval", "--run", "none"), 3, "(complete runs: sau, ce)"),
        (("eval", "--split", "tail"), 2, "Invalid value for '--split'"),
        (("eval", "--device", "tpu"), 2, "unknown device 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense(
    cli: Cli, shared_work: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """On the shared workspace: that nothing is written is just what is asserted."""
    before = tree(shared_work)
    force = ["--force"] if arguments[0] == "make-lt" else []
    outcome = cli(*arguments, "-w", shared_work, *force)
    assert message in " ".join(outcome.error.replace("│", " ").split())
    assert outcome.code == code
    assert outcome.out == "" and "Traceback" not in outcome.err
    assert tree(shared_work) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("synth",), "/split is not there: run `saukit make-lt -w"),
        (("train",), "/split is not there: run `saukit make-lt -w"),
        (("train", "--dry-run"), "/split is not there: run `saukit make-lt -w"),
        (("eval",), "/runs: run `saukit train -w"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_before_its_time_names_the_one_to_run(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], message: str
) -> None:
    outcome = cli(*command, "-w", tmp_path / "w")
    assert outcome.code == 3
    assert message in outcome.error
    assert not (tmp_path / "w").exists()


def test_training_on_a_cache_that_is_not_there(cli: Cli, split_work: Path) -> None:
    outcome = cli("train", "--synthetic", "-w", split_work)
    assert outcome.code == 3
    assert "/synth is not there: run `saukit synth -w" in outcome.error
    assert not (split_work / "runs").exists()


def test_a_cache_of_another_split(cli: Cli, work: Path) -> None:
    assert cli("make-lt", "--imb", "20", "--force", "-w", work, "-q").code == 0
    before = tree(work)
    outcome = cli("train", "--synthetic", "--name", "b", "-w", work)
    assert outcome.code == 3
    assert "/synth was made from another split" in outcome.error and "`saukit synth --force -w" in outcome.error
    assert tree(work) == before


@pytest.mark.parametrize("command", ["make-lt", "train", "eval"])
def test_a_workspace_that_is_a_file(cli: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "w").write_text("mine")
    outcome = cli(command, "-w", tmp_path / "w")
    assert outcome.code == 2
    assert f"the workspace {tmp_path / 'w'} is a file: give a folder as --workspace" in outcome.error
    assert (tmp_path / "w").read_text() == "mine"


def test_a_workspace_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = cli("make-lt", "-w", tmp_path / "file" / "w")
    assert outcome.code == 5
    assert "cannot write to " in outcome.error and "check the folder, or give another one" in outcome.error


def test_a_folder_that_is_not_saukits(cli: Cli, split_work: Path) -> None:
    (split_work / "runs" / "ce").mkdir(parents=True)
    (split_work / "runs" / "ce" / "thesis.tex").write_text("mine")
    outcome = cli("train", *TRAIN, "-w", split_work)
    assert outcome.code == 2
    assert "exists but saukit did not write it: move it away, or give another --name" in outcome.error
    assert list((split_work / "runs" / "ce").iterdir()) == [split_work / "runs" / "ce" / "thesis.tex"]


# --- folders ------------------------------------------------------------------------------------------------------


def test_an_empty_class_folder(cli: Cli, pictures: Pictures, work: Path) -> None:
    root = pictures({"cat": 3, "dog": 3})
    (root / "cow").mkdir()
    (root / "rat").mkdir()
    (root / "rat" / "notes.txt").touch()
    before = tree(work)
    outcome = cli(*FOLDER, "--root", root, "-w", work, "--force")
    assert outcome.code == 3
    assert "without an image" in outcome.error and ": cow, rat; fill or remove them" in outcome.error
    assert tree(work) == before


def test_no_class_that_can_give_to_the_test_set(cli: Cli, pictures: Pictures, work: Path) -> None:
    before = tree(work)
    outcome = cli(*FOLDER, "--root", pictures({"cat": 1, "dog": 1}), "-w", work, "--force")
    assert outcome.code == 3
    assert "there is no test image: no class has two images" in outcome.error
    assert tree(work) == before


def test_a_folder_of_one_class(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    outcome = cli(*FOLDER, "--root", pictures({"cat": 3}), "-w", tmp_path / "w")
    assert outcome.code == 3
    assert "needs at least two subfolders, one per class; it has 1" in outcome.error


def test_unreadable_images_are_all_listed_and_nothing_is_written(cli: Cli, pictures: Pictures, work: Path) -> None:
    root = pictures({"cat": 6, "dog": 6})
    (root / "cat" / "000.png").write_bytes(b"no image")
    whole = (root / "dog" / "003.png").read_bytes()
    (root / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])
    before = tree(work)
    outcome = cli(*FOLDER, "--root", root, "-w", work, "--force")
    assert outcome.code == 3
    assert "2 images cannot be read; no split was written" in outcome.error
    assert "skip them with --skip-bad" in outcome.error
    assert "cat/000.png (unknown image format)" in outcome.error and "dog/003.png (" in outcome.error
    kept = {name for name in tree(work) if name.startswith(".split.images")}  # what could be read is not read again
    assert kept and {name: value for name, value in tree(work).items() if name not in kept} == before


def test_unreadable_images_can_be_left_out_and_are_counted(cli: Cli, pictures: Pictures, tmp_path: Path) -> None:
    root = pictures({"cat": 6, "dog": 6})
    (root / "cat" / "000.png").write_bytes(b"no image")
    outcome = cli(*FOLDER, "--root", root, "-w", tmp_path / "w", "--skip-bad", "--json")
    assert outcome.code == 0
    assert "warning: 1 image cannot be read, skipped: cat/000.png" in outcome.error
    assert outcome.document["skipped"] == 1
    assert outcome.document["train_images"] + outcome.document["test_images"] == 11


# --- damage -------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip, "was changed after it was written"), (cut, "bytes instead of"), (Path.unlink, "is missing")],
    ids=["flipped bit", "cut off", "removed"],
)
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("split/train.safetensors", ("train", *TRAIN, "--name", "b")),
        ("split/test.safetensors", ("eval", "--run", "ce")),
        ("split/train.safetensors", ("synth", *SYNTH)),
        ("split/counts.png", ("make-lt", "--imb", "50")),
        ("synth/shard-00000.safetensors", ("train", *TRAIN[:-1], "--synthetic", "--name", "b")),
        ("runs/ce/model.safetensors", ("eval", "--run", "ce")),
        ("runs/sau/metrics.jsonl", ("eval", "--run", "sau")),
        ("runs/ce/results.json", ("eval", "--run", "ce")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_damaged_artefact_is_not_used(
    cli: Cli, work: Path, file: str, arguments: tuple[str, ...], damage: Callable[[Path], None], said: str
) -> None:
    damage(work / file)
    before = tree(work)
    outcome = cli(*arguments, "-w", work)
    assert outcome.code == 4
    assert Path(file).name in outcome.error and said in outcome.error
    assert "remake the artefact with --force" in outcome.error
    assert tree(work) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 0}'])
def test_a_damaged_manifest(cli: Cli, work: Path, text: str) -> None:
    (work / "split" / "manifest.json").write_text(text)
    outcome = cli("train", *TRAIN, "--name", "b", "-w", work)
    assert outcome.code == 4
    assert "manifest.json is damaged" in outcome.error and "--force" in outcome.error


def test_a_manifest_of_a_newer_saukit(cli: Cli, work: Path) -> None:
    path = work / "split" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    outcome = cli("train", *TRAIN, "--name", "b", "-w", work)
    assert outcome.code == 3
    assert "has format version 2, this saukit reads 1: update saukit" in outcome.error


# --- the machine --------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    "arguments",
    [
        ("make-lt", "--imb", "20", "--force"),
        ("synth", "--per-class-target", "30", *SYNTH),
        ("train", *TRAIN, "--name", "b"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_disk_that_will_not_do_is_told_beforehand(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    if arguments[0] == "synth":
        shutil.rmtree(work / "synth")
    before = tree(work)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    outcome = cli(*arguments, "-w", work)
    assert outcome.code == 5
    assert "needs about" in outcome.error and "but 1000 B are free on its disk" in outcome.error
    assert "free some space, or give another --workspace" in outcome.error
    after = tree(work)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith((".partial", ".lock", ".safetensors")) and name not in before]
    if arguments[0] in ("synth", "train"):
        assert after == before  # nothing to resume or to remove


@pytest.mark.parametrize("arguments", [("make-lt", "--imb", "20", "--force"), ("train", *TRAIN, "--name", "b"),
                                       ("eval", "--run", "sau")], ids=lambda arguments: arguments[0])  # fmt: skip
def test_a_disk_that_fills_up_on_the_way(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Without a file system of its own: whatever is flushed to disk finds it full."""
    original = os.fsync

    def full(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith(".partial") and ("safetensors" in name or "png" in name):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    before = tree(work)
    monkeypatch.setattr(os, "fsync", full)
    outcome = cli(*arguments, "-w", work)
    assert outcome.code == 5
    assert "no space left to write" in outcome.error and "free some space and run the command again" in outcome.error
    after = tree(work)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith((".partial", ".lock")) or ".split." in name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB; skips the test where this user may not mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    cli: Cli, shared_work: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of 2.3 MB does not fit beside what is there; with more room the run goes on to the same bits."""
    monkeypatch.setattr(stage_room, "check_disk_space", lambda folder, needed: None)
    monkeypatch.setattr(training_room, "CHECKPOINT_SECONDS", -1.0)
    shutil.copytree(shared_work / "split", small_disk / "split")
    (small_disk / "ballast").write_bytes(b"x" * 1_500_000)
    before = tree(small_disk)
    outcome = cli("train", *TRAIN, "--name", "a", "-w", small_disk)
    assert outcome.code == 5
    assert "no space left to write" in outcome.error and "free some space and run the command again" in outcome.error
    after = tree(small_disk)
    assert {name: after[name] for name in before} == before
    assert sorted(name for name in after if name.startswith("runs/a/")) == [
        "runs/a/.config.yaml.sha256", "runs/a/.inputs.json.sha256",
        "runs/a/config.yaml", "runs/a/inputs.json", "runs/a/metrics.jsonl",
    ]  # fmt: skip
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    assert cli("train", *TRAIN, "--name", "a", "-w", small_disk, "--resume", "-q").code == 0
    assert cli("train", *TRAIN, "--name", "b", "-w", small_disk, "-q").code == 0
    models = [(small_disk / "runs" / name / "model.safetensors").read_bytes() for name in "ab"]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: give a smaller --batch-size"),
        (MemoryError(), "out of memory: give a smaller --batch-size or --image-size, or another --device"),
        (OSError(errno.ENOSPC, "No space left", "/some/file"), "the disk is full (/some/file): free some space"),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full: free some space and run the command again"),
    ],
    ids=["cuda", "host", "disk with a name", "disk"],
)
def test_a_machine_that_gives_out(
    cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(training_room.Trainer, "advance", _raiser(error))
    outcome = cli("train", *TRAIN, "-w", split_work)
    assert outcome.code == 5
    assert message in outcome.error


def test_a_bug_keeps_its_traceback(cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_room.Trainer, "advance", _raiser(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli("train", *TRAIN, "-w", split_work)


def test_debug_shows_the_traceback_of_an_error(cli: Cli, tmp_path: Path) -> None:
    assert "Traceback" not in cli("train", "-w", tmp_path / "w").err
    outcome = cli("train", "-w", tmp_path / "w", "--debug")
    assert outcome.code == 3
    assert "Traceback" in outcome.err and "in require" in outcome.err and "error: the split in" in outcome.error


def test_a_second_writer_stops_and_names_the_first(cli: Cli, split_work: Path) -> None:
    from saukit.core.workspace import Workspace

    workspace = Workspace(split_work)
    with workspace.lock(workspace.run("ce")):
        outcome = cli("train", *TRAIN, "-w", split_work)
    assert outcome.code == 1
    assert f"is being written by process {os.getpid()} on" in outcome.error and "wait for it" in outcome.error
    assert cli("train", *TRAIN, "-w", split_work, "-q").code == 0


def _raiser(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any) -> None:
        raise error

    return fail
