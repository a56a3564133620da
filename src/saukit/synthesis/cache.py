"""The shards of synthetic images: written whole, read back checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import Manifest, load_tensors, save_tensors
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.synthesis.plan import SynthesisPlan

if TYPE_CHECKING:
    from saukit.data.split import Split

KIND = "synth"
COMMAND = "saukit synth"


@dataclass(frozen=True)
class SyntheticImages:
    """A complete cache of m images: `images` uint8 [m, 3, H, W], `labels` and `seeds` int64 [m]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    manifest: Manifest


def load_cache(workspace: Workspace, split: Split) -> SyntheticImages:
    """The workspace's synthetic images, every file verified.

    Raises: DataError if there are none or they were made from another split, CorruptArtifactError if they are damaged.
    """
    folder = workspace.synth
    manifest = require(folder, kind=KIND, command=COMMAND)
    require_made_from(manifest, folder, split=split.manifest, command=COMMAND)
    total = int(manifest.summary["images"])
    images = np.empty((total, 3, *split.image_size), dtype=np.uint8)
    labels, seeds = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    at = 0
    for name in sorted(name for name in manifest.files if name.startswith("shard-")):
        shard = _read_shard(folder / name, split.image_size)
        stop = at + len(shard[1])
        if stop > total:
            raise CorruptArtifactError(f"{folder} holds more images than its manifest says: remake it with --force")
        images[at:stop], labels[at:stop], seeds[at:stop] = shard
        at = stop
    if at != total or (labels < 0).any() or (labels >= split.num_classes).any():
        raise CorruptArtifactError(f"the shards of {folder} do not fit its manifest: remake it with --force")
    return SyntheticImages(images, labels, seeds, manifest)


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.safetensors"


def write_shard(
    folder: Path, index: int, images: npt.NDArray[np.uint8], plan: SynthesisPlan, *, generator: str
) -> None:
    """Write the images of one shard, atomically; `generator` is the digest of the weights that made them."""
    part = plan.shards[index]
    if images.shape != (part.stop - part.start, 3, *plan.image_size) or images.dtype != np.uint8:
        raise ValueError(f"shard {index} needs {part.stop - part.start} images, got {images.dtype} {images.shape}")
    tensors: dict[str, npt.NDArray[Any]] = {"images": images, "labels": plan.labels[part], "seeds": plan.seeds[part]}
    save_tensors(shard_path(folder, index), tensors, _shard_metadata(plan, index, generator))


def shard_is_done(folder: Path, index: int, plan: SynthesisPlan, *, generator: str) -> bool:
    """Whether shard `index` is there, loads, and is the one that `plan` and the weights `generator` make."""
    path, part = shard_path(folder, index), plan.shards[index]
    if not path.exists():
        return False
    try:
        tensors, metadata = load_tensors(path)
        images, labels, seeds = _checked(tensors, path, plan.image_size)
    except CorruptArtifactError:
        return False
    expected = _shard_metadata(plan, index, generator)
    return (
        {name: metadata.get(name) for name in expected} == expected
        and len(images) == part.stop - part.start
        and np.array_equal(labels, plan.labels[part])
        and np.array_equal(seeds, plan.seeds[part])
    )


def load_shard_images(folder: Path, plan: SynthesisPlan, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Images number `wanted` [n] of the plan, uint8 [n, 3, H, W], from the shards they lie in."""
    images = np.empty((len(wanted), 3, *plan.image_size), dtype=np.uint8)
    for index in np.unique(wanted // plan.shard_images).tolist():
        here = wanted // plan.shard_images == index
        images[here] = _read_shard(shard_path(folder, index), plan.image_size)[0][wanted[here] % plan.shard_images]
    return images


def _shard_metadata(plan: SynthesisPlan, index: int, generator: str) -> dict[str, str | int]:
    return {"shard": index, "shards": len(plan.shards), "plan": plan.digest, "generator": generator}


def _read_shard(
    path: Path, image_size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return _checked(load_tensors(path)[0], path, image_size)


def _checked(
    tensors: dict[str, npt.NDArray[Any]], path: Path, image_size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The three arrays of a shard. Raises: CorruptArtifactError if one is missing or has another shape or type."""
    try:
        images, labels, seeds = tensors["images"], tensors["labels"], tensors["seeds"]
    except KeyError as error:
        raise CorruptArtifactError(f"{path} holds no {error}: remake the cache with --force") from None
    count = len(labels)
    if (
        [images.dtype.name, labels.dtype.name, seeds.dtype.name] != ["uint8", "int64", "int64"]
        or images.shape != (count, 3, *image_size)
        or labels.shape != (count,)
        or seeds.shape != (count,)
    ):
        raise CorruptArtifactError(f"{path} does not fit the split's images: remake the cache with --force")
    return images, labels, seeds
