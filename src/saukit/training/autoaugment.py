"""AutoAugment and RandAugment for whole batches of uint8 tensors, parameters per sample, no loop over samples.

Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019 (arXiv 1805.09501), appendix A: the
CIFAR-10 policy with the probabilities, the ten magnitude bins and the random signs of
`torchvision.transforms.AutoAugment`. The reference of every operation is torchvision on **PIL images** (interpolation
NEAREST, fill 0); the results are the same bytes:

| operation | how | against torchvision on PIL |
|---|---|---|
| ShearX, ShearY, TranslateX, TranslateY, Rotate | PIL's 16.16 fixed-point affine map, one gather | exact |
| Brightness, Contrast, Posterize, Solarize, Invert, AutoContrast, Equalize | 256-entry table per channel | exact |
| Color, Sharpness | blend with the grey image, with PIL's SMOOTH image | exact |

Every operation is evaluated once a slot for all samples that want it, never once a sub-policy.

Shapes: b samples, height H, width W; images are uint8 [b, 3, H, W].
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from saukit.training.photo_operations import changed
from saukit.training.photos import are_photos, compiled, one_by_one
from saukit.training.pixel_operations import (
    adjust_colour,
    adjust_sharpness,
    affine_grey,
    affine_nearest,
    apply_to_rows,
    autocontrast_table,
    blend,
    contrast_table,
    equalize_table,
    shear_bicubic,
)

# The order matters: the three families below are ranges of positions in this tuple.
OPERATIONS = (
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Contrast", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize"),
    *("Color", "Sharpness"),
    "Identity",
)
_POSITION = {name: position for position, name in enumerate(OPERATIONS)}
_LAST_GEOMETRIC = _POSITION["Rotate"]
_LAST_TABLE = _POSITION["Equalize"]

MAGNITUDE_BINS = 10
_SOLARIZE_THRESHOLDS = torch.linspace(255.0, 0.0, MAGNITUDE_BINS).tolist()
RANDOM_OPERATIONS = tuple(name for name in OPERATIONS if name != "Invert")  # those of RandAugment's paper
RANDOM_SLOTS = 2  # n, and m 10 of 10 is the last bin
RANDOM_PROBABILITY = 0.5
ROTATION_SIGN = 1  # of `positive`: PIL turns anticlockwise by positive degrees

# Each sub-policy: two operations, each with its probability and its magnitude bin (0 where the operation has none).
CIFAR10_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


class AutoAugmentParameters(NamedTuple):
    """What one call of AutoAugment or RandAugment does to each sample: two slots, applied in order.

    Shapes: operation int64 [b, 2], a position in `OPERATIONS` ("Identity" where the slot's coin said no);
        magnitude int64 [b, 2], a bin; positive bool [b, 2], the sign, which unsigned operations ignore.
    """

    operation: Tensor
    magnitude: Tensor
    positive: Tensor


class _MagnitudeTables(NamedTuple):
    affine: Tensor  # int32 [operations, bins, 2, 6], 16.16 fixed point
    factor: Tensor  # float32 [operations, bins, 2]
    threshold: Tensor  # float32 [operations, bins]
    bit_mask: Tensor  # int64 [operations, bins]


def draw_autoaugment(batch: int, *, device: torch.device, generator: torch.Generator) -> AutoAugmentParameters:
    """Draw a sub-policy, two coins and two signs for each sample, as `torchvision.transforms.AutoAugment` does.

    Shapes: returns parameters of shape [b, 2] with b = `batch`.
    """
    operation, probability, magnitude = _policy_tables(device)
    sub_policy = torch.randint(len(CIFAR10_POLICY), (batch,), device=device, generator=generator)
    coins = torch.rand((batch, 2), device=device, generator=generator)
    positive = torch.randint(2, (batch, 2), device=device, generator=generator) == 1
    wanted = coins <= probability[sub_policy]
    return AutoAugmentParameters(
        operation=torch.where(wanted, operation[sub_policy], _POSITION["Identity"]),
        magnitude=magnitude[sub_policy],
        positive=positive,
    )


def draw_randaugment(batch: int, *, device: torch.device, generator: torch.Generator) -> AutoAugmentParameters:
    """RandAugment (Cubuk et al. 2020) with n 2 and m 10 of 10: two of 14 operations at their full size.

    Each is applied with probability 1/2, as in timm's and in the code that long-tail papers use for ImageNet-LT. Not as
    there: its magnitude varies about 10 with a deviation of 0.5, its shears and rotations interpolate and leave the
    mean colour behind, and Solarize at 10 does nothing.

    Shapes: returns parameters of shape [b, 2] with b = `batch`.
    """
    shape = (batch, RANDOM_SLOTS)
    drawn = torch.randint(len(RANDOM_OPERATIONS), shape, device=device, generator=generator)
    drawn = drawn + (drawn >= _POSITION["Invert"])
    wanted = torch.rand(shape, device=device, generator=generator) < RANDOM_PROBABILITY
    positive = torch.randint(2, shape, device=device, generator=generator) == 1
    operation = torch.where(wanted, drawn, _POSITION["Identity"])
    return AutoAugmentParameters(operation, torch.full_like(drawn, MAGNITUDE_BINS - 1), positive)


def autoaugment(images: Tensor, parameters: AutoAugmentParameters, *, as_published: bool = False) -> Tensor:
    """Apply both slots of what was drawn; `as_published` as in `apply_operation`.

    Shapes: images uint8 [b, 3, H, W]; parameters [b, 2] each; returns uint8 [b, 3, H, W].
    """
    if are_photos(images) and not as_published:
        return one_by_one(_autoaugmented_photo, images, *parameters)
    for slot in (0, 1):
        images = apply_operation(
            images,
            parameters.operation[:, slot],
            parameters.magnitude[:, slot],
            parameters.positive[:, slot],
            as_published=as_published,
        )
    return images


def _autoaugmented_photo(photo: Tensor, *drawn: Tensor) -> Tensor:
    """Both slots on one photo [1, 3, H, W]."""
    operation, magnitude, positive = (each[0].tolist() for each in drawn)
    return compiled(changed)(photo, *prepared(operation, magnitude, positive, *photo.shape[2:]))


def prepared(
    operation: list[int], magnitude: list[int], positive: list[bool], height: int, width: int
) -> tuple[list[str], list[list[int]], list[float], list[Tensor]]:
    """What was drawn for one photo as `photo_operations.changed` takes it."""
    each = [one for one in zip(operation, magnitude, positive, strict=True) if OPERATIONS[one[0]] != "Identity"]
    some = [_prepared(*one, height, width) for one in each]
    return [one[0] for one in some], [one[1] for one in some], [one[2] for one in some], [one[3] for one in some]


@lru_cache(maxsize=4096)
def _prepared(
    operation: int, bin_: int, positive: bool, height: int, width: int
) -> tuple[str, list[int], float, Tensor]:
    tables = _magnitude_tables(height, width, torch.device("cpu"))
    affine = tables.affine[operation, bin_, int(positive)].tolist() if operation <= _LAST_GEOMETRIC else []
    row = torch.tensor([operation]), torch.tensor([bin_])
    factor, threshold, bit_mask = tables.factor[*row, int(positive)], tables.threshold[*row], tables.bit_mask[*row]
    table = _simple_table(row[0], factor, threshold, bit_mask)[0]
    return OPERATIONS[operation], affine, float(factor), table


def apply_operation(
    images: Tensor, operation: Tensor, magnitude: Tensor, positive: Tensor, *, as_published: bool = False
) -> Tensor:
    """Apply one operation to each sample.

    `as_published`: as in the code that SAU's authors and many long-tail papers use. What an image is moved away from is
    grey (128), shears are bicubic, and a rotation is always anticlockwise.

    Shapes: images uint8 [b, 3, H, W]; operation int64 [b], positions in `OPERATIONS`; magnitude int64 [b], bins from
        0 to 9; positive bool [b]; returns uint8 [b, 3, H, W].
    """
    height, width = images.shape[-2:]
    tables = _magnitude_tables(height, width, images.device)
    sign = positive.long()
    if as_published:
        sign = torch.where(operation == _POSITION["Rotate"], ROTATION_SIGN, sign)
    affine = tables.affine[operation, magnitude, sign]
    factor = tables.factor[operation, magnitude, sign]
    threshold = tables.threshold[operation, magnitude]
    bit_mask = tables.bit_mask[operation, magnitude]

    if as_published:
        amount = factor - 1
        is_shear = operation <= _POSITION["ShearY"]
        down = operation == _POSITION["ShearY"]
        images = apply_to_rows(is_shear, images.clone(), shear_bicubic, amount, down)
        moved = (operation <= _LAST_GEOMETRIC) & ~is_shear
        images = apply_to_rows(moved, images, affine_grey, affine)
    else:
        images = apply_to_rows(operation <= _LAST_GEOMETRIC, images.clone(), affine_nearest, affine)
    is_table = (operation > _LAST_GEOMETRIC) & (operation <= _LAST_TABLE)
    images = apply_to_rows(is_table, images, _look_up, operation, factor, threshold, bit_mask)
    images = apply_to_rows(operation == _POSITION["Color"], images, adjust_colour, factor)
    return apply_to_rows(operation == _POSITION["Sharpness"], images, adjust_sharpness, factor)


def _look_up(images: Tensor, operation: Tensor, factor: Tensor, threshold: Tensor, bit_mask: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    levels = images.reshape(batch, channels, height * width)
    simple = _simple_table(operation, factor, threshold, bit_mask)
    table = simple[:, None, :, None].repeat(1, channels, 1, 1)  # an image of 256 x 1 pixels, for `apply_to_rows`
    table = apply_to_rows(operation == _POSITION["Contrast"], table, contrast_table, images, factor)
    table = apply_to_rows(operation == _POSITION["AutoContrast"], table, autocontrast_table, levels)
    table = apply_to_rows(operation == _POSITION["Equalize"], table, equalize_table, levels)
    return table[..., 0].gather(2, levels.to(torch.int64)).reshape(images.shape)


def _simple_table(operation: Tensor, factor: Tensor, threshold: Tensor, bit_mask: Tensor) -> Tensor:
    """Of the operations whose table is the same for every image: of [b] each, uint8 [b, 256]."""
    ramp = torch.arange(256, device=factor.device)
    solarised = torch.where(ramp >= threshold[:, None], 255 - ramp, ramp)
    simple = torch.where((operation == _POSITION["Posterize"])[:, None], ramp & bit_mask[:, None], solarised)
    brightened = blend(torch.zeros_like(factor)[:, None], ramp.to(torch.float32), factor[:, None])
    return torch.where((operation == _POSITION["Brightness"])[:, None], brightened, simple.to(torch.uint8))


@lru_cache(maxsize=8)
def _policy_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Operation int64, probability float32 and magnitude bin int64 of the policy, [25, 2] each."""
    operation = [[_POSITION[name] for name, _, _ in pair] for pair in CIFAR10_POLICY]
    probability = [[p for _, p, _ in pair] for pair in CIFAR10_POLICY]
    magnitude = [[bin_ for _, _, bin_ in pair] for pair in CIFAR10_POLICY]
    return (
        torch.tensor(operation, device=device),
        torch.tensor(probability, dtype=torch.float32, device=device),
        torch.tensor(magnitude, device=device),
    )


@lru_cache(maxsize=32)
def _magnitude_tables(height: int, width: int, device: torch.device) -> _MagnitudeTables:
    """Turn (operation, bin, sign) into numbers once an image size, in Python's double precision as PIL is called."""
    bins = MAGNITUDE_BINS
    affine = torch.tensor(_fixed_point((1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), dtype=torch.int32)
    affine = affine.repeat(len(OPERATIONS), bins, 2, 1)
    factor = torch.ones(len(OPERATIONS), bins, 2)
    for name, sizes in _sizes(height, width).items():
        for bin_, size in enumerate(sizes):
            for positive in (0, 1):
                signed = size if positive else -size
                factor[_POSITION[name], bin_, positive] = 1.0 + signed
                if _POSITION[name] <= _LAST_GEOMETRIC:
                    fixed = torch.tensor(_fixed_point(_inverse_affine(name, signed, height, width)))
                    affine[_POSITION[name], bin_, positive] = fixed.to(torch.int32)
    # Invert is Solarize from 0 upwards; 256 leaves every level alone.
    threshold = torch.full((len(OPERATIONS), bins), 256.0)
    threshold[_POSITION["Solarize"]] = torch.tensor(_SOLARIZE_THRESHOLDS)
    threshold[_POSITION["Invert"]] = 0.0
    bit_mask = torch.full((len(OPERATIONS), bins), 255)
    for bin_ in range(bins):
        bit_mask[_POSITION["Posterize"], bin_] = 255 & ~(2 ** round(bin_ / ((bins - 1) / 4)) - 1)
    return _MagnitudeTables(affine.to(device), factor.to(device), threshold.to(device), bit_mask.to(device))


@lru_cache(maxsize=32)
def _sizes(height: int, width: int) -> dict[str, list[float]]:
    """Magnitudes of the signed operations by bin; of the last four what the factor is away from 1."""
    largest = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150.0 / 331.0 * width,
        "TranslateY": 150.0 / 331.0 * height,
        "Rotate": 30.0,
        "Brightness": 0.9,
        "Contrast": 0.9,
        "Color": 0.9,
        "Sharpness": 0.9,
    }
    # float32 steps, widened, because torchvision reads its magnitudes off a float32 linspace.
    return {
        name: torch.linspace(0.0, limit, MAGNITUDE_BINS, dtype=torch.float32).tolist()
        for name, limit in largest.items()
    }


def _inverse_affine(name: str, size: float, height: int, width: int) -> tuple[float, ...]:
    """Coefficients of the map from output to input pixels; shears fix the corner, rotation the centre."""
    if name == "ShearX":
        return (1.0, size, 0.0, 0.0, 1.0, 0.0)
    if name == "ShearY":
        return (1.0, 0.0, 0.0, size, 1.0, 0.0)
    if name == "TranslateX":
        return (1.0, 0.0, -float(int(size)), 0.0, 1.0, 0.0)
    if name == "TranslateY":
        return (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(size)))
    cosine, sine = math.cos(math.radians(size)), math.sin(math.radians(size))
    centre_x, centre_y = width / 2, height / 2
    shift_x = centre_x - cosine * centre_x + sine * centre_y
    shift_y = centre_y - sine * centre_x - cosine * centre_y
    return (cosine, -sine, shift_x, sine, cosine, shift_y)


def _fixed_point(coefficients: tuple[float, ...]) -> list[int]:
    """16.16 fixed point with the half-pixel offset folded in, as PIL's affine_fixed does."""
    a0, a1, a2, a3, a4, a5 = coefficients
    shifted = (a0, a1, a2 + a0 * 0.5 + a1 * 0.5, a3, a4, a5 + a3 * 0.5 + a4 * 0.5)
    return [math.floor(value * 65536.0 + 0.5) for value in shifted]
