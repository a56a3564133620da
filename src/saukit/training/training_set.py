"""The training set D: real and synthetic images, where they reside, and the order they are visited in.

Images that fit stay on the device. Larger sets stay in host memory, encoded ones on disk, and each batch is brought
over one step ahead of its use. All ways hand out the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saukit.core.device import COPIES_ASIDE, free_memory
from saukit.core.seeding import torch_generator
from saukit.core.words import format_bytes
from saukit.data.images import ImageStore
from saukit.data.split import Part, Split
from saukit.data.synthetic import SyntheticImages
from saukit.training.distributed import Share

Residence = Literal["device", "host", "disk"]

# The images may take this share of a GPU's free memory: the rest is for weights, activations and what cuDNN works in.
RESIDENT_SHARE = 0.5


class StoredImages:
    """The images of several stores, one after the other, read when they are asked for: uint8 in host memory."""

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        self._stores = stores
        self._starts = np.cumsum([0, *map(len, stores)])
        self.shape = (int(self._starts[-1]), *stores[0].shape[1:])
        self.nbytes = sum(store.nbytes for store in stores)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The images of `rows`, [n, 3, H, W]."""
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else rows.flatten().numpy()
        if len(self._stores) == 1:
            return torch.from_numpy(np.asarray(self._stores[0][chosen]))
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for store, start, end in zip(self._stores, self._starts, self._starts[1:], strict=False):
            here = np.flatnonzero((chosen >= start) & (chosen < end))
            if len(here):
                images[here] = store[chosen[here] - start]
        return torch.from_numpy(images)


@dataclass(frozen=True)
class TrainingSet:
    """Samples (x, y, s), the real ones first. `residence` is where the images are; all else is on the device.

    Shapes: images uint8 [N, 3, H, W], a tensor unless they reside on disk; labels int64 [N]; synthetic bool [N].
    """

    images: Tensor | StoredImages
    labels: Tensor
    synthetic: Tensor
    real_count: int
    residence: Residence = "device"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device that batches are handed out on."""
        return self.labels.device

    def describe(self) -> str:
        """Where the images are, in words."""
        size = format_bytes(self.images.nbytes)
        if self.residence == "disk":
            return f"images on disk ({size}), decoded batch by batch"
        if self.device.type == "cpu":
            return f"images in memory ({size})"
        if self.residence == "device":
            return f"images resident on {self.device} ({size})"
        return f"images in host memory ({size}), copied batch by batch"


@dataclass(frozen=True)
class Batch:
    """Two batches A and B of b samples from two independent shuffles of D, on the device.

    The images of B are absent ([0, 3, H, W]) where they would have to be decoded and the method does not read them.
    Of several processes each has the images of its share; labels and flags are those of all b samples.
    """

    images: Tensor
    labels: Tensor
    synthetic: Tensor
    partner_images: Tensor
    partner_labels: Tensor
    partner_synthetic: Tensor


def choose_residence(needed: int, free: int) -> Residence:
    """Where `needed` bytes of images belong if the device has `free` bytes."""
    return "device" if needed <= RESIDENT_SHARE * free else "host"


def build_training_set(
    split: Split, cache: SyntheticImages | None, device: torch.device, *, residence: Residence | None = None
) -> TrainingSet:
    """The split's training part, and the cache if there is one, for training on `device`; None: residence by size.

    Encoded images stay on disk, wherever one would like to have them.

    In host memory a split without a cache is not copied: the training set then shares the split's memory.
    """
    parts: list[Part | SyntheticImages] = [split.train] if cache is None else [split.train, cache]
    on_disk = not isinstance(split.train.images, np.ndarray)
    if residence is None:
        residence = "device"
        if device.type != "cpu":
            residence = choose_residence(sum(part.images.nbytes for part in parts), free_memory(device))
    labels = np.concatenate([part.labels for part in parts])
    return TrainingSet(
        images=StoredImages([part.images for part in parts])
        if on_disk
        else _gather_images(parts, device if residence == "device" else torch.device("cpu")),
        labels=torch.from_numpy(labels).to(device),
        synthetic=(torch.arange(len(labels)) >= len(split.train.labels)).to(device),
        real_count=len(split.train.labels),
        residence="disk" if on_disk else residence,
    )


def _gather_images(parts: list[Part | SyntheticImages], home: torch.device) -> Tensor:
    """The parts' images, one after the other, in one tensor on `home`, without a further copy on the way.

    They are not pinned in host memory: the device copies from staging buffers, never from here, and torch rounds
    pinned allocations up to a power of two, which would turn 300 GiB into 512 GiB.
    """
    if len(parts) == 1:
        return torch.from_numpy(np.asarray(parts[0].images)).to(home)
    count = sum(len(part.images) for part in parts)
    images = torch.empty((count, *parts[0].images.shape[1:]), dtype=torch.uint8, device=home)
    at = 0
    for part in parts:
        images[at : at + len(part.images)] = torch.from_numpy(np.asarray(part.images))
        at += len(part.images)
    return images


def batches_per_epoch(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches in one pass; a last one that is not whole is left out, or kept if it has the two images BatchNorm needs.

    A set smaller than the batch is one batch.
    """
    whole, rest = divmod(images, min(batch_size, images))
    return whole + (not drop_last and rest > 1)


class BatchOrder:
    """Which samples make up batches A and B of a step: two independent shuffles per epoch.

    An epoch's last batch is left out if it is not whole (`drop_last`), or kept.
    `class_balanced` samples with replacement instead: first a class, each as likely, then one of its images (Kang et
    al. 2020, Sec. 3). An epoch has as many samples as there are images. `balanced_partners` does so for B alone.
    `real_only` leaves the synthetic images out. Without `partners` the images of B are not read from disk.
    An order is a function of (seed, epoch), so any step can be reached at once when a run is resumed.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        batch_size: int,
        seed: int,
        *,
        class_balanced: bool = False,
        balanced_partners: bool = False,
        real_only: bool = False,
        drop_last: bool = True,
        partners: bool = True,
    ) -> None:
        self.training_set = training_set
        self._count = training_set.real_count if real_only else len(training_set)  # the real ones come first
        self.batch_size = min(batch_size, self._count)
        self.steps_per_epoch = batches_per_epoch(self._count, self.batch_size, drop_last=drop_last)
        self._seed = seed
        self._balanced = {"shuffle-a": class_balanced, "shuffle-b": class_balanced or balanced_partners}
        self._labels = training_set.labels[: self._count].cpu() if any(self._balanced.values()) else None
        self._orders: tuple[int, Tensor, Tensor] | None = None
        self._feed: _HostFeed | _DiskFeed | None = None
        self._batches = 2
        if isinstance(training_set.images, StoredImages):
            self._feed = _DiskFeed(training_set.images, training_set.device)
            self._batches = 2 if partners else 1
        elif training_set.residence == "host":
            self._feed = _HostFeed(training_set.images, 2 * self.batch_size, training_set.device)
        self._sent: tuple[int, Callable[[], Tensor]] | None = None

    def batch(self, step: int) -> Batch:
        """The two batches of a step, counted from 0; a function of (seed, step), and no later call changes them."""
        data = self.training_set
        a, b = self._rows(step)[1]
        if self._feed is None:
            images, partner_images = (data.images[rows[_mine(len(rows))]] for rows in (a, b))
        else:
            images, partner_images = self._fetch(step, self._feed).tensor_split([len(a[_mine(len(a))])])
        return Batch(images, data.labels[a], data.synthetic[a], partner_images, data.labels[b], data.synthetic[b])

    def _fetch(self, step: int, feed: _HostFeed | _DiskFeed) -> Tensor:
        """The images of A, then those of B; what was sent ahead is used only if it is what is asked for."""
        if self._sent is None or self._sent[0] != step:
            self._sent = (step, feed.send(self._own_rows(step)))
        # The next one is sent for before this one is waited for: threads that decode always have something to do.
        sent, self._sent = self._sent[1], (step + 1, feed.send(self._own_rows(step + 1)))
        return sent()

    def _own_rows(self, step: int) -> Tensor:
        """The samples whose images this process needs, int64 [1 or 2, n], in host memory."""
        rows = self._rows(step)[0][: self._batches]
        return rows[:, _mine(rows.shape[1])]

    def _rows(self, step: int) -> tuple[Tensor, Tensor]:
        """The samples of A and of B, int64 [2, b], in host memory and on the device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._orders is None or self._orders[0] != epoch:
            orders = self._shuffle(epoch)
            # From pinned memory, which torch keeps until the copy is done: the host need not wait for it.
            self._orders = (epoch, orders, orders.to(self.training_set.device, non_blocking=True))
        _, on_host, on_device = self._orders
        chosen = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return on_host[:, chosen], on_device[:, chosen]

    def _shuffle(self, epoch: int) -> Tensor:
        orders = torch.empty(
            (2, self._count), dtype=torch.int64, pin_memory=self.training_set.device.type in COPIES_ASIDE
        )
        for order, purpose in zip(orders, ("shuffle-a", "shuffle-b"), strict=True):
            generator = torch_generator(self._seed, purpose, epoch)
            if self._labels is None or not self._balanced[purpose]:
                torch.randperm(len(order), generator=generator, out=order)
            else:
                order.copy_(_sample_classes_evenly(self._labels, generator))
        return orders


def _mine(count: int) -> slice:
    """This process's rows of a batch of `count`."""
    return slice(None) if (share := Share.of(count)) is None else share.rows


def _sample_classes_evenly(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Samples int64 [n], with replacement: a class, each as likely, then one of its own. Shapes: labels int64 [n]."""
    counts = labels.bincount()
    by_class = labels.argsort(stable=True)  # the samples of class 0, then those of class 1, and so on
    classes = torch.randint(len(counts), (len(labels),), generator=generator)
    # In double precision, in which a share below 1 of n images never rounds up to n.
    position = (torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[classes]).long()
    return by_class[(counts.cumsum(0) - counts)[classes] + position]


class _HostFeed:
    """Gathers rows of images in host memory and copies them to the device, on a GPU beside the computation.

    Rows are gathered in one of two pinned staging buffers, then copied on a stream of their own into new memory, so
    a batch that was handed out is its receiver's alone. The copying stream never waits for the computation: what the
    allocator gives it is either new, or was used on this stream before, or was seen out by `record_stream`.
    """

    def __init__(self, images: Tensor, rows: int, device: torch.device) -> None:
        self._images, self._device = images, device
        aside = device.type in COPIES_ASIDE
        self._module = torch.get_device_module(device.type)
        self._stream = self._module.Stream(device) if aside else None
        shape = (rows, *images.shape[1:])
        self._staging = [torch.empty(shape, dtype=images.dtype, pin_memory=aside) for _ in range(2)]
        self._copied: list[Any] = [None, None]  # the events of the last copies
        self._turn = 0

    def send(self, rows: Tensor) -> Callable[[], Tensor]:
        """Start to bring the images of `rows`, int64 of any shape in host memory, to the device.

        What it returns gives them, for work on the device's current stream. The host does not wait for them.
        """
        self._turn = 1 - self._turn
        staging, copied = self._staging[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # this buffer's last copy, two sends ago: as a rule long done
        staging = staging[: rows.numel()]
        torch.index_select(self._images, 0, rows.flatten(), out=staging)
        if self._stream is None:
            copy = staging.to(self._device, copy=True)
            return lambda: copy
        with self._module.stream(self._stream):
            images = torch.empty_like(staging, device=self._device)
            images.copy_(staging, non_blocking=True)
            arrived = self._stream.record_event()
        self._copied[self._turn] = arrived

        def receive() -> Tensor:
            stream = self._module.current_stream(self._device)
            stream.wait_event(arrived)
            # They were allocated for the copying stream. Without this the allocator would give their memory to a
            # later copy as soon as Python lets go of them, while this stream may still have to read them.
            images.record_stream(stream)
            return images

        return receive


class _DiskFeed:
    """Reads and decodes rows of images beside the computation: those that are waited for, and the next ones."""

    def __init__(self, images: StoredImages, device: torch.device) -> None:
        self._images, self._device = images, device
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="images")

    def send(self, rows: Tensor) -> Callable[[], Tensor]:
        """As `_HostFeed.send`; what it returns waits for them."""
        read = self._threads.submit(self._images.__getitem__, rows)

        def receive() -> Tensor:
            images = read.result()
            if self._device.type != "cpu":  # where the colours of a pixel beside each other help the processor's views
                images = images.contiguous()
            return images.to(self._device, non_blocking=True)

        return receive
