"""Boxes of a class's images on other images (CMO): a generator without a network, and without a training."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saukit.core.seeding import torch_generator
from saukit.data.split import Split
from saukit.data.types import Images, Integers
from saukit.synthesis.generators.protocol import GeneratorEntry
from saukit.training.mixup import Box, cutmix, draw_cutmix_box

OWN_SHARE = 0.5  # the least, of an image's pixels
TRIES = 64  # boxes drawn at once; one in six to ten is large enough


class CmoGenerator:
    """Context-rich minority oversampling (Park et al. 2022, Algorithm 1), its images kept instead of trained on once.

    Image i of a class is the background, one of all training images, each as likely, with CutMix's box pasted at the
    same place from the foreground, one of the class's own; the seed of i chooses both and the box.

    Not as the authors have it: lam is from Beta(1, 1), but lam and box are drawn again until at least half of the
    pixels are the foreground's. Their label has both classes, by area, and a cached image's has the foreground's alone:
    it should be what most of the image shows. Both images are as they are; crop and flip come in training.

    digest: the split's, of which and of the seeds all images are made.
    """

    capacity = None

    def __init__(self, split: Split) -> None:
        self._images, self.digest = split.train.images, f"cmo {split.manifest.digest}"
        self._rows = [np.flatnonzero(split.train.labels == label) for label in range(split.num_classes)]
        self.description: dict[str, Any] = {"generator": "cmo", "least_own_share": OWN_SHARE}

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """Images of `labels`, each by its seed: uint8 [n, 3, H, W] of labels, seeds, ordinals int64 [n]."""
        foregrounds, backgrounds, boxes = [], [], []
        height, width = self._images.shape[2:]
        for label, seed in zip(labels.tolist(), seeds.tolist(), strict=True):
            generator, rows = torch_generator(seed, "cmo"), self._rows[label]
            foregrounds.append(rows[_one_of(len(rows), generator)])
            backgrounds.append(_one_of(len(self._images), generator))
            boxes.append(_draw_box(height, width, generator))
        box = Box(*(torch.stack(sides) for sides in zip(*boxes, strict=True)))
        pasted, onto = (torch.from_numpy(self._images[np.array(rows)]) for rows in (foregrounds, backgrounds))
        return cutmix(onto, pasted, box).numpy()


def _one_of(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _draw_box(height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The first of CutMix's boxes that has `OWN_SHARE` of the pixels; sides of 4 pixels and more have such boxes."""
    while True:
        lam = torch.rand(TRIES, generator=generator)  # Beta(1, 1)
        boxes, left = draw_cutmix_box(height, width, lam, generator=generator)
        large = torch.nonzero(left <= 1 - OWN_SHARE)
        if len(large):
            return tuple(side[large[0, 0]] for side in boxes)


ENTRY = GeneratorEntry(
    open=lambda config, split, device, reporter: CmoGenerator(split),
    settle=lambda config, split, device: {"sample_batch_size": 64},
    problems=lambda config: iter(()),
    tries_batch_sizes=False,
    of_split_alone=True,
)
