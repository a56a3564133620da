"""Memory and time of `make-lt` on folders of 2,000 to 50,000 photos, one process each: peak resident memory over N.

The photos are 500 generated JPEGs of unequal sizes under as many names as wanted (hard links), so that all are decoded,
fitted, encoded and written, and only the disk's cache is kinder than with as many files. `resumed`: the largest folder
again, killed (SIGKILL) once half of its shards are decoded, and the same command after that: how many images it found,
and whether its split is byte for byte that of the first time.

`--list`: make-lt, 20 steps of training and eval on a list with the class counts of ImageNet-LT (1,000 classes, 115,846
images, 1,280 to 5, 20 and 50 a class to validate and test on) of generated JPEGs of 32 pixels, one command each.

`--root DIR`: make-lt on a folder of one's own at 224 pixels, three times, and how far ten of its images are from what
Pillow alone makes of the files: upright, centre square, bicubic.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import Bar, Document, begin, device_parser, finish
from PIL import Image, ImageOps

from saukit.core.seeding import numpy_generator
from saukit.core.words import format_bytes
from saukit.core.workspace import Workspace
from saukit.data.encoding import FILES_PER_SHARD
from saukit.data.part_files import read_part_files
from saukit.data.split import STORE_NAME, load_split

COUNTS = (2_000, 10_000, 50_000)
QUICK_COUNTS = (500, 2_000)
DISTINCT, CLASSES, SIZE = 500, 10, 224
COMPARED = 10  # images, with Pillow
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
print(json.dumps([time.perf_counter() - started, peak, stored, made.manifest.digest]))
"""
# One of saukit's commands, its time and its peak.
COMMAND = """
import json, sys, time
started = time.perf_counter()
from saukit.cli.main import run
try:
    run()
except SystemExit as ended:
    if ended.code: raise
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
spent = time.process_time()
print(json.dumps([time.perf_counter() - started, spent, peak]), file=sys.stderr)
"""
# ImageNet-LT (Liu et al. 2019): a Pareto law with power 6; these counts have its size, its largest and its least class.
LIST_CLASSES, LIST_IMAGES, LIST_LARGEST, LIST_LEAST, LIST_SIZE = 1000, 115_846, 1280, 5, 32
LIST_OTHERS = {"val": 20, "test": 50}


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--counts", type=_counts, help="numbers of images, such as 2000,10000")
    parser.add_argument("--list", action="store_true", help="the list with the class counts of ImageNet-LT instead")
    parser.add_argument("--root", type=Path, help="a folder of images, in place of the generated ones")
    options = parser.parse_args(arguments)
    device = begin(options)
    if options.root is not None:
        return command_on_a_folder(options, arguments, device)
    if options.list:
        return commands_on_a_list(options, arguments, device)
    counts = options.counts or (QUICK_COUNTS if options.quick else COUNTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos")
        for count in counts:
            root = link_photos(photos, Path(folder) / f"root-{count}", count)
            seconds, peak, stored, digest = measured(root, Path(folder) / f"work-{count}")
            rows.append({"images": count, "seconds": round(seconds, 1), "peak_bytes": peak, "stored_bytes": stored})
            print(f"{count:,} photos: {seconds:.1f} s, peak {format_bytes(peak)}, stored {format_bytes(stored)}")
            if count == counts[-1]:
                resumed = killed_and_resumed(root, Path(folder) / "killed", count, digest)
                print(f"killed and resumed: {resumed}")
    return finish(
        "photo_storage",
        {"ratio": round(rows[-1]["peak_bytes"] / rows[0]["peak_bytes"], 3), "peak_bytes": rows[-1]["peak_bytes"]},
        {
            "images": f"{DISTINCT} generated JPEGs of 256 to 600 pixels, linked",
            "image_size": SIZE,
            "counts": rows,
            "resumed": resumed,
        },
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


def measured(root: Path, workspace: Path) -> tuple[float, int, int, str]:
    """Seconds, peak resident bytes, stored bytes and the split's digest of one process."""
    done = subprocess.run(_make(root, workspace), check=True, capture_output=True, text=True)
    seconds, peak, stored, digest = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, stored, digest


def killed_and_resumed(root: Path, workspace: Path, count: int, digest: str) -> Document:
    """What the second of two processes found, the first one having been killed in the middle."""
    store, half = workspace / STORE_NAME, max(1, count // FILES_PER_SHARD // 2)
    with subprocess.Popen(_make(root, workspace), stdout=subprocess.DEVNULL) as first:
        while first.poll() is None and sum(1 for _ in store.glob("[0-9]*.safetensors")) < half:
            time.sleep(0.02)
        first.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("[0-9]*.safetensors")}
    with subprocess.Popen(_make(root, workspace), stdout=subprocess.PIPE, text=True) as second:
        remade: set[str] = set()
        while second.poll() is None:  # a shard that is made again is another file; at the end all are removed
            there = {path.name: _modified(path) for path in store.glob("[0-9]*.safetensors")}
            remade |= {name for name, when in kept.items() if there.get(name) not in (None, when)}
            time.sleep(0.2)
        assert second.stdout is not None
        seconds, _, _, again = json.loads(second.stdout.read().splitlines()[-1])
    return {
        "images": count,
        "killed_after_shards": len(kept),
        "shards_reused": len(kept) - len(remade),
        "seconds": round(seconds, 1),
        "equal_bytes": again == digest,
    }


def commands_on_a_list(options: argparse.Namespace, arguments: Sequence[str], device: torch.device) -> Document:
    """make-lt, train and eval, each a process of its own."""
    divisor = 50 if options.quick else 1
    counts = list_counts(LIST_CLASSES // divisor, LIST_IMAGES // divisor)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, work = Path(folder) / "images", str(Path(folder) / "work")
        make_list(root, counts)
        lists = [part for name in ("train", *LIST_OTHERS) for part in (f"--{name}-list", f"{name}.txt")]
        for command in (
            ("make-lt", "--dataset", "list", "--root", str(root), *lists, "--image-size", str(LIST_SIZE)),
            ("train", "--method", "balanced-softmax", "--no-synthetic", "--steps", "20", "--batch-size", "256"),
            ("eval",),
        ):
            rows.append(run_command(*command, "-w", work, "--device", device.type)[0])
    return finish(
        "photo_list",
        {"peak_bytes": max(row["peak_bytes"] for row in rows)},
        {
            "images": f"generated JPEGs of {LIST_SIZE} pixels in a list, {max(counts):,} to {min(counts)} per class",
            "classes": len(counts),
            "training_images": sum(counts),
            "other_images": {name: each * len(counts) for name, each in LIST_OTHERS.items()},
            "commands": rows,
        },
        {
            "peak resident MB": [
                Bar(row["command"], row["peak_bytes"] / 1e6, format_bytes(row["peak_bytes"]), "saukit") for row in rows
            ]
        },
        options=options,
        arguments=arguments,
        device=device,
        script="photo_storage",
    )


def run_command(*line: str) -> tuple[Document, str]:
    """One of saukit's commands as a process of its own: what it took, which is printed too, and what it printed."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *line], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`saukit {line[0]}` ended with exit code {done.returncode}: {done.stderr}")
    seconds, spent, peak = json.loads(done.stderr.splitlines()[-1])
    print(f"{line[0]}: {seconds:.1f} s ({spent:.1f} s of processor time), peak {format_bytes(peak)}", flush=True)
    row = {"command": line[0], "seconds": round(seconds, 1), "processor_seconds": round(spent, 1), "peak_bytes": peak}
    return row, done.stdout


def command_on_a_folder(options: argparse.Namespace, arguments: Sequence[str], device: torch.device) -> Document:
    """make-lt as a person types it, three times."""
    with tempfile.TemporaryDirectory() as folder:
        works = [str(Path(folder) / str(turn)) for turn in range(1 if options.quick else 3)]
        line = ("make-lt", "--dataset", "folder", "--root", str(options.root), "--device", device.type, "-w")
        rows = [run_command(*line, work)[0] for work in works]
        workspace = Workspace(Path(works[0]))
        split, files = load_split(workspace), read_part_files(workspace.split)
        chosen = np.linspace(0, len(split.train.labels) - 1, COMPARED).round().astype(int).tolist()
        differences = []
        for row in chosen:
            expected = centre_square(options.root / files["train"][row], split.image_size[0])
            stored = split.train.images[[row]][0].transpose(1, 2, 0)
            differences.append(round(float(np.abs(stored.astype(np.int16) - expected).mean()), 3))
        counts = {part: len(names) for part, names in files.items()}
    print(f"{counts}; mean difference to Pillow of {COMPARED} images: {differences}")
    return finish(
        "photo_folder",
        {"seconds": max(row["seconds"] for row in rows), "peak_bytes": max(row["peak_bytes"] for row in rows)},
        {"images": counts, "image_size": split.image_size[0], "commands": rows, "levels_from_pillow": differences},
        {
            "seconds of make-lt": [
                Bar(f"turn {turn}", row["seconds"], format_bytes(row["peak_bytes"]), "saukit")
                for turn, row in enumerate(rows, 1)
            ]
        },
        options=options,
        arguments=arguments,
        device=device,
        script="photo_storage",
    )


def centre_square(path: Path, size: int) -> np.ndarray:
    """A picture's centre square [size, size, 3] as Pillow alone makes it."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square, np.int16)


def list_counts(classes: int, images: int) -> list[int]:
    """Images per class from the largest to the least, falling by a power of the rank that gives so many in all."""
    ranks = np.linspace(0, 1, classes)

    def counts(power: float) -> list[int]:
        return [int(LIST_LEAST + (LIST_LARGEST - LIST_LEAST) * (1 - rank) ** power) for rank in ranks.tolist()]

    low, high = 1.0, 100.0
    for _ in range(60):
        power = (low + high) / 2
        low, high = (power, high) if sum(counts(power)) > images else (low, power)
    found = counts(high)
    for index in range(images - sum(found)):  # what rounding down has left
        found[1 + index % (classes - 2)] += 1
    return found


def make_list(root: Path, counts: Sequence[int]) -> None:
    """Small JPEGs of smooth colours, no two alike, and the lists of their paths and labels."""
    generator = numpy_generator(0, "benchmark-list")
    for name, each in {"train": None, **LIST_OTHERS}.items():
        lines = []
        for label, count in enumerate(counts):
            folder = root / name / f"{label:04}"
            folder.mkdir(parents=True)
            for index in range(count if each is None else each):
                coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize((LIST_SIZE,) * 2, Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
                lines.append(f"{name}/{label:04}/{index}.jpg {label}\n")
        (root / f"{name}.txt").write_text("".join(lines))


def _make(root: Path, workspace: Path) -> list[str]:
    return [sys.executable, "-c", WORK, str(root), str(workspace), str(SIZE)]


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # removed since it was listed
        return None


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 100:
        raise argparse.ArgumentTypeError(f"at least 100 images each, got {text}")
    return counts


if __name__ == "__main__":
    main()
