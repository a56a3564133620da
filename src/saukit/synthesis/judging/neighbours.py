"""How far an image lies from the real images of its class, in a judge's features: what DiffuLT's filter goes by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from saukit.core.machine import slices
from saukit.data.images import ImageStore
from saukit.data.types import Floats, Images, Integers

CHUNK = 1024  # rows of distances at a time


class NeighbourScorer:
    """Distance to the nearest real image of an image's own class; real images of the class have 1 on average.

    DiffuLT (Shao et al. 2024, arXiv 2403.05170) keeps synthetic images that are approximately in the distribution: not
    so close to a real image that they add nothing, and not out of it. In units of the mean distance from a real image
    of the class to the nearest other one, the bounds mean the same for all classes and features. A class of one image
    has the mean of the other classes.
    """

    def __init__(self, features: Callable[[ImageStore], Floats], images: ImageStore, labels: Integers) -> None:
        """`features`: images [n] -> [n, d], compared at length 1. Shapes: labels of the real `images` [N]."""
        self._features = features
        rows = _unit(features(images))
        self._real = {label: rows[torch.from_numpy(labels == label)] for label in np.unique(labels).tolist()}
        scales = {label: _spacing(own) for label, own in self._real.items() if len(own) > 1}
        usual = float(np.mean(list(scales.values()))) if scales else 1.0
        self._scale = {label: scales.get(label, usual) for label in self._real}

    def distance(self, images: Images, labels: Integers) -> Floats:
        """Distances [n], infinite for a class without real images. Shapes: labels [n]."""
        rows, found = _unit(self._features(images)), np.full(len(labels), np.inf, np.float32)
        for label in np.unique(labels).tolist():
            if label in self._real:
                own = labels == label
                nearest = _distances(rows[torch.from_numpy(own)], self._real[label]).amin(1)
                found[own] = (nearest / self._scale[label]).numpy()
        return found


def _unit(features: Floats) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(features).double(), dim=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Pair by pair, so that they do not depend on what else is asked for. Shapes: a [n, d]; b [m, d]; [n, m]."""
    parts = [torch.cdist(a[part], b, compute_mode="donot_use_mm_for_euclid_dist") for part in slices(len(a), CHUNK)]
    return torch.cat(parts)


def _spacing(rows: Tensor) -> float:
    """Mean distance from a row to the nearest other one, above 0. Shapes: rows [n, d]."""
    pairs = _distances(rows, rows).fill_diagonal_(torch.inf)
    return max(float(pairs.amin(1).mean()), torch.finfo(torch.float32).tiny)
