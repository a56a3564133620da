"""The state of interrupted work as a file: what torch.save can hold, with a SHA-256 behind it."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from saukit.core.artifacts import atomic_path, sha256_file
from saukit.core.errors import CorruptArtifactError

DIGEST_BYTES = 32  # a SHA-256 after the archive: torch.load looks at no checksum, and a zip's own skip its directory


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, text and containers of them, atomically.

    Raises: EnvironmentFault if the disk is full; an earlier file at `path` is then as it was.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # how torch reports a failed write
            full = shutil.disk_usage(path.parent).free < 1 << 20
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
        digest = bytes.fromhex(sha256_file(temporary))
        with temporary.open("ab") as file:
            file.write(digest)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read back onto `device` what `save_state` wrote; it runs no code from the file.

    Raises: CorruptArtifactError if a byte of it changed; FileNotFoundError if it is not there.
    """
    content = path.read_bytes()
    archive, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    try:
        if hashlib.sha256(archive).digest() != digest:
            raise ValueError("its bytes do not fit its checksum")
        state: dict[str, Any] = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
    except (RuntimeError, TypeError, EOFError, ValueError, KeyError, PickleError) as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}): start over with --force") from None
    return state
