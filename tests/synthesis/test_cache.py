"""Shards and the selection: what is written comes back; what is another's, damaged or of another shape does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SUMMARIES

from saukit.core.artifacts import load_tensors, save_tensors, write_manifest
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.data.images import EncodedImages, as_stored
from saukit.data.split import Split
from saukit.data.synthetic import Shard, load_cache, load_shard, shard_path
from saukit.synthesis.cache import candidates, load_scores, read_shard, save_selection, write_shard
from saukit.synthesis.plan import Round, SynthesisPlan

SIZE = (2, 3)
NONE: Any = None
LABELS = np.array([0, 0, 1, 1, 1, 2, 2], np.int64)
SECOND = np.array([0, 2, 2, 1, 0], np.int64)


def part(labels: Any, first_shard: int, seeds: int) -> Round:
    count = np.arange(len(labels), dtype=np.int64)
    return Round(labels, count + seeds, count, first_shard=first_shard, batch_images=2, shard_images=4)


ROUNDS = (part(LABELS, 0, 100), part(SECOND, 2, 900))
PLAN = SynthesisPlan(NONE, ("a", "b", "c"), SIZE, NONE, NONE, 2, 4, ROUNDS)
EVERY = np.random.RandomState(0).randint(0, 256, (12, 3, *SIZE)).astype(np.uint8)


def shard_of(part: Round, index: int, images: Any, generator: str = "g") -> Shard:
    there = part.shards[index]
    return Shard(images[there], part.labels[there], part.seeds[there], generator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both rounds, in four shards with a score."""
    for part, images in zip(ROUNDS, (EVERY[:7], EVERY[7:]), strict=True):
        for index in part.shards:
            shard = shard_of(part, index, images)
            score = (shard.seeds / 7).astype(np.float32)
            write_shard(tmp_path, index, shard.scored("z", score, "judge").scored("a", -score, "other"), part)
    return tmp_path


def test_what_is_written_comes_back(folder: Path) -> None:
    assert [path.name for path in sorted(folder.iterdir())] == [f"shard-0000{index}.safetensors" for index in range(4)]
    for part, images in zip(ROUNDS, (EVERY[:7], EVERY[7:]), strict=True):
        for index, there in part.shards.items():
            shard = read_shard(folder, index, part, SIZE, generator="g")
            assert shard is not None and shard.generator == "g"
            assert dict(shard.scored_by) == {"a": "other", "z": "judge"}
            np.testing.assert_array_equal(shard.images[:], images[there])
            np.testing.assert_array_equal(shard.labels, part.labels[there])
            np.testing.assert_array_equal(shard.seeds, part.seeds[there])
            np.testing.assert_array_equal(shard.scores["z"], (part.seeds[there] / 7).astype(np.float32))
    tensors, metadata = load_tensors(shard_path(folder, 3))
    assert sorted(tensors) == ["a", "images", "labels", "seeds", "z"] and metadata["shard"] == 3
    assert metadata["plan"] == ROUNDS[1].digest and metadata["generator"] == "g"


def test_scores_and_images_of_every_shard_in_order(folder: Path) -> None:
    seeds = np.concatenate([part.seeds for part in ROUNDS])
    scores = load_scores(folder, PLAN, ["z", "a"])
    assert list(scores) == ["z", "a"] and load_scores(folder, PLAN, []) == {}
    np.testing.assert_array_equal(scores["z"], (seeds / 7).astype(np.float32))
    np.testing.assert_array_equal(scores["a"], -scores["z"])
    for wanted in ([0], [3, 4], [11, 0, 7, 6, 6], [], range(12)):
        chosen = np.array(wanted, np.int64)
        np.testing.assert_array_equal(candidates(folder, PLAN, chosen)[:], EVERY[chosen])


def test_large_images_are_stored_encoded(tmp_path: Path) -> None:
    size = (66, 68)
    images = np.random.RandomState(0).randint(0, 256, (12, 3, *size)).astype(np.uint8)
    stored = np.stack([as_stored(image) for image in images])
    for part, some in zip(ROUNDS, (images[:7], images[7:]), strict=True):
        for index, there in part.shards.items():
            write_shard(tmp_path, index, shard_of(part, index, some), part)
            shard = read_shard(tmp_path, index, part, size, generator="g")
            assert shard is not None and isinstance(shard.images, EncodedImages)
            np.testing.assert_array_equal(
                shard.images[:], stored[:7][there] if part is ROUNDS[0] else stored[7:][there]
            )
            before = shard_path(tmp_path, index).read_bytes()
            write_shard(tmp_path, index, shard, part)  # such as with one more score
            assert shard_path(tmp_path, index).read_bytes() == before
    plan = dataclasses.replace(PLAN, image_size=size)
    for wanted in ([0], [11, 0, 7, 6, 6], range(12)):
        chosen = np.array(wanted, np.int64)
        np.testing.assert_array_equal(candidates(tmp_path, plan, chosen)[:], stored[chosen])
    tensors, metadata = load_tensors(shard_path(tmp_path, 0))
    save_tensors(shard_path(tmp_path, 0), {**tensors, "offsets": tensors["offsets"][:-1]}, metadata)
    assert read_shard(tmp_path, 0, ROUNDS[0], size, generator="g") is None


def test_a_shard_that_another_made_is_not_it(folder: Path) -> None:
    first = ROUNDS[0]
    assert read_shard(folder, 0, first, SIZE, generator=None) is not None
    assert read_shard(folder, 0, first, SIZE, generator="h") is None
    assert read_shard(folder, 1, dataclasses.replace(first, seeds=first.seeds + 1), SIZE, generator="g") is None
    assert read_shard(folder, 0, first, (3, 2), generator="g") is None
    assert read_shard(folder, 5, part(LABELS, 5, 100), SIZE, generator="g") is None
    shard_path(folder, 0).replace(shard_path(folder, 1))
    assert read_shard(folder, 1, first, SIZE, generator="g") is None


@pytest.mark.parametrize("name", ["labels", "seeds"])
def test_a_shard_that_claims_the_plan_and_is_another_is_not_it(folder: Path, name: str) -> None:
    tensors, metadata = load_tensors(shard_path(folder, 0))
    save_tensors(shard_path(folder, 0), tensors, metadata)
    assert read_shard(folder, 0, ROUNDS[0], SIZE, generator="g") is not None
    save_tensors(shard_path(folder, 0), {**tensors, name: tensors[name][::-1]}, metadata)
    assert read_shard(folder, 0, ROUNDS[0], SIZE, generator="g") is None
    load_shard(shard_path(folder, 0), SIZE)  # whole, though


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": None}, "holds no 'images': remake the cache with --force"),
    "no labels": ({"labels": None}, "holds no 'labels'"),
    "no seeds": ({"seeds": None}, "holds no 'seeds'"),
    "float images": ({"images": np.zeros((4, 3, *SIZE), np.float32)}, "does not fit the split's images: remake"),
    "int32 labels": ({"labels": np.zeros(4, np.int32)}, "does not fit"),
    "int32 seeds": ({"seeds": np.zeros(4, np.int32)}, "does not fit"),
    "fewer images": ({"images": np.zeros((3, 3, *SIZE), np.uint8)}, "does not fit"),
    "other size": ({"images": np.zeros((4, 3, 2, 2), np.uint8)}, "does not fit"),
    "fewer seeds": ({"seeds": np.zeros(3, np.int64)}, "does not fit"),
    "square labels": ({"labels": np.zeros((4, 1), np.int64)}, "does not fit"),
    "one label": ({"labels": np.zeros((), np.int64)}, "does not fit"),
    "square seeds": ({"seeds": np.zeros((4, 1), np.int64)}, "does not fit"),
    "fewer scores": ({"z": np.zeros(3, np.float32)}, "does not fit"),
    "double scores": ({"z": np.zeros(4, np.float64)}, "does not fit"),
    "a score that nothing gave": ({"y": np.zeros(4, np.float32)}, "does not fit"),
    "a score that is gone": ({"z": None}, "does not fit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_shard_of_another_shape(folder: Path, case: str) -> None:
    path, (change, message) = shard_path(folder, 0), WRONG[case]
    tensors, metadata = load_tensors(path)
    save_tensors(path, {name: it for name, it in {**tensors, **change}.items() if it is not None}, metadata)
    with pytest.raises(CorruptArtifactError, match=rf"shard-00000\.safetensors {message}"):
        load_shard(path, SIZE)
    assert read_shard(folder, 0, ROUNDS[0], SIZE, generator="g") is None


@pytest.mark.parametrize("name", ["generator", "scored_by"])
@pytest.mark.parametrize("value", ["gone", 5])
def test_a_shard_without_its_origin(folder: Path, name: str, value: object) -> None:
    path = shard_path(folder, 0)
    tensors, metadata = load_tensors(path)
    changed = {**metadata, name: value}
    if value == "gone":
        del changed[name]
    save_tensors(path, tensors, changed)
    if (name, value) == ("generator", 5):
        assert read_shard(folder, 0, ROUNDS[0], SIZE, generator="g") is None
        return
    with pytest.raises(CorruptArtifactError, match=r"shard-00000\.safetensors holds no .*: remake the cache"):
        load_shard(path, SIZE)


# --- the whole cache ----------------------------------------------------------------------------------------------


def cached(workspace: Workspace, split: Split, reasons: Any, labels: Any, *, source: str | None = None) -> None:
    """A complete cache of two shards, one grey level per image."""
    folder, sizes = workspace.synth, split.image_size
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, *sizes), np.uint8)
    rounds = Round(labels, labels * 7, labels, first_shard=0, batch_images=2, shard_images=3)
    for index in rounds.shards:
        write_shard(folder, index, shard_of(rounds, index, images), rounds)
    save_selection(folder, np.array(reasons, np.uint8))
    files = [path.name for path in folder.iterdir()]
    inputs = {"split": split.manifest.digest if source is None else source}
    write_manifest(folder, kind="synth", files=files, inputs=inputs, summary=SUMMARIES["synth"], device="cpu")


def test_the_kept_images_of_all_shards(workspace: Workspace, split: Split) -> None:
    labels = np.array([5, 6, 7, 9, 0], np.int64)
    cached(workspace, split, [0, 1, 0, 2, 0], labels)
    kept = load_cache(workspace, split)
    assert kept.images[:][:, 0, 0, 0].tolist() == [0, 2, 4] and kept.images.shape == (3, 3, *split.image_size)
    assert (kept.images[:] == kept.images[:][:, :1, :1, :1]).all() and kept.images[:].dtype == np.uint8
    assert kept.labels.tolist() == [5, 7, 0] and kept.seeds.tolist() == [35, 49, 0]
    assert kept.manifest.inputs == {"split": split.manifest.digest}
    metadata = load_tensors(workspace.synth / "selection.safetensors")[1]
    assert metadata["reasons"][0] == "kept"


@pytest.mark.parametrize(
    ("reasons", "labels", "message"),
    [
        ([0] * 4, [0] * 5, "do not fit its selection: remake it with --force"),
        ([0] * 2, [0] * 5, "do not fit its selection: remake it with --force"),
        ([0] * 6, [0] * 5, "do not fit its selection: remake it with --force"),
        ([0] * 5, [0, 1, 2, 3, 10], "do not fit its selection: remake it with --force"),
        ([0] * 5, [0, 1, 2, 3, -1], "do not fit its selection: remake it with --force"),
        ([[0] * 5], [0] * 5, "selection.safetensors is not a selection: remake the cache with --force"),
    ],
)
def test_shards_that_do_not_fit_their_selection(
    workspace: Workspace, split: Split, reasons: Any, labels: list[int], message: str
) -> None:
    cached(workspace, split, reasons, np.array(labels, np.int64))
    with pytest.raises(CorruptArtifactError, match=rf"^(the shards of )?{workspace.synth}[/ ].*{message}"):
        load_cache(workspace, split)


@pytest.mark.parametrize("tensors", [{}, {"reasons": np.zeros(5, np.int64)}])
def test_a_selection_of_something_else(workspace: Workspace, split: Split, tensors: Any) -> None:
    cached(workspace, split, [0] * 5, np.zeros(5, np.int64))
    save_tensors(workspace.synth / "selection.safetensors", tensors or {"x": np.zeros(1)}, {})
    files = [path.name for path in workspace.synth.iterdir() if path.name != "manifest.json"]
    write_manifest(workspace.synth, kind="synth", files=files, inputs={"split": split.manifest.digest},
                   summary=SUMMARIES["synth"], device="cpu")  # fmt: skip
    with pytest.raises(CorruptArtifactError, match=r"selection\.safetensors is not a selection"):
        load_cache(workspace, split)


def test_a_cache_of_another_split_or_none(workspace: Workspace, split: Split) -> None:
    with pytest.raises(DataError, match="run `saukit synth"):
        load_cache(workspace, split)
    cached(workspace, split, [0] * 5, np.zeros(5, np.int64), source="ab")
    with pytest.raises(DataError, match=r"was made from another split .* remake it with `saukit synth --force"):
        load_cache(workspace, split)
