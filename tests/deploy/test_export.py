"""Exported files, read back by their own libraries, against the network that was exported."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from PIL import Image
from support import tree

import saukit
from saukit.core.console import Reporter
from saukit.core.errors import EnvironmentFault, SaukitError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.decoding import CROP, fitted
from saukit.deploy import export as room
from saukit.deploy.config import ExportConfig, Format
from saukit.deploy.export import ExportResult, export, largest_difference
from saukit.models.classifier import ImageClassifier, load_classifier
from saukit.models.dual_branch import Standardize
from saukit.models.inference import normalise, predict
from saukit.models.model_file import ModelSpec, save_model

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
VIT = "timm/test_vit"
ALL: tuple[Format, ...] = ("torch", "onnx", "hub")
SPEC = ModelSpec(
    method="ldam-drw",
    backbone="convnet-small",
    classes=("cat", "größe", "no"),
    image_size=(16, 16),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2, 0.25, 0.3),
    projection=False,
)


def exported(
    root: Path, to: Path, *formats: Format, model: str | Path = "ce", force: bool = False, reporter: Reporter = QUIET
) -> ExportResult:
    return export(ExportConfig(formats or ("hub",)), model, to, Workspace(root), force=force, reporter=reporter)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"classifier": "cosine"},
        {"standardize": True, "crops": 4},
        pytest.param({"backbone": "resnet32-w16", "classifier": "cosine"}, marks=pytest.mark.slow),
    ],
)
def test_every_format_gives_the_networks_probabilities(tmp_path: Path, change: dict[str, Any]) -> None:
    """Read by PyTorch, ONNX Runtime and the Hub's mixin, with nothing of saukit's own between."""
    spec = replace(SPEC, **change)
    torch.manual_seed(0)
    network = spec.build_network()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)
    pixels //= np.arange(1, 10, dtype=np.uint8)[:, None, None, None]  # from bright to dark
    for _ in range(20):  # BatchNorm's statistics
        network(normalise(torch.from_numpy(pixels), torch.tensor(spec.mean), torch.tensor(spec.std)))
    save_model(tmp_path / "some.safetensors", network.state_dict(), spec)
    result = exported(tmp_path / "no-work", tmp_path / "out", *ALL, model=tmp_path / "some.safetensors")
    assert [check.format for check in result.checks] == list(ALL)
    assert all(0 <= check.max_difference <= 1e-4 for check in result.checks)
    assert result.checked_on == "32 images of random pixels"

    expected = predict(network, spec, pixels, device=CPU).probabilities
    assert np.ptp(expected, axis=0).max() > 0.01
    images = torch.from_numpy(pixels) / 255
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    published = ImageClassifier.from_pretrained(tmp_path / "out")
    assert [(entry.name, entry.shape, entry.type) for entry in session.get_inputs()] == [
        ("images", ["batch", 3, "height", "width"], "tensor(uint8)")
    ]
    assert [(entry.name, entry.shape) for entry in session.get_outputs()] == [("logits", ["batch", 3])]
    for size in (1, 2, 9):
        part = images[:size]
        with torch.no_grad():
            found = {
                "torch": program(part).numpy(),
                "channels last": program(part.to(memory_format=torch.channels_last)).numpy(),
                "onnx": session.run(["logits"], {"images": pixels[:size]})[0],
                "hub": published(part).numpy(),
            }
        for name, logits in found.items():
            assert logits.shape == (size, 3) and logits.dtype == np.float32
            np.testing.assert_allclose(softmax(logits), expected[:size], rtol=0, atol=2e-5, err_msg=name)
    # ONNX takes pictures of any size, and resizes them as a folder's are.
    for width, height in ((16, 40), (61, 23), (9, 16)):
        pictures = np.random.default_rng(width).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        squares = np.stack([np.asarray(fitted(Image.fromarray(picture), 16, CROP)) for picture in pictures])
        found = session.run(["logits"], {"images": pictures.transpose(0, 3, 1, 2)})[0]
        by_hand = predict(network, spec, squares.transpose(0, 3, 1, 2), device=CPU).probabilities
        np.testing.assert_allclose(softmax(found), by_hand, rtol=0, atol=2e-5)


def test_what_is_written_beside_the_models(shared_work: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        result = exported(shared_work, tmp_path / "deep" / "out", *ALL)
    finally:
        os.umask(old)
    folder = tmp_path / "deep" / "out"
    names = ["README.md", "classes.json", "config.json", "model.onnx", "model.pt2", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == list(result.files) == names
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    document = json.loads((folder / "classes.json").read_text())
    assert document["classes"] == [str(digit) for digit in range(10)]
    assert document["input"]["shape"] == ["batch", 3, 8, 8] and document["input"]["range"] == [0, 1]
    assert document["input"]["stored_as"] is None  # images of 8 pixels are stored as they are
    assert document["onnx_input"]["shape"] == ["batch", 3, "height", "width"]
    assert set(document["checks"]) == set(ALL) and max(document["checks"].values()) <= document["tolerance"] == 1e-4
    assert document["checked_on"] == "32 training images, in batches of 1, 5, 32"
    assert result.document == {
        "folder": str(folder), "model": str(shared_work / "runs" / "ce"), "files": names, **document
    }  # fmt: skip
    # The labels travel inside the files too, and no path of this machine does.
    labels = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(labels["classes"]) == document["classes"]
    extra = {"classes.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == document["classes"]
    here = str(Path(saukit.__file__).parent).encode()
    assert [path.name for path in folder.iterdir() if here in path.read_bytes()] == []


def test_the_exporters_say_nothing(shared_work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exported(shared_work, tmp_path / "out", "onnx", "hub")
    assert capfd.readouterr() == ("", "")
    exported(shared_work, tmp_path / "again", "hub", reporter=Reporter())
    assert capfd.readouterr() == ("", f"exporting {shared_work / 'runs' / 'ce'} as hub\n")


@pytest.mark.parametrize("wrong", [1.1e-4, float("nan")])
def test_a_model_that_says_something_else_is_not_kept(
    shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    write = room._WRITERS["hub"]
    monkeypatch.setitem(room._WRITERS, "hub", lambda *given: lambda images: write(*given)(images) + wrong)
    with pytest.raises(SaukitError, match=r"^the exported hub model gives other logits than .*ce: they differ by "):
        exported(shared_work, tmp_path / "out", "hub")
    assert list(tmp_path.iterdir()) == []


def test_the_difference_is_the_largest_over_all_batches(shared_work: Path) -> None:
    classifier = load_classifier(shared_work / "runs" / "ce")
    images = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = set()

    def other(part: torch.Tensor) -> torch.Tensor:
        sizes.add(len(part))
        logits = classifier(part)
        logits[-1, 3] -= 0.5 if len(part) == 5 else 0.25
        return logits

    assert largest_difference(classifier, other, images) == pytest.approx(0.5, abs=1e-5)
    assert {1, 5, 32} <= sizes
    assert largest_difference(classifier, classifier, images) == 0


# --- the model card -----------------------------------------------------------------------------------------------


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_an_evaluated_run_has_its_figures(shared_work: Path, tmp_path: Path) -> None:
    exported(shared_work, tmp_path / "out", "hub", model="ce")
    front, text = card_of(tmp_path / "out")
    results = json.loads((shared_work / "runs" / "ce" / "results.json").read_text())
    assert (front["library_name"], front["pipeline_tag"]) == ("saukit", "image-classification")
    assert "long-tailed-recognition" in front["tags"] and "license" not in front
    (entry,) = front["model-index"]
    figures = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert figures["accuracy"] == pytest.approx(results["top1"], abs=5e-5)
    assert figures["balanced_accuracy"] == pytest.approx(results["balanced_accuracy"], abs=5e-5)
    assert figures["f1"] == pytest.approx(results["macro_f1"], abs=5e-5)
    assert f"| top-1 | {100 * results['top1']:.1f} | {results['test_images']} |" in text
    for name in ("many", "medium", "few"):
        group = results["groups"][name]
        assert f"| {name}-shot classes | {100 * group['top1']:.1f} | {group['images']} |" in text
    assert "- method: ce" in text and "392 real and 0 synthetic" in text
    assert "Trained on fewer than 20 real images: 5 (16), 6 (10), 7 (6), 8 (4), 9 (2)." in text
    assert "No licence is stated" in text


def test_the_card_says_what_is_not_known(shared_work: Path, tmp_path: Path) -> None:
    exported(shared_work, tmp_path / "run", "hub", model="sau")
    front, text = card_of(tmp_path / "run")
    assert "model-index" not in front
    assert "Not measured: `saukit eval` was not run" in text and "392 real and 62 synthetic" in text
    exported(shared_work, tmp_path / "again", "hub", model=tmp_path / "run")
    assert "the model was exported without its run" in card_of(tmp_path / "again")[1]


def test_names_of_classes_are_not_html(tmp_path: Path) -> None:
    spec = replace(SPEC, classes=("<script>alert(1)</script>", "a & b"))
    save_model(tmp_path / "some.safetensors", spec.build_network().state_dict(), spec)
    exported(tmp_path, tmp_path / "out", "hub", model=tmp_path / "some.safetensors")
    text = card_of(tmp_path / "out")[1]
    assert r"\<script\>alert(1)\</script\>, a \& b" in text
    assert load_classifier(tmp_path / "out").classes == spec.classes


# --- where it goes ------------------------------------------------------------------------------------------------


def test_an_export_is_replaced_only_if_asked(shared_work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is no obstacle
    exported(shared_work, tmp_path / "out", "torch", model="ce")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"out holds an export already: replace it with --force, or give another"):
        exported(shared_work, tmp_path / "out", "hub", model="sau")
    assert tree(tmp_path) == before
    exported(shared_work, tmp_path / "out", "hub", model="sau", force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "classes.json", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_replacement_leaves_the_older_export(
    shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(shared_work, tmp_path / "out", "hub")
    before = tree(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(room._WRITERS, "torch", full)
    with pytest.raises(EnvironmentFault, match=r"^no space left to write .*out; free some space"):
        exported(shared_work, tmp_path / "out", "hub", "torch", force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "classes.json"])
def test_what_saukit_did_not_write_stays(shared_work: Path, tmp_path: Path, force: bool, name: str) -> None:
    (tmp_path / name).write_text('["cat", "dog"]')
    with pytest.raises(UsageError, match=r"holds what `saukit export` did not write: give another folder as --to$"):
        exported(shared_work, tmp_path, "hub", force=force)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_note_in_an_export_is_not_thrown_away(shared_work: Path, tmp_path: Path) -> None:
    exported(shared_work, tmp_path / "out", "hub")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds what `saukit export` did not write"):
        exported(shared_work, tmp_path / "out", "hub", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_file_is_no_folder(shared_work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match=r"out is a file: give a folder as --to$"):
        exported(shared_work, tmp_path / "out", "hub", force=True)


def test_formats_that_make_no_sense(shared_work: Path, tmp_path: Path) -> None:
    for formats, got in ((("hub", "tflite"), "hub, tflite"), ((), "none"), (("hub", "hub"), "hub, hub")):
        message = f"formats must be one or more of torch, onnx, hub, transformers, each once, got {got}"
        config = ExportConfig(formats)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"^{message}"):
            export(config, "ce", tmp_path / "out", Workspace(shared_work), force=False, reporter=QUIET)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "backbone convnet-small is not timm's: use --format hub or onnx"),
        ({"backbone": VIT, "crops": 4}, "the model averages 4 views of an image: train with --single-crop"),
        ({"backbone": VIT, "classifier": "cosine"}, "its classifier is a cosine: use --format hub or onnx"),
        ({"backbone": VIT, "fit": "pad"}, "timm pads no picture on a colour: make the split with --fit crop"),
    ],
)
def test_a_timm_checkpoint_is_a_network_of_timm_and_nothing_else(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    spec = replace(SPEC, image_size=(160, 160), **change)
    save_model(tmp_path / "some.safetensors", spec.build_network().state_dict(), spec)
    with pytest.raises(UsageError, match=rf"^format transformers is for a network of timm .*; {problem}$"):
        exported(tmp_path, tmp_path / "out", "hub", "transformers", model=tmp_path / "some.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_transformer_becomes_a_timm_checkpoint(tmp_path: Path) -> None:
    """The export itself compares the logits of the checkpoint it reads back."""
    spec = replace(SPEC, backbone=VIT, image_size=(160, 160), standardize=True)
    torch.manual_seed(0)
    network = spec.build_network()
    assert isinstance(network.standardize, Standardize)
    network.standardize.fit(torch.randn(20, network.classifier.in_features) * 3 + 1)
    save_model(tmp_path / "some.safetensors", network.state_dict(), spec)
    model = tmp_path / "some.safetensors"
    result = exported(tmp_path, tmp_path / "out", "transformers", "hub", model=model)
    assert result.files[-2:] == ("transformers/config.json", "transformers/model.safetensors")
    exported(tmp_path, tmp_path / "out", "hub", model=model, force=True)  # what was written is replaced
    assert not (tmp_path / "out" / "transformers").exists()
    exported(tmp_path, tmp_path / "timm", "transformers", model=model)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm' / 'transformers'}", pretrained=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 160, 160), dtype=np.uint8)
    expected = predict(network, spec, pixels, device=CPU).logits
    with torch.no_grad():
        found = loaded(normalise(torch.from_numpy(pixels), torch.tensor(spec.mean), torch.tensor(spec.std)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_missing_extra_is_told_before_anything_is_written(
    shared_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(EnvironmentFault, match=r"^the format onnx needs onnxscript: pip install 'saukit\[onnx\]'$"):
        exported(shared_work, tmp_path / "out", "hub", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_its_split_is_checked_on_random_images(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "split").rename(tmp_path / "gone")
    result = exported(work, tmp_path / "out", "hub", reporter=Reporter())
    assert result.checked_on == "32 images of random pixels"
    assert "random images check the export, since its training images are not there: the split in" in " ".join(
        capsys.readouterr().err.split()
    )
