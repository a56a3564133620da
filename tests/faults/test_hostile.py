"""What somebody else wrote: it runs nothing, takes no time to speak of, and moves no cursor."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import Cli, tree

from saukit.core.artifacts import load_tensors, read_manifest, save_tensors, write_manifest
from saukit.core.errors import CorruptArtifactError, DataError, SaukitError
from saukit.core.workspace import Workspace
from saukit.data.sources.in_memory import source_of_arrays
from saukit.data.split import load_split, load_test
from saukit.models.classifier import load_classifier
from saukit.models.model_file import load_model

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
TEXTS = [BOMB, "[" * 100_000, "{a: " * 100_000, "- " * 100_000, "lr: " + "9" * 400, "a: !!python/name:os.system ''\n",
         "lr: 2024-01-01", "lr: !!timestamp 2024-99-99", "lr: [&x 1, *x]", "\x00", "lr: 1\nlr: 2\n", "x" * 2_000_000,
         "? [a]\n: 1", "<<: {lr: 1}", "a: 1\n--- \nb: 2", "'", "%YAML 9.9\n---\n", "lr: .nan", "lr: 1e400"]  # fmt: skip
COMMANDS = ("make-lt", "synth", "train", "eval", "compare")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_a_configuration_of_somebody_else(cli: Cli, shared_work: Path, tmp_path: Path, command: str, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    before, began = tree(shared_work), time.process_time()
    outcome = cli(command, "--config", tmp_path / "config.yaml", "-w", shared_work)
    assert "config.yaml" in outcome.error or "lr must be" in outcome.error
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert len(outcome.error) < 3000 and time.process_time() - began < 5
    assert tree(shared_work) == before


@pytest.mark.parametrize("text", TEXTS[:6], ids=lambda text: repr(text[:12]))
def test_prompts_of_somebody_else(cli: Cli, shared_work: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    outcome = cli(
        *("synth", "--generator", "pipeline", "--model", tmp_path, "--prompts", tmp_path / "p.yaml"),
        *("--force", "-w", shared_work, "--dry-run"),
    )
    assert outcome.code == 2 and str(tmp_path / "p.yaml") in outcome.error, outcome.err
    assert "Traceback" not in outcome.err and len(outcome.error) < 3000


def test_escape_sequences_are_shown_and_not_sent(cli: Cli, shared_work: Path) -> None:
    for arguments, code, told in (
        (("eval", "--run", "a\x1b[31mred"), 2, r"a\x1b[31mred"),
        (("train", "--name", "\x1b]0;title\x07"), 2, r"\x1b]0;title\x07"),
        (("make-lt", "--dataset", "\u202edigits", "--force"), 2, r"\u202edigits"),
    ):
        outcome = cli(*arguments, "-w", shared_work)
        assert outcome.code == code and not {"\x1b", "\x07", "\u202e"} & {*outcome.err}
        assert told in outcome.error


# --- what a manifest vouches for, though no saukit wrote it ---------------------------------------------------------

Tensors = dict[str, np.ndarray[Any, Any]]
Forgery = Callable[[Tensors, dict[str, Any]], object]


def forged(folder: Path, name: str, change: Forgery) -> None:
    """Change arrays and metadata of a file, and let the manifest vouch for it."""
    tensors, metadata = load_tensors(folder / name)
    copies = {name: array.copy() for name, array in tensors.items()}
    change(copies, metadata)
    save_tensors(folder / name, copies, metadata)
    vouched_for(folder, "split")


def vouched_for(folder: Path, kind: str) -> None:
    manifest = read_manifest(folder, kind=kind, verify=False)
    assert manifest is not None
    files, summary = [*manifest.files], manifest.summary
    write_manifest(folder, kind=kind, files=files, inputs=manifest.inputs, summary=summary, device=manifest.device)


SPLITS: dict[str, tuple[Forgery, str]] = {
    "beyond": (lambda it, meta: it["labels"].put(0, 99), "its labels go from 0 to 99, for 10 classes"),
    "negative": (lambda it, meta: it["labels"].put(0, -1), "its labels go from -1 to 9, for 10 classes"),
    "fewer": (lambda it, meta: it.update(labels=it["labels"][:-1]), "its labels are not int64 ["),
    "floats": (lambda it, meta: it.update(labels=it["labels"].astype(np.float32)), "its labels are not int64 ["),
    "columns": (lambda it, meta: it.update(labels=it["labels"][:, None]), "its labels are not int64 ["),
    "no labels": (lambda it, meta: it.pop("labels"), "its labels are not int64 ["),
    "no indices": (lambda it, meta: it.pop("source_indices"), "its source_indices are not int64 ["),
    "float images": (lambda it, meta: it.update(images=it["images"].astype(np.float32)), "its images are 'F32'"),
    "grey": (lambda it, meta: it.update(images=it["images"][:, :1]), "its images have the shape ["),
    "oblong": (lambda it, meta: it.update(images=it["images"][:, :, :5]), "its images have the shape ["),
    "flat": (lambda it, meta: it.update(images=it["images"].reshape(len(it["images"]), -1)), "have the shape ["),
    "no images": (lambda it, meta: it.pop("images"), "is not a shard of images"),
    "nothing": (lambda it, meta: it.update({name: array[:0] for name, array in it.items()}), "it holds no image"),
    "no classes": (lambda it, meta: meta.pop("classes"), "classes is missing"),
    "few classes": (lambda it, meta: meta.update(classes=meta["classes"][:3]), "its groups do not have each class"),
    "one name": (lambda it, meta: meta.update(classes=["a"] * 10), "its classes are not names, each once"),
    "numbers": (lambda it, meta: meta.update(classes=5), "classes: 5 is not a list"),
    "mean": (lambda it, meta: meta.update(mean="x"), "mean: 'x' is not a list"),
    "four means": (lambda it, meta: meta.update(mean=[0.5] * 4), "its mean and std are not three numbers each"),
    "no deviation": (lambda it, meta: meta.update(std=[0, 1, 1]), "its mean and std are not three numbers each"),
    "groups": (lambda it, meta: meta.update(groups={"many": [99]}), "its groups do not have each class once"),
    "a group of another name": (lambda it, meta: meta.update(groups={"x": [*range(10)]}), "its groups do not have"),
    "text": (lambda it, meta: meta.update(groups="x"), "groups: 'x' is not a mapping"),
    "fit": (lambda it, meta: meta.update(fit="x"), "fit: 'x' is not one of crop, pad, stretch"),
    "flip": (lambda it, meta: meta.update(flip="x"), "flip: 'x' is not true or false"),
    "colour": (lambda it, meta: meta.update(background="x"), "'x' is not a colour"),
    "white": (lambda it, meta: meta.update(white_level=0), "white_level 0 is not from 1 to 65535"),
    "huge": (lambda it, meta: meta.update(image_size=10**9), "image_size 1000000000 is not from 4 to 1024 pixels"),
}


@pytest.mark.parametrize("part", ["train", "test", "val"])
@pytest.mark.parametrize("kind", SPLITS)
def test_a_split_that_no_saukit_wrote(shared_val_work: Path, tmp_path: Path, part: str, kind: str) -> None:
    work, (change, told) = Workspace(shutil.copytree(shared_val_work, tmp_path / "work")), SPLITS[kind]
    forged(work.split, f"{part}.safetensors", change)
    with pytest.raises(CorruptArtifactError) as raised:
        load_test(work) if part == "test" else load_split(work)
    assert str(work.split / f"{part}.safetensors") in str(raised.value)
    assert told in str(raised.value) or (part != "train" and "it does not fit train.safetensors" in str(raised.value))


def test_a_class_without_a_training_image(cli: Cli, split_work: Path) -> None:
    forged(split_work / "split", "train.safetensors", lambda it, meta: np.place(it["labels"], it["labels"] == 3, 2))
    before = tree(split_work)
    outcome = cli("train", "--method", "ce", "--name", "a", "--steps", "2", "-w", split_work)
    assert outcome.code == 4
    assert f"{split_work / 'split/train.safetensors'} is damaged: it has no image of 3; remake the" in outcome.error
    assert tree(split_work) == before


def test_parts_of_two_splits(cli: Cli, work: Path) -> None:
    larger: Forgery = lambda it, meta: it.update(images=it["images"].repeat(2, 2).repeat(2, 3))  # noqa: E731
    forged(work / "split", "test.safetensors", larger)
    with pytest.raises(CorruptArtifactError, match=r"test\.safetensors is damaged: it does not fit train\.safetensors"):
        load_test(Workspace(work))


@pytest.mark.parametrize("text", ["", "- 1", "lr: fast"])
def test_a_configuration_of_a_run_that_is_none(cli: Cli, work: Path, text: str) -> None:
    (work / "runs/ce/config.yaml").write_text(text)
    vouched_for(work / "runs/ce", "run")
    outcome = cli("report", "-w", work)
    assert outcome.code == 0 and "not on the page: " in outcome.error, outcome
    assert f"{work / 'runs/ce/config.yaml'}" in outcome.error and "start over with --force" in outcome.error
    outcome = cli("report", "--runs", "ce", "-w", work)
    assert outcome.code == 4 and str(work / "runs/ce/config.yaml") in outcome.error


SPEC = {"method": "ce", "backbone": "convnet-small", "classes": ["a", "b"], "image_size": [8, 8],
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "projection": False}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    *({"image_size": size} for size in ([0, 0], [-1, 8], [10**9, 10**9], [8], [8, 8, 8], "8", None)),
    *({name: values} for name in ("mean", "std") for values in ([0.5], [], [1e999] * 3, [0.5] * 4, "x", None)),
    *({"std": [value, 0.5, 0.5]} for value in (0, -1)),
    *({"classes": names} for names in ([], ["a", "a"], "ab", [1, 2], None)),
    *({"backbone": name} for name in ("none", "timm/../../x", "", 7, None)),
    *({"classifier": "x"}, {"projection": 3}, {"standardize": "yes"}, {"method": 5}),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: json.dumps(change)[:40])
def test_a_model_of_somebody_else(tmp_path: Path, change: dict[str, Any]) -> None:
    save_tensors(tmp_path / "m.safetensors", {"x": np.zeros(1, np.float32)}, {"model": _representable(SPEC | change)})
    with pytest.raises(CorruptArtifactError, match=r"m\.safetensors holds no saukit model"):
        load_model(tmp_path / "m.safetensors")
    hub = {name: value for name, value in (SPEC | change).items() if name != "projection"}
    (tmp_path / "config.json").write_text(json.dumps(hub))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(SaukitError, match=r"holds no saukit classifier|config\.json is damaged"):
        load_classifier(tmp_path)


def _representable(value: Any) -> Any:
    return json.loads(json.dumps(value).replace("Infinity", '"inf"'))


GREY, LABELS = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GREY, LABELS[:3], "are 4, with labels int64 of the shape"),
        (GREY, LABELS + 1, "have labels from 1 to 2, for 2 classes"),
        (GREY, LABELS - 1, "have labels from -1 to 0, for 2 classes"),
        (GREY, LABELS * 0, "show none of b"),
        (GREY, LABELS.astype(float), "with labels float64"),
        (GREY, LABELS[:, None], "of the shape"),
        (GREY.astype(np.float32), LABELS, "are float32 of the shape"),
        (GREY.astype(np.int16), LABELS, "are int16 of the shape"),
        (GREY[:, :, :5], LABELS, "not square pictures of bytes"),
        (GREY[0], LABELS, "not square pictures of bytes"),
        (GREY[:0], LABELS[:0], "not square pictures of bytes"),
        (np.zeros((4, 8, 8, 2), np.uint8), LABELS, "not square pictures of bytes"),
    ],
)
def test_arrays_of_a_source_are_checked_in_one_place(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"^the train images") as raised:
        source_of_arrays(("a", "b"), (images, labels), None, where="x")
    assert message in str(raised.value) and "fetch them again" in str(raised.value)
    if "none of" not in message:  # a class may be missing from a test set
        with pytest.raises(DataError, match=r"^the test images"):
            source_of_arrays(("a", "b"), (GREY, LABELS), (images, labels), where="x")


@pytest.mark.parametrize("kind", ["nothing", "pickle", "cut", "other", "nan"])
def test_a_generator_of_somebody_else(cli: Cli, split_work: Path, shared_work: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(shared_work / "synth/generator", tmp_path / "generator")
    weights = tmp_path / "generator/unet/diffusion_pytorch_model.safetensors"
    if kind == "nothing":
        weights.unlink()
    elif kind == "pickle":
        weights.unlink()
        torch.save({"x": torch.zeros(1)}, weights.with_suffix(".bin"))
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        name = next(iter(tensors))
        tensors[name] = tensors[name] * np.float32("nan") if kind == "nan" else np.zeros(3, np.float32)
        save_file(tensors, weights, metadata={"format": "pt"})
    options = ("--per-class-target", "20", "--no-audit", "--preflight", "0")
    outcome = cli("synth", "--model", tmp_path / "generator", *options, "-w", split_work)
    assert outcome.code == 3 and str(tmp_path / "generator") in outcome.error, outcome.err
    assert "Traceback" not in outcome.err and not (split_work / "synth").exists()


WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nan": lambda it: it.update({first(it): it[first(it)] * np.float32("nan")}),
    "infinite": lambda it: it.update({first(it): it[first(it)] * np.float32("inf")}),
    "overflowing": lambda it: it.update({first(it): np.full_like(it[first(it)], 3e38)}),
    "another shape": lambda it: it.update({first(it): np.zeros(3, np.float32)}),
    "missing": lambda it: it.pop(first(it)),
    "unknown": lambda it: it.update({"extra": np.zeros(3, np.float32)}),
    "none": dict.clear,
}


def first(tensors: dict[str, Any]) -> str:
    return min(tensors)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_an_exported_model(cli: Cli, shared_work: Path, tmp_path: Path, kind: str) -> None:
    assert cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work).code == 0
    (tmp_path / "out/classes.json").unlink()  # as a model of the Hub comes
    tensors = load_file(tmp_path / "out/model.safetensors")
    WEIGHTS[kind](tensors)
    save_file(tensors, tmp_path / "out/model.safetensors")
    outcome = cli("predict", tmp_path / "out", shared_work / "split/counts.png", "-w", shared_work)
    assert outcome.code == 4 and str(tmp_path / "out") in outcome.error and not outcome.out, outcome
    assert "export it again" in outcome.error and "Traceback" not in outcome.err


@pytest.mark.parametrize("field", ["hashes", "classes", "sha256", "checks", "format_version"])
@pytest.mark.parametrize("value", [None, [], {}, 7, "x", "gone"], ids=str)
def test_every_field_of_classes_json(cli: Cli, shared_work: Path, tmp_path: Path, field: str, value: Any) -> None:
    assert cli("export", "ce", "--to", tmp_path / "out", "-w", shared_work).code == 0
    path = tmp_path / "out/classes.json"
    document = json.loads(path.read_text()) | {field: value}
    if value == "gone":
        del document[field]
    path.write_text(json.dumps(document))
    outcome = cli("predict", tmp_path / "out", shared_work / "split/counts.png", "-w", shared_work)
    assert outcome.code == (3 if (field, value) == ("format_version", 7) else 4), outcome
    assert str(path) in outcome.error and not outcome.out and "Traceback" not in outcome.err


@pytest.mark.parametrize("where", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/x.json"])
def test_a_pipe_in_a_model_of_somebody_else_is_no_wait(
    cli: Cli, split_work: Path, shared_work: Path, tmp_path: Path, where: str
) -> None:
    shutil.copytree(shared_work / "synth/generator", tmp_path / "generator")
    (tmp_path / "generator" / where).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "generator" / where)
    outcome = cli("synth", "--model", tmp_path / "generator", "--per-class-target", "20", "-w", split_work)
    assert outcome.code == 3 and str(tmp_path / "generator") in outcome.error and "give the folder" in outcome.error


@pytest.mark.parametrize("change", [{"freq_shift": None}, {"layers_per_block": 3.5}, {"act_fn": "none"}], ids=str)
def test_a_generator_that_cannot_run(
    cli: Cli, split_work: Path, shared_work: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(shared_work / "synth/generator", tmp_path / "generator")
    path = tmp_path / "generator/unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    outcome = cli("synth", "--model", tmp_path / "generator", "--per-class-target", "20", "-w", split_work)
    assert outcome.code == 3 and "cannot be read" in outcome.error and "give the folder" in outcome.error, outcome
    assert not (split_work / "synth").exists()
