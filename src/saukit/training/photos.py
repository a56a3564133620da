"""Operations of SimCLR's view on one photo on a CPU.

What a batch shares elsewhere is known here: where the crop lies, which operations come in which order, how far a blur
reaches. So there are few passes over a photo, and it stays in the processor's cache from one to the next.

`simclr` is a hundred short operations. Between two of them a thread needs the GIL, and two threads would mostly wait
for each other; compiled (`compiled`), it runs without.

Shapes: height H, width W; a photo is [3, H, W], or [1, 3, H, W].
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saukit.training.colour import jittered, luma

DENSE_UP_TO = 64  # pixels of the shorter side up to which dense matrices for a whole batch are as fast on a CPU
NO_WEIGHT = 5.9  # standard deviations from where on a Gaussian's taps are below half of float32's last bit
BLOCK = 8  # rows of a blur that are made by one product of matrices


def are_photos(images: Tensor) -> bool:
    """Whether images [b, 3, H, W] are photos on a CPU, whose views are made one by one."""
    some = images.ndim == 4 and len(images) > 0
    return some and images.device.type == "cpu" and min(images.shape[2:]) > DENSE_UP_TO


def one_by_one(function: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """`function` of each image [1, 3, H, W] and its parameters, put together."""
    if len(images) == 1:
        return function(images, *parameters)
    each = zip(*(each.chunk(len(images)) for each in (images, *parameters)), strict=True)
    return torch.cat([function(*one) for one in each])


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` by TorchScript, which runs it as a whole; where a later torch has none, `function` itself, slower."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation: torch.compile would need a C++ compiler here
        try:
            script: Any = torch.jit.script(function)
        except Exception:  # whatever it says, the function is as good
            return function
    return script  # type: ignore[no-any-return]


def simclr(
    photo: Tensor,
    crop: list[int],
    mirrored: bool,
    order: list[int],
    factors: list[float],
    hue: Tensor,
    is_gray: bool,
    sigma: float,
    kernel_size: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """SimCLR's view of a photo uint8 [1, 3, H, W], normalised: float32 [1, 3, H, W].

    crop: top, left, height, width; order and factors: of `jittered`; sigma: of the blur, 0 for none.
    """
    pixels = jittered(resized(photo[0], crop, mirrored)[None], order, factors, hue)
    if is_gray:
        pixels = luma(pixels).repeat(1, 3, 1, 1)
    if sigma > 0:
        pixels = blurred(pixels[0], sigma, kernel_size)[None]
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])


def resized(photo: Tensor, crop: list[int], mirrored: bool) -> Tensor:
    """The crop (top, left, height, width) of a photo uint8 [3, H, W], bilinear: float32 [3, H, W] in [0, 1].

    It is never shrunk, so there is nothing to smooth against aliasing.
    """
    part = photo.narrow(1, crop[0], crop[2]).narrow(2, crop[1], crop[3]).mT.contiguous()
    wide = interpolated(part, photo.shape[2], mirrored).mT.contiguous()
    return interpolated(wide, photo.shape[1], False).div_(255)


def interpolated(image: Tensor, size: int, mirrored: bool) -> Tensor:
    """The rows of an image [3, h, w], linear between their centres, `size` of them: float32."""
    last = image.shape[1] - 1
    source = (torch.arange(size) + 0.5).mul_(image.shape[1] / size).sub_(0.5).clamp_(0, last)
    if mirrored:
        source = source.flip(0)
    first = source.floor()
    above = image.index_select(1, first.long()).float()
    below = image.index_select(1, (first + 1).clamp_(0, last).long()).float()
    return above.lerp_(below, (source - first)[:, None])


def blurred(photo: Tensor, sigma: float, kernel_size: int, block: int = BLOCK, no_weight: float = NO_WEIGHT) -> Tensor:
    """Gaussian blur of a photo [3, H, W] with `kernel_size` taps an axis, borders reflected."""
    reach = min(kernel_size // 2, int(no_weight * sigma))
    kernel = torch.arange(-reach, reach + 1).div(sigma).square_().mul_(-0.5).exp_()
    taps = torch.zeros(2 * block + 2 * reach - 1)
    taps[block - 1 : block + 2 * reach] = kernel / kernel.sum()
    # Row i of a block weighs rows i to i + 2 reach of those that it reads.
    matrix = taps.as_strided([block, block + 2 * reach], [1, 1]).flip(0)
    # A plane at a time, which the cache holds with its copies.
    planes = [blurred_rows(blurred_rows(plane.mT, matrix).mT, matrix) for plane in photo.chunk(3)]
    return torch.cat(planes)


def blurred_rows(plane: Tensor, matrix: Tensor) -> Tensor:
    """Each column of a plane [1, H, W] convolved; `matrix` makes a block of rows from those that it reads."""
    height, width = plane.shape[1], plane.shape[2]
    block, read = matrix.shape[0], matrix.shape[1]
    blocks, reach = (height + block - 1) // block, (read - block) // 2
    rows = torch.arange(-reach, block * blocks + reach).abs_()
    rows = (height - 1 - (height - 1 - rows).abs_()).clamp_(min=0)  # past the reflection are rows that nobody keeps
    padded = plane.contiguous().index_select(1, rows)
    windows = padded.as_strided([blocks, read, width], [block * width, width, 1])
    return torch.bmm(matrix.expand(blocks, block, read), windows).view(1, -1, width)[:, :height]


def crop_flipped(photo: Tensor, dy: int, dx: int, padding: int, mirrored: bool) -> Tensor:
    """The window at (dy, dx) of a photo uint8 [1, 3, H, W] with zeros around it, and mirrored: the same shape."""
    down, right = dy - padding, dx - padding
    height, width = photo.shape[2] - abs(down), photo.shape[3] - abs(right)
    window = torch.zeros([1, photo.shape[2], photo.shape[3], 3], dtype=torch.uint8)
    there = photo.narrow(2, max(0, down), height).narrow(3, max(0, right), width)
    window.narrow(1, max(0, -down), height).narrow(2, max(0, -right), width).copy_(there.movedim(1, 3))
    return (window.flip(2) if mirrored else window).movedim(3, 1)
