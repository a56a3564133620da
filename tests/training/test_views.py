"""The batched augmentations against torchvision and PIL, one image at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from saukit.training import autoaugment, crops, pixel_operations
from saukit.training import views as augment
from saukit.training.mixup import cutmix, draw_beta_one_one, draw_cutmix_box, mixup
from saukit.training.views import PhotoViews, Views

CPU = torch.device("cpu")
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.2470, 0.2435, 0.2616])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(height: int, width: int, count: int = 6) -> Tensor:
    """Crops of a photograph and of scanned digits, resized: uint8 [count, 3, height, width]."""
    china, digits = load_sample_image("china.jpg"), load_digits().images
    images = []
    for i in range(count):
        if i % 3 == 2:
            image = Image.fromarray(np.uint8(digits[i] * 15.9)).convert("RGB")
        else:
            image = Image.fromarray(china[30 * i : 30 * i + 150, 70 * i : 70 * i + 200])
        images.append(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def as_float(images: Tensor) -> Tensor:
    return images.float() / 255


class HostWaits(TorchDispatchMode):
    """Collects the operations that would make the host wait for an accelerator, or break a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], list) else [])
        )
        # lift_fresh is torch.tensor(numbers): on an accelerator a copy from pageable memory.
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "lift_fresh"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["rows", "masks"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the CPU's way (chosen rows only) and on the accelerator's (all rows, masked)."""
    monkeypatch.setattr(pixel_operations, "_shapes_may_depend_on_data", lambda device: request.param == "rows")
    return str(request.param)


SIZES = [(8, 8), (32, 32), (50, 50), (24, 40)]


# --- crop, flip, normalisation, Cutout ---------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_equal_torchvision(both_ways: str, height: int, width: int, padding: int) -> None:
    images = photographs(height, width)
    dy, dx = augment.draw_crop(len(images), padding, device=CPU, generator=generator(3))
    flip = torch.tensor([True, False, True, True, False, False])
    before = images.clone()
    result = augment.horizontal_flip(augment.random_crop(images, dy, dx, padding), flip)
    for i, image in enumerate(images):
        expected = TF.crop(TF.pad(image, [padding]), int(dy[i]), int(dx[i]), height, width)
        assert torch.equal(result[i], TF.hflip(expected) if flip[i] else expected)
    augment.horizontal_flip(images, flip)
    assert torch.equal(images, before)


def test_crop_offsets_are_uniform() -> None:
    dy, dx = augment.draw_crop(18_000, 4, device=CPU, generator=generator())
    for offsets in (dy, dx):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)
    assert (dy == dx).float().mean() == pytest.approx(1 / 9, abs=0.015)


@pytest.mark.parametrize("size", [4, 5, 16])
def test_cutout_zeroes_a_clipped_square(size: int) -> None:
    images = torch.rand(40, 3, 24, 20, generator=generator()) + 1
    centre_y, centre_x = augment.draw_cutout(40, 24, 20, device=CPU, generator=generator())
    result = images * augment.cutout_mask(centre_y, centre_x, size, 24, 20)
    for i in range(40):
        expected = images[i].clone()
        top, left = int(centre_y[i]) - size // 2, int(centre_x[i]) - size // 2
        expected[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(result[i], expected)


def test_cutout_centres_cover_every_pixel() -> None:
    centre_y, centre_x = augment.draw_cutout(8_000, 8, 10, device=CPU, generator=generator())
    counts = torch.bincount(centre_y * 10 + centre_x, minlength=80)
    assert len(counts) == 80
    assert (counts - 100).abs().max() < 50


# --- SimCLR's pieces ---------------------------------------------------------------------------------------------


def test_with_a_crop_scale_the_first_view_is_torchvisions_resized_crop() -> None:
    images = torch.randint(256, (40, 3, 24, 36), dtype=torch.uint8, generator=generator(3))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    found = augment.Views(mean, std, flip=True, crop_scale=0.5).crop_flip(images, generator(7))

    again = generator(7)
    crop = crops.draw_resized_crop(40, 24, 36, scale=(0.5, 1.0), device=CPU, generator=again)
    flips = augment.draw_chosen(40, 0.5, device=CPU, generator=again)
    shares = crop.height * crop.width / (24 * 36)
    assert 0.48 < float(shares.min()) < 0.6 and float(shares.max()) > 0.8  # of an image of 3:2
    assert flips.any() and not flips.all()
    for image, view, mirrored, *box in zip(images, found, flips, *(side.tolist() for side in crop), strict=True):
        expected = TF.resized_crop(as_float(image[None]), *box, [24, 36], InterpolationMode.BILINEAR, antialias=True)[0]
        expected = expected.flip(2) if mirrored else expected
        expected = (expected - mean[:, None, None]) / std[:, None, None]
        assert float((view - expected).abs().max()) < 0.52 / 255 / 0.2  # the rounding to 256 levels


@pytest.mark.parametrize(("height", "width"), [*SIZES, (80, 96), (224, 224)])
def test_resized_crop_equals_torchvision(height: int, width: int) -> None:
    images = photographs(height, width, 24)
    crop = crops.draw_resized_crop(24, height, width, device=CPU, generator=generator(1))
    flip = torch.arange(24) % 2 == 1
    result = crops.resized_crop(images, crop, flip)
    for i, image in enumerate(as_float(images)):
        box = [int(side[i]) for side in crop]
        expected = TF.resized_crop(image, *box, [height, width], InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(result[i], TF.hflip(expected) if flip[i] else expected, rtol=0, atol=1e-5)


def test_tiny_crop_is_enlarged_as_torchvision_does() -> None:
    images = photographs(32, 32, 1)
    crop = crops.ResizedCropParameters(*(torch.tensor([side]) for side in (30, 3, 2, 1)))
    result = crops.resized_crop(images, crop, torch.tensor([False]))
    expected = TF.resized_crop(as_float(images), 30, 3, 2, 1, [32, 32], antialias=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (16, 40), (64, 16)])
def test_crop_parameters_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 4000
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    reference = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=torch.float64
    )
    crop = crops.draw_resized_crop(count, height, width, device=CPU, generator=generator())
    ours = torch.stack(crop, dim=1).double()
    for column in range(4):
        # Two-sample Kolmogorov-Smirnov statistic; 1.95 sqrt(2 / n) is its 0.1 % point.
        grid = torch.arange(max(height, width) + 2)
        cumulative = [torch.searchsorted(c[:, column].sort().values, grid) / count for c in (ours, reference)]
        assert (cumulative[0] - cumulative[1]).abs().max() < 1.95 * math.sqrt(2 / count)
    assert (crop.top + crop.height).max() <= height and (crop.left + crop.width).max() <= width
    assert min(side.min() for side in crop) >= 0 and crop.height.min() > 0 and crop.width.min() > 0


@pytest.mark.parametrize(("height", "width"), [(4, 400), (400, 4), (12, 13)])
def test_crop_falls_back_to_the_centre(height: int, width: int) -> None:
    none_fits = (9.0, 9.5)
    crop = crops.draw_resized_crop(5, height, width, scale=none_fits, device=CPU, generator=generator())
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [9.0, 9.5], [3 / 4, 4 / 3])
    assert torch.stack(crop, dim=1).tolist() == [list(expected)] * 5


def one_of(operation: int, count: int, factor: Tensor) -> augment.JitterParameters:
    """Jitter whose only effective operation is `operation`."""
    neutral = {0: torch.ones(count), 1: torch.ones(count), 2: torch.ones(count), 3: torch.zeros(count)}
    factors = {**neutral, operation: factor}
    order, whether = torch.arange(4).repeat(count, 1), torch.ones(count, dtype=torch.bool)
    return augment.JitterParameters(order, factors[0], factors[1], factors[2], factors[3], whether)


ADJUST = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]


@pytest.mark.parametrize("operation", range(4))
def test_each_jitter_operation_equals_torchvision(both_ways: str, operation: int) -> None:
    images = as_float(torch.cat((photographs(32, 32, 8), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))))
    for factor in (-0.5, -0.1, 0.0, 0.07, 0.5) if operation == augment.HUE else (0.0, 0.6, 1.0, 1.4):
        jitter = one_of(operation, 9, torch.full((9,), factor))
        result = augment.colour_jitter(images.clone(), jitter)
        torch.testing.assert_close(result, ADJUST[operation](images, factor), rtol=0, atol=1e-5)


def test_hue_of_every_kind_of_colour() -> None:
    levels = torch.tensor([0.0, 0.2, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8).repeat(21, 1, 1, 1)
    hue = torch.linspace(-0.5, 0.5, 21)
    expected = torch.stack([TF.adjust_hue(colours[i], float(hue[i])) for i in range(21)])
    torch.testing.assert_close(augment.adjust_hue(colours, hue), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_jitter_in_every_order_equals_torchvision(both_ways: str, height: int, width: int) -> None:
    images = as_float(photographs(height, width, 60))
    jitter = augment.draw_jitter(60, device=CPU, generator=generator(5))
    result = augment.colour_jitter(images.clone(), jitter)
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    for i in range(60):
        expected = images[i]
        for operation in jitter.order[i].tolist() if jitter.chosen[i] else ():
            expected = ADJUST[operation](expected, float(factors[operation][i]))
        torch.testing.assert_close(result[i], expected, rtol=0, atol=1e-5)


def test_jitter_parameters() -> None:
    count = 24_000
    jitter = augment.draw_jitter(count, device=CPU, generator=generator())
    orders = torch.bincount(jitter.order @ torch.tensor([64, 16, 4, 1]))
    assert (orders > 0).sum() == 24
    assert (orders[orders > 0] - 1000).abs().max() < 5 * math.sqrt(1000)
    assert jitter.chosen.float().mean() == pytest.approx(0.8, abs=0.01)
    for factor, low, high in (
        (jitter.brightness, 0.6, 1.4),
        (jitter.contrast, 0.6, 1.4),
        (jitter.saturation, 0.6, 1.4),
        (jitter.hue, -0.1, 0.1),
    ):
        share = (factor - low) / (high - low)
        assert share.min() > -1e-6 and share.max() < 1 + 1e-6
        assert (share.sort().values - torch.linspace(0, 1, count)).abs().max() < 1.95 / math.sqrt(count)
    pairs = torch.corrcoef(torch.stack((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)))
    assert (pairs - torch.eye(4)).abs().max() < 0.03


def test_grayscale_equals_torchvision() -> None:
    images = as_float(photographs(32, 32))
    expected = TF.rgb_to_grayscale(images, 3)
    torch.testing.assert_close(augment.grayscale(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(8, 8, 3), (32, 32, 3), (50, 50, 5), (40, 96, 5), (224, 224, 23)]
)
def test_gaussian_blur_equals_torchvision(height: int, width: int, kernel: int) -> None:
    assert crops.blur_kernel_size(height, width) == kernel
    images, sigma = as_float(photographs(height, width, 4)), torch.tensor([0.1, 0.5, 1.3, 2.0])
    result = crops.gaussian_blur(images, sigma)
    for i in range(4):
        expected = TF.gaussian_blur(images[i], [kernel, kernel], [float(sigma[i])] * 2)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_published_blur_is_pils(height: int, width: int) -> None:
    """PIL rounds to whole levels in each of its six passes, three per axis; ours does not."""
    images = photographs(height, width)
    for radius in (0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0):
        found = 255 * crops.pil_gaussian_blur(as_float(images), torch.full((len(images),), radius))
        expected = on_pil(lambda image: image.filter(ImageFilter.GaussianBlur(radius)), images)  # noqa: B023
        assert (found - expected).abs().max() < 6 * 0.5, radius


def test_the_published_cutout_is_black_and_the_own_grey() -> None:
    images = photographs(32, 32)
    for as_published, colour in ((True, (0 - MEAN) / STD), (False, torch.zeros(3))):
        seen = Views(MEAN, STD, flip=True, as_published=as_published).autoaugment(images, generator())
        holes = (seen - colour[:, None, None]).abs().amax(1) < 1e-6
        assert int(holes.flatten(1).sum(1).min()) >= 8 * 8


def on_pil(operation: Callable[..., Image.Image], images: Tensor, *arguments: Any) -> Tensor:
    """Levels of `operation` applied to PIL images, one at a time: float32 [n, 3, H, W]."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return torch.stack([TF.pil_to_tensor(operation(picture, *arguments)) for picture in pictures]).float()


# PIL stores whole levels: contrast rounds the mean grey too, and hue goes through HSV with 256 hues.
LEVELS_FROM_PIL = {augment.BRIGHTNESS: 1.0, augment.CONTRAST: 1.5, augment.SATURATION: 1.1, augment.HUE: 5.0}


@pytest.mark.parametrize("operation", LEVELS_FROM_PIL)
def test_jitter_lies_within_a_level_of_torchvision_on_pil(operation: int) -> None:
    images = photographs(32, 32, 24)
    for factor in (-0.1, 0.03, 0.1) if operation == augment.HUE else (0.6, 0.9, 1.4):
        jitter = one_of(operation, 24, torch.full((24,), factor))
        difference = 255 * augment.colour_jitter(as_float(images), jitter) - on_pil(ADJUST[operation], images, factor)
        assert difference.abs().max() < LEVELS_FROM_PIL[operation]
        assert difference.abs().mean() < 0.35


def test_crop_grey_and_blur_lie_within_a_level_of_torchvision_on_pil() -> None:
    images = photographs(32, 32, 24)
    crop = crops.draw_resized_crop(24, 32, 32, device=CPU, generator=generator(1))
    cropped = 255 * crops.resized_crop(images, crop, torch.zeros(24, dtype=torch.bool))
    for i in range(24):
        expected = on_pil(TF.resized_crop, images[i : i + 1], *(int(side[i]) for side in crop), [32, 32])
        assert (cropped[i] - expected[0]).abs().max() < 1.01
    grey = 255 * augment.grayscale(as_float(images)) - on_pil(TF.rgb_to_grayscale, images, 3)
    assert grey.abs().max() < 0.6
    for sigma in (0.1, 0.7, 2.0):
        blurred = 255 * crops.gaussian_blur(as_float(images), torch.full((24,), sigma))
        # torchvision rounds a blurred PIL image to the nearest level.
        assert (blurred - on_pil(TF.gaussian_blur, images, [3, 3], [sigma, sigma])).abs().max() < 0.51


def test_chosen_and_uniform_draws() -> None:
    assert augment.draw_chosen(20_000, 0.2, device=CPU, generator=generator()).float().mean() == pytest.approx(
        0.2, abs=0.01
    )
    assert not augment.draw_chosen(1000, 0.0, device=CPU, generator=generator()).any()
    sigma = augment.draw_uniform(10_000, 0.1, 2.0, device=CPU, generator=generator())
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and sigma.mean() == pytest.approx(1.05, abs=0.02)


# --- the views ---------------------------------------------------------------------------------------------------


VIEWS = ["v1", "v2", "v3", "photo v1", "photo v2", "photo v3"]


def view(name: str, images: Tensor, seed: int, *, flip: bool = True) -> Tensor:
    views = (PhotoViews if name.startswith("photo") else Views)(MEAN, STD, flip)
    view = {"v1": views.crop_flip, "v2": views.autoaugment, "v3": views.simclr}[name[-2:]]
    return view(images, generator(seed))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_views(name: str, height: int, width: int) -> None:
    images = photographs(height, width, 12)
    before = images.clone()
    result = view(name, images, 0)
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.isfinite().all()
    assert torch.equal(images, before)
    assert torch.equal(result, view(name, images, 0))
    assert not torch.equal(result, view(name, images, 1))
    low, high = (0 - MEAN) / STD, (1 - MEAN) / STD
    assert (result >= low[:, None, None] - 1e-4).all() and (result <= high[:, None, None] + 1e-4).all()


@pytest.mark.parametrize("name", VIEWS)
def test_views_treat_samples_independently(name: str) -> None:
    images = photographs(32, 32, 24)
    other = images.clone()
    other[1::2] = 255 - other[1::2].flip(-1)
    torch.testing.assert_close(view(name, images, 0)[::2], view(name, other, 0)[::2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_views_by_rows_and_by_masks_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(32, 32, 48)
    by_rows = view(name, images, 0)
    monkeypatch.setattr(pixel_operations, "_shapes_may_depend_on_data", lambda device: False)
    torch.testing.assert_close(view(name, images, 0), by_rows, rtol=0, atol=1e-5)


def test_nothing_makes_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the accelerator's way, once the tables of magnitudes and taps are there."""
    images, draws, lam = photographs(32, 32), generator(), torch.tensor(0.5)
    with HostWaits() as waits:
        view("v2", images, 0)
    assert "nonzero" in waits.found  # the CPU's way; so the net catches something
    monkeypatch.setattr(pixel_operations, "_shapes_may_depend_on_data", lambda device: False)
    for _ in range(2):
        with HostWaits() as waits:
            v1, v2, *_ = (view(name, images, 0) for name in VIEWS)
            box, _ = draw_cutmix_box(32, 32, lam, generator=draws)
            mixup(v1, cutmix(v1, v2, box), draw_beta_one_one(device=CPU, generator=draws))
    assert waits.found == []


@pytest.mark.parametrize("name", ["v1", "v3", "photo v3"])
def test_no_flip_means_none(name: str) -> None:
    """Images dark on the left and bright on the right keep their direction."""
    images = (torch.arange(32) * 8).to(torch.uint8).expand(64, 3, 32, 32)
    slopes = {}
    for flip in (False, True):
        middle = view(name, images, 0, flip=flip).mean(dim=1)[:, 8:24]
        slopes[flip] = (middle[..., 16:24].mean(dim=(1, 2)) > middle[..., 8:16].mean(dim=(1, 2))).float().mean()
    assert slopes[False] == 1
    assert 0.3 < slopes[True] < 0.7


def test_simclr_view_equals_its_steps_in_torchvision() -> None:
    """The whole of v3 for each sample alone, with parameters drawn in the view's order."""
    images, draws = photographs(32, 32, 24), generator(7)
    result = view("v3", images, 7)
    crop = crops.draw_resized_crop(24, 32, 32, device=CPU, generator=draws)
    flip = augment.draw_chosen(24, 0.5, device=CPU, generator=draws)
    jitter = augment.draw_jitter(24, device=CPU, generator=draws)
    gray = augment.draw_chosen(24, 0.2, device=CPU, generator=draws)
    blur = augment.draw_chosen(24, 0.5, device=CPU, generator=draws)
    sigma = augment.draw_uniform(24, 0.1, 2.0, device=CPU, generator=draws)
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    for i, image in enumerate(as_float(images)):
        expected = TF.resized_crop(image, *(int(side[i]) for side in crop), [32, 32], antialias=True)
        expected = TF.hflip(expected) if flip[i] else expected
        for operation in jitter.order[i].tolist() if jitter.chosen[i] else ():
            expected = ADJUST[operation](expected, float(factors[operation][i]))
        expected = TF.rgb_to_grayscale(expected, 3) if gray[i] else expected
        expected = TF.gaussian_blur(expected, [3, 3], [float(sigma[i])] * 2) if blur[i] else expected
        torch.testing.assert_close(result[i], TF.normalize(expected, MEAN.tolist(), STD.tolist()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("least", [None, 0.5])
@pytest.mark.parametrize("name", ["photo v2", "photo v3"])
def test_second_and_third_photo_views_are_their_steps_in_torchvision(name: str, least: float | None) -> None:
    images, draws = photographs(48, 48, 24), generator(7)
    views = PhotoViews(MEAN, STD, True, crop_scale=least)
    result = (views.autoaugment if name == "photo v2" else views.simclr)(images, generator(7))
    crop = crops.draw_resized_crop(24, 48, 48, scale=(least or 0.08, 1.0), device=CPU, generator=draws)
    flip = augment.draw_chosen(24, 0.5, device=CPU, generator=draws)
    jitter = augment.draw_jitter(24, device=CPU, generator=draws)
    gray = augment.draw_chosen(24, 0.2, device=CPU, generator=draws)
    assert gray.any() and not jitter.chosen.all()
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    for i, image in enumerate(as_float(images)):
        expected = TF.resized_crop(image, *(int(side[i]) for side in crop), [48, 48], antialias=True)
        expected = TF.hflip(expected) if flip[i] else expected
        for operation in jitter.order[i].tolist() if jitter.chosen[i] else ():
            expected = ADJUST[operation](expected, float(factors[operation][i]))
        expected = TF.rgb_to_grayscale(expected, 3) if gray[i] else expected
        torch.testing.assert_close(result[i], TF.normalize(expected, MEAN.tolist(), STD.tolist()), rtol=0, atol=1e-4)


def test_the_first_photo_view_is_its_steps_in_torchvision() -> None:
    """On whole levels, as PIL has them, from RandAugment on; a level more or less may cross one of its thresholds."""
    images, draws = photographs(48, 48, 60), generator(7)
    result = PhotoViews(torch.zeros(3), torch.ones(3), True).crop_flip(images, generator(7))
    crop = crops.draw_resized_crop(60, 48, 48, scale=(0.08, 1.0), device=CPU, generator=draws)
    flip = augment.draw_chosen(60, 0.5, device=CPU, generator=draws)
    order = torch.rand((60, 3), generator=draws).argsort(dim=1)
    factors = 1 + 0.4 * (2 * torch.rand((3, 60), generator=draws) - 1)
    torch.rand(60, generator=draws)  # which are jittered: all
    chosen = autoaugment.draw_randaugment(60, device=CPU, generator=draws)
    space = RandAugment()._augmentation_space(10, (48, 48))
    for i, image in enumerate(as_float(images)):
        expected = TF.resized_crop(image, *(int(side[i]) for side in crop), [48, 48], antialias=True)
        expected = TF.hflip(expected) if flip[i] else expected
        for operation in order[i].tolist():
            expected = ADJUST[operation](expected, float(factors[operation, i]))
        picture = TF.to_pil_image((255 * expected).round().to(torch.uint8))
        for slot in (0, 1):
            name = autoaugment.OPERATIONS[int(chosen.operation[i, slot])]
            size = float(space[name][0][9]) if space[name][0].ndim else 0.0
            size *= 1 if chosen.positive[i, slot] or not space[name][1] else -1
            picture = _apply_op(picture, name, size, InterpolationMode.NEAREST, None)
        difference = (255 * result[i] - TF.pil_to_tensor(picture).float()).abs()
        assert (difference > 0.01).float().mean() < 0.01, i


def test_views_keep_full_precision_under_autocast() -> None:
    images = photographs(32, 32, 12)
    expected = view("v3", images, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(view("v3", images, 0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_views_refuse_other_images(name: str) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[b, 3, H, W\], got torch.float32 \[2, 3, 8, 8\]"):
        view(name, torch.zeros(2, 3, 8, 8), 0)
    with pytest.raises(ValueError, match=r"got torch.uint8 \[2, 1, 8, 8\]"):
        view(name, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 0)
