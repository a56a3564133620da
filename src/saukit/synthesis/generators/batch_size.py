"""How many images to sample per batch on a device whose memory is the limit."""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAST_GAIN = 1.05  # doubling the batch has to raise images/s by a twentieth, or it only costs memory
FIRST, LARGEST = 8, 1024


def find_batch_size(seconds: Callable[[int], float], *, first: int = FIRST, largest: int = LARGEST) -> int:
    """The batch beyond which images/s hardly rise or memory does not suffice: `first`, doubled as often as it pays.

    `seconds(n)` samples a batch of n images, twice if the first time warms up, and returns how long the last one took.
    Raises: torch.OutOfMemoryError if not even one image fits.
    """
    best, rate = None, 0.0
    size = first
    while size <= largest:
        try:
            found = size / seconds(size)
        except torch.OutOfMemoryError:
            if best is not None or size == 1:
                break
            size = largest = size // 2  # not even the first fits: look downwards
            continue
        if best is not None and found < LEAST_GAIN * rate:
            break
        best, rate = size, found
        size *= 2
    if best is None:
        raise torch.OutOfMemoryError("not even one image at a time fits into the device's memory")
    return best
