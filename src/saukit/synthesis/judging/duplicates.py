"""Near-duplicates of small images: exact, mirrored, shifted by a pixel, slightly noised or brightened copies.

A mirrored image counts as a copy only where mirroring keeps an image's class (`flip`, as a split says of itself): there
a generator is trained on mirrored images too. A mirrored 2 is not a 2, and no generator has seen one.

The distance is `data.pair_distance`, at the better of two mirrorings. Pixels do not find an image that was cropped or
made brighter; where there is a pretrained network, its features do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.machine import slices
from saukit.core.seeding import numpy_generator
from saukit.data.fingerprints import compared_size
from saukit.data.images import ImageStore
from saukit.data.pair_distance import SHIFTS, as_compared, pair_distance
from saukit.data.types import Flags, Floats, Images, Integers

Features = Callable[[ImageStore], Floats]

# The rule of the threshold, see `CopyDetector`.
REAL_SHARE = 0.01
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.1, 0.25
LOWEST_COSINE = 0.01  # of features: images of one machine or camera are all alike
CALIBRATION_IMAGES = 2000
# A descriptor has at most 10 cells a side. Of 3,000 shifted copies in CIFAR-10, 16 candidates then hold every one and 8
# all but one; with 8 cells a side 16 candidates miss 3, with 4 they miss 59.
CANDIDATES, CELLS = 16, 10
SHIFTED_DESCRIPTORS_UP_TO = 16  # pixels: up to here a shift by one pixel changes the descriptor too much
MATRIX_VALUES, PAIR_VALUES = 2**23, 2**18  # float32 held at once: 32 MiB, and 1 MiB an operand (it fits a cache)


@dataclass(frozen=True)
class Nearest:
    """The closest reference image of each of n images: `distance` float32 [n], `index` int64 [n]."""

    distance: Floats
    index: Integers


class CopyDetector:
    """Finds images that are copies of one of m reference images.

    The threshold, if none is given, comes from the reference set: a copy is closer to a reference image than 99 % of
    the reference images are to any other of them, and in any case closer than 0.25; and what is closer than 0.1 is
    always a copy, so that a set that holds duplicates itself still has a threshold. With one image it is 0.25.
    (CIFAR-10 at ratio 100: 0.20, where 0.25 finds no false copies yet; digits: 0.16.)

    Two stages: the nearest candidates by a coarse descriptor (means over a grid of cells, both mirrorings if `flip`),
    and the exact distance to these. A copy is practically always a candidate; for an image that is none, the closest
    reference image may be missed for one nearly as close.

    With `features` an image is also a copy that is closer to a reference image by their cosine than 99 % of the
    reference images are to any other of them; its distance is the smaller of both, that of the cosine scaled to the
    threshold.
    """

    def __init__(
        self,
        reference: ImageStore,
        *,
        flip: bool,
        threshold: float | None = None,
        device: torch.device,
        features: Features | None = None,
        feature_scale: float | None = None,
    ) -> None:
        """`reference`: uint8 [m, 3, H, W], of 4 pixels a side and m 1 at least; `flip`: whether a mirrored copy is one.

        `features` gives float32 [n, d] of images; `feature_scale`: what 1 - cosine is multiplied by, None: calibrated.
        """
        self.flip = flip
        self._reference, self._threshold, self.device = reference, threshold, device
        at_once = max(1, MATRIX_VALUES // max(1, math.prod(reference.shape[1:])))  # images held as floats
        described = [
            _describe(as_compared(reference[part], device, mirrored=mirrored))
            for mirrored in (False, True)[: 1 + flip]
            for part in slices(len(reference), at_once)
        ]
        self._described = torch.cat(described)  # [v, d]: as they are, v = m, then if `flip` mirrored, v = 2 m
        self._features, self._scale = features, feature_scale
        self._embedded = None if features is None else _normalised(features(reference))  # [m, d]

    def of(self, images: ImageStore) -> CopyDetector:
        """The same detector, threshold and all, of copies of other images."""
        scale = None if self._features is None else self._feature_scale
        return CopyDetector(
            images,
            flip=self.flip,
            threshold=self.threshold,
            device=self.device,
            features=self._features,
            feature_scale=scale,
        )

    @property
    def threshold(self) -> float:
        """What is closer than this is a copy. Calibrated at the first use, if none was given."""
        if self._threshold is None:
            self._threshold = calibrated_threshold(self._search(*self._real).distance)
        return self._threshold

    @cached_property
    def real_distances(self) -> Floats:
        """How close reference images are to the closest other one, float32 [n]: of all, or of a fixed 2,000 of them.

        Empty if there is only one.
        """
        if not len(self._real[1]):
            return np.empty(0, dtype=np.float32)
        found = self._search(*self._real)
        if self._embedded is None:
            return found.distance
        return self._nearer(found, self._by_cosine(self._embedded[self._real[1]], self._real[1])).distance

    @cached_property
    def _real(self) -> tuple[Images, Integers]:
        """The reference images that calibrate the detector, and where they are; none where there is only one."""
        chosen = np.arange(len(self._reference) if len(self._reference) > 1 else 0)
        if len(chosen) > CALIBRATION_IMAGES:
            sample = numpy_generator(0, "copy-calibration").choice(len(chosen), CALIBRATION_IMAGES, replace=False)
            chosen = np.sort(sample)
        return self._reference[chosen], chosen

    @property
    def _feature_scale(self) -> float:
        """What 1 - cosine is multiplied by, so that the threshold is where 1 % of the reference images lie."""
        if self._scale is None:
            assert self._embedded is not None
            real = self._by_cosine(self._embedded[self._real[1]], self._real[1]).distance
            self._scale = self.threshold / calibrated_threshold(real, lowest=LOWEST_COSINE)
        return self._scale

    def _nearer(self, by_pixels: Nearest, by_cosine: Nearest) -> Nearest:
        scaled = by_cosine.distance * np.float32(self._feature_scale)
        closer = scaled < by_pixels.distance
        distance = np.where(closer, scaled, by_pixels.distance)
        return Nearest(distance, np.where(closer, by_cosine.index, by_pixels.index))

    def _by_cosine(self, embedded: Floats, own: Integers | None) -> Nearest:
        """By 1 - cosine, of features [n, d] of length 1; `own` as in `_search`."""
        assert self._embedded is not None
        distance, index = np.empty(len(embedded), np.float32), np.empty(len(embedded), np.int64)
        for part in slices(len(embedded), max(1, MATRIX_VALUES // len(self._embedded))):
            found = 1 - embedded[part] @ self._embedded.T
            if own is not None:
                found[np.arange(len(found)), own[part]] = np.inf
            index[part] = found.argmin(axis=1)
            distance[part] = np.maximum(found.min(axis=1), 0)
        return Nearest(distance, index)

    def nearest(self, images: ImageStore) -> Nearest:
        """The closest reference image of each image, uint8 [n, 3, H, W] of their size; among equals the first."""
        found = self._search(images, None)
        if self._features is None:
            return found
        return self._nearer(found, self._by_cosine(_normalised(self._features(images)), None))

    def is_copy(self, nearest: Nearest) -> Flags:
        """Whether each image is a copy, bool [n]."""
        return nearest.distance < self.threshold

    def _search(self, images: ImageStore, own: Integers | None) -> Nearest:
        """`own` [n]: the reference image that each image is itself, and is not compared with."""
        count, views = len(self._reference), len(self._described)
        distance, index = np.full(len(images), np.inf, dtype=np.float32), np.zeros(len(images), dtype=np.int64)
        for part in slices(len(images), max(1, min(1024, MATRIX_VALUES // views))):
            query = as_compared(images[part], self.device)
            coarse = self._coarse(query)
            if own is not None:
                itself = torch.as_tensor(own[part], device=self.device)[:, None]
                coarse.scatter_(1, torch.cat([itself + at for at in range(0, views, count)], dim=1), torch.inf)
            picked = coarse.topk(min(CANDIDATES, views), largest=False)[1].sort(dim=1)[0]
            exact = self._exact(query, picked)
            if own is not None:
                exact.masked_fill_(picked % count == itself, torch.inf)
            values, names = exact.cpu().numpy(), (picked % count).cpu().numpy()
            distance[part] = values.min(axis=1)
            # the lowest index among equals: which of them comes first in `picked` depends on the mirroring
            index[part] = np.where(values == distance[part][:, None], names, count).min(axis=1)
        return Nearest(distance, index)

    def _coarse(self, query: Tensor) -> Tensor:
        """Squared distances of the descriptors, [n, v]."""
        best: Tensor | None = None
        small = min(query.shape[2:]) <= SHIFTED_DESCRIPTORS_UP_TO
        for shift in SHIFTS if small else ((0, 0),):
            distances = _squared_distances(_describe(query, shift), self._described)
            best = distances if best is None else torch.minimum(best, distances, out=best)
        assert best is not None
        return best

    def _exact(self, query: Tensor, picked: Tensor) -> Tensor:
        """Distances of each of n images to its candidates, numbers in [0, v): [n, k] to [n, k]."""
        rows = torch.arange(len(query), device=self.device).repeat_interleave(picked.shape[1])
        flat, count = picked.flatten(), len(self._reference)
        distances = torch.empty(len(flat), device=self.device)
        each = 3 * math.prod(compared_size(*self._reference.shape[2:]))
        for part in slices(len(flat), max(1, PAIR_VALUES // each)):
            other = as_compared(self._reference[(flat[part] % count).cpu().numpy()], self.device)
            mirrored = (flat[part] >= count)[:, None, None, None]
            distances[part] = pair_distance(query[rows[part]], torch.where(mirrored, other.flip(3), other))
        return distances.view_as(picked)


def calibrated_threshold(real_distances: Floats, *, lowest: float = LOWEST_THRESHOLD) -> float:
    """The threshold of `CopyDetector` for the distances of real images to the closest other one."""
    if not len(real_distances):
        return HIGHEST_THRESHOLD
    return float(np.clip(np.quantile(real_distances.astype(np.float64), REAL_SHARE), lowest, HIGHEST_THRESHOLD))


def _normalised(features: Floats) -> Floats:
    rows: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return rows


def _describe(images: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Means over cells of what a shift by one pixel leaves, less each channel's mean, [n, d].

    Scaled so that the distance of two descriptors is the RMS of the cells' differences.
    """
    height, width = images.shape[2:]
    cells = math.ceil((height - 2) / CELLS), math.ceil((width - 2) / CELLS)
    core = images[:, :, 1 + shift[0] : height - 1 + shift[0], 1 + shift[1] : width - 1 + shift[1]]
    grid = F.avg_pool2d(core, cells).flatten(2)  # a rest that fills no cell is left out
    described = (grid - grid.mean(2, keepdim=True)).flatten(1)
    return described / math.sqrt(described.shape[1])


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Of rows, [n, d] and [m, d] to [n, m]; off by up to about 1e-6 for descriptors, also below 0."""
    squares: Tensor = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    squares += a.square().sum(1, keepdim=True)
    return squares
