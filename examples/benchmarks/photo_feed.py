"""The feed of photos at 224 pixels: encoded images decoded a step ahead, and SAU's three views of them.

`ratio_to_decode`: images/s of saukit's feed over those of its decoder alone, on files that lie in memory, with as many
threads. `ratio`: images/s with the three views v1, v2 and v3 over torchvision's ImageFolder and DataLoader with v2
transforms, with as many worker processes as saukit has threads. An image is decoded once for its three views in both.
A turn is `BATCHES` batches: what was made before it began, by workers or a step ahead, is a small share of so many.
`processor_ratio`: processor time per image of the latter, without worker processes, over that of saukit; other work on
the machine changes it far less.
"""

from __future__ import annotations

import gc
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from measure import MIN_ROUNDS, Bar, Candidate, Document, Work, begin, finish, measure, option_parser, steady
from photo_storage import SIZE, link_photos, make_photos
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from saukit.core.console import Reporter
from saukit.core.device import keep_freed_memory
from saukit.core.machine import in_threads
from saukit.core.seeding import torch_generator
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.images import READ_CHUNK, EncodedImages
from saukit.data.split import load_split, make_split
from saukit.training.training_set import BatchOrder, build_training_set
from saukit.training.views import Views

PREFETCH = 2
BATCHES = 12


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = option_parser(__doc__.splitlines()[0]).parse_args(arguments)
    device = begin(options)
    keep_freed_memory()
    batch_size = options.batch_size or (16 if options.quick else 64)
    batches, photos = (BATCHES, 400) if options.quick else (2 * BATCHES, 1000)
    with tempfile.TemporaryDirectory() as folder:
        root = link_photos(make_photos(Path(folder) / "photos"), Path(folder) / "root", photos)
        workspace = Workspace(Path(folder) / "work")
        config = SplitConfig(dataset="folder", image_size=SIZE, test_fraction=0.1)
        make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
        split = load_split(workspace)
        stored = split.train.images
        assert isinstance(stored, EncodedImages)
        files = [stored.encoded(row) for row in range(len(stored))]
        order = BatchOrder(build_training_set(split, None, device), batch_size, 0, partners=False)
        views = Views(torch.tensor(split.mean, device=device), torch.tensor(split.std, device=device), flip=True)
        generator, steps = torch_generator(0, "benchmark-photos", device=device), iter(range(10**9))

        data = ImageFolder(root, ThreeViews(split.mean, split.std))

        def bare() -> None:
            at = next(steps) * batch_size
            rows = [(at + offset) % len(files) for offset in range(batch_size)]
            images = np.empty((batch_size, 3, SIZE, SIZE), np.uint8)

            def decode(offset: int) -> None:
                images[offset] = np.asarray(Image.open(io.BytesIO(files[rows[offset]]))).transpose(2, 0, 1)

            in_threads(decode, range(batch_size), chunk=READ_CHUNK, kept=True)

        def viewed() -> None:
            images = order.batch(next(steps)).images
            for view in (views.crop_flip, views.autoaugment, views.simclr):
                view(images, generator)

        @contextmanager
        def torchvision() -> Iterator[Work]:
            loader = DataLoader(
                data, batch_size, shuffle=True, num_workers=options.threads, prefetch_factor=PREFETCH, drop_last=True
            )
            feed = iter(loader)
            yield lambda: next(feed) and None

        def transformed() -> None:
            at = next(steps) * batch_size
            default_collate([data[(7 * (at + offset)) % len(data)] for offset in range(batch_size)])

        decoding = [
            Candidate("decoder alone", steady(bare), batches, 1),
            Candidate("saukit's feed", steady(lambda: order.batch(next(steps)) and None), batches, 1),
        ]
        # The first batches of each worker lie ready when the timing begins; they would flatter the reference.
        viewing = [
            Candidate("ImageFolder, DataLoader, v2", torchvision, batches, PREFETCH * options.threads),
            Candidate("saukit's feed and views", steady(viewed), batches, 1),
        ]
        gc.freeze()  # a collection before a turn goes through all that was imported, while the workers make batches
        rounds = options.rounds or MIN_ROUNDS
        timings = [*measure(decoding, rounds=rounds, device=device).values()]
        timings += measure(viewing, rounds=rounds, device=device).values()
        gc.unfreeze()
        torch.set_num_threads(1)  # as in a worker process
        processor = [
            statistics.median(processor_seconds(work, 2) for _ in range(rounds)) / batch_size
            for work in (transformed, viewed)
        ]
    rates = [batch_size / timing.median for timing in timings]
    for timing, rate in zip(timings, rates, strict=True):
        print(f"{timing.name}: {rate:,.0f} images/s")
    roles = ("reference", "saukit", "reference", "saukit")
    beside = (rates[0], rates[0], rates[2], rates[2])
    bars = [
        Bar(timing.name, rate, f"{rate / reference:.2f} x", role)
        for timing, rate, reference, role in zip(timings, rates, beside, roles, strict=True)
    ]
    return finish(
        "photo_feed",
        {
            "ratio": round(rates[3] / rates[2], 4),
            "ratio_to_decode": round(rates[1] / rates[0], 4),
            "processor_ratio": round(processor[0] / processor[1], 4),
        },
        {
            "images": f"generated JPEGs of 256 to 600 pixels; saukit's stored at {SIZE}",
            "batch_size": batch_size,
            "processor_milliseconds_per_image": [round(1e3 * seconds, 3) for seconds in processor],
            "candidates": [
                {"name": timing.name, "milliseconds_a_batch": timing.spread, "images_per_second": round(rate, 1)}
                for timing, rate in zip(timings, rates, strict=True)
            ],
        },
        {"images/s, decoding": bars[:2], "images/s, three views": bars[2:]},
        options=options,
        arguments=arguments,
        device=device,
    )


def processor_seconds(work: Work, batches: int) -> float:
    """Processor time of all threads for one batch, the mean of `batches` after one more."""
    work()
    before = time.process_time()
    for _ in range(batches):
        work()
    return (time.process_time() - before) / batches


class ThreeViews:
    """SAU's three views of an image file, as torchvision's v2 makes them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        crop = [v2.RandomCrop(SIZE, padding=SIZE // 8), v2.RandomHorizontalFlip()]
        self.first = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE)])
        self.views = (
            v2.Compose([*crop, *end]),
            v2.Compose([*crop, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), *end]),
            v2.Compose(
                [
                    v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0)),
                    v2.RandomHorizontalFlip(),
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                    v2.RandomGrayscale(p=0.2),
                    v2.RandomApply([v2.GaussianBlur(23, sigma=(0.1, 2.0))], p=0.5),
                    *end,
                ]
            ),
        )

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        """The views of one image."""
        square = self.first(image)
        return tuple(view(square) for view in self.views)


if __name__ == "__main__":
    main()
