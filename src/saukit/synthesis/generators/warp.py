"""Augmentation of the generator's training images that does not leak into its samples.

Each training image is, with some probability, moved, scaled, stretched and turned, and six more input channels say how;
sampling with zeros there asks for images that are not warped at all. (Karras et al. 2022, arXiv
2206.00364, Appendix F.2, after Karras et al. 2020 and Jun et al. 2020; here the six numbers of the affine map itself.)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = 6  # the entries of an affine map, less those of the identity
MAX_SHIFT = 0.125  # of the side
SCALE_STD, STRETCH_STD = 0.1, 0.08  # of the natural logarithms
TURN_STD = math.radians(8)


def draw_warps(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Affine maps less the identity, float32 [count, 2, 3], in `affine_grid`'s coordinates; zeros for no warp."""
    device = generator.device
    warped = torch.rand(count, generator=generator, device=device) < probability
    normal = torch.randn((3, count), generator=generator, device=device)
    shift = (2 * torch.rand((2, count), generator=generator, device=device) - 1) * 2 * MAX_SHIFT  # the side is 2 long
    scale, stretch, turn = (SCALE_STD * normal[0]).exp(), (STRETCH_STD * normal[1]).exp(), TURN_STD * normal[2]
    across, down = scale * stretch, scale / stretch
    rows = (
        torch.stack([across * turn.cos(), -down * turn.sin(), shift[0]], dim=1),
        torch.stack([across * turn.sin(), down * turn.cos(), shift[1]], dim=1),
    )
    maps = torch.stack(rows, dim=1) - torch.eye(2, 3, device=device)
    return torch.where(warped.view(-1, 1, 1), maps, torch.zeros_like(maps))


def warp(images: Tensor, warps: Tensor) -> Tensor:
    """Float32 images [n, 3, H, W] under `warps` [n, 2, 3], bilinear, the edge repeated; without a warp bit for bit."""
    maps = warps + torch.eye(2, 3, device=warps.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    same = (warps == 0).all(dim=(1, 2)).view(-1, 1, 1, 1)
    return torch.where(same, images, warped)


def append_planes(images: Tensor, warps: Tensor) -> Tensor:
    """Images in network space [n, c, h, w] with the six numbers of their warps [n, 2, 3] as constant channels."""
    planes = warps.flatten(1)[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes.to(images.dtype)], dim=1)
