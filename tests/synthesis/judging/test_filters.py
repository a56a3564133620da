"""Filters over the whole stage: replacement in rounds, caps, a choice made anew without drawing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from support import MICRO, tiny

from saukit.core.artifacts import load_tensors
from saukit.core.console import Reporter
from saukit.core.errors import DataError, Interrupted, SaukitError, UsageError
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.data.split import Split, load_split
from saukit.data.synthetic import load_cache
from saukit.models.inference import predict
from saukit.models.model_file import load_model
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.judging.neighbours import NeighbourScorer
from saukit.synthesis.judging.selection import REASONS
from saukit.synthesis.stage import SynthesisResult, refilter, synthesize
from saukit.training.stage import fit

Go = Callable[..., SynthesisResult]
BAR = 0.088  # the judge is hardly trained: about every other candidate is above this
STRICT = replace(MICRO, filter="classifier", classifier="judge", min_confidence=BAR, max_tries=3.0)


@pytest.fixture(scope="module")
def judged_root(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The split of digits, and a classifier of its real images that was trained for a few steps."""
    root = tmp_path_factory.mktemp("judged")
    (root / "split").symlink_to(digits_root / "split")
    config = tiny(method="balanced-softmax", synthetic=False, steps=30, batch_size=32)
    fit(
        config,
        Workspace(root),
        name="judge",
        device=torch.device("cpu"),
        force=False,
        resume=False,
        reporter=Reporter(quiet=True),
    )
    return root


@pytest.fixture
def judged(judged_root: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(judged_root, tmp_path / "judged", symlinks=True))


@pytest.fixture
def go(judged: Workspace, cpu: torch.device, reporter: Reporter) -> Go:
    def call(config: SynthConfig, *, anew: bool = False, resume: bool = False) -> SynthesisResult:
        if anew:
            return refilter(config, judged, device=cpu, reporter=reporter)
        return synthesize(config, judged, device=cpu, force=False, resume=resume, reporter=reporter)

    return call


def shards_of(workspace: Workspace) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in workspace.synth.glob("shard-*.safetensors")}


def candidates(workspace: Workspace) -> dict[str, np.ndarray]:
    """Every candidate of a cache, from its files, in order."""
    parts = [load_tensors(path)[0] for path in sorted(workspace.synth.glob("shard-*.safetensors"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_what_is_kept_passes_the_classifier_and_what_is_rejected_is_replaced(go: Go, judged: Workspace) -> None:
    summary = go(STRICT).summary
    split = load_split(judged)
    there, cache = candidates(judged), load_cache(judged, split)
    network, spec = load_model(judged.run("judge") / "model.safetensors")
    device = torch.device("cpu")
    own = predict(network, spec, there["images"], device=device).probabilities[
        np.arange(len(there["labels"])), there["labels"]
    ]
    np.testing.assert_allclose(there["confidence"], own, atol=1e-6)
    kept = predict(network, spec, cache.images, device=device).probabilities
    assert (kept[np.arange(len(cache.labels)), cache.labels] >= BAR - 1e-6).all()

    wanted = {5: 4, 6: 10, 7: 14, 8: 16, 9: 18}
    for label, want in wanted.items():
        of_class = there["labels"] == label
        passing = int((own[of_class] >= BAR).sum())
        assert summary["images_per_class"][str(label)] == int((cache.labels == label).sum()) == min(want, passing)
        # A class is short only when its cap of three candidates an image is reached.
        assert passing >= want or int(of_class.sum()) == 3 * want
    assert summary["rounds"] > 1
    assert summary["candidates"] == len(there["labels"]) > 62
    assert summary["images"] + sum(summary["rejected"].values()) == summary["candidates"]
    reasons = load_tensors(judged.synth / "selection.safetensors")[0]["reasons"]
    assert {REASONS[code] for code in np.unique(reasons[own < BAR])} == {"low confidence"}


def test_a_filtered_cache_resumes_to_the_same_bits(
    go: Go, judged: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go(STRICT)
    whole, drawn = shards_of(judged), len(shards_of(judged))
    selection = sha256_file(judged.synth / "selection.safetensors")
    shutil.rmtree(judged.synth)
    original, calls = GeneratorTrainer.sample, [0]

    def stopping(self: GeneratorTrainer, *arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 25:  # in a later round
            raise Interrupted("stop", 2)
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(GeneratorTrainer, "sample", stopping)
        with pytest.raises(Interrupted):
            go(STRICT)
    assert 8 <= len(shards_of(judged)) < drawn
    go(STRICT, resume=True)
    assert shards_of(judged) == whole
    assert sha256_file(judged.synth / "selection.safetensors") == selection


def test_choosing_anew_draws_nothing(go: Go, judged: Workspace, split: Split) -> None:
    go(replace(MICRO, per_class_target=20))
    plain = candidates(judged)["images"]
    with pytest.raises(UsageError, match=r"filter: 'none' -> 'classifier'"):
        go(replace(STRICT, max_tries=4.0))
    config = replace(MICRO, filter="classifier", classifier="judge", min_confidence=BAR)
    result = go(config, anew=True)
    assert np.array_equal(candidates(judged)["images"], plain)
    own = candidates(judged)["confidence"]
    assert result.summary["images"] == int((own >= BAR).sum()) == len(load_cache(judged, split).labels) < 62
    assert go(config, anew=True).state == "complete"
    before = shards_of(judged)
    looser = go(replace(config, min_confidence=0.0), anew=True)
    assert looser.summary["images"] == 62
    assert shards_of(judged) == before
    assert looser.summary["generator"]["train_steps"] == 6  # where the images come from is still told
    with pytest.raises(UsageError, match=r"--refilter samples nothing, so it cannot change train_steps: 6 -> 9"):
        go(replace(config, train_steps=9), anew=True)


def test_a_choice_that_was_interrupted_is_finished_without_drawing(
    go: Go, judged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(MICRO)
    config = replace(MICRO, filter="classifier", classifier="judge", min_confidence=BAR)
    with monkeypatch.context() as patched:
        patched.setattr("saukit.synthesis.outcome.save_sample_grid", None)
        with pytest.raises(TypeError):
            go(config, anew=True)
    with pytest.raises(DataError, match="is not complete"):
        load_cache(judged, load_split(judged))
    monkeypatch.setattr(GeneratorTrainer, "sample", None)
    assert go(config, resume=True).summary["images"] < 62


def test_nothing_left_is_an_error_with_the_remedy_and_the_images_stay(go: Go, judged: Workspace) -> None:
    impossible = replace(STRICT, min_confidence=1.0, max_tries=1.0)
    with pytest.raises(SaukitError, match=r"the filters rejected all 62 candidates: .*--refilter.*--min-confidence"):
        go(impossible)
    before = shards_of(judged)
    assert go(replace(impossible, min_confidence=BAR), anew=True).summary["images"] > 0
    assert shards_of(judged) == before


def test_what_is_close_to_a_real_image_of_its_class_or_far_from_all_is_rejected(
    go: Go, judged: Workspace, split: Split
) -> None:
    """Against scikit-learn's neighbours in the judge's features, the bounds chosen so that some break each."""
    go(MICRO)
    network, spec = load_model(judged.run("judge") / "model.safetensors")

    def features(images: np.ndarray) -> np.ndarray:
        return normalize(predict(network, spec, images, device=torch.device("cpu")).features.astype(np.float64))

    there, real = candidates(judged), features(split.train.images[:])
    expected = np.empty(len(there["labels"]))
    for label in np.unique(there["labels"]):
        own = real[split.train.labels == label]
        spacing = NearestNeighbors(n_neighbors=2).fit(own).kneighbors(own)[0][:, 1].mean()
        rows = there["labels"] == label
        found = NearestNeighbors(n_neighbors=1).fit(own).kneighbors(features(there["images"][rows]))[0][:, 0]
        expected[rows] = found / spacing
    low, high = (float(np.quantile(expected, share)) for share in (0.25, 0.75))
    config = replace(MICRO, filter="aid", classifier="judge", min_distance=low, max_distance=high)
    summary = go(config, anew=True).summary
    np.testing.assert_allclose(candidates(judged)["distance"], expected, rtol=1e-4)
    assert summary["images"] == int(((expected >= low) & (expected <= high)).sum())
    assert summary["rejected"] == {
        "close to a real image of its class": int((expected < low).sum()),
        "far from the real images of its class": int((expected > high).sum()),
    }
    again = replace(config, max_distance=1e9, min_distance=0.0)
    assert go(again, anew=True).summary["images"] == 62


def test_a_class_with_one_real_image_has_the_others_distances() -> None:
    rows = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 1, 0], [0, 0.6, 0.8]], np.float32)
    labels = np.array([0, 0, 1, 2, 2])
    scorer = NeighbourScorer(lambda images: rows[images[:, 0, 0, 0]], images_of(5), labels)
    apart = [np.sqrt(0.4), np.sqrt(0.8)]  # of the two images of class 0, and of class 2
    found = scorer.distance(images_of(5), np.array([0, 1, 1, 1, 3]))
    np.testing.assert_allclose(found[:4], [0, np.sqrt(2) / np.mean(apart), 0, np.sqrt(2) / np.mean(apart)], rtol=1e-6)
    assert found[4] == np.inf  # a class without a real image
    lone = NeighbourScorer(lambda images: rows[images[:, 0, 0, 0]], images_of(2), np.array([0, 1]))
    np.testing.assert_allclose(lone.distance(images_of(2), np.array([1, 1])), [np.sqrt(0.4), 0], rtol=1e-6)


def images_of(count: int) -> np.ndarray:
    """Images that say their number."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 1)


def test_copies_of_training_images_are_rejected(go: Go, judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_split(judged)

    def copying(self: GeneratorTrainer, labels: np.ndarray, seeds: np.ndarray, **options: object) -> np.ndarray:
        rng = np.random.default_rng(seeds)
        images = rng.integers(0, 256, (len(labels), 3, 8, 8)).astype(np.uint8)
        images[::2] = split.train.images[rng.integers(0, len(split.train.images), len(labels[::2]))]
        return images

    monkeypatch.setattr(GeneratorTrainer, "sample", copying)
    summary = go(replace(MICRO, reject_copies=True, max_tries=1.0)).summary
    assert summary["rejected"] == {"copy of a training image": 31}
    assert summary["images"] == 31


def test_a_classifier_of_another_split_or_none_at_all(go: Go, judged: Workspace) -> None:
    with pytest.raises(DataError, match=r"run `saukit train --name nobody -w"):
        go(replace(STRICT, classifier="nobody"))
