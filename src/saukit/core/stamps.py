"""Which large files of an artefact were hashed in the state that they are in, so that tens of gigabytes are read once
on a machine and not at every start. Small files are hashed always.

    .verified.json    file name -> size, mtime_ns, inode, sha256; no part of the artefact, and may be removed
"""

import contextlib
import json
import os
from pathlib import Path

from saukit.core.documents import read_json
from saukit.core.errors import SaukitError

STAMPS_NAME = ".verified.json"
STAMPED_BYTES = 64 << 20  # files above it

State = list[int | str]


class Stamps:
    """The stamps of the artefact in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / STAMPS_NAME
        self._known: dict[str, State] = {}
        self._changed = False
        with contextlib.suppress(SaukitError):
            self._known = read_json(self._path)

    def vouches(self, path: Path, sha256: str) -> bool:
        """Whether the file had this hash in the state that it is in."""
        return self._known.get(self._name(path)) == _state(path, sha256)

    def add(self, path: Path, sha256: str) -> None:
        """Remember that the file has this hash now, if it is a large one."""
        if path.stat().st_size > STAMPED_BYTES:
            self._known[self._name(path)] = _state(path, sha256)
            self._changed = True

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def save(self) -> None:
        """Write what is new; where nothing can be written, the files are hashed again next time."""
        if not self._changed:
            return
        temporary = self._path.with_name(f".{STAMPS_NAME}.{os.getpid()}.partial")  # swept after a kill
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _state(path: Path, sha256: str) -> State:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, sha256]
