"""Mixing two batches, Mixup and CutMix, with one draw a batch; and boxes of pixels as masks.

Static shapes and no host sync, as in `saukit.training.views`. Shapes: b samples, height H, width W.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """A box of pixels, top <= y < bottom and left <= x < right: int64 [] (or [b]) each."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


def box_mask(box: Box, height: int, width: int) -> Tensor:
    """Pixels inside the box, which may reach beyond the image.

    Shapes: box of [...] each; returns bool [..., H, W].
    """
    top, bottom, left, right = (side[..., None] for side in box)
    y = torch.arange(height, device=top.device)
    x = torch.arange(width, device=top.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[..., :, None] & columns[..., None, :]


def draw_beta_one_one(*, device: torch.device, generator: torch.Generator) -> Tensor:
    """One draw of lam from Beta(1, 1), which is the uniform distribution: float32 []."""
    return torch.rand((), device=device, generator=generator)


def mixup(x_a: Tensor, x_b: Tensor, lam: Tensor) -> Tensor:
    """Mixup (Zhang et al. 2018): lam x_a + (1 - lam) x_b.

    Shapes: x_a, x_b float [b, 3, H, W]; lam []; returns [b, 3, H, W].
    """
    return x_b + lam * (x_a - x_b)


def draw_cutmix_box(height: int, width: int, lam: Tensor, *, generator: torch.Generator) -> tuple[Box, Tensor]:
    """Draw CutMix's box (Yun et al. 2019) and the share of x_a that is left outside of it.

    The sides are sqrt(1 - lam) H and sqrt(1 - lam) W, rounded down; the centre is uniform over the pixels; the box is
    clipped to the image. The share lam' = 1 - clipped area / (H W) counts pixels exactly, so it is the label's weight.

    Shapes: lam float [] (or [b]), on the generator's device; returns the box and lam' float32, shaped as lam.
    """
    side = (1 - lam).sqrt()
    box_height, box_width = (side * height).to(torch.int64), (side * width).to(torch.int64)
    centre_y = torch.randint(height, lam.shape, device=lam.device, generator=generator)
    centre_x = torch.randint(width, lam.shape, device=lam.device, generator=generator)
    top, left = centre_y - box_height // 2, centre_x - box_width // 2
    bottom, right = (top + box_height).clamp(max=height), (left + box_width).clamp(max=width)
    top, left = top.clamp(min=0), left.clamp(min=0)
    pasted = (bottom - top) * (right - left)
    return Box(top, bottom, left, right), 1 - pasted.to(torch.float32) / (height * width)


def cutmix(x_a: Tensor, x_b: Tensor, box: Box) -> Tensor:
    """CutMix (Yun et al. 2019): x_a with the box pasted from x_b.

    Shapes: x_a, x_b [b, 3, H, W]; box of [] or, one for each image, [b] each; returns [b, 3, H, W].
    """
    return torch.where(box_mask(box, *x_a.shape[-2:]).unsqueeze(-3), x_b, x_a)
