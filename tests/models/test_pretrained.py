"""Networks of timm, and weights that a backbone starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saukit.core import extras
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault
from saukit.models.backbones import BACKBONES, TimmNetwork, build_backbone
from saukit.models.dual_branch import DualBranchNet
from saukit.models.model_file import ModelSpec, save_model
from saukit.models.pretrained import load_pretrained, load_weights

timm = pytest.importorskip("timm")
NAME = "timm/test_efficientnet"
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, **changes: torch.Tensor | None) -> tuple[Any, Path]:
    """A network of timm with its classifier, and its weights as a file; a change to None leaves a tensor out."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet").eval()
    state = {**network.state_dict(), **changes}
    path = folder / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state.items() if value is not None}, path)
    return network, path


def test_features_are_those_of_timm(tmp_path: Path) -> None:
    network, path = saved(tmp_path)
    backbone = build_backbone(NAME).eval()
    load_weights(backbone, path)
    with torch.no_grad():
        expected: torch.Tensor = network.forward_head(network.forward_features(IMAGES), pre_logits=True)
        assert torch.equal(backbone(IMAGES), expected)
    assert backbone.feature_dim == expected.shape[1]


def test_a_librarys_network_keeps_its_librarys_initialisation() -> None:
    for name, own in ((NAME, lambda: timm.create_model("test_efficientnet", num_classes=0)), ("resnext50", None)):
        torch.manual_seed(3)
        backbone = build_backbone(name)
        torch.manual_seed(3)
        expected = own() if own else __import__("torchvision").models.resnext50_32x4d()
        for key, value in backbone.network.state_dict().items():  # type: ignore[union-attr, operator]
            assert torch.equal(value, expected.state_dict()[key]), (name, key)


def test_a_row_holds_what_the_weights_were_trained_with() -> None:
    known = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    row = BACKBONES["timm/tf_efficientnet_lite0"]
    assert (row.mean, row.std, row.image_side) == (known.mean, known.std, None) == ((0.5,) * 3, (0.5,) * 3, None)
    assert BACKBONES["timm/test_vit"].image_side == 160


def test_names_are_looked_up_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NAME in BACKBONES and "timm/no_such_network" not in BACKBONES and "test_efficientnet" not in BACKBONES
    with pytest.raises(KeyError, match="no_such_network"):
        BACKBONES["timm/no_such_network"]
    monkeypatch.setattr(extras, "missing_packages", lambda extra: ["timm"])
    with pytest.raises(EnvironmentFault, match=r"pip install 'saukit\[timm\]'"):
        _ = NAME in BACKBONES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_stem.weight": None}, "missing: conv_stem.weight;"),
        ({"bn1.weight": torch.zeros(3)}, "another shape: bn1.weight;"),
        ({"extra": torch.zeros(3)}, "not in the network: extra;"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    _, path = saved(tmp_path, **changes)
    backbone = build_backbone(NAME)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(DataError, match=r"do not fit the backbone: \d+ of \d+ tensors match; ") as caught:
        load_weights(backbone, path)
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Executed:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("kind", ["cut", "text", "pickle", "header"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    if kind == "pickle":
        torch.save({"conv_stem.weight": Executed()}, path)
    else:
        path.write_bytes({"cut": whole[:1000], "text": b"weights", "header": b"\xff" * 8 + whole[8:]}[kind])
    with pytest.raises(CorruptArtifactError, match=r"is not a safetensors file .*: give another --weights"):
        load_weights(build_backbone(NAME), path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = torch.full((timm.create_model("test_efficientnet").bn1.weight.shape), torch.nan)
    _, path = saved(tmp_path, **{"bn1.weight": broken})
    with pytest.raises(CorruptArtifactError, match=r"are not finite in bn1\.weight: give another --weights"):
        load_weights(build_backbone(NAME), path)


def test_a_runs_model_gives_its_backbone(tmp_path: Path) -> None:
    spec = ModelSpec("ce", "convnet-small", ("a", "b"), (8, 8), (0.5,) * 3, (0.5,) * 3, projection=False)
    network = DualBranchNet("convnet-small", 2, projection=False)
    save_model(tmp_path / "model.safetensors", network.state_dict(), spec)
    backbone = build_backbone("convnet-small")
    load_weights(backbone, tmp_path)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in network.backbone.state_dict().items())
    with pytest.raises(DataError, match="do not fit the backbone"):
        load_weights(build_backbone(NAME), tmp_path)


def test_without_the_hub_the_ways_on_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match=r"check the network, or give --weights FILE\.safetensors"):
        load_pretrained(TimmNetwork("test_efficientnet"), NAME)
