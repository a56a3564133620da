"""Blurs of whole batches as dense matrices along each axis, one blur per sample. Shapes: b samples, sides H and W.

On a CPU the matrices of photos are mostly zeros that are multiplied all the same: their blur is in `photos`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.training.photos import are_photos, blurred, one_by_one


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
