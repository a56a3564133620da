import copy
from typing import Literal

import pytest
import torch
from torch import nn

from saukit.models.dual_branch import DualBranchNet


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> DualBranchNet:
    torch.manual_seed(0)
    return DualBranchNet("convnet-small", 7, projection=True)


@pytest.mark.parametrize("training", [True, False])
def test_logits_and_embeddings(network: DualBranchNet, images: torch.Tensor, training: bool) -> None:
    network.train(training)
    assert network(images).shape == (6, 7)
    embeddings = network.project(images)
    assert embeddings.shape == (6, 128)
    assert not torch.allclose(embeddings[0], embeddings[1])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))


def test_embeddings_leave_autocast_in_float32(network: DualBranchNet, images: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = network.project(images)
        assert network(images).dtype == torch.bfloat16  # so autocast was on
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))  # normalised after the cast, not before


def test_the_projection_is_the_normalised_head_on_the_backbones_features(
    network: DualBranchNet, images: torch.Tensor
) -> None:
    network.eval()
    assert network.projection is not None
    kinds = [type(layer) for layer in network.projection]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    widths = [layer.out_features for layer in network.projection if isinstance(layer, nn.Linear)]
    assert widths == [2048, 2048, 128]
    with torch.no_grad():
        raw = network.projection(network.backbone(images)).double()
        expected = raw / (raw * raw).sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(network.project(images).double(), expected, rtol=1e-5, atol=1e-6)


def test_inference_needs_no_projection(network: DualBranchNet, images: torch.Tensor) -> None:
    network.eval()
    expected = network(images)
    assert network.projection is not None
    with torch.no_grad():
        for parameter in network.projection.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(network(images), expected)
    assert bool(expected.isfinite().all())


def test_a_network_without_projection_has_no_weights_of_one() -> None:
    network = DualBranchNet("convnet-small", 7, projection=False)
    assert not [name for name in network.state_dict() if name.startswith("projection")]


def test_views_projected_together_equal_views_projected_one_by_one(network: DualBranchNet) -> None:
    """Embeddings, gradients and running statistics: each view's BatchNorm sees that view alone."""
    together, separate = network.double().train(), copy.deepcopy(network).double().train()
    views = [torch.rand(6, 3, 8, 8, dtype=torch.float64) + shift for shift in (0, 1)]
    weights = torch.randn(2, 6, 128)
    found = together.project_views(*views)
    expected = (separate.project(views[0]), separate.project(views[1]))
    for one, other, weight in zip(found, expected, weights, strict=True):
        torch.testing.assert_close(one, other)
        (one * weight).sum().backward(retain_graph=True)
        (other * weight).sum().backward()
    gradients = dict(separate.named_parameters())
    for name, parameter in together.named_parameters():
        if not name.startswith("classifier"):
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-7)
    buffers = dict(separate.named_buffers())
    assert all(torch.allclose(value, buffers[name], rtol=1e-9) for name, value in together.named_buffers())


def test_inference_is_eval_mode_without_gradient_and_ends(network: DualBranchNet, images: torch.Tensor) -> None:
    network.train()
    with pytest.raises(ZeroDivisionError), network.inference():
        assert not network.training and not network(images).requires_grad
        raise ZeroDivisionError
    assert network.training and network(images).requires_grad


@pytest.mark.parametrize("crops", [1, 2, 4])
def test_a_network_of_one_size_sees_the_centre_enlarged(crops: Literal[1, 2, 4]) -> None:
    timm = pytest.importorskip("timm")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    network = DualBranchNet("timm/test_vit", 3, projection=False, crops=crops).eval()
    plain = timm.create_model("test_vit", num_classes=0).eval()
    plain.load_state_dict(network.backbone.network.state_dict())  # type: ignore[union-attr, operator]
    centre = nn.functional.interpolate(images[:, :, 10:150, 10:150], size=(160, 160), mode="bicubic")
    views = [images, centre, images.flip(3), centre.flip(3)][:crops]
    with torch.no_grad():
        expected = torch.stack([plain(view) for view in views]).mean(0)
        torch.testing.assert_close(network.features(images), expected, atol=1e-5, rtol=1e-4)
