"""How many images of each class a long-tailed split has, and which ones.

Profiles over classes c = 0 .. K - 1 in ascending order, class 0 the head, with imb = largest / smallest:

    exp      int(n_max * (1/imb) ** (c / (K - 1)))                          Cui et al. 2019; the usual CIFAR-LT
    step     n_max for the first K // 2 classes, int(n_max / imb) for the rest     Buda et al. 2018
    pareto   int(n_max * x_c ** -(alpha + 1)), x_c evenly from 1 to imb ** (1 / (alpha + 1)), alpha = 6
             the power value of ImageNet-LT (Liu et al. 2019), scaled so that head / tail is imb
"""

from collections.abc import Mapping, Sequence

import numpy as np

from saukit.core.errors import UsageError
from saukit.core.seeding import numpy_generator
from saukit.core.words import shortened
from saukit.data.types import Integers

PARETO_ALPHA = 6.0
# 49 * (1 / 49) is 0.999..., and truncating that would lose the image which the ratio grants.
ROUNDING = 1e-9


def profile_counts(profile: str, n_max: int, imb: float, num_classes: int) -> Integers:
    """Images of each class, int64 [num_classes], by the formulas above."""
    if num_classes == 1:
        return np.array([n_max], np.int64)
    position = np.arange(num_classes) / (num_classes - 1)
    if profile == "exp":
        counts = n_max * (1 / imb) ** position
    elif profile == "step":
        counts = np.where(np.arange(num_classes) < num_classes // 2, float(n_max), n_max * (1 / imb))
    else:
        power = PARETO_ALPHA + 1
        counts = n_max * (1 + position * (imb ** (1 / power) - 1)) ** -power
    return (counts + ROUNDING).astype(np.int64)


def fitting_counts(profile: str, imb: float, available: Integers) -> Integers:
    """Images of each class for the largest n_max that every class can bear.

    n_max is N // K of a balanced source; where classes differ in size it is the largest n_max <= N // K with which no
    class is asked for more images than it has (`available`, int64 [K], each at least 1).
    Raises: UsageError if the smallest class would be left without an image; it names the largest ratio that works.
    """
    counts = _fit(profile, imb, available)
    if counts.min() >= 1:
        return counts
    # n_max is N // K at most, so no ratio above that can leave the tail an image.
    most = int(available.sum()) // len(available)
    possible = next(r for r in range(most, 0, -1) if _fit(profile, r, available).min() >= 1)
    raise UsageError(
        f"imb {imb:g} leaves the smallest class without an image, as the largest one has {counts.max()}: "
        f"imb can be {possible} at most"
    )


def named_counts(requested: Mapping[str, int], classes: Sequence[str], available: Integers) -> Integers:
    """Images of each class for explicit counts; a class that is not named keeps all it has.

    Raises: UsageError that lists every unknown class and every count that is below 1 or above what is there.
    """
    counts, problems = available.copy(), []
    for name, index in named_classes(requested, classes).items():
        count = requested[name]
        if not 1 <= count <= available[index]:
            problems.append(f"{classes[index]}={count} (1 to {available[index]} are possible)")
        counts[index] = count
    if problems:
        raise UsageError(f"counts do not fit the data: {', '.join(problems)}")
    return counts


def named_classes(requested: Mapping[str, int], classes: Sequence[str]) -> dict[str, int]:
    """The class index behind each key, a class name or, where no class name is a number, an index.

    Raises: UsageError that lists the unknown keys, or for a class given twice.
    """
    positions = {name: index for index, name in enumerate(classes)}
    if not any(name.isdecimal() for name in classes):
        positions |= {str(index): index for index in range(len(classes))}
    unknown = [repr(key) for key in requested if str(key) not in positions]
    if unknown:
        raise UsageError(f"counts name unknown classes {', '.join(unknown)}: there are {shortened(classes)}")
    found = {key: positions[str(key)] for key in requested}
    twice = sorted({classes[index] for index in found.values() if list(found.values()).count(index) > 1})
    if twice:
        raise UsageError(f"counts name a class twice: {', '.join(twice)}")
    return found


def select_ldam(labels: Integers, counts: Integers, seed: int) -> Integers:
    """Positions in `labels` of the chosen images, class by class, as LDAM-DRW's CIFAR-LT chooses them.

    One legacy generator from `seed`; for each class in ascending order its positions are shuffled and the first
    counts[c] taken. The order of the result is the order of choice.
    """
    generator = np.random.RandomState(seed)
    chosen = []
    for index, count in enumerate(counts):
        positions = np.flatnonzero(labels == index)
        generator.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def stratified_part(
    labels: Integers, fraction: float, num_classes: int, *, seed: int, purpose: str
) -> tuple[Integers, Integers]:
    """Positions in `labels` that stay, and those of a part with `fraction` of each class, both ascending.

    A class of two or more gives at least one image and keeps at least one; a class of one gives none.
    """
    taken = np.zeros(len(labels), bool)
    for index in range(num_classes):
        positions = np.flatnonzero(labels == index)
        if len(positions) >= 2:
            count = min(max(round(len(positions) * fraction), 1), len(positions) - 1)
            taken[numpy_generator(seed, purpose, index).permutation(positions)[:count]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def class_counts(labels: Integers, num_classes: int) -> Integers:
    """Images of each class, int64 [num_classes]."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def _fit(profile: str, imb: float, available: Integers) -> Integers:
    num_classes = len(available)
    low, high = 0, int(available.sum()) // num_classes
    while low < high:  # counts grow with n_max, so the fitting values of n_max are an interval from 0
        middle = (low + high + 1) // 2
        if (profile_counts(profile, middle, imb, num_classes) <= available).all():
            low = middle
        else:
            high = middle - 1
    return profile_counts(profile, low, imb, num_classes)
