"""Features and probabilities against the network by hand, an image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from saukit.core.device import Precision
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import normalise, predict
from saukit.models.model_file import ModelSpec

CPU = torch.device("cpu")
SPEC = ModelSpec(
    method="ce",
    backbone="convnet-small",
    classes=("a", "b", "c"),
    image_size=(8, 8),
    mean=(0.2, 0.5, 0.7),
    std=(0.1, 0.3, 0.2),
    projection=True,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def network() -> DualBranchNet:
    """A network whose BatchNorm has seen images, so that eval and training mode differ."""
    torch.manual_seed(0)
    network = DualBranchNet("convnet-small", 3, projection=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_predictions_are_those_of_single_images_whatever_the_batches(network: DualBranchNet) -> None:
    found = predict(network, SPEC, IMAGES, device=CPU, batch_size=7)
    for image, features, probabilities in zip(IMAGES, found.features, found.probabilities, strict=True):
        pixels = image.astype(np.float64) / 255
        for channel in range(3):
            pixels[channel] = (pixels[channel] - SPEC.mean[channel]) / SPEC.std[channel]
        with torch.no_grad():
            expected = network.backbone(torch.from_numpy(pixels[None]).float())[0]
            logits = network(torch.from_numpy(pixels[None]).float())[0].double()
        assert features == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
        assert probabilities == pytest.approx((logits.exp() / logits.exp().sum()).tolist(), abs=1e-5)
    assert (found.features.dtype, found.logits.dtype, found.probabilities.dtype) == (np.float32,) * 3
    assert found.probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-5)
    assert np.ptp(found.probabilities, axis=0).min() > 0.01  # images differ


def test_a_network_in_training_mode_predicts_as_in_eval_mode_and_stays_as_it_was(network: DualBranchNet) -> None:
    expected = predict(network, SPEC, IMAGES, device=CPU)
    assert not network.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = predict(network.train(), SPEC, IMAGES, device=CPU)
    assert network.training
    assert (found.probabilities == expected.probabilities).all() and (found.features == expected.features).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_arithmetic_is_that_of_the_precision(network: DualBranchNet) -> None:
    found = predict(network, SPEC, IMAGES, device=CPU, precision=Precision("bf16", "cpu"))
    exact = predict(network, SPEC, IMAGES, device=CPU).logits
    assert (found.logits == torch.from_numpy(found.logits).bfloat16().float().numpy()).all()  # eight bits of precision
    assert 0 < np.abs(found.logits - exact).max() < 0.05


def test_no_images_have_no_predictions(network: DualBranchNet) -> None:
    found = predict(network, SPEC, IMAGES[:0], device=CPU)
    assert (found.features.shape, found.probabilities.shape) == ((0, 128), (0, 3))


def test_normalising_is_by_channel_for_pixels_in_0_to_1() -> None:
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    images = torch.from_numpy(IMAGES)
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    torch.testing.assert_close(normalise(images, mean, std), expected.float(), rtol=0, atol=2e-6)
