"""A set of MedMNIST (Yang et al. 2023) as it is published: one .npz file with images and labels of three parts."""

from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.files import check_regular, reading
from saukit.core.machine import available_memory
from saukit.core.words import format_bytes, shortened
from saukit.data.source import IMAGE_SIZES, Source
from saukit.data.sources.in_memory import Deferred, source_of_arrays
from saukit.data.sources.labels import labels_in_order, named, numbered, refuse_unknown

if TYPE_CHECKING:
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Images, Integers

PARTS = ("train", "val", "test")
REMEDY = "download it again, or give another file as --root"


def open_medmnist(config: SourceConfig, root: Path) -> Source:
    """The set in the file `root`, or in the only .npz file of the folder `root`; its images are read when loaded.

    Raises: DataError for a file that is not one of MedMNIST's 2-D sets with one label per image.
    """
    import numpy as np

    file = _npz_file(root)
    with reading(file, remedy=REMEDY):
        check_regular(file)
        with zipfile.ZipFile(file) as archive:
            crcs = {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
            wanted = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
            if missing := [name for name in wanted if name not in crcs]:
                raise DataError(f"{file} is not a set of MedMNIST: it has no {shortened(missing)}")
            shapes = {part: _shape(archive, f"{part}_images", file) for part in PARTS}
        with np.load(file) as arrays:
            written = {part: _labels(arrays[f"{part}_labels"], len_of=shapes[part][0], file=file) for part in PARTS}
    labels = labels_in_order(written["train"], str(file))
    for part, of_part in written.items():
        refuse_unknown(of_part, set(labels), f"{part}_labels of {file}", range(len(of_part)))
    notes: list[str] = []
    parts = {
        part: (
            Deferred(shapes[part], partial(_images, file, part)),
            np.array(numbered(of_part, labels), np.int64),
        )
        for part, of_part in written.items()
    }
    return source_of_arrays(
        named(labels, config.class_names, str(file), notes),
        parts["train"],
        parts["test"],
        parts["val"],
        where=str(file),
        fingerprint=hashlib.sha256(repr(sorted(crcs.items())).encode()).hexdigest(),
        notes=tuple(notes),
    )


def _npz_file(root: Path) -> Path:
    if not root.is_dir():
        if not root.is_file():
            raise DataError(f"{root} is not a file: give the set's .npz file, such as pathmnist_64.npz, as --root")
        return root
    files = sorted(root.glob("*.npz"))
    if len(files) != 1:
        there = f"it has {shortened(path.name for path in files)}" if files else "it has none"
        raise DataError(f"{root} needs one .npz file, but {there}: give the file itself as --root")
    return files[0]


def _shape(archive: zipfile.ZipFile, name: str, file: Path) -> tuple[int, ...]:
    """The shape of an image array, from its header alone."""
    import numpy as np

    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    size = shape[1] if len(shape) > 2 else 0
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or shape[1] != shape[2]:
        raise DataError(f"{name} of {file} have shape {list(shape)}: expected square grey or RGB images (not volumes)")
    if kind != np.uint8 or not IMAGE_SIZES[0] <= size <= IMAGE_SIZES[1]:
        raise DataError(f"{name} of {file} are {kind} of {size} pixels: expected uint8, 28 to 224 pixels")
    return tuple(shape)


def _labels(labels: Integers, *, len_of: int, file: Path) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{file} has {labels.shape[1]} labels per image (a multi-label set): saukit needs one class per image"
        )
    if labels.size != len_of or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file} has {labels.size} labels of type {labels.dtype} for {len_of} images: expected integers"
        )
    return [str(label) for label in labels.ravel().tolist()]


def _images(file: Path, part: str) -> Images:
    import numpy as np

    with reading(file, remedy=REMEDY):
        with zipfile.ZipFile(file) as archive:
            needed = archive.getinfo(f"{part}_images.npy").file_size
        available = available_memory()
        if available is not None and needed > available:
            raise EnvironmentFault(
                f"the images of {part} need {format_bytes(needed)} of memory, but {format_bytes(available)} are free: "
                "give the set in a smaller size"
            )
        with np.load(file) as arrays:
            images: Images = arrays[f"{part}_images"]
    return images[..., 0] if images.shape[-1] == 1 else images
