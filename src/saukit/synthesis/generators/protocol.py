"""What a generator has to offer, and what a row of the table of generators holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from saukit.core.console import Reporter
from saukit.core.interrupts import StopRequest
from saukit.data.images import ImageStore, chunks
from saukit.data.split import Split
from saukit.data.types import Images, Integers
from saukit.synthesis.config import ResolvedSynthConfig, SynthConfig

CHECKPOINT = "generator/checkpoint.pt"  # of an unfinished training, in the cache's folder


class ImageGenerator(Protocol):
    """Something that samples images of given classes."""

    @property
    def digest(self) -> str:
        """Identifies the images it samples: equal digests sample equal images."""

    @property
    def description(self) -> dict[str, Any]:
        """What it is, for the manifest."""

    @property
    def capacity(self) -> Integers | None:
        """Images that it has of each class, int64 [K]; None where it samples as many as are wanted."""

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """One batch uint8 [n, 3, H, W]; labels, seeds and numbers within the class int64 [n]."""


@runtime_checkable
class Trainable(Protocol):
    """A generator that is trained on the split before it samples."""

    @property
    def capacity(self) -> Integers | None:
        """As an `ImageGenerator`'s."""

    @property
    def disk_bytes(self) -> int:
        """Bytes that its training needs at most."""

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """As an `ImageGenerator`, with the weights of the moment."""

    def estimate_seconds(self, labels: Integers, seeds: Integers) -> tuple[float, float]:
        """Seconds of the whole training, and of sampling one batch of these int64 [n]; measured, weights unchanged."""

    def train(
        self, folder: Path, *, stop: StopRequest, reporter: Reporter, announce: Callable[[], None]
    ) -> ImageGenerator:
        """Train to the end from where `CHECKPOINT` in `folder` stands, and write the generator's files there.

        `announce` is called if there is something left to train.
        Raises: Interrupted after a signal, once the state is saved.
        """


@dataclass(frozen=True)
class GeneratorEntry:
    """A row of the table of generators.

    open: checks all that may be missing; writes nothing.
    settle: values for the options that the configuration leaves open; problems: what is wrong beside limits and needs.
    resolved: the type of a configuration with these values.
    files: what the generator writes into the cache's folder.
    tries_batch_sizes: whether a GPU's memory limits its batches, so that the batch size is found by trying.
    of_split_alone: whether its images are made of nothing but the split's training images.
    """

    open: Callable[[Any, Split, torch.device, Reporter], ImageGenerator | Trainable]
    settle: Callable[[SynthConfig, Split, torch.device], dict[str, Any]]
    problems: Callable[[SynthConfig], Iterator[str]]
    resolved: type[ResolvedSynthConfig] = ResolvedSynthConfig
    files: tuple[str, ...] = ()
    tries_batch_sizes: bool = True
    of_split_alone: bool = False


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
