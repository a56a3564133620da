"""Where images come from: one table line a known data set, and the folder of images.

A `Source` knows labels at once; its pixels are loaded only when a split is really written. Another torchvision data
set is one line in `TABLE`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from saukit.core.console import Reporter
from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.data.config import SplitConfig

Images = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Channels = tuple[float, float, float]

DATA_ROOT = "SAUKIT_DATA"
OFFLINE = "SAUKIT_OFFLINE"
DOWNLOAD_TIMEOUT_SECONDS = 10.0
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Pixels:
    """The decoded images of a source.

    read(part, positions, size) returns uint8 [n, 3, size, size] for `part` "train", or "test" where there is one.
    train_ok, test_ok: which images could be read, bool [N]; bad: (file, reason) of those that could not.
    """

    read: Callable[[str, Integers, int], Images]
    train_ok: npt.NDArray[np.bool_]
    test_ok: npt.NDArray[np.bool_]
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set before anything is chosen from it.

    train_labels int64 [N]; test_labels int64 [M], None if the source has no test set of its own.
    image_size: pixels a side that its images suggest, with the reason where that was a decision.
    mean, std: the customary ones, or None: computed from the split. flip: whether a mirrored image keeps its class.
    fingerprint: identifies files that may change under the same name; None where the name says it all.
    """

    name: str
    classes: tuple[str, ...]
    train_labels: Integers
    test_labels: Integers | None
    image_size: int
    size_reason: str | None
    mean: Channels | None
    std: Channels | None
    flip: bool
    fingerprint: str | None
    load: Callable[[int, Reporter], Pixels]


@dataclass(frozen=True)
class Known:
    """A line of the source table.

    image_size: pixels a side. flip: whether a mirrored image keeps its class. mean, std: as in `Source`.
    dataset, train, test: the torchvision class and its arguments for each part; None: embedded in scikit-learn.
    files: what lies in the root once the data is there. classes: names, where the torchvision class has none.
    """

    image_size: int
    flip: bool
    mean: Channels | None = None
    std: Channels | None = None
    dataset: str | None = None
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


DIGITS = tuple("0123456789")
FASHION_FILES = tuple(
    f"FashionMNIST/raw/{part}-{content}-ubyte"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
)
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")

# fmt: off
TABLE: dict[str, Known] = {
    "digits": Known(8, flip=False, classes=DIGITS),
    "cifar10": Known(32, True, CIFAR_MEAN, CIFAR_STD, "CIFAR10", files=("cifar-10-batches-py",)),
    "cifar100": Known(32, True, CIFAR_MEAN, CIFAR_STD, "CIFAR100", files=("cifar-100-python",)),
    "fashion-mnist": Known(28, True, dataset="FashionMNIST", files=FASHION_FILES),
    "svhn": Known(32, False, None, None, "SVHN", {"split": "train"}, {"split": "test"}, SVHN_FILES, DIGITS),
}
# fmt: on


def open_source(config: SplitConfig, root: Path | None) -> Source:
    """The source that `config` (settled) names, its files under `root`.

    Raises: UsageError if `root` is missing or out of place, DataError if the files are not there or damaged.
    """
    root = check_root(config.dataset, root)
    if config.dataset == "folder":
        from saukit.data.folder import open_folder

        assert root is not None
        return open_folder(root)
    known = TABLE[config.dataset]
    if root is None:
        return _digits(known)
    return _torchvision_source(config.dataset, known, root)


def check_root(name: str, root: Path | None) -> Path | None:
    """`root`, or None for embedded data. Raises: UsageError if it is missing or out of place.

    SAUKIT_DATA may be set for other data sets, so embedded data refuses only a root that does not come from there.
    """
    embedded = name != "folder" and TABLE[name].dataset is None
    if embedded:
        if root is not None and str(root) != os.environ.get(DATA_ROOT):
            raise UsageError(f"{name} is embedded in saukit's dependencies and has no root: leave out --root {root}")
        return None
    if root is None:
        raise UsageError(f"{name} lies in a folder: give it as --root DIR, or set {DATA_ROOT}=DIR")
    return root


def _digits(known: Known) -> Source:
    """Scikit-learn's 1797 digits of 8 x 8 pixels; values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * 255 / 16).astype(np.uint8)
    assert known.classes is not None
    return _from_arrays("digits", known, known.classes, (grey, bunch.target.astype(np.int64)), None)


def _from_arrays(
    name: str,
    known: Known,
    classes: tuple[str, ...],
    train: tuple[Images, Integers],
    test: tuple[Images, Integers] | None,
) -> Source:
    """Images are grey [N, H, W], channels last [N, H, W, 3] or channels first [N, 3, H, W]."""
    parts = {"train": train[0]} if test is None else {"train": train[0], "test": test[0]}

    def read(part: str, positions: Integers, size: int) -> Images:
        chosen = parts[part][positions]
        if chosen.ndim == 3:
            chosen = np.repeat(chosen[:, None], 3, axis=1)
        elif chosen.shape[1] != 3:
            chosen = chosen.transpose(0, 3, 1, 2)
        return _resized(np.ascontiguousarray(chosen), size)

    def load(size: int, reporter: Reporter) -> Pixels:
        tests = 0 if test is None else len(test[1])
        return Pixels(read, np.ones(len(train[1]), bool), np.ones(tests, bool))

    return Source(
        name=name,
        classes=classes,
        train_labels=train[1],
        test_labels=None if test is None else test[1],
        image_size=known.image_size,
        size_reason=None,
        mean=known.mean,
        std=known.std,
        flip=known.flip,
        fingerprint=None,
        load=load,
    )


def _resized(images: Images, size: int) -> Images:
    """Square images [N, 3, H, H] at `size` pixels a side; bicubic, antialiased when shrinking."""
    if images.shape[2] == size:
        return images
    from PIL import Image

    out = np.empty((len(images), 3, size, size), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[index] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return out


def _torchvision_source(name: str, known: Known, root: Path) -> Source:
    missing = [file for file in known.files if not (root / file).exists()]
    if missing:
        _download(name, known, root, missing)
    train, test = (_read_part(name, known, root, arguments) for arguments in (known.train, known.test))
    classes = known.classes or tuple(str(label) for label in train[2])
    return _from_arrays(name, known, classes, train[:2], test[:2])


def _read_part(
    name: str, known: Known, root: Path, arguments: Mapping[str, Any]
) -> tuple[Images, Integers, tuple[str, ...]]:
    import torchvision

    try:
        with contextlib.redirect_stdout(sys.stderr):
            dataset = getattr(torchvision.datasets, str(known.dataset))(root, **arguments, download=False)
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError, EOFError) as error:
        reason = str(error).split("You can use")[0].strip()
        raise DataError(
            f"{name} in {root} cannot be read ({reason}): it needs {_listed(known.files)}, whole and unchanged; "
            "remove what is damaged and run the command again to download it, or give another --root"
        ) from error
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return np.asarray(dataset.data), np.asarray(labels, np.int64), getattr(dataset, "classes", ())


def _download(name: str, known: Known, root: Path, missing: list[str]) -> None:
    """Download into a folder of its own beside the data, and move the files in once all are whole."""
    looked = f"{name} is not in {root} (looked for {_listed(tuple(missing))})"
    remedy = "give the folder that holds it as --root DIR or SAUKIT_DATA=DIR"
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        raise DataError(f"{looked}, and {OFFLINE} forbids a download: {remedy}")
    if not root.parent.is_dir():
        raise DataError(f"{looked}; not even {root.parent} exists: {remedy}")
    timeout, created = socket.getdefaulttimeout(), not root.exists()
    staging: Path | None = None
    try:
        root.mkdir(exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".saukit-download-", dir=root))
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
        _download_parts(known, staging)
        for file in missing:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(root / file)
    except (URLError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(f"{looked}, and it cannot be downloaded ({reason}): {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if created:
            with contextlib.suppress(OSError):
                root.rmdir()  # only if nothing came into it


def _download_parts(known: Known, folder: Path) -> None:
    import torchvision

    with contextlib.redirect_stdout(sys.stderr):
        for arguments in (known.train, known.test):
            getattr(torchvision.datasets, str(known.dataset))(folder, **arguments, download=True)


def _listed(files: tuple[str, ...]) -> str:
    return ", ".join(files)
