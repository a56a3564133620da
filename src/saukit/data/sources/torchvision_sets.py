"""The data sets that torchvision reads, downloaded where they are not there."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.extras import OFFLINE, is_offline
from saukit.core.files import reading
from saukit.core.words import format_bytes, shortened
from saukit.data.source import Source
from saukit.data.sources.in_memory import source_of_arrays

if TYPE_CHECKING:
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Images, Integers

DOWNLOAD_TIMEOUT_SECONDS = 10.0
MOST_BYTES = 1 << 30  # of a file; the largest is SVHN's, 182 MB


@dataclass(frozen=True)
class TorchvisionSet:
    """Opens one data set of torchvision.

    dataset: the name of its class; train, test: what that wants for each part. files: what lies in the root once the
    data is there. classes: their names, where torchvision's class has none.
    """

    dataset: str
    files: tuple[str, ...]
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})
    classes: tuple[str, ...] | None = None

    def __call__(self, config: SourceConfig, root: Path) -> Source:
        """The data set in `root`, downloaded if it is not there."""
        if missing := [file for file in self.files if not (root / file).exists()]:
            self._download(config.dataset, root, missing)
        (train, names), (test, _) = (self._read(config.dataset, root, part) for part in (self.train, self.test))
        return source_of_arrays(self.classes or names, train, test, where=f"{config.dataset} in {root}")

    def _read(self, name: str, root: Path, part: Mapping[str, Any]) -> tuple[tuple[Images, Integers], tuple[str, ...]]:
        """Images and labels of a part, and the names of the classes."""
        import numpy as np

        remedy = (
            f"it needs {shortened(self.files)}, whole and unchanged; remove what is damaged and run the command again "
            "to download it, or give another --root"
        )
        with reading(f"{name} in {root}", remedy=remedy):
            for file in self.files:
                if (size := (root / file).stat().st_size) > MOST_BYTES:
                    raise ValueError(f"{file} has {format_bytes(size)}")
            dataset = self._torchvision(root, part, download=False)
            labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
            names = tuple(map(str, getattr(dataset, "classes", ())))
            return (np.asarray(dataset.data), np.asarray(labels, np.int64)), names

    def _download(self, name: str, root: Path, missing: list[str]) -> None:
        """Download into a folder of its own beside the data, and move the files in once all are whole."""
        looked = f"{name} is not in {root} (looked for {shortened(missing)})"
        remedy = "give the folder that holds it as --root DIR or SAUKIT_DATA=DIR"
        if is_offline():
            raise DataError(f"{looked}, and {OFFLINE} forbids a download: {remedy}")
        if not root.parent.is_dir():
            raise DataError(f"{looked}; not even {root.parent} exists: {remedy}")
        created = not root.exists()
        try:
            root.mkdir(exist_ok=True)
            with _patience(), tempfile.TemporaryDirectory(prefix=".saukit-download-", dir=root) as whole:
                for part in (self.train, self.test):
                    self._torchvision(Path(whole), part, download=True)
                for file in missing:
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    Path(whole, file).replace(root / file)
        except (URLError, RuntimeError, OSError, EOFError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise EnvironmentFault(f"{looked}, and it cannot be downloaded ({reason}): {remedy}") from error
        finally:
            if created:
                with contextlib.suppress(OSError):
                    root.rmdir()  # only if nothing came into it

    def _torchvision(self, root: Path, part: Mapping[str, Any], *, download: bool) -> Any:
        import torchvision

        with contextlib.redirect_stdout(sys.stderr):
            return getattr(torchvision.datasets, self.dataset)(root, **part, download=download)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Have connections that stay silent time out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
