"""AutoAugment's operations against torchvision on PIL images, byte for byte, and its draws against torchvision's."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from saukit.training import autoaugment, pixel_operations
from saukit.training.autoaugment import CIFAR10_POLICY, OPERATIONS

CPU = torch.device("cpu")
REFERENCE = AutoAugment(AutoAugmentPolicy.CIFAR10)
SIZES = [(8, 8), (32, 32), (50, 36), (72, 80)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for each other make these tests many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(height: int, width: int) -> list[Image.Image]:
    """Photographs, a digit, noise, a sparse, a dark, a two-level and a constant picture."""
    china, digits, draws = load_sample_image("china.jpg"), load_digits().images, np.random.default_rng(0)
    noise = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    arrays = [china[40 * i : 40 * i + 120, 60 * i : 60 * i + 150 + 40 * i] for i in range(4)]
    arrays += [np.stack([np.uint8(digits[5] * 15.9)] * 3, axis=-1), noise, noise // 16, np.uint8(noise > 230) * 200]
    arrays += [np.uint8(noise > 128) * 101 + 50, np.full_like(noise, 77)]
    return [Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR) for array in arrays]


def to_tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([TF.pil_to_tensor(image) for image in images])


class Recorded(AutoAugment):
    """torchvision's AutoAugment with its draws given from outside."""

    def __init__(self, policies: list[tuple[tuple[str, float, int | None], tuple[str, float, int | None]]]) -> None:
        super().__init__(AutoAugmentPolicy.CIFAR10)
        self.policies = policies
        self.draw = (0, torch.zeros(2), torch.zeros(2))

    def get_params(self, transform_num: int) -> tuple[int, Tensor, Tensor]:  # type: ignore[override]
        return self.draw


def test_policy_is_torchvisions() -> None:
    for ours, theirs in zip(CIFAR10_POLICY, REFERENCE.policies, strict=True):
        assert ours == tuple((name, probability, bin_ or 0) for name, probability, bin_ in theirs)


@pytest.fixture(params=["rows", "masks"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_operations, "_shapes_may_depend_on_data", lambda device: request.param == "rows")


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_operation_equals_torchvision_on_pil(name: str, height: int, width: int) -> None:
    images = pictures(height, width)
    batch, count = to_tensor(images), len(images)
    before = batch.clone()
    for bin_ in range(10):
        for positive in (False, True):
            magnitude = None if name in ("AutoContrast", "Equalize", "Invert") else bin_
            reference = Recorded([((name, 1.0, magnitude), (name, -1.0, magnitude))])
            reference.draw = (0, torch.tensor([0.5, 0.5]), torch.tensor([int(positive), 0]))
            expected = images if name == "Identity" else [reference(image) for image in images]
            result = autoaugment.apply_operation(
                batch,
                torch.full((count,), OPERATIONS.index(name)),
                torch.full((count,), bin_),
                torch.full((count,), positive),
            )
            assert torch.equal(result, to_tensor(expected)), (name, bin_, positive)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_photos_equals_torchvision_on_pil(name: str) -> None:
    """However their pixels lie in memory, in either slot, and twice."""
    images, unsized = pictures(72, 80), name in ("AutoContrast", "Equalize", "Invert", "Identity")
    batch = to_tensor(images)
    before, none = batch.clone(), OPERATIONS.index("Identity")
    for bin_ in (0,) if unsized else range(10):
        for positive in (False, True):
            magnitude = None if name in ("AutoContrast", "Equalize", "Invert") else bin_
            reference = Recorded([((name, 1.0, magnitude), (name, -1.0, magnitude))])
            reference.draw = (0, torch.tensor([0.5, 0.5]), torch.tensor([int(positive), 0]))
            once = images if name == "Identity" else [reference(image) for image in images]
            twice = once if name == "Identity" else [reference(image) for image in once]
            for slots, expected in (((1, 0), once), ((0, 1), once), ((1, 1), twice)):
                drawn = torch.tensor([[OPERATIONS.index(name) if slot else none for slot in slots]])
                parameters = autoaugment.AutoAugmentParameters(
                    *(row.expand(len(images), 2) for row in (drawn, torch.tensor([[bin_]]), torch.tensor([[positive]])))
                )
                for laid in (batch, batch.contiguous(memory_format=torch.channels_last)):
                    found = autoaugment.autoaugment(laid, parameters)
                    assert torch.equal(found, to_tensor(expected)), (bin_, positive, slots)
    assert torch.equal(batch, before)


def published(name: str, image: Image.Image, size: float) -> Image.Image:
    """The geometric operations of the AutoAugment that long-tail papers use, with PIL's own calls."""
    grey = (128, 128, 128)
    if name == "ShearX":
        shear = (1.0, size, 0.0, 0.0, 1.0, 0.0)
        return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=grey)
    if name == "ShearY":
        shear = (1.0, 0.0, 0.0, size, 1.0, 0.0)
        return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=grey)
    if name == "Rotate":
        turned = image.convert("RGBA").rotate(abs(size))
        return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")
    # Theirs moves by fractions of a pixel, saukit's as torchvision's by whole ones.
    x, y = (float(int(size)), 0.0) if name == "TranslateX" else (0.0, float(int(size)))
    return image.transform(image.size, Image.Transform.AFFINE, (1.0, 0.0, -x, 0.0, 1.0, -y), fillcolor=grey)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_published_geometry_is_pils_with_grey_around(name: str, height: int, width: int) -> None:
    images = pictures(height, width)
    largest = {"Rotate": 30.0, "TranslateX": 150 / 331 * width, "TranslateY": 150 / 331 * height}.get(name, 0.3)
    sizes = torch.linspace(0.0, largest, 10).tolist()
    for bin_ in (0, 3, 7, 9):
        for positive in (False, True):
            result = autoaugment.apply_operation(
                to_tensor(images),
                torch.full((len(images),), OPERATIONS.index(name)),
                torch.full((len(images),), bin_),
                torch.full((len(images),), positive),
                as_published=True,
            )
            size = sizes[bin_] if positive else -sizes[bin_]
            expected = to_tensor([published(name, image, size) for image in images])
            assert (result.int() - expected.int()).abs().max() <= (name in ("ShearX", "ShearY")), (bin_, positive)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_drawn_sub_policies_equal_torchvision_on_pil(height: int, width: int) -> None:
    """Both slots at once, every sample with its own sub-policy: the same bytes as torchvision given the same draws."""
    images = pictures(height, width) * 30
    count = len(images)
    parameters = autoaugment.draw_autoaugment(count, device=CPU, generator=torch.Generator().manual_seed(0))
    result = autoaugment.autoaugment(to_tensor(images), parameters)
    unsized = ("AutoContrast", "Equalize", "Invert")
    for i, image in enumerate(images):
        names = [OPERATIONS[k] for k in parameters.operation[i].tolist()]
        pair = [
            (name, 0.0 if name == "Identity" else 1.0, None if name in unsized else bin_)
            for name, bin_ in zip(names, parameters.magnitude[i].tolist(), strict=True)
        ]
        reference = Recorded([(pair[0], pair[1])])
        reference.draw = (0, torch.tensor([0.5, 0.5]), parameters.positive[i].long())
        assert torch.equal(result[i], TF.pil_to_tensor(reference(image))), (i, pair)


def test_draws_follow_the_policy() -> None:
    count = 100_000
    drawn = autoaugment.draw_autoaugment(count, device=CPU, generator=torch.Generator().manual_seed(0))
    identity = OPERATIONS.index("Identity")
    assert drawn.operation.shape == drawn.magnitude.shape == drawn.positive.shape == (count, 2)
    for slot in (0, 1):
        expected = torch.zeros(len(OPERATIONS), 10)
        for pair in CIFAR10_POLICY:
            name, probability, bin_ = pair[slot]
            expected[OPERATIONS.index(name), bin_] += probability / len(CIFAR10_POLICY)
            expected[identity, bin_] += (1 - probability) / len(CIFAR10_POLICY)
        pairs = drawn.operation[:, slot] * 10 + drawn.magnitude[:, slot]
        observed = torch.bincount(pairs, minlength=expected.numel()).view_as(expected) / count
        assert (observed - expected).abs().max() < 0.005
        assert drawn.positive[:, slot].float().mean() == pytest.approx(0.5, abs=0.01)
    both = drawn.positive.float()
    assert (both[:, 0] * both[:, 1]).mean() == pytest.approx(0.25, abs=0.01)


def test_randaugment_draws_the_fourteen_operations_at_full_size() -> None:
    count = 50_000
    drawn = autoaugment.draw_randaugment(count, device=CPU, generator=torch.Generator().manual_seed(0))
    known = set(RandAugment()._augmentation_space(10, (32, 32)))  # torchvision's, which are the paper's
    assert drawn.operation.shape == drawn.magnitude.shape == drawn.positive.shape == (count, 2)
    for slot in (0, 1):
        shares = {
            name: float((drawn.operation[:, slot] == position).float().mean())
            for position, name in enumerate(OPERATIONS)
        }
        assert {name for name, share in shares.items() if share} == known
        assert all(abs(shares[name] - 1 / 28) < 0.005 for name in known - {"Identity"})
        assert shares["Identity"] == pytest.approx(15 / 28, abs=0.01)
    assert set(drawn.magnitude.flatten().tolist()) == {9}
    assert drawn.positive.float().mean() == pytest.approx(0.5, abs=0.01)
    both = (drawn.operation != OPERATIONS.index("Identity")).float()
    assert (both[:, 0] * both[:, 1]).mean() == pytest.approx((13 / 28) ** 2, abs=0.01)


@pytest.mark.usefixtures("both_ways")
def test_randaugment_equals_torchvision_on_pil() -> None:
    """RandAugment(2, 9 of 10 bins), given the draws: the same bytes."""
    images = pictures(36, 50) * 20
    drawn = autoaugment.draw_randaugment(len(images), device=CPU, generator=torch.Generator().manual_seed(0))
    result = autoaugment.autoaugment(to_tensor(images), drawn)
    space = RandAugment()._augmentation_space(10, (36, 50))
    for i, image in enumerate(images):
        expected = image
        for position, positive in zip(drawn.operation[i].tolist(), drawn.positive[i].tolist(), strict=True):
            sizes, signed = space[OPERATIONS[position]]
            size = float(sizes[9]) if sizes.ndim else 0.0
            size *= -1.0 if signed and not positive else 1.0
            expected = _apply_op(expected, OPERATIONS[position], size, TF.InterpolationMode.NEAREST, None)
        assert torch.equal(result[i], TF.pil_to_tensor(expected)), i


def test_slots_come_from_one_sub_policy() -> None:
    drawn = autoaugment.draw_autoaugment(5000, device=CPU, generator=torch.Generator().manual_seed(1))
    allowed = {(pair[0][2], pair[1][2]) for pair in CIFAR10_POLICY}
    assert {tuple(row) for row in drawn.magnitude.tolist()} == allowed
    pairs = {tuple(OPERATIONS[k] for k in row) for row in drawn.operation.tolist()}
    applied = {pair for pair in pairs if "Identity" not in pair}
    assert applied == {(pair[0][0], pair[1][0]) for pair in CIFAR10_POLICY if pair[1][1] > 0}


def test_draws_are_determined_by_the_generator() -> None:
    first, second, third = (
        autoaugment.draw_autoaugment(64, device=CPU, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.operation, third.operation)


@pytest.mark.usefixtures("both_ways")
def test_result_follows_a_permutation_of_the_batch() -> None:
    batch = to_tensor(pictures(32, 32) * 8)
    parameters = autoaugment.draw_autoaugment(len(batch), device=CPU, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    permuted = autoaugment.AutoAugmentParameters(*(parameter[order] for parameter in parameters))
    expected = autoaugment.autoaugment(batch, parameters)[order]
    assert torch.equal(autoaugment.autoaugment(batch[order], permuted), expected)
