"""Views of photos on a CPU: one photo after the other, on as many threads as torch has.

With several threads in each operation they wait for the slowest a hundred times per view, which on a busy core takes
most of the time. What a batch shares elsewhere is known here: where the crop lies, which operations come in which
order, how far a blur reaches. So there are few passes over a photo, and it stays in the processor's cache from one to
the next.

A view is up to a hundred short operations. Between two of them a thread needs the GIL, and two threads would mostly
wait for each other; compiled (`compiled`), it runs without, from numbers of Python to its place in the batch.

Shapes: height H, width W; a photo is [3, H, W], or [1, 3, H, W].
"""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from saukit.models.inference import normalise
from saukit.training.colour import jittered, luma

DENSE_UP_TO = 64  # pixels of the shorter side up to which dense matrices for a whole batch are as fast on a CPU
NO_WEIGHT = 5.9  # standard deviations from where on a Gaussian's taps are below half of float32's last bit


def are_photos(images: Tensor) -> bool:
    """Whether images [b, 3, H, W] are photos on a CPU, whose views are made one by one."""
    some = images.ndim == 4 and len(images) > 0
    return some and images.device.type == "cpu" and min(images.shape[2:]) > DENSE_UP_TO


def one_by_one(function: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """`function` of each image [1, 3, H, W] and its parameters, put together."""
    if len(images) == 1:
        return function(images, *parameters)
    each = zip(*(each.chunk(len(images)) for each in (images, *parameters)), strict=True)
    return torch.cat([function(*one) for one in each])


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` by TorchScript, which runs it as a whole; where a later torch has none, `function` itself, slower."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation: torch.compile would need a C++ compiler here
        try:
            script: Any = torch.jit.script(function)
        except Exception:  # whatever it says, the function is as good
            return function
    return script  # type: ignore[no-any-return]


def cropped(
    out: Tensor, photo: Tensor, crop: list[int], mirrored: bool, padding: int, mean: Tensor, std: Tensor
) -> Tensor:
    """The first view of a photo uint8 [1, 3, H, W], normalised, into `out`, float32 [1, 3, H, W]. crop: of `window`."""
    return out.copy_(normalise(window(photo, crop, mirrored, padding), mean, std))


def window(photo: Tensor, crop: list[int], mirrored: bool, padding: int) -> Tensor:
    """A crop (dy, dx) of the photo with zeros around it, or a resized one (top, left, height, width): uint8."""
    if len(crop) == 2:
        return crop_flipped(photo, crop[0], crop[1], padding, mirrored)
    return resized(photo[0], crop, mirrored)[None].mul_(255).round_().to(torch.int32).to(torch.uint8)


def simclr(
    out: Tensor,
    photo: Tensor,
    crop: list[int],
    mirrored: bool,
    order: list[int],
    factors: list[float],
    is_gray: bool,
    sigma: float,
    kernel_size: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """SimCLR's view of a photo uint8 [1, 3, H, W], normalised, into `out`, float32 [1, 3, H, W].

    crop: top, left, height, width; order and factors: of `jittered`; sigma: of the blur, 0 for none.
    """
    pixels = jittered(resized(photo[0], crop, mirrored)[None], order, factors)
    if is_gray:
        pixels = luma(pixels).repeat(1, 3, 1, 1)
    if sigma > 0:
        pixels = blurred(pixels[0], sigma, kernel_size)[None]
    return out.copy_(pixels.sub_(mean[:, None, None]).div_(std[:, None, None]))


def resized(photo: Tensor, crop: list[int], mirrored: bool) -> Tensor:
    """The crop (top, left, height, width) of a photo uint8 [3, H, W], bilinear: float32 [3, H, W] in [0, 1].

    It is never shrunk, so there is nothing to smooth against aliasing.
    """
    part = photo.narrow(1, crop[0], crop[2]).narrow(2, crop[1], crop[3]).mT.contiguous()
    wide = interpolated(part, photo.shape[2], mirrored).mT.contiguous()
    return interpolated(wide, photo.shape[1], False).div_(255)


def interpolated(image: Tensor, size: int, mirrored: bool) -> Tensor:
    """The rows of an image [3, h, w], linear between their centres, `size` of them: float32."""
    last = image.shape[1] - 1
    source = (torch.arange(size) + 0.5).mul_(image.shape[1] / size).sub_(0.5).clamp_(0, last)
    if mirrored:
        source = source.flip(0)
    first = source.floor()
    above = image.index_select(1, first.long()).float()
    below = image.index_select(1, (first + 1).clamp_(0, last).long()).float()
    return above.lerp_(below, (source - first)[:, None])


def blurred(photo: Tensor, sigma: float, kernel_size: int, no_weight: float = NO_WEIGHT) -> Tensor:
    """Gaussian blur of a photo [3, H, W] with `kernel_size` taps an axis, borders reflected."""
    reach = min(kernel_size // 2, int(no_weight * sigma))
    kernel = torch.arange(-reach, reach + 1).div(sigma).square_().mul_(-0.5).exp_()
    weights: list[float] = (kernel / kernel.sum()).tolist()
    padded = torch.nn.functional.pad(photo[None], [reach, reach, reach, reach], mode="reflect")[0]
    return weighed(weighed(padded, 1, weights), 2, weights)


def weighed(padded: Tensor, dim: int, weights: list[float]) -> Tensor:
    """The sum of an image's neighbours along `dim`, each with its weight; without those that lack a neighbour."""
    size = padded.shape[dim] - len(weights) + 1
    total = padded.narrow(dim, 0, size) * weights[0]
    for shift in range(1, len(weights)):
        total.add_(padded.narrow(dim, shift, size), alpha=weights[shift])
    return total


def crop_flipped(photo: Tensor, dy: int, dx: int, padding: int, mirrored: bool) -> Tensor:
    """The window at (dy, dx) of a photo uint8 [1, 3, H, W] with zeros around it, and mirrored: the same shape."""
    down, right = dy - padding, dx - padding
    height, width = photo.shape[2] - abs(down), photo.shape[3] - abs(right)
    window = torch.zeros([1, photo.shape[2], photo.shape[3], 3], dtype=torch.uint8)
    there = photo.narrow(2, max(0, down), height).narrow(3, max(0, right), width)
    window.narrow(1, max(0, -down), height).narrow(2, max(0, -right), width).copy_(there.movedim(1, 3))
    return (window.flip(2) if mirrored else window).movedim(3, 1)


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
