"""Resized crops and blurs of whole batches as dense matrices along each axis, one of each per sample.

On a CPU the matrices of photos are mostly zeros that are multiplied all the same: theirs are in `photos`.
Shapes: b samples, sides H and W.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.training.photos import are_photos, blurred, one_by_one, resized

CROP_SCALE = (0.2, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10


class ResizedCropParameters(NamedTuple):
    """Where each sample's crop lies, in pixels: int64 [b] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_resized_crop(
    batch: int,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = CROP_SCALE,
    device: torch.device,
    generator: torch.Generator,
) -> ResizedCropParameters:
    """Draw crops of a share of the area uniform in `scale` and an aspect ratio log-uniform in (3/4, 4/3).

    As torchvision's RandomResizedCrop: the first of ten candidates that fits into the image, otherwise the largest
    centred crop of an allowed ratio. The ten are drawn at once and a mask finds the first.

    Shapes: int64 [b] each.
    """
    draws = torch.rand((batch, CROP_ATTEMPTS, 4), device=device, generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = (log_low + (log_high - log_low) * draws[..., 1]).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    # rand() stays below 1, but its product may round up to the bound.
    tops = torch.minimum((draws[..., 2] * (height - heights + 1)).floor(), height - heights)
    lefts = torch.minimum((draws[..., 3] * (width - widths + 1)).floor(), width - widths)

    attempt = torch.arange(CROP_ATTEMPTS, device=device)
    first = torch.where(fits, attempt, CROP_ATTEMPTS).amin(dim=1, keepdim=True)
    candidates = torch.stack((tops, lefts, heights, widths)).to(torch.int64)
    index = first.clamp(max=CROP_ATTEMPTS - 1).expand(4, -1, -1)
    chosen = candidates.gather(2, index).squeeze(2).unbind(0)
    found = first.squeeze(1) < CROP_ATTEMPTS
    # Numbers, not a tensor made of them: copying that to an accelerator would stall the host.
    fallback = _fallback_crop(height, width)
    return ResizedCropParameters(
        *(torch.where(found, side, number) for side, number in zip(chosen, fallback, strict=True))
    )


def _fallback_crop(height: int, width: int) -> tuple[int, int, int, int]:
    crop_height, crop_width = height, width
    if width / height < CROP_RATIO[0]:
        crop_height = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        crop_width = round(height * CROP_RATIO[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(images: Tensor, crop: ResizedCropParameters, flip: Tensor) -> Tensor:
    """Resize each sample's crop back to the full size, bilinear with antialiasing, and mirror the chosen ones.

    The triangle filter of torchvision's `resize(..., antialias=True)` as two dense matrices a sample, one an axis; on a
    CPU, where a sample can have a call of its own, photos are read at the two pixels that the triangle covers.

    Shapes: images uint8 [b, 3, H, W]; flip bool [b]; returns float32 [b, 3, H, W] in [0, 1].
    """
    height, width = images.shape[-2:]
    if are_photos(images):
        return one_by_one(_resized_photo, images, *crop, flip)
    rows = _resize_matrix(crop.top, crop.height, torch.arange(height, device=images.device)[None])
    columns = torch.arange(width, device=images.device)[None]
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    return separable(images.to(torch.float32), rows, _resize_matrix(crop.left, crop.width, columns)).div_(255)


def _resized_photo(photo: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor) -> Tensor:
    return resized(photo[0], [int(side) for side in (top, left, height, width)], bool(flip))[None]


def _resize_matrix(start: Tensor, length: Tensor, output: Tensor) -> Tensor:
    """Matrix [b, S, S]: row o takes output pixel output[o] from the `length` source pixels at `start`, resized to S.

    Shapes: start, length int64 [b]; output int64 [b, S] or [1, S].
    """
    size = output.shape[1]
    scale = (length.to(torch.float32) / size)[:, None]
    source = torch.arange(size, dtype=torch.float32, device=start.device) - start[:, None]
    in_crop = ((source >= 0) & (source < length[:, None])).to(torch.float32)
    centre = scale * (output + 0.5)
    # The triangle is as wide as an output pixel where the crop shrinks, and as a source pixel where it grows.
    slope = -1 / scale.clamp(min=1)
    weight = ((source + 0.5)[:, None, :] - centre[:, :, None]).abs_().mul_(slope[:, :, None]).add_(1).clamp_(min=0)
    weight = weight.mul_(in_crop[:, None, :])
    return weight.div_(weight.sum(dim=2, keepdim=True))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for each channel: images [b, 3, H, W], rows [b, H, H], columns [b, W, W]."""
    with torch.autocast(images.device.type, enabled=False):
        along_rows = images.flatten(1, 2).bmm(columns.transpose(1, 2)).view(images.shape)
        return rows[:, None] @ along_rows


def blur_kernel_size(height: int, width: int) -> int:
    """Pixels of SimCLR's blur kernel: odd, about a tenth of the shorter side, at least 3."""
    return max(3, 2 * (int(0.1 * min(height, width)) // 2) + 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each sample with its own sigma; kernel of `blur_kernel_size`, borders reflected.

    Shapes: images float32 [b, 3, H, W]; sigma float32 [b], in pixels; returns [b, 3, H, W].
    """
    height, width = images.shape[-2:]
    kernel_size = blur_kernel_size(height, width)
    if are_photos(images):
        return one_by_one(lambda one, sigma: blurred(one[0], float(sigma), kernel_size)[None], images, sigma)
    offset = torch.arange(kernel_size, device=images.device) - kernel_size // 2
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    return separable(images, _blur_matrix(kernel, height), _blur_matrix(kernel, width))


def pil_gaussian_blur(images: Tensor, radius: Tensor) -> Tensor:
    """PIL's ImageFilter.GaussianBlur but for rounding: three box blurs of fractional width, borders repeated.

    Gwosdek et al. 2011, Eq. 7, 11 and 14.
    Shapes: images float32 [b, 3, H, W]; radius float32 [b], in pixels, at most 2; returns [b, 3, H, W].
    """
    variance = radius.square() / 3  # of each box
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    offset = torch.arange(-2, 3, device=images.device).abs()
    box = torch.where(offset <= whole[:, None], 1.0, torch.where(offset == whole[:, None] + 1, share[:, None], 0.0))
    box = box / box.sum(dim=1, keepdim=True)
    height, width = images.shape[-2:]
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = (_blur_matrix(box, size, repeat=True).matrix_power(3) for size in (height, width))
    return separable(images, rows, columns)


def _blur_matrix(kernel: Tensor, size: int, *, repeat: bool = False) -> Tensor:
    """Matrix [b, size, size] that convolves with kernel [b, k] under reflected, or repeated, borders."""
    taps = _border_taps(kernel.shape[1], size, repeat, kernel.device)
    with torch.autocast(kernel.device.type, enabled=False):
        return (kernel @ taps).view(-1, size, size)


@lru_cache(maxsize=32)
def _border_taps(kernel_size: int, size: int, repeat: bool, device: torch.device) -> Tensor:
    """One-hot [k, size * size]: which source pixel each tap of each output pixel reads."""
    offset = torch.arange(kernel_size)[:, None] - kernel_size // 2
    source = torch.arange(size)[None, :] + offset
    source = source.clamp(0, size - 1) if repeat else (size - 1) - (size - 1 - source.abs()).abs()
    taps = F.one_hot(source, size).to(torch.float32)
    return taps.view(kernel_size, size * size).to(device)
