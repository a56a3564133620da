import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from saukit.models.backbones import (
    BACKBONES,
    BasicBlock,
    OptionAShortcut,
    build_backbone,
    count_parameters,
    initialise_fan_in,
)
from saukit.models.dual_branch import DualBranchNet


def millions(backbone: str, classes: int, *, projection: bool) -> str:
    return f"{count_parameters(DualBranchNet(backbone, classes, projection=projection)) / 1e6:.2f}"


def resnet_parameters(width: int, blocks: int, classes: int) -> int:
    """Counted by hand: convolutions without bias, two numbers a channel of BatchNorm, a linear classifier."""
    total, channels = 3 * 9 * width + 2 * width, width
    for stage in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            total += channels * 9 * stage + stage * 9 * stage + 4 * stage
            channels = stage
    return total + channels * classes + classes


def projection_parameters(features: int) -> int:
    return features * 2048 + 2 * 2048 + 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128


def test_parameter_counts_of_the_literature() -> None:
    assert millions("resnet32-w64", 10, projection=True) == "12.38"  # SAU, with the head
    assert millions("resnet32-w16", 10, projection=False) == "0.46"  # He et al. 2016, Table 6


@pytest.mark.parametrize(("backbone", "width"), [("resnet32-w64", 64), ("resnet32-w16", 16)])
@pytest.mark.parametrize("classes", [10, 100])
def test_parameter_counts_by_hand(backbone: str, width: int, classes: int) -> None:
    plain = count_parameters(DualBranchNet(backbone, classes, projection=False))
    assert plain == resnet_parameters(width, 5, classes)
    both = count_parameters(DualBranchNet(backbone, classes, projection=True))
    assert both == plain + projection_parameters(4 * width)


def test_frozen_parameters_do_not_count() -> None:
    layer = nn.Linear(3, 4)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


def option_a_loop(x: npt.NDArray[np.float32], out_channels: int, stride: int) -> npt.NDArray[np.float32]:
    batch, channels, height, width = x.shape
    result = np.zeros((batch, out_channels, math.ceil(height / stride), math.ceil(width / stride)), np.float32)
    before = (out_channels - channels) // 2
    for image, channel, row, column in np.ndindex(batch, channels, *result.shape[2:]):
        result[image, before + channel, row, column] = x[image, channel, stride * row, stride * column]
    return result


@pytest.mark.parametrize(("channels", "out"), [(4, 8), (3, 6), (3, 8), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_option_a_against_a_plain_loop(channels: int, out: int, stride: int, size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, channels, *size)).astype(np.float32)
    shortcut = OptionAShortcut(channels, out, stride)
    assert count_parameters(shortcut) == 0
    result = shortcut(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(result, option_a_loop(x, out, stride))


@pytest.mark.parametrize(("channels", "out", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_adds_its_shortcut_before_the_last_relu(channels: int, out: int, stride: int) -> None:
    block = BasicBlock(channels, out, stride).eval()
    with torch.no_grad():
        block.bn2.weight.zero_()  # then the two convolutions give nothing, and the shortcut is all
        x = torch.randn(2, channels, 7, 7, generator=torch.Generator().manual_seed(0))
        expected = np.maximum(option_a_loop(x.numpy(), out, stride), 0)
        np.testing.assert_array_equal(block(x.clone()).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "side", "features"),
    [
        ("resnet32-w64", 32, 256),
        ("resnet32-w64", 16, 256),
        ("resnet32-w16", 32, 64),
        ("resnet32-w16", 28, 64),
        ("resnet9-w16", 32, 128),
        ("resnet9-w16", 17, 128),
        ("convnet-small", 8, 128),
        ("convnet-small", 4, 128),
        ("convnet-small", 16, 128),
        ("resnext50", 64, 2048),
    ],
)
def test_feature_shapes(name: str, side: int, features: int) -> None:
    assert BACKBONES[name].smallest_side <= side
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        result = backbone(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert result.shape == (2, features)
    assert backbone.feature_dim == features
    assert bool(result.isfinite().all())
    assert not torch.equal(result[0], result[1])


def test_every_line_of_the_table_is_covered_here() -> None:
    assert set(BACKBONES) == {"resnet32-w64", "resnet32-w16", "resnet9-w16", "convnet-small", "resnext50"}


def test_the_resnet_has_32_layers_and_three_resolutions() -> None:
    backbone = build_backbone("resnet32-w16")
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) + 1 == 32  # and the classifier
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("stage1", "stage2", "stage3"):
        stage = backbone.get_submodule(name)
        stage.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape)}))
    backbone(torch.zeros(2, 3, 32, 32))
    assert shapes == {"stage1": (2, 16, 32, 32), "stage2": (2, 32, 16, 16), "stage3": (2, 64, 8, 8)}


def test_resnet9_is_the_plain_sequence_of_its_convolutions() -> None:
    backbone = build_backbone("resnet9-w16").eval()
    weights = [module.weight for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    channels = [16, 32, 32, 32, 64, 128, 128, 128]
    assert [tuple(weight.shape) for weight in weights] == [
        (after, before, 3, 3) for before, after in zip([3, *channels], channels, strict=False)
    ]

    def layer(x: Tensor, index: int, *, pool: bool = False) -> Tensor:
        x = F.conv2d(x, weights[index], padding=1).relu() / (1 + 1e-5) ** 0.5  # BatchNorm as it was born
        return F.max_pool2d(x, 2) if pool else x

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = layer(layer(images, 0), 1, pool=True)
    x = x + layer(layer(x, 2), 3)
    x = layer(layer(x, 4, pool=True), 5, pool=True)
    assert x.shape == (2, 128, 4, 4)
    x = x + layer(layer(x, 6), 7)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), x.flatten(2).max(2).values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet32-w64", "convnet-small"])
def test_he_initialisation(name: str) -> None:
    torch.manual_seed(0)
    for module in build_backbone(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_features_of_small_images_reach_every_weight() -> None:
    backbone = build_backbone("convnet-small")
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (backbone(images) * torch.arange(128)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_published_initialisation_is_kaimings_fan_in_for_kernels_and_matrices() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 256)
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), linear)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialise_fan_in(network)
    for name, fan_in in (("0.weight", 72), ("2.weight", 128)):
        assert float(network.state_dict()[name].std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert float(linear.weight.std() / before["2.weight"].std()) == pytest.approx(6**0.5, rel=0.05)
    kept = [name for name, value in network.state_dict().items() if torch.equal(value, before[name])]
    assert set(before) - set(kept) == {"0.weight", "2.weight"}


class Convolutions(TorchDispatchMode):
    """Groups and dtype of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[bool, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("convolution", "convolution_backward"):
            image, weight = args[0], args[1] if func.overloadpacket.__name__ == "convolution" else args[2]
            self.found.add((weight.shape[1] == 1, image.dtype))
        return func(*args, **(kwargs or {}))


def test_depthwise_convolutions_train_in_float32_on_a_cpu() -> None:
    pytest.importorskip("timm")
    network = build_backbone("timm/test_efficientnet")
    images = torch.rand(2, 3, 32, 32)
    for training, expected in ((True, torch.float32), (False, torch.bfloat16)):
        with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
            features = network(images)
            if training:
                features.float().sum().backward()
        assert seen.found == {(True, expected), (False, torch.bfloat16)}
    with Convolutions() as seen:
        network(images)
    assert seen.found == {(True, torch.float32), (False, torch.float32)}  # without autocast as ever


def test_a_copy_of_a_network_of_timm_has_its_own_convolutions() -> None:
    timm = pytest.importorskip("timm")
    network = build_backbone("timm/test_efficientnet").eval()
    images = torch.rand(2, 3, 32, 32)
    copied = copy.deepcopy(network)
    plain = timm.create_model("test_efficientnet", num_classes=0).eval()
    plain.load_state_dict(network.network.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        expected = plain(images)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(copied(images), expected)
        assert not torch.allclose(network(images), expected)
