"""A classifier by itself against the network it was made from, through every way of saving and reading it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin as hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.models.classifier import ImageClassifier, load_classifier, locate_model
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import normalise, predict
from saukit.models.model_file import ModelSpec, load_model, save_model

SPEC = ModelSpec(
    method="sau",
    backbone="convnet-small",
    classes=("cat", "größe", "no"),
    image_size=(16, 16),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.1, 1 / 3, 0.3),
    projection=True,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)
IMAGES //= np.array([1, 2, 4, 8, 1, 3], np.uint8)[:, None, None, None]  # from bright to dark


def network(spec: ModelSpec) -> DualBranchNet:
    """A network whose BatchNorm has seen images, so that eval and training mode differ."""
    torch.manual_seed(0)
    made = spec.build_network()
    for _ in range(20):
        made(normalise(torch.from_numpy(IMAGES), torch.tensor(spec.mean), torch.tensor(spec.std)))
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder that `save_pretrained` wrote."""
    ImageClassifier.from_model(network(SPEC), SPEC).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("backbone", ["convnet-small", "resnet32-w16"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_it_gives_the_networks_probabilities(backbone: str, kind: Any) -> None:
    spec = replace(SPEC, backbone=backbone, classifier=kind)
    made = network(spec)
    expected = predict(made, spec, IMAGES, device=torch.device("cpu")).probabilities
    classifier = ImageClassifier.from_model(made, spec)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(IMAGES) / 255)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # images differ
    assert not any(module.training for module in classifier.modules())
    assert not [name for name in classifier.state_dict() if "projection" in name]


def test_it_shares_nothing_with_the_network() -> None:
    made = network(SPEC)
    classifier = ImageClassifier.from_model(made, SPEC)
    before = classifier.network.classifier.weight.clone()
    with torch.no_grad():
        made.classifier.weight.zero_()
    assert torch.equal(classifier.network.classifier.weight, before) and before.abs().max() > 0


def test_whole_numbers_are_no_images_in_0_to_1() -> None:
    with pytest.raises(TypeError, match=r"^images must be floats in \[0, 1\], got torch.uint8: divide .* by 255$"):
        ImageClassifier.from_model(network(SPEC), SPEC)(torch.from_numpy(IMAGES))


def test_a_saved_one_comes_back_bit_by_bit_without_the_network(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    images = torch.from_numpy(IMAGES) / 255
    expected = ImageClassifier.from_model(network(SPEC), SPEC)(images)
    for loaded in (ImageClassifier.from_pretrained(saved), load_classifier(saved), load_classifier(str(saved))):
        assert torch.equal(loaded(images), expected)
        assert loaded.spec == replace(SPEC, projection=False)
        assert (loaded.classes, loaded.image_size) == (SPEC.classes, (16, 16))
        assert not loaded.training
    assert load_classifier(saved / "model.safetensors").classes == SPEC.classes
    assert capsys.readouterr() == ("", "")


def test_what_is_saved_is_a_hub_model(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text()) == {
        "background": "white",
        "backbone": "convnet-small",
        "classes": ["cat", "größe", "no"],
        "classifier": "linear",
        "crops": 1,
        "fit": "crop",
        "image_size": [16, 16],
        "mean": [0.4914, 0.4822, 0.4465],
        "method": "sau",
        "standardize": False,
        "std": [0.1, 1 / 3, 0.3],
        "white_level": None,
    }
    front = yaml.safe_load((saved / "README.md").read_text().split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("saukit", "image-classification")
    assert "long-tailed-recognition" in front["tags"]


def test_publishing_uploads_a_folder_that_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "remote")
            return f"commit to {repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    classifier = ImageClassifier.from_model(network(SPEC), SPEC)
    assert classifier.push_to_hub("someone/tail") == "commit to someone/tail"
    images = torch.from_numpy(IMAGES) / 255
    assert torch.equal(load_classifier(tmp_path / "remote")(images), classifier(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "backbone 'vgg'"),
        ({"classes": ["cat", "dog"]}, "size mismatch for network.classifier.weight"),
        ({"classifier": "cosine"}, r"network\.classifier\.bias"),
        ({"classifier": "round"}, "classifier: 'round' is not one of linear, cosine"),
        ({"mean": "grey"}, "mean: 'grey' is not a list, each a number"),
        ({"std": None}, "std: None is not a list"),
    ],
)
def test_a_configuration_that_does_not_fit(saved: Path, change: dict[str, Any], message: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(saved))} holds no saukit classifier: ") as caught:
        load_classifier(saved)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"cat"'])
def test_a_configuration_that_is_none(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(
        CorruptArtifactError, match=r"holds no saukit classifier: .|config\.json is damaged: .+; export"
    ):
        load_classifier(saved)


def test_weights_with_a_gap_or_cut_short(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptArtifactError, match="holds no saukit classifier"):
        load_classifier(saved)
    del weights["network.classifier.bias"]
    save_file(weights, path)
    with pytest.raises(CorruptArtifactError, match=r"(?s)holds no saukit classifier: .*network\.classifier\.bias"):
        load_classifier(saved)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match="holds no saukit classifier"):
        load_classifier(saved)


def test_a_run_a_copied_file_and_a_folder_around_it_hold_the_same(work: Path, tmp_path: Path) -> None:
    made, spec = load_model(work / "runs" / "sau" / "model.safetensors")
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = ImageClassifier.from_model(made, spec)(images)
    copy = tmp_path / "elsewhere" / "best.safetensors"
    copy.parent.mkdir()
    shutil.copy(work / "runs" / "sau" / "model.safetensors", copy)
    shutil.copytree(work / "runs" / "sau", tmp_path / "moved")
    shutil.copy(copy, copy.with_name("model.safetensors"))
    for path in (
        work / "runs" / "sau",
        work / "runs" / "sau" / "model.safetensors",
        tmp_path / "moved",
        copy,
        copy.parent,
    ):
        assert torch.equal(load_classifier(path)(images), expected), path


def test_a_run_is_checked_before_it_is_used(work: Path) -> None:
    run = work / "runs" / "ce"
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes(content)
    for path in (run, run / "model.safetensors"):
        with pytest.raises(CorruptArtifactError, match=r"model\.safetensors was changed after it was written"):
            load_classifier(path)
    (run / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"the run in .*ce is not complete: run `saukit train -w"):
        load_classifier(run)


def test_what_holds_no_model(tmp_path: Path, work: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "missing.safetensors"):
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))} holds no model.safetensors: give a run, "):
            load_classifier(path)
    with pytest.raises(CorruptArtifactError, match="describes a 'split' artefact where a 'run' one belongs"):
        load_classifier(work / "split")
    with pytest.raises(CorruptArtifactError, match="holds no saukit model"):
        load_classifier(work / "split" / "train.safetensors")


def test_a_runs_name_comes_before_a_file_of_that_name(
    tmp_path: Path, shared_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(shared_work)
    Path("ce").mkdir()
    save_model(Path("other"), network(SPEC).state_dict(), SPEC)
    assert locate_model("ce", workspace) == shared_work / "runs" / "ce"
    assert locate_model("./ce", workspace) == Path("./ce")
    assert locate_model("other", workspace) == Path("other")
    assert locate_model(shared_work / "runs" / "sau", workspace) == shared_work / "runs" / "sau"


def test_an_unknown_model_names_the_runs_there_are(tmp_path: Path, shared_work: Path) -> None:
    with pytest.raises(
        DataError, match=r"^no model 'nix': no complete run of .*runs \(complete runs: (ce, sau|sau, ce)\)"
    ):
        locate_model("nix", Workspace(shared_work))
    with pytest.raises(
        DataError, match=r"\(no run is complete there\) and no file or folder has that name; give a run"
    ):
        locate_model("a/b", Workspace(tmp_path))
