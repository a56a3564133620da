"""The state of interrupted work as files: what torch.save can hold, what it was made from, and a SHA-256 behind it.

The last two states are kept: checkpoint.pt, and checkpoint.previous.pt to fall back to.
"""

import errno
import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import Tensor

from saukit.core.documents import START_OVER
from saukit.core.errors import CorruptArtifactError
from saukit.core.files import read_regular
from saukit.core.words import shortened, shown
from saukit.core.writing import atomic_path, sha256_file

DIGEST_BYTES = 32  # a SHA-256 after the archive: torch.load looks at no checksum, and a zip's own skip its directory
STATES = 3  # on the disk at most: two, and one in the making


def save_state(path: Path, state: Mapping[str, Any], *, made_from: Mapping[str, str]) -> None:
    """Write tensors, numbers, text and containers of them, atomically; the state before is kept beside it.

    `made_from` says what the state belongs to: its kind, the options and the digests of the inputs behind it.
    Raises: EnvironmentFault if the disk is full; the earlier files are then as they were.
    """
    with atomic_path(path, hashed=False) as temporary:
        try:
            torch.save({"made_from": dict(made_from), "state": dict(state)}, temporary)
        except RuntimeError as error:  # how torch reports a failed write
            full = shutil.disk_usage(path.parent).free < 1 << 20
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
        digest = bytes.fromhex(sha256_file(temporary))
        with temporary.open("ab") as file:
            file.write(digest)
        if path.exists():
            path.replace(previous(path))


def load_state(
    path: Path, device: torch.device, *, made_from: Mapping[str, str], warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Read back onto `device` what `save_state` wrote last, or the state before if that one will not do; None if there
    is neither. It runs no code from the files.

    `warn` hears of a fall-back. Raises: CorruptArtifactError if what is there is damaged or belongs to other work.
    """
    problems = []
    for file in (path, previous(path)):
        if not file.exists() and not file.is_symlink():
            continue
        try:
            state = _load(file, device, made_from)
        except CorruptArtifactError as error:
            problems.append(str(error))
            continue
        if problems:
            warn(f"{problems[0]}: going on from the state before it, {file.name}")
        return state
    if problems:
        raise CorruptArtifactError(f"{'; '.join(problems)}: {START_OVER}")
    return None


def remove_states(path: Path) -> None:
    """Remove both states."""
    for file in (path, previous(path)):
        file.unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the state before the one in `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def is_finite(state: Any) -> bool:
    """Whether every tensor and number in containers of them is finite; one wait for a device."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in _tensors(state):
        if tensor.is_floating_point():
            found.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(each).all()) for each in found.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, float):
        yield torch.tensor(state)
    elif isinstance(state, Mapping | list | tuple):
        for item in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(item)


def _load(path: Path, device: torch.device, made_from: Mapping[str, str]) -> dict[str, Any]:
    """One state. Raises: CorruptArtifactError without a remedy."""
    try:
        content = read_regular(path)
        archive, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(archive).digest() != digest:
            raise ValueError("its bytes do not fit its checksum")
        document = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
        there, state = document["made_from"], document["state"]
        if not isinstance(there, dict) or not isinstance(state, dict):
            raise ValueError("it is not a state")
    except (OSError, RuntimeError, TypeError, EOFError, ValueError, KeyError, IndexError, PickleError) as error:
        raise CorruptArtifactError(f"{path} is damaged ({shown(str(error), limit=200, quotes=False)})") from None
    if other := [
        f"{name}: {shown(there.get(name), quotes=False)} there, {shown(made_from.get(name), quotes=False)} here"
        for name in sorted({*there, *made_from}, key=str)
        if there.get(name) != made_from.get(name)
    ]:
        raise CorruptArtifactError(f"{path} belongs to other work ({shortened(other, '; ', limit=5)})")
    return state
