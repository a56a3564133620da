import math

import numpy as np
import pytest
import torch
from PIL import Image

from saukit.synthesis.generators.warp import MAX_SHIFT, append_planes, draw_warps, warp


def test_no_warp_is_the_image_bit_for_bit() -> None:
    images = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 255
    assert torch.equal(warp(images, torch.zeros(5, 2, 3)), images)


@pytest.mark.parametrize(("across", "down"), [(0, 0), (3, 0), (-2, 5)])
def test_a_shift_is_that_of_pil_with_the_edge_repeated(across: int, down: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    padded = np.pad(pixels, ((8, 8), (8, 8), (0, 0)), mode="edge")
    expected = padded[8 + down : 24 + down, 8 + across : 28 + across]
    maps = torch.zeros(1, 2, 3)
    maps[0, 0, 2], maps[0, 1, 2] = 2 * across / 20, 2 * down / 16  # the sides are two long
    warped = warp(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), maps)
    np.testing.assert_allclose(warped[0].permute(1, 2, 0), expected, atol=2e-2)


def test_a_turn_is_that_of_pil() -> None:
    """A quarter of a half turn about the centre of a smooth picture, away from the edge."""
    y, x = np.mgrid[0:64, 0:64]
    pixels = (127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 9)).astype(np.float32)
    angle = math.radians(20)
    maps = torch.tensor([[[math.cos(angle) - 1, -math.sin(angle), 0], [math.sin(angle), math.cos(angle) - 1, 0]]])
    warped = warp(torch.from_numpy(pixels)[None, None].repeat(1, 3, 1, 1), maps)[0, 0].numpy()
    expected = np.asarray(Image.fromarray(pixels).rotate(-20, resample=Image.Resampling.BILINEAR))
    other_way = np.asarray(Image.fromarray(pixels).rotate(20, resample=Image.Resampling.BILINEAR))
    middle = (slice(16, 48), slice(16, 48))
    errors = [float(np.abs(warped[middle] - candidate[middle]).mean()) for candidate in (expected, other_way)]
    assert min(errors) < 0.5 < max(errors)


def test_warps_are_drawn_for_the_share_that_is_asked_for_and_differ() -> None:
    warps = draw_warps(4000, 0.3, torch.Generator().manual_seed(0))
    warped = (warps != 0).any(dim=(1, 2))
    assert float(warped.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert len(torch.unique(warps[warped], dim=0)) == int(warped.sum())
    assert float(warps[:, :, 2].abs().max()) <= 2 * MAX_SHIFT
    assert float(warps[warped][:, :, 2].abs().max()) > 1.8 * MAX_SHIFT
    areas = torch.det(warps[warped][:, :, :2] + torch.eye(2)).double()
    assert float(areas.log().mean()) == pytest.approx(0, abs=0.03)  # neither larger nor smaller on the whole
    assert float(areas.log().std()) == pytest.approx(0.2, abs=0.02)  # a length of 0.1, twice


def test_the_planes_tell_the_warp() -> None:
    images = torch.rand(2, 3, 4, 4)
    maps = torch.arange(12.0).view(2, 2, 3)
    planes = append_planes(images, maps)
    assert torch.equal(planes[:, :3], images)
    for n in range(2):
        for k in range(6):
            assert (planes[n, 3 + k] == maps[n].flatten()[k]).all()
