import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saukit.core.artifacts import save_tensors
from saukit.core.errors import CorruptArtifactError, DataError, UsageError
from saukit.data.decoding import Fitting
from saukit.models.dual_branch import DualBranchNet
from saukit.models.model_file import ModelSpec, load_model, preparation, save_model

SPEC = ModelSpec(
    method="sau",
    backbone="convnet-small",
    classes=("cat", "größe", "no"),
    image_size=(8, 8),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.1, 1 / 3, 0.3),
    projection=True,
)


def trained(spec: ModelSpec) -> DualBranchNet:
    """A network whose BatchNorm statistics are not those of a new one."""
    torch.manual_seed(0)
    network = DualBranchNet(spec.backbone, len(spec.classes), projection=spec.projection)
    images = torch.randn(16, 3, 8, 8)
    for _ in range(3):
        (network.project if spec.projection else network)(images)
    return network.eval()


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("backbone", ["convnet-small", "resnet32-w16"])
def test_a_round_trip_gives_identical_logits(tmp_path: Path, projection: bool, backbone: str) -> None:
    spec = replace(SPEC, projection=projection, backbone=backbone)
    network = trained(spec)
    save_model(tmp_path / "model.safetensors", network.state_dict(), spec)
    torch.manual_seed(1)
    loaded, loaded_spec = load_model(tmp_path / "model.safetensors")
    assert loaded_spec == spec
    assert not any(module.training for module in loaded.modules())
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
        if projection:
            assert torch.equal(loaded.project(images), network.project(images))
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def write(path: Path, spec: dict[str, Any], *, drop: str | None = None) -> None:
    state = trained(SPEC).state_dict()
    save_tensors(path, {name: value.numpy() for name, value in state.items() if name != drop}, {"model": spec})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "backbone 'vgg'"),
        ({"classes": ["cat", "dog"]}, "size mismatch for classifier.weight"),
        ({"projection": False}, 'Unexpected key(s) in state_dict: "projection.'),
        ({"mean": "grey"}, "mean: 'grey' is not a list, each a number"),
        ({"colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_card_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, asdict(SPEC) | change)
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} holds no saukit model: ") as caught:
        load_model(path)
    assert message in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_card_or_a_state_with_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    spec = asdict(SPEC)
    del spec["std"]
    write(path, spec)
    with pytest.raises(CorruptArtifactError, match=r"holds no saukit model: .*std is "):
        load_model(path)
    write(path, asdict(SPEC), drop="classifier.bias")
    with pytest.raises(CorruptArtifactError, match=r'(?s)holds no saukit model: .*Missing key.* "classifier.bias"'):
        load_model(path)


@pytest.mark.parametrize(("metadata", "word"), [({}, "model"), ({"model": ["sau"]}, "items"), ({"model": 3}, "")])
def test_another_tensor_file_is_no_model(tmp_path: Path, metadata: dict[str, Any], word: str) -> None:
    path = tmp_path / "train.safetensors"
    save_tensors(path, {"images": np.zeros((1, 3, 8, 8), np.uint8)}, metadata)
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} holds no saukit model: .*{word}"):
        load_model(path)


def test_a_damaged_or_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, trained(SPEC).state_dict(), SPEC)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"\x80\x02}q\x00.", whole[:8] + b"x" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} is not a saukit tensor file: .+"):
            load_model(path)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} is missing$"):
        load_model(path)


def test_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"x": np.zeros(1)}, {"format_version": 2, "model": asdict(SPEC)})
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))} has format version 2, .* reads 1: update saukit$"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "classes must be names, each once"),
        ({"classes": ("a", "a")}, "classes must be names, each once"),
        ({"image_size": (8,)}, "image_size must be two sides of 4 to 1024 pixels, got (8,)"),
        ({"image_size": (3, 8)}, "image_size must be two sides of 4 to 1024 pixels, got (3, 8)"),
        ({"image_size": (8, 1025)}, "image_size must be two sides of 4 to 1024 pixels, got (8, 1025)"),
        ({"mean": (0.5, 0.5)}, "mean must be three numbers, got (0.5, 0.5)"),
        ({"mean": (0.5, 0.5, float("inf"))}, "mean must be three numbers, got (0.5, 0.5, inf)"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be three numbers above 0, got (0.5, 0.5, 0.0)"),
        ({"std": (0.5, float("nan"), 0.5)}, "std must be three numbers above 0, got (0.5, nan, 0.5)"),
        ({"white_level": 0}, "white_level must be from 1 to 65535, got 0"),
        ({"white_level": 65536}, "white_level must be from 1 to 65535, got 65536"),
        (
            {"white_level": 0, "mean": ()},
            "white_level must be from 1 to 65535, got 0; mean must be three numbers, got ()",
        ),
    ],
)
def test_what_no_network_has(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        replace(SPEC, **change)


def test_the_limits_themselves_are_allowed() -> None:
    spec = replace(SPEC, image_size=(4, 1024), white_level=1, mean=(-1.0, 0.0, 9.0), classes=("a",))
    assert replace(spec, white_level=65535, std=(1e-9, 1.0, 9.0)).fitting == Fitting("crop", "white", 65535)


def test_how_an_image_is_prepared_in_words() -> None:
    end = "resized to 8 x 8 pixels, bicubic with antialiasing"
    assert preparation(SPEC) == f"the centre square, {end}"
    grey = replace(SPEC, fit="pad", background="grey", white_level=4095)
    assert preparation(grey) == (f"the whole of it, padded to a square on grey, {end}; 4,095 is white in 16-bit images")
    assert preparation(replace(SPEC, fit="stretch")) == f"the whole of it, stretched to a square, {end}"
    assert preparation(replace(SPEC, image_size=(8, 6))).count("8 x 6 pixels") == 1
