"""`saukit synth` from pretrained pipelines and from a folder, end to end, on tiny models made here."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
from PIL import Image
from support import Cli

from saukit.core.artifacts import load_tensors
from saukit.core.workspace import Workspace
from saukit.data.split import load_split
from saukit.synthesis.cache import load_cache

NO_JUDGE = ("--no-audit", "--preflight", "0")
FEW = ("--per-class-target", "8", *NO_JUDGE)  # digits 7, 8 and 9 have 6, 4 and 2 real images: 12 to make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    tiny_pipelines.save_stable_diffusion(root / "sd")
    tiny_pipelines.save_dit(root / "dit", labels=None)
    tiny_pipelines.save_lora(root / "sd", root / "lora")
    return root


def images_of(work: Path) -> dict[str, Any]:
    parts = [load_tensors(path)[0] for path in sorted((work / "synth").glob("shard-*.safetensors"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_text_to_image_pipeline_fills_the_tail(cli: Cli, split_work: Path, models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("7: [a seven, the digit seven]\n8: an eight\n9: [nine, niner]\n")
    pipeline = ("--generator", "pipeline", "--model", models / "sd", "--sampler-steps", "2", "--prompts", prompts)
    dry = cli("synth", *FEW, *pipeline, "-w", split_work, "--dry-run", "--json")
    assert dry.code == 0 and dry.document["images"] == 12 and dry.document["estimated_time"].endswith("s")
    assert not (split_work / "synth").exists()
    outcome = cli("synth", *FEW, *pipeline, "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    assert "says nothing of 0, 1, 2, 3, 4, 5, 6: those get the templates" in outcome.error
    assert outcome.document["images"] == 12
    source = outcome.document["generator"]
    assert source["pipeline"] == "StableDiffusionPipeline"
    assert source["guidance"] == 7.5 and source["steps"] == 2 and source["drawn_size"] == [32, 32]
    plain = images_of(split_work)["images"]
    assert plain.shape == (12, 3, 8, 8) and plain.std() > 0
    assert np.array_equal(plain, plain[:, :1].repeat(3, axis=1))  # the digits are grey, so these are

    again = cli("synth", *FEW, *pipeline, "-w", split_work, "--json")
    assert again.document["state"] == "complete"
    with_lora = cli("synth", *FEW, *pipeline, "--lora", models / "lora", "-w", split_work, "--force", "--json")
    assert with_lora.code == 0, with_lora
    assert not np.array_equal(images_of(split_work)["images"], plain)
    assert with_lora.document["generator"]["lora_weights"]

    trained = cli("train", "--method", "ce", "--synthetic", "--steps", "2", "--batch-size", "16", "-w", split_work)
    assert trained.code == 0, trained


def test_a_class_conditional_pipeline_needs_the_models_own_numbers(
    cli: Cli, split_work: Path, models: Path, tmp_path: Path
) -> None:
    dit = ("--generator", "pipeline", "--model", models / "dit", "--sampler-steps", "2")
    refused = cli("synth", *FEW, *dit, "-w", split_work)
    assert refused.code == 2 and "class_ids" in refused.error
    numbers = tmp_path / "numbers.yaml"
    numbers.write_text("".join(f"{label}: {label}\n" for label in range(10)))
    outcome = cli("synth", *FEW, *dit, "--class-ids", numbers, "-w", split_work, "--force", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["generator"]["pipeline"] == "DiTPipeline" and outcome.document["images"] == 12
    numbers.write_text("7: seven\n")
    refused = cli("synth", *FEW, *dit, "--class-ids", numbers, "-w", split_work, "--force")
    assert refused.code == 2 and "a class's number is a whole number, got 7: seven" in refused.error


def test_without_the_extra_the_error_names_it(
    cli: Cli, split_work: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else there(name, *rest)
    )
    outcome = cli("synth", *FEW, "--generator", "pipeline", "--model", models / "sd", "-w", split_work)
    assert outcome.code == 5
    assert "needs transformers: pip install 'saukit[text2image]'" in outcome.error
    outcome = cli("synth", *FEW, "--train-steps", "2", "--filter", "clip", "-w", split_work, "--force")
    assert outcome.code == 5
    assert "needs transformers: pip install 'saukit[clip]'" in outcome.error


def test_images_made_elsewhere(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    split = load_split(Workspace(split_work))
    rng = np.random.default_rng(0)
    drawn = {}
    for label, count in (("7", 3), ("8", 1), ("9", 9)):
        (tmp_path / "made" / label).mkdir(parents=True)
        for number in range(count):
            drawn[label, number] = rng.integers(0, 256, (8, 8, 1)).astype(np.uint8).repeat(3, axis=2)
            Image.fromarray(drawn[label, number]).save(tmp_path / "made" / label / f"image {number}.png")
    outcome = cli("synth", *FEW, "--generator", "folder", "--from", tmp_path / "made", "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    # 2, 4 and 6 are wanted: three is more than enough of class 7, one too few of 8, nine more than enough of 9.
    assert {name: count for name, count in outcome.document["images_per_class"].items() if count} == {
        "7": 2,
        "8": 1,
        "9": 6,
    }
    assert "not all that was wanted is there (8 1 of 4)" in outcome.error
    cache = load_cache(Workspace(split_work), split)
    expected = [drawn["7", 0], drawn["7", 1], drawn["8", 0], *(drawn["9", number] for number in range(6))]
    assert np.array_equal(cache.images, np.stack(expected).transpose(0, 3, 1, 2))

    (tmp_path / "made" / "seven").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "made" / "seven" / "a.png")
    again = cli("synth", *FEW, "--generator", "folder", "--from", tmp_path / "made", "-w", split_work, "--force")
    assert again.code == 3 and "seven" in again.error


def test_a_folder_that_changed_is_not_mixed_with_what_came_before(
    cli: Cli, split_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in "789":
        (tmp_path / "made" / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "made" / label / f"{number}.png")
    folder = ("--generator", "folder", "--from", tmp_path / "made")
    with monkeypatch.context() as patched:
        patched.setattr("saukit.synthesis.worker.save_grid", None)
        with pytest.raises(TypeError):
            cli("synth", *FEW, *folder, "-w", split_work)
    Image.new("RGB", (8, 8)).save(tmp_path / "made" / "7" / "0.png")
    outcome = cli("synth", *FEW, *folder, "-w", split_work, "--resume")
    assert outcome.code == 2
    assert "the generator is not the one that" in outcome.error and "--force" in outcome.error


def test_the_preflight_names_a_class_that_is_not_drawn(cli: Cli, work: Path, tmp_path: Path) -> None:
    """Images of 1 under the name of 7, judged by a run that knows digits a little."""
    judge = ("train", "--method", "balanced-softmax", "--no-synthetic", "--steps", "150", "--batch-size", "64")
    assert cli(*judge, "--amp", "off", "--name", "judge", "-w", work).code == 0
    train = load_split(Workspace(work)).train
    for label, shown in (("7", 1), ("8", 8), ("9", 9)):
        (tmp_path / "made" / label).mkdir(parents=True)
        for number, image in enumerate(train.images[train.labels == shown][:8]):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "made" / label / f"{number}.png")
    outcome = cli(
        "synth", "--per-class-target", "8", "--generator", "folder", "--from", tmp_path / "made", "--classifier",
        "judge", "--preflight", "4", "-w", work, "--force",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "does not draw these classes so that they are recognised: 7 (0 of 4 recognised" in outcome.error
    document = json.loads((work / "synth" / "preflight.json").read_text())
    assert document["poor"] == ["7"]
    row = next(row for row in document["per_class"] if row["class"] == "7")
    assert row["taken_for"] == "1" and row["real_recognised"] >= 0.5
    audit = json.loads((work / "synth" / "audit.json").read_text())
    of_class = {row["class"]: row for row in audit["per_class"]}
    assert of_class["7"]["agreement"] == 0.0 and of_class["7"]["memorised"] == 1.0
    assert of_class["9"]["memorised"] == 1.0 and of_class["9"]["leaked"] == 0.0
