"""Files that are whole or absent, and the manifest that vouches for them.

Every write goes to a temporary sibling, is flushed to disk, and is renamed into place. `manifest.json` is written last:
its presence means that the artefact is complete, and it holds the SHA-256 of every file, which every reader checks, of
large files once (`core.stamps`) (neither safetensors nor torch.save notices a flipped byte).

File systems that know no permissions, or cannot flush (network drives, FAT), stop nothing; a write that fails does.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.config import LISTED, from_mapping
from saukit.core.documents import REMAKE, START_OVER, parse_json, read_json
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, UsageError
from saukit.core.files import check_regular
from saukit.core.shapes import AMOUNT, ANY, COUNT, SHARE, SOME, Among, Maybe, Rows, Shape, all_of, misfits
from saukit.core.stamps import Stamps
from saukit.core.words import format_bytes, shortened, shown
from saukit.core.writing import (
    INPUTS_NAME,
    atomic_path,
    expected,
    forget_hashes,
    sha256_file,
    write_text,
)

FORMAT_VERSION = 1
CONFIG_NAME = "config.yaml"
MANIFEST_NAME = "manifest.json"
METADATA_KEY = "saukit"
SEAL = "sha256"  # of all else in a document, in it
VERSIONED_PACKAGES = (
    "saukit",
    "torch",
    "torchvision",
    "diffusers",
    "safetensors",
    "numpy",
    "pillow",
    "scikit-learn",
    "transformers",
    "peft",
    "accelerate",
)
# What of a manifest's summary somebody reads, by its kind.
SUMMARIES: dict[str, Shape] = {
    "split": all_of("source groups_rule", str)
    | {"classes": Rows("K", str), "counts": Rows("K", COUNT), "groups": {str: [Among("K")]}}
    | all_of("image_size train_images test_images", SOME)
    | {"val_images": COUNT, "bytes": COUNT, "imb_reached": AMOUNT, "root": ANY, "source_files": ANY},
    "synth": {"images": COUNT, "candidates": COUNT, "rejected": {str: COUNT}, "generator": {"train_seconds?": AMOUNT}}
    | all_of("sample_seconds images_per_second", Maybe(AMOUNT)),
    "run": all_of("parameters real_images synthetic_images steps chosen_step", COUNT)
    | all_of("batch_size views_per_step", SOME)
    | {"chosen_by": str, "seconds": AMOUNT, "images_per_second": AMOUNT, "peak_memory_bytes": Maybe(COUNT)}
    | {"counts_nothing?": bool, "trusted_share?": Maybe(SHARE)},
}
# Pictures may differ by a library's version; they are not part of what an artefact is.
CONTENT_SUFFIXES = (".safetensors", ".yaml")


def write_json(path: Path, document: Any) -> None:
    """Write `document` as JSON, atomically. Raises: ValueError for NaN or infinity."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as JSON, atomically, with the format's version and a hash of all that it says."""
    versioned = {"format_version": FORMAT_VERSION, **document}
    write_json(path, {**versioned, SEAL: _seal(versioned)})


def read_sealed(path: Path, *, remedy: str) -> dict[str, Any]:
    """What `write_sealed` was given.

    Raises: CorruptArtifactError, with `remedy`, if it is damaged; DataError if its format is newer than this saukit.
    """
    document: dict[str, Any] = read_json(path, remedy=remedy)
    _check_format(document.get("format_version"), path, remedy)
    if document.pop(SEAL, None) != _seal(document):
        raise CorruptArtifactError(f"{path} was changed after it was written: {remedy}")
    del document["format_version"]
    return document


def check_document(
    document: Mapping[str, Any],
    shape: Shape,
    path: Path,
    *,
    remedy: str,
    known: Mapping[str, Collection[Any]] | None = None,
    also: Callable[[Any], Iterable[str]] = lambda document: (),
) -> None:
    """See that what was read from `path` has its shape (`core.shapes`), since hashes vouch for whatever somebody wrote.

    known: as `misfits`. also: what is wrong with a document that has its shape.
    Raises: CorruptArtifactError with every wrong value and `remedy`; DataError if its format is newer.
    """
    if "format_version" in shape:
        _check_format(document.get("format_version"), path, remedy)
    if problems := [*misfits(document, shape, known)] or [*also(document)]:
        raise CorruptArtifactError(f"{path} is damaged: {shortened(problems, '; ', limit=LISTED)}; {remedy}")


def save_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    """Write arrays to a safetensors file, atomically; `metadata` travels as one JSON string under one key."""
    from safetensors.numpy import save_file

    text = _metadata_text(metadata)
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with atomic_path(path) as temporary, safetensors_writing():
        save_file(contiguous, temporary, metadata={METADATA_KEY: text})


def save_with_images(
    path: Path,
    tensors: Mapping[str, npt.NDArray[np.int64]],
    metadata: Mapping[str, Any],
    shape: Sequence[int],
    blocks: Iterable[npt.NDArray[np.uint8]],
) -> None:
    """As `save_tensors`, byte for byte, with an array `images` uint8 of `shape` whose rows come in blocks."""
    arrays = {name: np.ascontiguousarray(tensors[name], "<i8") for name in sorted(tensors)}
    ends = np.cumsum([0, *(array.nbytes for array in arrays.values()), math.prod(shape)]).tolist()
    facts = [(name, "I64", array.shape) for name, array in arrays.items()] + [("images", "U8", shape)]
    entries = {
        name: {"dtype": kind, "shape": list(sides), "data_offsets": ends[at : at + 2]}
        for at, (name, kind, sides) in enumerate(facts)
    }
    document = {"__metadata__": {METADATA_KEY: _metadata_text(metadata)}, **entries}
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in (*arrays.values(), *blocks):
            file.write(np.ascontiguousarray(array).data)
        if file.tell() != 8 + len(header) + ends[-1]:
            raise ValueError(f"{path}: the blocks have other rows than {shape}")


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, **metadata}, ensure_ascii=False, sort_keys=True)


@contextlib.contextmanager
def safetensors_writing() -> Iterator[None]:
    """While entered, safetensors writes a file. Raises: the OSError that its own error wraps, as of a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error


def load_tensors(path: Path, *, without: Collection[str] = ()) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a file that `save_tensors` wrote; the arrays `without` are not read.

    Raises: CorruptArtifactError if it is another file, DataError if its format is newer than this saukit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            metadata = parse_json((file.metadata() or {})[METADATA_KEY], where="its metadata")
            names = [name for name in file.keys() if name not in without]  # noqa: SIM118 - not a dict
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path} is missing") from None
    except (SafetensorError, CorruptArtifactError, OSError, KeyError, ValueError) as error:
        raise CorruptArtifactError(f"{path} is not a saukit tensor file: {error}") from None
    _check_format(metadata.get("format_version"), path, REMAKE)
    return tensors, metadata


@dataclass(frozen=True)
class Manifest:
    """What vouches for a complete artefact.

    `digest` identifies the content: the SHA-256 over the names and hashes of its data files and its config.yaml.
    `inputs` maps the name of each artefact it was made from to that artefact's digest.
    """

    kind: str
    digest: str
    inputs: dict[str, str]
    files: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    device: str
    created: str
    versions: dict[str, str]


def write_manifest(
    folder: Path,
    *,
    kind: str,
    files: Sequence[str],
    inputs: Mapping[str, str],
    summary: Mapping[str, Any],
    device: str,
) -> Manifest:
    """Hash `files` (paths relative to `folder`) and write the manifest that completes the artefact."""
    records = {name: _file_record(folder / name) for name in sorted(files)}
    manifest = Manifest(
        kind=kind,
        digest=_content_digest(records),
        inputs=dict(inputs),
        files=records,
        summary=dict(summary),
        device=device,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        versions=package_versions(),
    )
    for name, record in records.items():
        if (noted := expected(folder / name)) and record["sha256"] not in noted:
            raise CorruptArtifactError(
                f"{folder / name} was changed while the work went on: continue with --resume, or {START_OVER}"
            )
    stamps = Stamps(folder)
    for name, record in records.items():
        stamps.add(folder / name, record["sha256"])
    stamps.save()
    _write_manifest(folder, manifest)
    forget_hashes(folder)
    (folder / INPUTS_NAME).unlink(missing_ok=True)
    return manifest


@contextlib.contextmanager
def added_files(folder: Path, *, kind: str, files: Sequence[str]) -> Iterator[None]:
    """Let the block write `files` into a complete artefact, and have its manifest vouch for them too.

    The manifest lets go of older versions first, so that a kill in between leaves the artefact as valid as it was.
    """
    if data := [name for name in files if name.endswith(CONTENT_SUFFIXES)]:
        raise ValueError(f"{', '.join(data)}: data files make the digest, they cannot be added later")
    manifest = read_manifest(folder, kind=kind)
    if manifest is None:
        raise DataError(f"{folder} holds no complete {kind}")

    kept = {name: record for name, record in manifest.files.items() if name not in files}
    if kept != manifest.files:
        _write_manifest(folder, replace(manifest, files=kept))
    yield
    records = kept | {name: _file_record(folder / name) for name in files}
    _write_manifest(folder, replace(manifest, files=dict(sorted(records.items()))))


def read_manifest(folder: Path, *, kind: str, verify: bool = True) -> Manifest | None:
    """The manifest of a complete artefact, every file checked against it; None if `folder` holds no complete one.

    Raises: CorruptArtifactError that lists every missing, truncated or changed file.
    """
    path = folder / MANIFEST_NAME
    try:
        path.lstat()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):  # which say nothing of what is there
            return None
    document = read_sealed(path, remedy=REMAKE)
    try:
        manifest = from_mapping(Manifest, document, where=f"{path} is damaged")
    except UsageError as error:
        raise CorruptArtifactError(f"{error}; {REMAKE}") from None
    for name, record in manifest.files.items():
        if not isinstance(record.get("sha256"), str) or not isinstance(record.get("bytes"), int):
            raise CorruptArtifactError(f"{path} is damaged: its record of {shown(name)} lacks hash or size; {REMAKE}")
    if manifest.kind != kind:
        raise CorruptArtifactError(
            f"{path} describes a {manifest.kind!r} artefact where a {kind!r} one belongs; "
            "move it away, or give another folder"
        )
    check_document(document, {"summary": SUMMARIES.get(kind, ANY)}, path, remedy=REMAKE, also=_strange)
    if verify:
        stamps = Stamps(folder)
        bad = [text for name, record in manifest.files.items() if (text := _problem(folder / name, record, stamps))]
        stamps.save()
        if not bad and _content_digest(manifest.files) != manifest.digest:
            bad = [f"{MANIFEST_NAME} (its digest does not fit its files)"]
        if bad:
            raise CorruptArtifactError(f"{folder} is damaged: {', '.join(bad)}; {REMAKE}")
    return manifest


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; a package that is not there is left out."""
    versions = {"python": platform.python_version(), "platform": sys.platform}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = _version(package)
    return versions


@functools.cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Raises: EnvironmentFault if the file system of `folder` has less than `needed_bytes` and a tenth more free."""
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 1.1 * needed_bytes:
        raise EnvironmentFault(
            f"{folder} needs about {format_bytes(needed_bytes)} but {format_bytes(free)} are free on its disk; "
            "free some space, or give another --workspace"
        )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_sealed(folder / MANIFEST_NAME, vars(manifest))


def _seal(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _file_record(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _content_digest(records: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{records[name]['sha256']}  {name}\n" for name in sorted(records) if name.endswith(CONTENT_SUFFIXES)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _strange(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest whose values have their types."""
    summary = document["summary"]
    if document["kind"] == "split" and (groups := summary.get("groups")) is not None:
        named = {*groups} <= {"many", "medium", "few"}
        if not named or sorted(chain(*groups.values())) != sorted(summary["classes"]):
            yield "summary.groups do not have each class once"
    try:
        datetime.fromisoformat(document["created"])
    except ValueError:
        yield f"created is {shown(document['created'])}, not a date"


def _problem(path: Path, record: Mapping[str, Any], stamps: Stamps) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != record["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {record['bytes']}"
    if stamps.vouches(path, record["sha256"]):
        return None
    if sha256_file(path) != record["sha256"]:
        return f"{path.name} was changed after it was written"
    stamps.add(path, record["sha256"])
    return None


def _check_format(version: object, path: Path, remedy: str) -> None:
    if type(version) is not int or version < FORMAT_VERSION:
        raise CorruptArtifactError(f"{path} is damaged: its format_version is {shown(version)}; {remedy}")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {shown(version)}, this saukit reads {FORMAT_VERSION}: update saukit"
        )
