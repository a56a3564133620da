"""What a generator learns from: batches of the split's training images, classes as often as is asked for."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import widest
from saukit.core.seeding import derive_seed
from saukit.data.images import ImageStore, chunks
from saukit.data.types import Integers
from saukit.synthesis.generators.protocol import is_grey


class TrainingImages:
    """The split's training images on a device, at `size` (height, width; None: their own), class by class.

    A class of n images is chosen with probability proportional to n^(1 - balance): 1 makes all classes equally likely,
    0 all images. `grey`: whether no image has any colour.
    """

    def __init__(
        self,
        images: ImageStore,
        labels: Integers,
        num_classes: int,
        *,
        size: tuple[int, int] | None = None,
        flip: bool,
        balance: float,
        device: torch.device,
    ) -> None:
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=num_classes)
        self._class_counts, self._first = counts, np.cumsum(counts) - counts
        if size in (None, images.shape[2:]):
            self.images = torch.from_numpy(np.asarray(images)).to(device)
        else:
            assert size is not None
            self.images = torch.cat([resized(torch.from_numpy(some), size) for some in chunks(images)]).to(device)
        self.flip = flip
        self.grey = is_grey(images)
        self._order = torch.from_numpy(order).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._shares = self._counts.to(widest(device)) ** (1 - balance)
        self._starts = torch.from_numpy(self._first).to(device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch: uint8 images [count, 3, H, W], half of them mirrored if the split allows it, and labels [count]."""
        device = generator.device
        labels = torch.multinomial(self._shares, count, replacement=True, generator=generator)
        within = torch.rand(count, generator=generator, device=device, dtype=widest(device))
        index = self._starts[labels] + (within * self._counts[labels]).long()
        images = self.images[self._order[index]]
        if self.flip:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return images, labels

    def draw_classes(self, count: int, generator: torch.Generator) -> Tensor:
        """Classes int64 [count], each as likely as it has images."""
        return torch.multinomial(
            self._counts.to(widest(generator.device)), count, replacement=True, generator=generator
        )

    def origins(self, labels: Integers, seeds: Integers) -> Tensor:
        """The images uint8 [n, 3, H, W] that images of `labels` and `seeds` vary: of the class, chosen by the seed."""
        index = [
            int(self._first[c] + derive_seed(int(seed), "origin") % self._class_counts[c])
            for c, seed in zip(labels, seeds, strict=True)
        ]
        return self.images[self._order[torch.tensor(index, device=self._order.device)]]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images uint8 [n, 3, H, W] at another height and width, bicubic with antialiasing."""
    pixels = F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)
