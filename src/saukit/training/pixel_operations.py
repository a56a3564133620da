"""Pixel operations of AutoAugment on whole batches of uint8 tensors, to the byte those of PIL.

Shapes: b samples, height H, width W; images are uint8 [b, 3, H, W].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from saukit.core.device import widest

GREY = 128  # what published code fills with


def apply_to_rows(chosen: Tensor, images: Tensor, function: Callable[..., Tensor], *row_parameters: Tensor) -> Tensor:
    """Replace the chosen images by `function(images, *row_parameters)`; `function` treats samples independently.

    On a CPU only the chosen rows are computed. On an accelerator the host would have to wait to learn how many there
    are, so all rows are computed and a mask picks: static shapes, no synchronisation, the same result.

    The memory of `images` may be overwritten: pass a tensor that nobody else reads.

    Shapes: chosen bool [b]; images [b, 3, H, W]; each of row_parameters [b, ...]; returns [b, 3, H, W].
    """
    if not _shapes_may_depend_on_data(images.device):
        return torch.where(chosen[:, None, None, None], function(images, *row_parameters), images)
    if len(images) == 1:
        return function(images, *row_parameters) if chosen else images
    rows = chosen.nonzero().squeeze(1)
    if rows.numel() == 0:
        return images
    selected = (parameter.index_select(0, rows) for parameter in row_parameters)
    # Not index_copy_, which takes four times as long, and forty times for bytes.
    images.numpy()[rows.numpy()] = function(images.index_select(0, rows), *selected).numpy()
    return images


def _shapes_may_depend_on_data(device: torch.device) -> bool:
    return device.type == "cpu"


def shear_bicubic(images: Tensor, amount: Tensor, down: Tensor) -> Tensor:
    """PIL's bicubic shear with grey fill: output (x, y) takes input (x + amount y, y), or (x, y + amount x) if `down`.

    Coordinates are those of pixel centres; Keys' cubic with a = -1, the edge repeated, as in PIL's `Image.transform`.

    Shapes: images uint8 [b, 3, H, W]; amount float32 [b]; down bool [b]; returns uint8 [b, 3, H, W].
    """
    along = _shear_rows(images, amount)
    return torch.where(down[:, None, None, None], _shear_rows(images.mT, amount).mT, along)


def _shear_rows(images: Tensor, amount: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    double = widest(images.device)
    x = torch.arange(width, dtype=double, device=images.device)[None, None, :] + 0.5
    y = torch.arange(height, dtype=double, device=images.device)[None, :, None] + 0.5
    source = x + amount.to(double)[:, None, None] * y
    inside = (source >= 0) & (source < width)
    base = (source - 0.5).floor()
    d = source - 0.5 - base
    weights = (((2 - d) * d - 1) * d, (d - 2) * d * d + 1, ((1 - d) * d + 1) * d, (d - 1) * d * d)
    pixels = images.to(double)
    total = torch.zeros_like(pixels)
    for tap, weight in enumerate(weights):
        index = (base + tap - 1).clamp(0, width - 1).long()
        total += weight[:, None] * pixels.gather(3, index[:, None].expand_as(pixels))
    return torch.where(inside[:, None], total.clamp(0, 255), GREY).to(torch.uint8)


def affine_grey(images: Tensor, affine: Tensor) -> Tensor:
    """`affine_nearest` with grey outside, as published code has it."""
    return affine_nearest(images, affine, fill=GREY)


def affine_nearest(images: Tensor, affine: Tensor, *, fill: int = 0) -> Tensor:
    """Nearest-neighbour affine map, `fill` outside, in the 16.16 fixed-point arithmetic of PIL's `Image.transform`.

    Output pixel (x, y) takes input pixel ((a0 x + a1 y + a2) >> 16, (a3 x + a4 y + a5) >> 16). Integers up to
    32 767 pixels a side fit.

    Shapes: images uint8 [b, 3, H, W]; affine int32 [b, 6]; returns uint8 [b, 3, H, W].
    """
    batch, channels, height, width = images.shape
    x = torch.arange(width, dtype=torch.int32, device=images.device)[None, None, :]
    y = torch.arange(height, dtype=torch.int32, device=images.device)[None, :, None]
    a0, a1, a2, a3, a4, a5 = affine[:, :, None, None].unbind(1)
    source_x = (a0 * x + (a1 * y + a2)) >> 16
    source_y = (a3 * x + (a4 * y + a5)) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    index = torch.where(inside, source_y * width + source_x, 0).to(torch.int64)
    index = index.reshape(batch, 1, height * width).expand(-1, channels, -1)
    moved = images.reshape(batch, channels, height * width).gather(2, index).reshape(images.shape)
    if fill:
        return torch.where(inside[:, None], moved, fill)
    return moved * inside[:, None].to(torch.uint8)


def adjust_colour(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its grey version: factor 0 is grey, 1 the image, more than 1 more colourful.

    Shapes: images uint8 [b, 3, H, W]; factor float32 [b]; returns uint8 [b, 3, H, W].
    """
    pixels = images.to(torch.float32)
    return blend(_grey(pixels), pixels, factor[:, None, None, None])


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its smoothed version (3 x 3, centre weight 5 of 13, borders as they are).

    Shapes: images uint8 [b, 3, H, W], H and W at least 3; factor float32 [b]; returns uint8 [b, 3, H, W].
    """
    pixels = images.to(torch.float32)
    smooth = pixels.clone()
    columns = (pixels[..., :-2] + pixels[..., 1:-1]).add_(pixels[..., 2:])
    box = (columns[..., :-2, :] + columns[..., 1:-1, :]).add_(columns[..., 2:, :])
    # A multiple of 1/13 is never within 1/26 of a half, so float32 rounds as PIL does.
    smooth[..., 1:-1, 1:-1] = box.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return blend(smooth, pixels, factor[:, None, None, None])


def _grey(pixels: Tensor) -> Tensor:
    """ITU-R 601-2 luma in PIL's fixed point, [b, 3, H, W] -> [b, 1, H, W]; every sum stays below 2^24, so exact."""
    red, green, blue = pixels.unbind(1)
    luma = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(32768).div_(65536).floor_().unsqueeze(1)


def blend(degenerate: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """PIL's `Image.blend`: float32, clipped, truncated."""
    # Not torch.lerp: it reorders the terms for factors above one half, and truncation shows the last bit.
    blended = (pixels - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)
    # By way of int32 a CPU takes a third of the time.
    return (blended.to(torch.int32) if blended.device.type == "cpu" else blended).to(torch.uint8)


def contrast_table(table: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the mean grey of an image, as a table of its levels in place of `table`.

    Shapes: table [b, 3, 256, 1], whose values do not matter; images uint8 [b, 3, H, W]; factor float32 [b].
    """
    return contrasted(images, factor)[:, None, :, None].expand_as(table)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """A table for each image: uint8 [b, 3, H, W] and factor float32 [b]; returns uint8 [b, 256]."""
    pixels = images.shape[2] * images.shape[3]
    grey_sum = _grey(images.to(torch.float32)).to(torch.int64).sum(dim=(1, 2, 3))
    grey_mean = ((2 * grey_sum + pixels) // (2 * pixels)).to(torch.float32)
    ramp = torch.arange(256, dtype=torch.float32, device=images.device)
    return blend(grey_mean[:, None], ramp, factor[:, None])


def autocontrast_table(table: Tensor, levels: Tensor) -> Tensor:
    """Stretches the levels of each channel to 0 to 255. Shapes: levels uint8 [b, 3, H * W]; table as above."""
    lowest, highest = (of(dim=2, keepdim=True).to(torch.int64) for of in (levels.amin, levels.amax))
    return stretched(lowest, highest, widest(highest.device))[..., None]


def stretched(lowest: Tensor, highest: Tensor, double: torch.dtype) -> Tensor:
    """Tables from the lowest level to the highest: int64 [..., 1] each; returns uint8 [..., 256]."""
    ramp = torch.arange(256, device=lowest.device)
    # float64 and in this order: PIL truncates, so exact integers depend on the last bit.
    # Division of two tensors, because `255 / tensor` multiplies by the reciprocal.
    spread = (highest - lowest).clamp(min=1).to(double)
    scale = torch.full_like(spread, 255.0) / spread
    table = (ramp * scale + -lowest * scale).clamp(0, 255).to(torch.int64)
    return torch.where(highest > lowest, table, ramp).to(torch.uint8)


def equalize_table(table: Tensor, levels: Tensor) -> Tensor:
    """Equalises the histogram of each channel. Shapes: levels uint8 [b, 3, H * W]; table as above."""
    highest = levels.amax(dim=2, keepdim=True).to(torch.int64)
    return equalised(_histogram(levels), highest)[..., None]


def equalised(histogram: Tensor, highest: Tensor) -> Tensor:
    """Tables of histograms int32 [..., 256] whose highest level is `highest`, int64 [..., 1]; returns uint8."""
    ramp, dim = torch.arange(256, device=histogram.device), histogram.ndim - 1
    ahead = histogram.cumsum(dim, dtype=torch.int32)
    below = ahead - histogram
    step = (ahead[..., -1:] - histogram.gather(dim, highest)) // 255
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, ramp).to(torch.uint8)


def _histogram(levels: Tensor) -> Tensor:
    """Of each channel: levels uint8 [b, 3, n]; returns int32 [b, 3, 256]."""
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int32, device=levels.device)
    one = torch.ones((), dtype=torch.int32, device=levels.device).expand_as(levels)
    return histogram.scatter_add_(2, levels.to(torch.int64), one)
