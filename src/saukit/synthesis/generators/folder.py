"""A folder of images that were made elsewhere as a generator: one sub-folder per class, named as the classes.

    DIR/cat/0001.png  DIR/cat/more/0002.jpg  DIR/dog/a.webp ...

`saukit.data` decides which files are images, how they become 8-bit RGB and how they are cropped and resized, as
for a split's own images. A class name that holds a "/" (Fashion-MNIST's T-shirt/top) has a "_" in its place.

Image i of a class is its i-th file in natural order (img2 before img10). The constructor reads every file once, which
the digest needs anyway, and decodes it to see whether it is whole; `sample` reads and decodes again what it is asked
for. Decoding twice costs time (seconds for thousands of small images) and saves the memory of the whole folder, and a
damaged file is reported before the first shard is written, not hours later.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.machine import in_threads
from saukit.core.words import shortened
from saukit.data.decoding import CROP, Fitting, decode_image, decode_or_reason, refuse_or_warn
from saukit.data.image_files import KINDS, FoundFiles, image_files, is_regular, loose_images, say_ignored, subfolders
from saukit.data.split import Split
from saukit.data.types import Images, Integers
from saukit.synthesis.config import ResolvedSynthConfig, SynthConfig
from saukit.synthesis.generators.protocol import GeneratorEntry


class FolderGenerator:
    """The images of a folder, by class and position.

    capacity: how many images there are of each class, int64 [K]; a class without a folder has 0.
    digest: SHA-256 over the names, relative to the folder, and the contents of all images that can be read.
    description: what the manifest says of it.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        image_size: tuple[int, int],
        *,
        reporter: Reporter,
        skip_bad: bool,
        fitting: Fitting = CROP,
    ) -> None:
        """List `folder`, read and decode every image of it once.

        Raises: DataError for a folder that is not there or holds no image, for subfolders that are none of `classes`
        (it lists them), and for images that cannot be read (it lists them; with `skip_bad` they are left out).
        """
        self._folder, self._classes, self._size, self._fitting = folder, tuple(classes), image_size[0], fitting
        listed = _list_files(folder, self._classes, reporter)
        with reporter.progress(f"reading {folder}", len(listed)) as line:
            found = in_threads(lambda item: _checked(*item, self._size, fitting), listed, line.update)
        bad = [
            f"{_printable(file.path.relative_to(folder).as_posix())} ({file.bad})"
            for file in found
            if file.bad is not None
        ]
        refuse_or_warn(bad, skip=skip_bad, reporter=reporter, where=f" in {folder}")
        self._files = [[f for f in found if f.label == c and f.bad is None] for c in range(len(self._classes))]
        self.capacity: Integers = np.array([len(files) for files in self._files], np.int64)
        if not self.capacity.any():
            raise DataError(f"no image in {folder} can be read: give a folder of whole images")
        self.digest = self._digest()
        self.description: dict[str, Any] = {
            "generator": "folder",
            "folder": str(folder),
            "images": int(self.capacity.sum()),
            "images_per_class": dict(zip(self._classes, self.capacity.tolist(), strict=True)),
            "skipped": len(bad),
            "digest": self.digest,
        }

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """Image `ordinals[i]` of class `labels[i]`, decoded now; `seeds` are those of the plan, and not used here.

        Shapes: labels, seeds, ordinals [n]; returns uint8 [n, 3, H, W].
        Raises: DataError for a file that has changed since the constructor read it.
        """
        wanted = [self._files[label][at] for label, at in zip(labels.tolist(), ordinals.tolist(), strict=True)]
        images = np.empty((len(wanted), 3, self._size, self._size), np.uint8)

        def fill(index: int) -> None:
            images[index] = self._decoded(wanted[index])

        in_threads(fill, range(len(wanted)))
        return images

    def _decoded(self, file: _File) -> Images:
        try:
            content = file.path.read_bytes()
        except OSError as error:
            raise DataError(f"{file.path} cannot be read any more: {error.strerror or error}") from error
        if hashlib.sha256(content).digest() != file.sha256:
            raise DataError(f"{file.path} has changed since saukit first read it: leave the folder alone meanwhile")
        return decode_image(io.BytesIO(content), self._size, self._fitting)

    def _digest(self) -> str:
        sha = hashlib.sha256()
        for file in (file for files in self._files for file in files):
            sha.update(os.fsencode(file.path.relative_to(self._folder).as_posix()) + b"\0" + file.sha256)
        return sha.hexdigest()


@dataclass(frozen=True)
class _File:
    """A file after its first reading; `bad` is why it cannot be decoded, None if it can."""

    path: Path
    label: int
    sha256: bytes
    bad: str | None


def _list_files(folder: Path, classes: tuple[str, ...], reporter: Reporter) -> list[tuple[Path, int]]:
    """Every image with its class, class by class, in natural order within each."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one with a subfolder for each class")
    label_of = {name.replace("/", "_"): label for label, name in enumerate(classes)}
    if len(label_of) < len(classes):
        raise DataError(f"two classes of the split have one folder name: {', '.join(classes)}")
    folders = {path.name: path for path in subfolders(folder)}
    if unknown := [name for name in folders if name not in label_of]:
        raise DataError(
            f"{folder} has folders that are not classes of the split: {shortened(map(_printable, unknown))}; "
            f"rename or remove them. Folders of the split's classes: {shortened(label_of)}"
        )
    listed: list[tuple[Path, int]] = []
    passed_over = FoundFiles()
    for name, label in label_of.items():
        if name in folders:
            found = image_files(folders[name])
            listed += [(path, label) for path in sorted(found.images, key=lambda path: _natural(path, folder))]
            passed_over += found
    if not listed:
        raise DataError(
            f"{folder} holds no image ({KINDS}) in a folder of a class; "
            f"folders of the split's classes: {shortened(label_of)}"
        )
    say_ignored(passed_over, reporter)
    if loose := len(loose_images(folder)):
        reporter.say(f"images outside the class folders are ignored: {loose} in {folder}")
    return listed


def _checked(path: Path, label: int, size: int, fitting: Fitting) -> _File:
    """The file, read and decoded once."""
    try:
        if not is_regular(path):
            return _File(path, label, b"", "not a regular file")
        content = path.read_bytes()
    except OSError as error:
        return _File(path, label, b"", error.strerror or str(error))
    image = decode_or_reason(io.BytesIO(content), size, fitting)
    return _File(path, label, hashlib.sha256(content).digest(), image if isinstance(image, str) else None)


def _natural(path: Path, folder: Path) -> tuple[list[str | int], str]:
    """Numbers by their value, the rest by its letters; names that are equal so (1 and 01) by their letters alone."""
    name = path.relative_to(folder)
    # Texts and numbers take turns, beginning with a text, so that only like is compared with like. Without its suffix
    # img comes before img1.
    pieces = re.split(r"([0-9]+)", name.with_suffix("").as_posix())
    return [int(piece) if at % 2 else piece for at, piece in enumerate(pieces)], name.as_posix()


def _printable(name: str) -> str:
    """A name that is not UTF-8 with its bytes written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _open(config: ResolvedSynthConfig, split: Split, device: torch.device, reporter: Reporter) -> FolderGenerator:
    folder = Path(config.from_folder or "")
    return FolderGenerator(
        folder, split.classes, split.image_size, reporter=reporter, skip_bad=config.skip_bad, fitting=split.fitting
    )


def _problems(config: SynthConfig) -> Iterator[str]:
    if config.from_folder is None:
        yield "--generator folder needs --from: a folder of images, one sub-folder per class"


ENTRY = GeneratorEntry(
    open=_open,
    settle=lambda config, split, device: {"sample_batch_size": 64},
    problems=_problems,
    tries_batch_sizes=False,
)
