"""Backbones: images to feature vectors. Another one is a row of `BACKBONES`; any network of timm is there already."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saukit.core.extras import TIMM, require_extra


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2016 (Sec. 4.2, option A): subsample, pad new channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, H, W] -> [b, out, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016, Fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else OptionAShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, H, W] -> [b, out, H / stride, W / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)  # in place: BatchNorm's backward pass does not need its output
        activations: Tensor = self.relu(y)
        return activations


class CifarResNet(nn.Module):
    """The ResNet of He et al. 2016, Sec. 4.2, for small images: 6 n + 2 layers, three stages.

    `width` channels in the first stage: 16 is the customary ResNet-32 of long-tail papers (0.46 M parameters with a
    ten-class head), 64 is SAU's.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.feature_dim = 4 * width
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stage1 = _stage(width, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, H, W] -> features [b, 4 width]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return x.mean(dim=(2, 3))


class ResNet9(nn.Module):
    """The ResNet-9 of Page 2018 ("How to train your ResNet"): few layers, most of them after a pooling.

    Convolutions of `width`, 2, 4 and 8 `width` channels, a residual pair after the second and the last. Per image a
    third of the time of `CifarResNet(5, width)`. The last pooling is the maximum over positions, as his is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feature_dim = 8 * width
        self.stage1 = nn.Sequential(_convolution(3, width), _convolution(width, 2 * width), nn.MaxPool2d(2))
        self.pair1 = nn.Sequential(_convolution(2 * width, 2 * width), _convolution(2 * width, 2 * width))
        self.stage2 = nn.Sequential(
            _convolution(2 * width, 4 * width), nn.MaxPool2d(2), _convolution(4 * width, 8 * width), nn.MaxPool2d(2)
        )
        self.pair2 = nn.Sequential(_convolution(8 * width, 8 * width), _convolution(8 * width, 8 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, H, W] -> features [b, 8 width]."""
        x = self.stage1(x)
        x = self.stage2(x + self.pair1(x))
        last: Tensor = x + self.pair2(x)
        return last.amax(dim=(2, 3))


class SmallConvNet(nn.Module):
    """Six 3x3 convolutions for images of 8 to 16 pixels, where a ResNet's strides leave nothing; one pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feature_dim = 4 * width
        channels = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            layers += _convolution(before, after)
            if index == 2:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, H, W] -> features [b, 4 width]."""
        features: Tensor = self.layers(x)
        return features.mean(dim=(2, 3))


class ResNeXt50(nn.Module):
    """torchvision's ResNeXt-50 32x4d without its classifier (Xie et al. 2017), for images of 64 pixels and more."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnext50_32x4d

        self.network = resnext50_32x4d(weights=None)
        self.feature_dim: int = self.network.fc.in_features
        self.network.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, H, W] -> features [b, 2048]."""
        features: Tensor = self.network(x)
        return features


class TimmNetwork(nn.Module):
    """A network of timm without its classifier, initialised as timm does or with its pretrained weights."""

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model(name, pretrained=pretrained, num_classes=0)
        self.feature_dim = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)
        for part in self.network.modules():
            if isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1:
                part.forward = MethodType(_depthwise, part)  # type: ignore[method-assign]  # of a copy: its own

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, H, W] -> features [b, d]."""
        features: Tensor = self.network(x)
        return features


def _depthwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A depthwise convolution, in float32 where a CPU trains in half precision.

    There the backward pass of oneDNN's takes ten times as long in bfloat16, and half of EfficientNet's step.
    """
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return type(convolution).forward(convolution, x)
    with torch.autocast("cpu", enabled=False):
        return type(convolution).forward(convolution, x.float()).to(torch.get_autocast_dtype("cpu"))


@dataclass(frozen=True)
class Backbone:
    """A row of the table of backbones: how to build one, and the smallest image side it makes sense for.

    `own_init`: a library's network, which keeps its library's initialisation. `mean` and `std` are what its pretrained
    weights were trained with, None: the split's. `image_side`: pixels that it takes and no others; None: any.
    """

    build: Callable[[], nn.Module]
    smallest_side: int
    about: str
    own_init: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_side: int | None = None


class _Backbones(dict[str, Backbone]):
    """The table; a name such as timm/resnet50 is a row that is made when it is asked for (extra timm)."""

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name) or not str(name).startswith(TIMM):
            return super().__contains__(name)
        require_extra("timm", purpose=f"backbone {name}")
        import timm

        return bool(timm.is_model(str(name).removeprefix(TIMM)))

    def __missing__(self, name: str) -> Backbone:
        if name not in self:
            raise KeyError(f"backbone {name!r}")
        import timm

        bare = name.removeprefix(TIMM)
        known = timm.get_pretrained_cfg(bare)
        return Backbone(
            lambda: TimmNetwork(bare),
            smallest_side=32,
            about="timm",
            own_init=True,
            mean=None if known is None else tuple(known.mean),
            std=None if known is None else tuple(known.std),
            image_side=known.input_size[-1] if known is not None and known.fixed_input_size else None,
        )


BACKBONES: dict[str, Backbone] = _Backbones(
    {
        "resnet32-w64": Backbone(lambda: CifarResNet(5, 64), 16, "ResNet-32 with 64/128/256 channels (SAU, GLMC)"),
        "resnet32-w16": Backbone(lambda: CifarResNet(5, 16), 16, "the customary ResNet-32 with 16/32/64 channels"),
        "resnet9-w16": Backbone(
            lambda: ResNet9(16), 16, "ResNet-9 (Page 2018) with 16 to 128 channels: quick on a CPU"
        ),
        "convnet-small": Backbone(lambda: SmallConvNet(32), 4, "six convolutions for images of 8 to 16 pixels"),
        "resnext50": Backbone(ResNeXt50, 64, "ResNeXt-50 32x4d (ImageNet-LT)", own_init=True),
    }
)


def build_backbone(name: str) -> nn.Module:
    """A new backbone; it has `feature_dim`, the length of its features.

    With He initialisation (He et al. 2015); a library's network with its library's.
    """
    row = BACKBONES[name]
    backbone = row.build()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and not row.own_init:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


def initialise_fan_in(module: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers anew, He et al. 2015 with fan-in, as SAU's authors do."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)


def count_parameters(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
