"""Which image of which class has which seed, in which shard and batch: fixed before the first image is made.

Bit-equal images across batch sizes do not exist, even with a generator an image, so a resumed run makes the same images
only if it makes the same batches. The plan is a pure function of the configuration and of the split's class counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from saukit.core.errors import DataError, UsageError
from saukit.core.seeding import derive_seed
from saukit.synthesis.config import SynthConfig, resolve_config

if TYPE_CHECKING:
    import torch

    from saukit.data.split import Split

# A shard is what a stop can cost: half a minute of a CPU's work. Large caches have larger shards, not thousands.
MIN_SHARD_IMAGES, MIN_SHARDS, MAX_SHARDS = 512, 8, 256
SHARD_EXTRA_BYTES = 4096 + 16  # a header, and a label and a seed an image


@dataclass(frozen=True)
class SynthesisPlan:
    """What `synth` will make; n images in all, K classes.

    `labels` and `seeds` int64 [n] are in the order of the cache: class by class, and image 0, 1, ... of each class.
    `real_counts` and `synthetic_counts` int64 [K]. `shard_images` is a multiple of the batch, the last shard may be
    shorter.
    """

    config: SynthConfig
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    real_counts: npt.NDArray[np.int64]
    synthetic_counts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    batch_images: int
    shard_images: int

    @property
    def total(self) -> int:
        """Synthetic images in all."""
        return len(self.labels)

    @property
    def shards(self) -> list[slice]:
        """The images of each shard."""
        return [slice(at, min(at + self.shard_images, self.total)) for at in range(0, self.total, self.shard_images)]

    def batches(self, shard: slice) -> Iterator[slice]:
        """The images of each batch of `shard`; the last batch may be shorter."""
        for at in range(shard.start, shard.stop, self.batch_images):
            yield slice(at, min(at + self.batch_images, shard.stop))

    @property
    def bytes(self) -> int:
        """Size of all shards on disk, headers included."""
        height, width = self.image_size
        return self.total * (3 * height * width + SHARD_EXTRA_BYTES % 4096) + 4096 * len(self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of labels, seeds and batches: two plans with the same digest make the same images."""
        sha = hashlib.sha256(f"{self.image_size} {self.batch_images} {self.shard_images}".encode())
        sha.update(self.labels.astype("<i8").tobytes())
        sha.update(self.seeds.astype("<i8").tobytes())
        return sha.hexdigest()


def plan_synthesis(config: SynthConfig, split: Split, device: torch.device) -> SynthesisPlan:
    """The plan for `split`, with `config` resolved for `device`; writes nothing.

    Raises: UsageError for values out of their limits and for a target that needs no image, DataError for a class that
    has no real image to learn from.
    """
    from saukit.core.device import resolve_amp

    real = split.class_counts
    resolved = resolve_config(
        config,
        image_size=split.image_size,
        largest_class=int(real.max()),
        device_type=device.type,
        amp=resolve_amp(config.amp, device),
    )
    assert resolved.per_class_target is not None and resolved.sample_batch_size is not None
    return make_plan(
        resolved,
        classes=split.classes,
        image_size=split.image_size,
        real_counts=real,
    )


def make_plan(
    config: SynthConfig, *, classes: Sequence[str], image_size: tuple[int, int], real_counts: npt.NDArray[np.int64]
) -> SynthesisPlan:
    """The plan of a resolved configuration: real + synthetic images reach the target in each class."""
    target, batch = config.per_class_target, config.sample_batch_size
    assert target is not None and batch is not None
    real_counts = np.asarray(real_counts, dtype=np.int64)
    synthetic = np.maximum(target - real_counts, 0)
    _check_counts(target, real_counts, synthetic, classes)
    labels = np.repeat(np.arange(len(synthetic), dtype=np.int64), synthetic)
    seeds = np.array(
        [derive_seed(config.seed, "image", c, i) for c, n in enumerate(synthetic) for i in range(n)], dtype=np.int64
    )
    return SynthesisPlan(
        config=config,
        classes=tuple(classes),
        image_size=image_size,
        real_counts=real_counts,
        synthetic_counts=synthetic,
        labels=labels,
        seeds=seeds,
        batch_images=batch,
        shard_images=_shard_images(len(labels), batch),
    )


def _shard_images(total: int, batch: int) -> int:
    """A multiple of `batch`: about 512, less if that gave under 8 shards, more if it gave over 256."""
    small = max(1, round(min(MIN_SHARD_IMAGES, total / MIN_SHARDS) / batch))
    return batch * max(small, math.ceil(total / MAX_SHARDS / batch))


def _check_counts(
    target: int, real: npt.NDArray[np.int64], synthetic: npt.NDArray[np.int64], classes: Sequence[str]
) -> None:
    empty = [name for name, count in zip(classes, real, strict=True) if count == 0]
    if empty:
        raise DataError(f"no real training image of {', '.join(empty)}: a generator cannot learn a class it never saw")
    if not synthetic.any():
        smallest, largest = int(real.min()), int(real.max())
        there = (
            f"every class has {largest} real images"
            if smallest == largest
            else f"the smallest class has {smallest} real images already, the largest {largest}"
        )
        raise UsageError(
            f"per_class_target {target} needs no synthetic image: {there}; "
            f"give a --per-class-target above {max(smallest, 1) if smallest < largest else largest}"
        )
