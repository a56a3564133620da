"""Data sets of other people, damaged: code 3, the file, what to do, and no wait for a pipe."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import Cli, Outcome


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 3 and "Traceback" not in outcome.err, outcome
    assert all(word in outcome.error for word in words), outcome.error
    assert len(outcome.error) < 3000


# --- MedMNIST -------------------------------------------------------------------------------------------------------


def medmnist(path: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {}
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        arrays[f"{part}_images"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


ARRAYS: dict[str, dict[str, Any]] = {
    "no labels": {"train_labels": None},
    "float images": {"train_images": np.zeros((12, 28, 28))},
    "float labels": {"train_labels": np.zeros((12, 1))},
    "objects": {"train_labels": np.array([{}] * 12, object)},
    "negative": {"train_labels": -np.ones((12, 1), int)},
    "beyond": {"test_labels": np.full((6, 1), 2**62)},
    "beyond int64": {"train_labels": np.full((12, 1), 2**64 - 1, np.uint64)},
    "too few": {"train_labels": np.zeros((3, 1), np.uint8)},
    "volumes": {"train_images": np.zeros((2, 8, 8, 8), np.uint8)},
    "no image": {"val_images": np.zeros((0, 28, 28), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)},
    "scalars": {"train_images": np.uint8(3)},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_medmnist(cli: Cli, tmp_path: Path, kind: str) -> None:
    path = medmnist(tmp_path / "x.npz", **ARRAYS[kind])
    refused(cli("make-lt", "--dataset", "medmnist", "--root", path, "-w", tmp_path / "work"), str(path))


HEADERS = {
    "deep": "(" * 3000,
    "code": "__import__('os').system('false')",
    "huge": "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 28, 28)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-12, 28, 28)}",
    "dtype": "{'descr': 'zz', 'fortran_order': False, 'shape': (12, 28, 28)}",
}


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("name", ["train_images", "train_labels"])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_medmnist(cli: Cli, tmp_path: Path, kind: str, name: str) -> None:
    header = HEADERS[kind].encode() + b"\n"
    path = medmnist(tmp_path / "x.npz")
    rewritten(path, lambda member, content: content if not member.startswith(name) else
              b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(9408))  # fmt: skip
    refused(cli("make-lt", "--dataset", "medmnist", "--root", path, "-w", tmp_path / "work"), str(path))


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_archives_of_medmnist(cli: Cli, tmp_path: Path, place: int, value: int) -> None:
    path = medmnist(tmp_path / "x.npz")
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\1\2", place), (b"PK\3\4", place - 2)):
        at = content.find(mark)
        while at >= 0:
            struct.pack_into("<H", content, at + offset, value)
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    words = ("download it again, or give another file",)
    refused(cli("make-lt", "--dataset", "medmnist", "--root", path, "-w", tmp_path / "work"), str(path), *words)


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of eight small images."""
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{index}.png")
    return tmp_path / "images"


def listed(cli: Cli, images: Path, file: Path, *options: object) -> Outcome:
    command = ("make-lt", "--dataset", "list", "--root", images, "--train-list", file, "--test-fraction", "0.25")
    return cli(*command, *map(str, options), "-w", images.with_name("work"))


LINES: dict[str, Callable[[int], str]] = {
    "thousands of digits": lambda index: "9" * (5000 + index % 2),
    "negative": lambda index: str(-(index % 2) - 1),
    "fractions": lambda index: str(index % 2 + 0.5),
    "nan": lambda index: "nan",
}


@pytest.mark.parametrize("kind", LINES)
def test_labels_of_a_list(cli: Cli, images: Path, kind: str) -> None:
    path = images / "list.txt"
    path.write_text("".join(f"{index}.png {LINES[kind](index)}\n" for index in range(8)))
    outcome = listed(cli, images, path)
    if kind == "thousands of digits":  # no number that an array holds, so names
        assert outcome.code == 0, outcome
    else:
        refused(outcome, str(path), "labels are integers from 0, or names")


@pytest.mark.parametrize("label", ["9" * 5000, "9223372036854775808", "٣", "²", "-1"])
def test_labels_beyond_their_names(cli: Cli, images: Path, label: str) -> None:
    (images / "list.txt").write_text("".join(f"{index}.png {label if index else 0}\n" for index in range(8)))
    (images / "names.txt").write_text("a\nb\n")
    outcome = listed(cli, images, images / "list.txt", "--class-names", images / "names.txt")
    assert outcome.code in (2, 3) and "list.txt" in outcome.error and "Traceback" not in outcome.err


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "huge", "text"])
def test_what_is_no_list(cli: Cli, images: Path, kind: str, suffix: str) -> None:
    path = images.with_name(f"list{suffix}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.write_text("x")
        if kind == "huge":
            os.truncate(path, 10 << 40)  # a hole: it takes no disk
    refused(listed(cli, images, path), f"list{suffix}")


# --- torchvision's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["labels", "huge", "count", "type", "pipe"])
def test_fashion_mnist(cli: Cli, tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "data/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images, labels = bytes(count * 784), bytes(index % 10 for index in range(count))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    path = raw / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    if kind == "huge":
        os.truncate(path, 10 << 40)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        changes = {"labels": content[:-1] + b"\xc8", "count": content[:-4], "type": b"\0\0\x99" + content[3:]}
        path.write_bytes(changes[kind])
    outcome = cli("make-lt", "--dataset", "fashion-mnist", "--root", tmp_path / "data", "-w", tmp_path / "work")
    refused(outcome, "fashion-mnist in ", str(tmp_path / "data"))
    assert "fetch them again" in outcome.error or "remove what is damaged" in outcome.error
