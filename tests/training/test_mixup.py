"""Mixup and CutMix: the label's weight is counted in pixels."""

import math

import pytest
import torch

from saukit.training.mixup import cutmix, draw_beta_one_one, draw_cutmix_box, mixup

CPU = torch.device("cpu")
SIZES = [(8, 8), (32, 32), (50, 50), (24, 40)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixup_is_the_weighted_sum() -> None:
    x_a, x_b = torch.randn(2, 4, 3, 8, 8, generator=generator())
    torch.testing.assert_close(mixup(x_a, x_b, torch.tensor(0.3)), 0.3 * x_a + 0.7 * x_b)
    assert mixup(x_a.bfloat16(), x_b.bfloat16(), torch.tensor(0.3)).dtype == torch.bfloat16


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cutmix_weight_is_the_share_of_pixels_counted(height: int, width: int) -> None:
    x_a, x_b = torch.zeros(2, 3, height, width), torch.ones(2, 3, height, width)
    draws, clipped = generator(), 0
    for _ in range(100):
        lam = draw_beta_one_one(device=CPU, generator=draws)
        box, weight = draw_cutmix_box(height, width, lam, generator=draws)
        mixed = cutmix(x_a, x_b, box)
        assert (mixed[0, 0] == 0).float().mean().item() == pytest.approx(weight.item(), abs=1e-6)
        rows, columns = (mixed[0, 0].amax(dim=1) == 1).sum(), (mixed[0, 0].amax(dim=0) == 1).sum()
        side = math.sqrt(1 - lam.item())
        assert rows <= int(side * height) and columns <= int(side * width)
        unclipped = rows == int(side * height) and columns == int(side * width)
        clipped += not unclipped
        if unclipped:
            assert mixed[0, 0].sum() == int(side * height) * int(side * width)
    assert 20 < clipped < 95


def test_cutmix_corner_weights() -> None:
    for seed in range(20):
        _, nothing_pasted = draw_cutmix_box(8, 6, torch.tensor(1.0), generator=generator(seed))
        assert nothing_pasted == 1
        box, weight = draw_cutmix_box(8, 6, torch.tensor(0.0), generator=generator(seed))
        assert weight == 1 - (box.bottom - box.top) * (box.right - box.left) / 48
        assert box.bottom - box.top >= 4 and box.right - box.left >= 3  # a full-size box loses at most half a side


def test_lam_is_uniform() -> None:
    draws = generator()
    lam = torch.stack([draw_beta_one_one(device=CPU, generator=draws) for _ in range(4000)])
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / 12, abs=0.005)
