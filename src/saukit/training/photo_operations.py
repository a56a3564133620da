"""AutoAugment's operations on one photo on a CPU, to the byte those of PIL.

Not by PIL itself, of which one thread at a time makes the tables and copies the pixels, under the GIL. The functions
are compiled like those of `photos`; names of this module that are not functions are arguments here.

Shapes: height H, width W; a photo is uint8 [1, 3, H, W], and quickest where a pixel's colours lie side by side.
"""

import torch
from torch import Tensor

from saukit.models.inference import normalise
from saukit.training.photos import crop_flipped, window
from saukit.training.pixel_operations import (
    adjust_colour,
    adjust_sharpness,
    contrasted,
    equalised,
    stretched,
)


def autoaugmented(
    out: Tensor,
    photo: Tensor,
    crop: list[int],
    mirrored: bool,
    padding: int,
    names: list[str],
    affine: list[list[int]],
    factors: list[float],
    tables: list[Tensor],
    centre: list[int],
    size: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """A photo's second view, normalised, into `out`, float32 [1, 3, H, W].

    crop: of `photos.window`; names to tables: of `changed`; centre (y, x) and size: of Cutout's square.
    """
    out.copy_(normalise(changed(window(photo, crop, mirrored, padding), names, affine, factors, tables), mean, std))
    top, left = centre[0] - size // 2, centre[1] - size // 2
    out[:, :, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0.0
    return out


def changed(
    photo: Tensor, names: list[str], affine: list[list[int]], factors: list[float], tables: list[Tensor]
) -> Tensor:
    """The named operations of a photo, one after the other.

    Of each: affine, 6 numbers, of an operation that moves pixels, otherwise none; its factor; its table, uint8 [256],
    if that is the same for every photo.
    """
    for i, name in enumerate(names):
        factor = torch.tensor([factors[i]])
        if len(affine[i]) > 0:
            photo = moved(photo, affine[i])
        elif name == "Color":
            photo = adjust_colour(photo.contiguous(), factor)
        elif name == "Sharpness":
            photo = adjust_sharpness(photo.contiguous(), factor)
        elif name == "Contrast":
            photo = looked_up(photo, contrasted(photo, factor)[0])
        elif name == "AutoContrast" or name == "Equalize":
            photo = levelled(photo, name == "Equalize")
        else:
            photo = looked_up(photo, tables[i])
    return photo


def moved(photo: Tensor, affine: list[int]) -> Tensor:
    """`pixel_operations.affine_nearest`, black outside; by whole pixels it is a copy."""
    a0, a1, a2, a3, a4, a5 = affine
    height, width = photo.shape[2], photo.shape[3]
    if a0 == 65536 and a1 == 0 and a3 == 0 and a4 == 65536 and abs(a2 >> 16) < width and abs(a5 >> 16) < height:
        return crop_flipped(photo, a5 >> 16, a2 >> 16, 0, False)
    framed = torch.zeros([height + 2, width + 2, 3], dtype=torch.uint8)
    framed.narrow(0, 1, height).narrow(1, 1, width).copy_(photo[0].movedim(0, 2))
    x, y = torch.arange(width, dtype=torch.int32), torch.arange(height, dtype=torch.int32)[:, None]
    source_x = (x * a0 + (y * a1 + a2)).bitwise_right_shift_(16).clamp_(-1, width)
    source_y = (x * a3 + (y * a4 + a5)).bitwise_right_shift_(16).clamp_(-1, height)
    index = source_y.add_(1).mul_(width + 2).add_(source_x).add_(1)
    found = framed.view(-1, 3).index_select(0, index.view(-1))
    return found.view(1, height, width, 3).movedim(3, 1)


def looked_up(photo: Tensor, table: Tensor) -> Tensor:
    """Each level replaced by its entry of the table, uint8 [256]."""
    rows = photo.movedim(1, 3).contiguous()
    return table.index_select(0, rows.view(-1).int()).view(rows.shape).movedim(3, 1)


def levelled(photo: Tensor, equalize: bool) -> Tensor:
    """AutoContrast or Equalize, with a table for each channel."""
    rows = photo.movedim(1, 3).contiguous()
    of_channels = rows.view(photo.shape[2], -1)  # [H, 3 W]: reduced and added to at full speed, which [..., 3] is not
    highest = of_channels.amax(0).view(-1, 3).amax(0).long()[:, None]
    first = torch.arange(0, 768, 256, dtype=torch.int32).repeat(photo.shape[3])
    index = (of_channels + first).view(-1)
    if equalize:
        table = equalised(torch.bincount(index, minlength=768).view(3, 256).int(), highest)
    else:
        lowest = of_channels.amin(0).view(-1, 3).amin(0).long()[:, None]
        table = stretched(lowest, highest, torch.float64)
    return table.view(-1).index_select(0, index).view(rows.shape).movedim(3, 1)
