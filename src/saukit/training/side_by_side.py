"""Views of photos on a CPU: one photo after the other, on as many threads as torch has.

With several threads in each operation they wait for the slowest a hundred times per view, which on a busy core takes
most of the time. A photo at a time stays in the processor's cache.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from saukit.training.photos import are_photos


def side_by_side(
    make: Callable[..., Tensor], images: Tensor, *drawn: Any, of_photo: Callable[..., Any] | None = None
) -> Tensor:
    """`make(images, *drawn)` in channels_last: of photos on a CPU each by itself, so that how many threads make them
    changes nothing.

    of_photo: `of_photo(out, photo, *numbers)` writes a photo's view to its place, from numbers of Python in place of
        tensors. To read one from a tensor a thread gives the GIL away, and waits to have it back.

    Shapes: images [b, 3, H, W]; drawn: tensors [b, ...], or tuples of them; returns float32 [b, 3, H, W].
    """
    if not are_photos(images):
        return make(images, *drawn).contiguous(memory_format=torch.channels_last)
    made = torch.empty(images.shape, memory_format=torch.channels_last)
    parts = [
        _one_by_one(each, Tensor.tolist if of_photo else lambda tensor: tensor.chunk(len(tensor))) for each in drawn
    ]
    waiting = [*zip(made.chunk(len(made)), images.chunk(len(made)), *parts, strict=True)]

    def work(_: object = None) -> None:
        with torch.autocast("cpu", enabled=False):
            while waiting:
                try:
                    out, photo, *one = waiting.pop()
                except IndexError:  # another thread took the last one
                    return
                if of_photo:
                    of_photo(out, photo, *one)
                else:
                    out.copy_(make(photo, *one))

    threads = min(torch.get_num_threads(), len(images))
    if threads < 2:
        work()
    else:  # nothing else runs on several threads meanwhile, and torch's would go on waiting for work on their cores
        for _ in _pool(threads).map(work, range(threads)):
            pass
    return made


def _one_by_one(drawn: Any, split: Callable[[Tensor], Sequence[Any]]) -> Sequence[Any]:
    """What was drawn for each image, of each tensor as `split` divides it."""
    if isinstance(drawn, Tensor):
        return split(drawn)
    each = zip(*(_one_by_one(part, split) for part in drawn), strict=True)
    return [drawn._make(parts) if hasattr(drawn, "_make") else parts for parts in each]


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
