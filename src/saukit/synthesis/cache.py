"""The shards of candidates and what was chosen from them: written whole, read back checked; photos are encoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from saukit.core.artifacts import save_tensors
from saukit.core.errors import CorruptArtifactError
from saukit.core.machine import in_threads
from saukit.data.images import RAW_UP_TO, Encoded, EncodedImages, ImageStore, save_shard
from saukit.data.synthetic import IMAGES, LABELS, SEEDS, SELECTION_NAME, Shard, load_images, load_shard, shard_path
from saukit.data.types import Floats, Integers
from saukit.synthesis.judging.selection import REASONS
from saukit.synthesis.plan import Round, SynthesisPlan


def save_selection(folder: Path, reasons: npt.NDArray[np.uint8]) -> None:
    """Write what became of each candidate, atomically."""
    save_tensors(folder / SELECTION_NAME, {"reasons": reasons}, {"reasons": list(REASONS)})


def write_shard(folder: Path, index: int, shard: Shard, part: Round) -> None:
    """Write shard `index` of a round, atomically."""
    images = shard.images
    tensors: dict[str, npt.NDArray[Any]] = {LABELS: shard.labels, SEEDS: shard.seeds, **shard.scores}
    metadata = {
        "shard": index,
        "plan": part.digest,
        "generator": shard.generator,
        "scored_by": dict(sorted(shard.scored_by.items())),
    }
    path = shard_path(folder, index)
    if isinstance(images, EncodedImages):
        save_shard(path, [images.encoded(row) for row in range(len(images))], metadata, **tensors)
    elif max(images.shape[2:]) > RAW_UP_TO:
        save_shard(path, [each.file for each in in_threads(Encoded.of, list(images[:]))], metadata, **tensors)
    else:
        save_tensors(path, {IMAGES: images[:], **tensors}, metadata)


def read_shard(
    folder: Path, index: int, part: Round, image_size: tuple[int, int], *, generator: str | None
) -> Shard | None:
    """Shard `index` if it is there, loads, and is the one that the round and the generator with that digest make.

    `generator` None: whichever sampled it.
    """
    path, there = shard_path(folder, index), part.shards[index]
    if not path.exists():
        return None
    try:
        shard, metadata = load_shard(path, image_size)
    except CorruptArtifactError:
        return None
    fits = (
        metadata.get("plan") == part.digest
        and generator in (None, shard.generator)
        and np.array_equal(shard.labels, part.labels[there])
        and np.array_equal(shard.seeds, part.seeds[there])
    )
    return shard if fits else None


def load_scores(folder: Path, plan: SynthesisPlan, names: Sequence[str]) -> dict[str, Floats]:
    """The scores of every candidate, float32 [total] each; they are in the shards if those were scored."""
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    for index in range(plan.shard_count):
        with safe_open(shard_path(folder, index), framework="numpy") as file:
            for name in names:
                parts[name].append(file.get_tensor(name))
    return {name: np.concatenate(values) for name, values in parts.items()}


def candidates(folder: Path, plan: SynthesisPlan, wanted: Integers) -> ImageStore:
    """Candidates number `wanted` [n] of the plan, uint8 [n, 3, H, W]."""
    return load_images([shard_path(folder, index) for index in range(plan.shard_count)], wanted, plan.image_size)
