"""`saukit synth` from every generator, with filters and audit, end to end, on tiny models made here."""

import importlib.util
import json
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from support import Cli, tree

from saukit.core.artifacts import load_tensors
from saukit.core.seeding import numpy_generator
from saukit.core.workspace import Workspace
from saukit.data.split import load_split, load_test
from saukit.data.synthetic import load_cache
from saukit.synthesis import jobs
from saukit.synthesis.generators.pipeline import PipelineGenerator
from saukit.synthesis.generators.prompts import TEMPLATES
from saukit.synthesis.judging.scorers import INCEPTION_NAME

NO_JUDGE = ("--no-audit", "--preflight", "0")
FEW = ("--per-class-target", "8", *NO_JUDGE)  # digits 7, 8 and 9 have 6, 4 and 2 real images: 12 to make
SHORT = ("--train-steps", "2", "--train-batch-size", "4", "--sampler-steps", "2")  # the split's own diffusion model


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


def repeats(cli: Cli, work: Path) -> bool:
    """Whether the cache's own configuration is that of the complete cache."""
    outcome = cli("synth", "--config", work / "synth" / "config.yaml", "-w", work, "--json")
    return outcome.code == 0 and outcome.document["state"] == "complete"


def test_a_text_to_image_pipeline_fills_the_tail(cli: Cli, split_work: Path, models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("7: [a seven, the digit seven]\n8: an eight\n9: [nine, niner]\n")
    pipeline = ("--generator", "pipeline", "--model", models / "sd", "--sampler-steps", "2", "--prompts", prompts)
    dry = cli("synth", *FEW, *pipeline, "-w", split_work, "--dry-run", "--json")
    assert dry.code == 0 and dry.document["images"] == 12 and dry.document["estimated_seconds"] > 0
    assert not (split_work / "synth").exists()
    outcome = cli("synth", *FEW, *pipeline, "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    assert "has no prompts for 0, 1, 2, 3, 4, 5, 6: these get the templates" in outcome.error
    assert outcome.document["images"] == 12
    source = outcome.document["generator"]
    assert source["pipeline"] == "StableDiffusionPipeline"
    assert source["guidance"] == 7.5 and source["steps"] == 2 and source["drawn_size"] == [32, 32]
    plain = images_of(split_work)["images"]
    assert plain.shape == (12, 3, 8, 8) and plain.std() > 0
    assert np.array_equal(plain, plain[:, :1].repeat(3, axis=1))  # the digits are grey, so these are

    again = cli("synth", *FEW, *pipeline, "-w", split_work, "--json")
    assert again.document["state"] == "complete"
    lora = ("--lora", models / "lora", "--lora-scale", "0.5")
    with_lora = cli("synth", *FEW, *pipeline, *lora, "-w", split_work, "--force", "--json")
    assert with_lora.code == 0, with_lora
    assert repeats(cli, split_work)
    assert not np.array_equal(images_of(split_work)["images"], plain)
    assert with_lora.document["generator"]["lora_weights"]

    trained = cli("train", "--method", "ce", "--synthetic", "--steps", "2", "--batch-size", "16", "-w", split_work)
    assert trained.code == 0, trained


@pytest.mark.parametrize("throughout", [False, True])
def test_what_a_safety_checker_blacked_out_is_replaced_and_counted(
    cli: Cli, split_work: Path, models: Path, monkeypatch: pytest.MonkeyPatch, throughout: bool
) -> None:
    original, blacked = PipelineGenerator.sample, []

    def sample(self: PipelineGenerator, labels: Any, seeds: Any, ordinals: Any) -> Any:
        images = original(self, labels, seeds, ordinals)
        black = (labels == 8) & (ordinals < 2) | (labels == 9) & throughout
        images[black] = 0
        blacked.extend(labels[black].tolist())
        return images

    monkeypatch.setattr(PipelineGenerator, "sample", sample)
    options = (*FEW, "--generator", "pipeline", "--model", models / "sd", "--sampler-steps", "2", "--max-tries", "2")
    outcome = cli("synth", *options, "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    kept = load_cache(Workspace(split_work), load_split(Workspace(split_work)))
    assert np.bincount(kept.labels, minlength=10)[7:].tolist() == [2, 4, 0 if throughout else 6]
    assert kept.images[:].reshape(len(kept.labels), -1).max(1).min() > 0
    assert outcome.document["rejected"]["blacked out by the safety checker"] == len(blacked)
    assert len(blacked) == (2 + 12 if throughout else 2)
    assert ("safety checker blacked out every image of 9: give other --prompts" in outcome.error) is throughout


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
    before = tree(split_work)
    texts = ("--template", "a {class}", "--class-ids", numbers)
    refused = cli("synth", *FEW, *dit, *texts, "-w", split_work, "--force")
    assert refused.code == 2
    assert "templates is for pipelines that sample from text, and" in refused.error and "leave it out" in refused.error
    assert tree(split_work) == before
    numbers.write_text("7: seven\n")
    refused = cli("synth", *FEW, *dit, "--class-ids", numbers, "-w", split_work, "--force")
    assert refused.code == 2 and "a class's number is a whole number, got 7: seven" in refused.error


def test_templates_that_no_class_is_left_for_are_refused(
    cli: Cli, split_work: Path, models: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("".join(f"{label}: the digit {label}\n" for label in range(10)))
    texts = ("--prompts", prompts, "--template", "a {class}")
    outcome = cli("synth", *FEW, "--generator", "pipeline", "--model", models / "sd", *texts, "-w", split_work)
    assert outcome.code == 2
    assert f"templates are for classes without prompts, and {prompts} has some for all: leave" in outcome.error
    assert not (split_work / "synth").exists()


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
    assert "not all that was wanted is there (8 1 of 4): put more images of these classes into" in outcome.error
    assert repeats(cli, split_work)
    cache = load_cache(Workspace(split_work), split)
    expected = [drawn["7", 0], drawn["7", 1], drawn["8", 0], *(drawn["9", number] for number in range(6))]
    assert np.array_equal(cache.images[:], np.stack(expected).transpose(0, 3, 1, 2))

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
        patched.setattr("saukit.synthesis.outcome.save_sample_grid", None)
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
    assert "images of these classes are not recognised: 7 (0 of 4 recognised" in outcome.error
    assert "look at samples.png before training on them" in outcome.error
    document = json.loads((work / "synth" / "preflight.json").read_text())
    assert document["poor"] == ["7"]
    row = next(row for row in document["per_class"] if row["class"] == "7")
    assert row["taken_for"] == "1" and row["real_recognised"] >= 0.5
    audit = json.loads((work / "synth" / "audit.json").read_text())
    of_class = {row["class"]: row for row in audit["per_class"]}
    assert of_class["7"]["agreement"] == 0.0 and of_class["7"]["memorised"] == 1.0
    assert of_class["9"]["memorised"] == 1.0 and of_class["9"]["leaked"] == 0.0


# --- options of a saved configuration that others leave without effect -------------------------------------------


def test_options_that_lose_what_they_need_go_with_it(cli: Cli, work: Path) -> None:
    """A filtered cache of variations, chosen anew without a filter, and looked at with other options."""
    filtered = ("--filter", "classifier", "--classifier", "ce", "--min-confidence", "0", "--max-tries", "2",
                "--variation", "0.5")  # fmt: skip
    outcome = cli("synth", *FEW, *SHORT, *filtered, "-w", work, "--force", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["candidates"] == outcome.document["images"] == 12
    assert repeats(cli, work)
    saved = work / "synth" / "config.yaml"

    def shown(*options: str) -> dict[str, Any]:
        outcome = cli("synth", "--config", saved, *options, "-w", work, "--dry-run", "--json")
        assert outcome.code == 0, outcome
        config: dict[str, Any] = outcome.document["config"]
        return config

    copies = shown("--filter", "none", "--reject-copies")
    assert (copies["min_confidence"], copies["max_tries"], copies["classifier"]) == (0.5, 2.0, None)
    adopted = shown("--model", str(work / "synth" / "generator"))
    assert (adopted["train_steps"], adopted["sampler_steps"]) == (None, 2)
    bound = cli("synth", "--config", saved, "--filter", "none", "--min-confidence", "0.4", "-w", work)
    assert bound.code == 2 and "min_confidence has no effect with filter none" in bound.error

    again = cli("synth", "--refilter", "--filter", "none", "-w", work, "--json")
    assert again.code == 0, again
    config = again.document["config"]
    names = ("classifier", "min_confidence", "max_tries", "variation")
    assert [config[name] for name in names] == [None, 0.5, 4.0, 0.5]
    assert again.document["images"] == 12 and again.document["classifier"] is None
    assert repeats(cli, work)
    back = cli("synth", "--refilter", "--filter", "classifier", "--classifier", "ce", "--max-tries", "2",
               "-w", work)  # fmt: skip
    assert back.code == 2 and "--refilter samples nothing, so it cannot change max_tries: 4.0 -> 2.0" in back.error


def test_another_generator_takes_no_values_of_the_first(cli: Cli, work: Path, tmp_path: Path) -> None:
    (tmp_path / "made" / "9").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "made" / "9" / "a.png")
    folder = ("--generator", "folder", "--from", tmp_path / "made")
    outcome = cli("synth", "--config", work / "synth/config.yaml", *folder, "-w", work, "--dry-run", "--json")
    assert outcome.code == 0, outcome
    config = outcome.document["config"]
    assert config["per_class_target"] == 20
    assert (config["guidance"], config["sampler_steps"], config["sample_batch_size"]) == (None, None, 64)


def test_a_generator_of_another_workspace(cli: Cli, work: Path, split_work: Path) -> None:
    generator = ("--model", work / "synth" / "generator", "--sampler-steps", "2")
    outcome = cli("synth", *FEW, *generator, "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["generator"]["train_steps"] is None and outcome.document["images"] == 12
    assert repeats(cli, split_work)


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_that_is_stopped_while_it_waits_prints_its_command(
    cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*FEW, *SHORT, "--amp", "off", "--shard", "1/2", "-w", split_work)
    workspace = Workspace(split_work)
    with workspace.lock(workspace.synth), monkeypatch.context() as patched:
        patched.setattr(jobs, "time", SimpleNamespace(sleep=lambda seconds: signal.raise_signal(signal.SIGINT)))
        stopped = cli("synth", *options)
    assert stopped.code == 130 and "waiting for another job to prepare" in stopped.err
    said = shlex.split(stopped.err.split("continue with: ")[1].strip())
    assert sorted(said) == sorted(["saukit", "synth", *map(str, options)])
    outcome = cli(*said[1:])
    assert outcome.code == 0 and "job 1/2: " in outcome.out, outcome


# --- CLIP and Inception-v3 ----------------------------------------------------------------------------------------


def cosines_by_transformers(folder: Path, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each image to the mean direction of its class's prompts, one image and one prompt at a time."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    cosines = []
    for image, label in zip(images, labels, strict=True):
        pixels = processor(images=Image.fromarray(image.transpose(1, 2, 0)), return_tensors="pt")["pixel_values"]
        rows = []
        for template in TEMPLATES:
            text = template.replace("{class}", str(label))
            tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=24)
            with torch.no_grad():
                output = model(**tokens, pixel_values=pixels)
            rows.append(output.text_embeds[0])
        mean = torch.stack(rows).mean(0)
        cosines.append(float(output.image_embeds[0] @ mean / mean.norm()))
    return np.array(cosines)


def test_a_cache_filtered_by_clip(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "clip").mkdir()
    model = tiny_pipelines.save_clip(tmp_path / "clip")
    clip = ("--filter", "clip", "--clip-model", model)
    few = ("--per-class-target", "8", *SHORT, "--no-audit", "--preflight", "1")
    outcome = cli("synth", *few, *clip, "--min-clip", "-1", "-w", split_work, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["images"] == outcome.document["candidates"] == 12
    there = images_of(split_work)
    expected = cosines_by_transformers(model, there["images"], there["labels"])
    assert np.ptp(expected) > 0.01  # a tie would hide a mistake
    np.testing.assert_allclose(there["clip"], expected, atol=1e-4)
    preflight = json.loads((split_work / "synth" / "preflight.json").read_text())
    assert [row["class"] for row in preflight["per_class"]] == ["7", "8", "9"]
    assert not (split_work / "runs").exists()  # CLIP judges, so that no classifier is trained
    assert repeats(cli, split_work)

    bound = float(np.sort(expected)[5:7].mean())
    again = cli("synth", "--refilter", "--min-clip", str(bound), "-w", split_work, "--json")
    assert again.code == 0, again
    assert again.document["images"] == 6 and again.document["rejected"] == {"low CLIP similarity": 6}
    kept = load_cache(Workspace(split_work), load_split(Workspace(split_work)))
    assert np.array_equal(kept.images[:], there["images"][expected >= bound])
    assert repeats(cli, split_work)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """tr((S T)^(1/2)) of covariances S = A'A and T = B'B is the sum of the singular values of A B'."""
    means, centred = [x.mean(0) for x in (a, b)], [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * cross)


@pytest.mark.slow
def test_an_audit_in_the_features_of_inception(
    cli: Cli, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights and at the smallest size that the network takes: its own takes minutes on a CPU."""
    from torchvision.models import inception_v3
    from torchvision.transforms.v2.functional import normalize, resize

    side = 75
    monkeypatch.setattr("saukit.synthesis.judging.scorers.INCEPTION_SIDE", side)
    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=True).eval()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    looked_at = ("--classifier", "ce", "--preflight", "0", "--inception", tmp_path / "inception.pth")
    outcome = cli("synth", "--per-class-target", "20", *SHORT, *looked_at, "-w", work, "--force", "--json")
    assert outcome.code == 0, outcome
    first, second = outcome.document["audit"]["distances"]
    assert first["features"].endswith(", trained on the split's real images (ce)")
    assert second["features"] == INCEPTION_NAME
    assert second["classes"] == first["classes"] == ["7", "8", "9"]
    assert second["synthetic"]["images_per_class"] == 14  # as many as class 7 has
    assert repeats(cli, work)

    workspace = Workspace(work)
    cache, test = load_cache(workspace, load_split(workspace)), load_test(workspace)
    network.fc = torch.nn.Identity()
    features = []
    for part, images, labels in (("synthetic", cache.images, cache.labels), ("test", test.images, test.labels)):
        positions = []
        for label in (7, 8, 9):  # the audit's own order, which takes the first of each class
            order = numpy_generator(0, f"audit-{part}", label).permutation(np.flatnonzero(labels == label))
            positions += order[:14].tolist()
        pixels = resize(torch.from_numpy(images[positions]).float() / 255, [side, side], antialias=True)
        with torch.no_grad():
            found = network(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        features.append(found.double().numpy())
    assert features[0].shape == (42, 2048)
    assert second["synthetic"]["frechet"] == pytest.approx(frechet(*features), rel=1e-3)
    assert second["synthetic"]["frechet"] != pytest.approx(first["synthetic"]["frechet"], rel=0.1)
