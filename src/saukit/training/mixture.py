"""The mixed training set D: real and synthetic images, resident on the device, and the order they are visited in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saukit.core.artifacts import format_bytes
from saukit.core.errors import EnvironmentFault
from saukit.core.seeding import torch_generator
from saukit.data.split import Part, Split
from saukit.synthesis.cache import SyntheticImages


@dataclass(frozen=True)
class Mixture:
    """Samples (x, y, s) on one device, the real ones first.

    Shapes: images uint8 [N, 3, H, W]; labels int64 [N]; synthetic bool [N]; class_counts float32 [K], of D.
    """

    images: Tensor
    labels: Tensor
    synthetic: Tensor
    class_counts: Tensor
    real_count: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Two batches A and B of b samples from two independent shuffles of D."""

    images: Tensor
    labels: Tensor
    synthetic: Tensor
    partner_images: Tensor
    partner_labels: Tensor


def build_mixture(split: Split, cache: SyntheticImages | None, device: torch.device) -> Mixture:
    """Copy the split's training part, and the cache if there is one, to `device` once.

    Raises: EnvironmentFault if the images do not fit in the device's memory.
    """
    parts: list[Part | SyntheticImages] = [split.train] if cache is None else [split.train, cache]
    needed = sum(part.images.nbytes for part in parts)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > 0.8 * free:
            raise EnvironmentFault(
                f"the training images take {format_bytes(needed)} but {device} has {format_bytes(free)} free: "
                "free the device, or make the split with a smaller --image-size"
            )
    labels = np.concatenate([part.labels for part in parts])
    return Mixture(
        images=torch.from_numpy(np.concatenate([part.images for part in parts])).to(device),
        labels=torch.from_numpy(labels).to(device),
        synthetic=(torch.arange(len(labels)) >= len(split.train.labels)).to(device),
        class_counts=torch.from_numpy(np.bincount(labels, minlength=split.num_classes)).float().to(device),
        real_count=len(split.train.labels),
    )


class BatchOrder:
    """Which samples make up batches A and B of a step: two independent shuffles an epoch, whole batches only.

    The shuffles are drawn by (seed, epoch), so any step can be reached at once when a run is resumed.
    """

    def __init__(self, mixture: Mixture, batch_size: int, seed: int) -> None:
        self.mixture = mixture
        self.batch_size = min(batch_size, len(mixture))
        self.steps_per_epoch = len(mixture) // self.batch_size
        self._seed = seed
        self._epoch: int | None = None
        self._orders: tuple[Tensor, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """The two batches of a step, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._orders is None or epoch != self._epoch:
            self._orders = (self._shuffle("shuffle-a", epoch), self._shuffle("shuffle-b", epoch))
            self._epoch = epoch
        chosen = slice(position * self.batch_size, (position + 1) * self.batch_size)
        a, b = self._orders[0][chosen], self._orders[1][chosen]
        data = self.mixture
        return Batch(data.images[a], data.labels[a], data.synthetic[a], data.images[b], data.labels[b])

    def _shuffle(self, purpose: str, epoch: int) -> Tensor:
        generator = torch_generator(self._seed, purpose, epoch)
        return torch.randperm(len(self.mixture), generator=generator).to(self.mixture.labels.device)
