"""Splits without colour: a tint that no real image has would show which images are synthetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from saukit.data.images import ImageStore, chunks
from saukit.synthesis.generators.protocol import ImageGenerator, Images, Integers


class Grey:
    """A generator whose images are stripped of colour, for a split that has none."""

    def __init__(self, generator: ImageGenerator) -> None:
        self._generator, self.digest, self.capacity = generator, generator.digest, generator.capacity

    @property
    def description(self) -> dict[str, Any]:
        """That of the generator within."""
        return self._generator.description

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """Its images without colour."""
        return without_colour(self._generator.sample(labels, seeds, ordinals))


def is_grey(images: ImageStore) -> bool:
    """Whether no image [n, 3, H, W] has any colour."""
    return all(bool((some == some[:, :1]).all()) for some in chunks(images))


def without_colour(images: Images) -> Images:
    """Images [n, 3, H, W] with the mean of the channels in each."""
    grey = np.rint(images.mean(axis=1, keepdims=True)).astype(np.uint8)
    return np.broadcast_to(grey, images.shape).copy()
