"""The cache of synthetic images as the stages after `synth` read it; `synthesis.cache` writes it.

synth/shard-00000.safetensors ...  images uint8, or bytes and offsets of encoded ones (see `data.images`), labels,
                                   seeds int64, and one float32 [n] per score
synth/selection.safetensors        reasons uint8, one for each candidate in the order of the shards; 0: kept
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import Manifest, load_tensors
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.data.images import EncodedImages, ImageStore, RowsOf
from saukit.data.split import Split
from saukit.data.types import Floats, Integers

KIND = "synth"
COMMAND = "saukit synth"
SELECTION_NAME = "selection.safetensors"
IMAGES, LABELS, SEEDS = "images", "labels", "seeds"
KEPT = 0


@dataclass(frozen=True)
class SyntheticImages:
    """The kept images of a complete cache: `images` uint8 [m, 3, H, W], `labels` and `seeds` int64 [m]."""

    images: ImageStore
    labels: Integers
    seeds: Integers
    manifest: Manifest


@dataclass(frozen=True)
class Shard:
    """Candidates of one file: `images` uint8 [n, 3, H, W], which stay there if they are encoded, `labels` and `seeds`
    int64 [n], `scores` float32 [n] each.

    `generator` and `scored_by` are digests of what drew them and of what gave each score.
    """

    images: ImageStore
    labels: Integers
    seeds: Integers
    generator: str
    scores: Mapping[str, Floats] = field(default_factory=dict)
    scored_by: Mapping[str, str] = field(default_factory=dict)

    def scored(self, name: str, score: Floats, by: str) -> Shard:
        """This shard with one more score, or another one in its place."""
        return dataclasses.replace(self, scores={**self.scores, name: score}, scored_by={**self.scored_by, name: by})


def load_cache(workspace: Workspace, split: Split) -> SyntheticImages:
    """The workspace's kept synthetic images, every file verified.

    Raises: DataError if there are none or they were made from another split, CorruptArtifactError if they are damaged.
    """
    folder = workspace.synth
    manifest = require(folder, kind=KIND, command=COMMAND)
    require_made_from(manifest, folder, split=split.manifest, command=COMMAND)
    kept = _load_reasons(folder) == KEPT
    paths = [folder / name for name in sorted(manifest.files) if name.startswith("shard-")]
    shards = [load_shard(path, split.image_size)[0] for path in paths]
    if not shards:
        raise CorruptArtifactError(f"the manifest of {folder} names no shard: remake it with --force")
    labels, seeds = (np.concatenate([getattr(shard, name) for shard in shards]) for name in (LABELS, SEEDS))
    del shards
    if len(labels) != len(kept) or (labels < 0).any() or (labels >= split.num_classes).any():
        raise CorruptArtifactError(f"the shards of {folder} do not fit its selection: remake it with --force")
    images = load_images(paths, np.flatnonzero(kept), split.image_size)
    return SyntheticImages(images, labels[kept], seeds[kept], manifest)


def load_images(paths: Sequence[Path], rows: Integers, image_size: tuple[int, int]) -> ImageStore:
    """Candidates number `rows` of the shards at `paths`; encoded ones are read when they are asked for."""
    images, start = np.empty((len(rows), 3, *image_size), np.uint8), 0
    for path in paths:
        shard = load_shard(path, image_size)[0]
        if isinstance(shard.images, EncodedImages):
            return RowsOf(EncodedImages(paths, image_size), rows)
        here = (rows >= start) & (rows < start + len(shard.labels))
        images[here] = shard.images[rows[here] - start]
        start += len(shard.labels)
    return images


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.safetensors"


def load_shard(path: Path, image_size: tuple[int, int]) -> tuple[Shard, dict[str, Any]]:
    """A shard and its metadata. Raises: CorruptArtifactError if something is missing or has another shape or type."""
    tensors, metadata = load_tensors(path, without=["bytes"])
    try:
        labels, seeds = (tensors.pop(name) for name in (LABELS, SEEDS))
        encoded = tensors.pop("offsets", None) is not None
        images: ImageStore = EncodedImages([path], image_size) if encoded else tensors.pop(IMAGES)
        generator, scored_by = str(metadata["generator"]), dict(metadata["scored_by"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{path} holds no {error}: remake the cache with --force") from None
    count = labels.size
    if (
        [images[:0].dtype.name, labels.dtype.name, seeds.dtype.name] != ["uint8", "int64", "int64"]
        or images.shape != (count, 3, *image_size)
        or labels.shape != (count,)
        or seeds.shape != (count,)
        or any(score.shape != (count,) or score.dtype != np.float32 for score in tensors.values())
        or set(scored_by) != set(tensors)
    ):
        raise CorruptArtifactError(f"{path} does not fit the split's images: remake the cache with --force")
    return Shard(images, labels, seeds, generator, tensors, scored_by), metadata


def _load_reasons(folder: Path) -> npt.NDArray[np.uint8]:
    tensors, _ = load_tensors(folder / SELECTION_NAME)
    reasons = tensors.get("reasons")
    if reasons is None or reasons.dtype != np.uint8 or reasons.ndim != 1:
        raise CorruptArtifactError(f"{folder / SELECTION_NAME} is not a selection: remake the cache with --force")
    return reasons
