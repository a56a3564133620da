"""The shards of candidates and what was chosen from them: written whole, read back checked.

synth/shard-00000.safetensors ...  images uint8, labels, seeds int64, and one float32 [n] per score
synth/selection.safetensors        reasons uint8, one for each candidate in the order of the shards; 0: kept
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import Manifest, load_tensors, save_tensors
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.synthesis.plan import Round, SynthesisPlan

if TYPE_CHECKING:
    from saukit.data.split import Split

KIND = "synth"
COMMAND = "saukit synth"
SELECTION_NAME = "selection.safetensors"
IMAGES, LABELS, SEEDS = "images", "labels", "seeds"
KEPT = 0


@dataclass(frozen=True)
class SyntheticImages:
    """The kept images of a complete cache: `images` uint8 [m, 3, H, W], `labels` and `seeds` int64 [m]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    manifest: Manifest


@dataclass(frozen=True)
class Shard:
    """Candidates of one file: `images` uint8 [n, 3, H, W], `labels` and `seeds` int64 [n], `scores` float32 [n] each.

    `generator` and `scored_by` are digests of what drew them and of what gave each score.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    generator: str
    scores: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    scored_by: Mapping[str, str] = field(default_factory=dict)

    def scored(self, name: str, score: npt.NDArray[np.float32], by: str) -> Shard:
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
    total = int(np.count_nonzero(kept))
    images = np.empty((total, 3, *split.image_size), dtype=np.uint8)
    labels, seeds = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    seen = at = 0
    for name in sorted(name for name in manifest.files if name.startswith("shard-")):
        shard = _read_shard(folder / name, split.image_size)[0]
        chosen = kept[seen : seen + len(shard.labels)]
        if len(chosen) != len(shard.labels):
            raise CorruptArtifactError(f"{folder} holds more images than its selection: remake it with --force")
        stop = at + int(np.count_nonzero(chosen))
        images[at:stop], labels[at:stop], seeds[at:stop] = (
            shard.images[chosen],
            shard.labels[chosen],
            shard.seeds[chosen],
        )
        seen, at = seen + len(chosen), stop
    if seen != len(kept) or (labels < 0).any() or (labels >= split.num_classes).any():
        raise CorruptArtifactError(f"the shards of {folder} do not fit its selection: remake it with --force")
    return SyntheticImages(images, labels, seeds, manifest)


def save_selection(folder: Path, reasons: npt.NDArray[np.uint8]) -> None:
    """Write what became of each candidate, atomically."""
    from saukit.synthesis.selection import REASONS

    save_tensors(folder / SELECTION_NAME, {"reasons": reasons}, {"reasons": list(REASONS)})


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"shard-{index:05d}.safetensors"


def write_shard(folder: Path, index: int, shard: Shard, part: Round) -> None:
    """Write shard `index` of a round, atomically."""
    there = part.shards[index]
    size = (there.stop - there.start, 3)
    if shard.images.shape[:2] != size or shard.images.dtype != np.uint8:
        raise ValueError(f"shard {index} needs {size[0]} images, got {shard.images.dtype} {shard.images.shape}")
    tensors: dict[str, npt.NDArray[Any]] = {
        IMAGES: shard.images,
        LABELS: shard.labels,
        SEEDS: shard.seeds,
        **shard.scores,
    }
    metadata = {
        "shard": index,
        "plan": part.digest,
        "generator": shard.generator,
        "scored_by": dict(sorted(shard.scored_by.items())),
    }
    save_tensors(shard_path(folder, index), tensors, metadata)


def read_shard(
    folder: Path, index: int, part: Round, image_size: tuple[int, int], *, generator: str | None
) -> Shard | None:
    """Shard `index` if it is there, loads, and is the one that the round and the generator with that digest make.

    `generator` None: whichever drew it.
    """
    path, there = shard_path(folder, index), part.shards[index]
    if not path.exists():
        return None
    try:
        shard, metadata = _read_shard(path, image_size)
    except CorruptArtifactError:
        return None
    fits = (
        metadata.get("plan") == part.digest
        and generator in (None, shard.generator)
        and np.array_equal(shard.labels, part.labels[there])
        and np.array_equal(shard.seeds, part.seeds[there])
    )
    return shard if fits else None


def read_candidates(folder: Path, plan: SynthesisPlan) -> Iterator[Shard]:
    """Every shard of the plan, in order. Raises: CorruptArtifactError if one is damaged."""
    for index in range(plan.shard_count):
        yield _read_shard(shard_path(folder, index), plan.image_size)[0]


def load_scores(folder: Path, plan: SynthesisPlan, names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """The scores of every candidate, float32 [total] each; they are in the shards if those were scored."""
    from safetensors import safe_open

    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for index in range(plan.shard_count):
        with safe_open(shard_path(folder, index), framework="numpy") as file:
            for name in names:
                parts[name].append(file.get_tensor(name))
    return {name: np.concatenate(values) for name, values in parts.items()}


def load_images(folder: Path, plan: SynthesisPlan, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Candidates number `wanted` [n] of the plan, uint8 [n, 3, H, W], from the shards they lie in."""
    images = np.empty((len(wanted), 3, *plan.image_size), dtype=np.uint8)
    start = 0
    for part in plan.rounds:
        for index, there in part.shards.items():
            here = (wanted >= start + there.start) & (wanted < start + there.stop)
            if here.any():
                shard = _read_shard(shard_path(folder, index), plan.image_size)[0]
                images[here] = shard.images[wanted[here] - start - there.start]
        start += part.total
    return images


def _load_reasons(folder: Path) -> npt.NDArray[np.uint8]:
    tensors, _ = load_tensors(folder / SELECTION_NAME)
    reasons = tensors.get("reasons")
    if reasons is None or reasons.dtype != np.uint8 or reasons.ndim != 1:
        raise CorruptArtifactError(f"{folder / SELECTION_NAME} is no selection: remake the cache with --force")
    return reasons


def _read_shard(path: Path, image_size: tuple[int, int]) -> tuple[Shard, dict[str, Any]]:
    """A shard and its metadata. Raises: CorruptArtifactError if something is missing or has another shape or type."""
    tensors, metadata = load_tensors(path)
    try:
        images, labels, seeds = (tensors.pop(name) for name in (IMAGES, LABELS, SEEDS))
        generator, scored_by = str(metadata["generator"]), dict(metadata["scored_by"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{path} holds no {error}: remake the cache with --force") from None
    count = len(labels)
    if (
        [images.dtype.name, labels.dtype.name, seeds.dtype.name] != ["uint8", "int64", "int64"]
        or images.shape != (count, 3, *image_size)
        or labels.shape != (count,)
        or seeds.shape != (count,)
        or any(score.shape != (count,) or score.dtype != np.float32 for score in tensors.values())
        or set(scored_by) != set(tensors)
    ):
        raise CorruptArtifactError(f"{path} does not fit the split's images: remake the cache with --force")
    return Shard(images, labels, seeds, generator, tensors, scored_by), metadata
