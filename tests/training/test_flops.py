"""The arithmetic of a step, against a count over the shapes that go through each layer."""

import pytest
import torch
from torch import Tensor, nn

from saukit.models.dual_branch import DualBranchNet
from saukit.training.costs import step_flops


def layer_flops(network: DualBranchNet, images: Tensor, *, projection: bool) -> int:
    """Forward and backward operations of one pass, layer by layer.

    Backward takes a layer's product twice: for the gradient of its weights, and for that of its input unless that is
    the images, which need none.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            multiply_adds = output.numel() * module.in_channels // module.groups * height * width
        else:
            assert isinstance(module, nn.Linear)
            multiply_adds = output.numel() * module.in_features
        total += 2 * multiply_adds * (2 + inputs[0].requires_grad)

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    _ = network.project(images) if projection else network(images)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [("convnet-small", (8, 8)), ("resnet32-w16", (32, 32)), ("resnet32-w16", (16, 24)), ("resnext50", (64, 64))],
)
@pytest.mark.parametrize("passes", [(1, 0), (0, 1), (2, 2)])
def test_step_flops_are_those_of_the_layers(
    backbone: str, image_size: tuple[int, int], passes: tuple[int, int]
) -> None:
    network, images = DualBranchNet(backbone, 7, projection=True), torch.zeros(2, 3, *image_size)
    expected = sum(
        count * layer_flops(network, images, projection=projection)
        for count, projection in zip(passes, (False, True), strict=True)
    )
    found = step_flops(backbone, 7, image_size, 2, classifier_passes=passes[0], projection_passes=passes[1])
    assert found == expected > 0


def test_step_flops_of_sau_on_cifar() -> None:
    """ResNet-32 with 64 channels has 1.097 GMAC an image; four passes, forward and twice as much backward."""
    found = step_flops("resnet32-w64", 10, (32, 32), 128, classifier_passes=2, projection_passes=2)
    assert found == pytest.approx(4 * 3 * 2 * 1.097e9 * 128, rel=0.005)
    assert found == pytest.approx(3.377e12, rel=0.002)


def test_step_flops_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    step_flops("convnet-small", 10, (8, 8), 4, classifier_passes=1, projection_passes=0)
    assert torch.equal(torch.random.get_rng_state(), before)
