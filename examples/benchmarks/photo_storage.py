"""Memory and time of `make-lt` on folders of 2,000 to 50,000 photos, one process each: peak resident memory over N.

The photos are 500 generated JPEGs of unequal sizes under as many names as wanted (hard links), so that all are decoded,
fitted, encoded and written, and only the disk's cache is kinder than with as many files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import Bar, Document, begin, device_parser, finish
from PIL import Image

from saukit.core.seeding import numpy_generator
from saukit.core.words import format_bytes

COUNTS = (2_000, 10_000, 50_000)
QUICK_COUNTS = (500, 2_000)
DISTINCT, CLASSES, SIZE = 500, 10, 224
# A process of its own, whose peak is its own; saukit's stage as the command calls it.
WORK = """
import json, sys, time
from pathlib import Path
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
started = time.perf_counter()
config = SplitConfig(dataset="folder", image_size=int(sys.argv[3]), test_fraction=0.1)
root, workspace = Path(sys.argv[1]), Workspace(Path(sys.argv[2]))
made = make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
stored = sum(record["bytes"] for record in made.manifest.files.values())
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
print(json.dumps([time.perf_counter() - started, peak, stored]))
"""


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--counts", type=_counts, help="numbers of images, such as 2000,10000")
    options = parser.parse_args(arguments)
    device = begin(options)
    counts = options.counts or (QUICK_COUNTS if options.quick else COUNTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos")
        for count in counts:
            root = link_photos(photos, Path(folder) / f"root-{count}", count)
            seconds, peak, stored = measured(root, Path(folder) / f"work-{count}")
            rows.append({"images": count, "seconds": round(seconds, 1), "peak_bytes": peak, "stored_bytes": stored})
            print(f"{count:,} photos: {seconds:.1f} s, peak {format_bytes(peak)}, stored {format_bytes(stored)}")
    return finish(
        "photo_storage",
        {"ratio": round(rows[-1]["peak_bytes"] / rows[0]["peak_bytes"], 3), "peak_bytes": rows[-1]["peak_bytes"]},
        {"images": f"{DISTINCT} generated JPEGs of 256 to 600 pixels, linked", "image_size": SIZE, "counts": rows},
        {
            "peak resident MB of make-lt over the number of photos": [
                Bar(f"{row['images']:,}", row["peak_bytes"] / 1e6, format_bytes(row["peak_bytes"]), "saukit")
                for row in rows
            ]
        },
        options=options,
        arguments=arguments,
        device=device,
    )


def make_photos(folder: Path) -> list[Path]:
    """Smooth colours with some noise, which compress about as photos do; shorter sides of 256 to 400 pixels."""
    folder.mkdir(parents=True)
    generator = numpy_generator(0, "benchmark-photos")
    paths = []
    for index in range(DISTINCT):
        size = tuple(int(side) for side in generator.integers(256, 600, 2))
        coarse = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{index:03}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def link_photos(photos: Sequence[Path], root: Path, count: int) -> Path:
    """A folder with `count` names for the photos, in classes."""
    for label in range(CLASSES):
        (root / f"class-{label}").mkdir(parents=True)
    for index in range(count):
        os.link(photos[index % len(photos)], root / f"class-{index % CLASSES}" / f"{index:06}.jpg")
    return root


def measured(root: Path, workspace: Path) -> tuple[float, int, int]:
    """Seconds, peak resident bytes and stored bytes of one process."""
    command = [sys.executable, "-c", WORK, str(root), str(workspace), str(SIZE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak, stored = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, stored


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 100:
        raise argparse.ArgumentTypeError(f"at least 100 images each, got {text}")
    return counts


if __name__ == "__main__":
    main()
