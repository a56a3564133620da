"""Views of photos on a CPU: each thread makes the whole views of a share of the images.

With several threads in each operation they wait for the slowest a hundred times per view, which on a busy core takes
most of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from saukit.training.blur import DENSE_UP_TO
from saukit.training.distributed import Share

View = Callable[[Any, Tensor, torch.Generator], Tensor]


def side_by_side(view: View) -> View:
    """The view, a method of a dataclass with a field `share`, of each thread's share of photos on a CPU, put together.

    Every thread draws the parameters of the whole batch, so how many there are changes nothing but rounding.
    """

    @functools.wraps(view)
    def made(self: Any, images: Tensor, generator: torch.Generator) -> Tensor:
        threads = min(torch.get_num_threads(), len(images))
        is_photos = images.device.type == "cpu" and images.ndim == 4 and min(images.shape[2:]) > DENSE_UP_TO
        if threads < 2 or not is_photos or self.share is not None:
            return view(self, images, generator)
        shares = [Share(len(images), rank, threads) for rank in range(threads)]
        generators = [generator, *(torch.Generator() for _ in shares[1:])]
        for other in generators[1:]:
            other.set_state(generator.get_state())

        def part(share: Share, own: torch.Generator) -> Tensor:
            return view(dataclasses.replace(self, share=share), images[share.rows], own)

        return torch.cat(list(_pool(threads).map(part, shares, generators)))

    return made


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations of torch run on themselves alone."""
    before, all_there = torch.get_num_threads(), threading.Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, and of threads to come
        torch.get_num_threads()  # a thread settles at its first question
        all_there.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="views")
    for begun in [pool.submit(begin) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(before)
    return pool
