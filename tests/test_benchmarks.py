"""The benchmarks: the reference computes what saukit computes, and a result is what it says it is."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import json
import math
import multiprocessing
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from processes import Begun
from safetensors.torch import save_file

from saukit.core.console import Reporter
from saukit.core.device import Precision
from saukit.core.workspace import Workspace
from saukit.data import split as split_room
from saukit.data.config import SplitConfig
from saukit.data.long_tail import profile_counts
from saukit.data.sources.in_memory import source_of_arrays
from saukit.data.split import load_split, make_split
from saukit.synthesis.generators.diffusion_model import Geometry
from saukit.synthesis.generators.presets import preset_values
from saukit.training import context as context_room
from saukit.training.config import TrainConfig
from saukit.training.costs import run_costs
from saukit.training.losses import NOISE_STRATEGIES, NoiseStrategy
from saukit.training.plan import plan_training

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
CPU = torch.device("cpu")


def load(name: str) -> ModuleType:
    """A module of the folder; they import each other by name, as scripts do."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """A benchmark collects garbage before each turn, which here would go through what thousands of tests imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    from saukit.models import dual_branch

    monkeypatch.setattr(dual_branch, "PROJECTION_HIDDEN", 32)
    monkeypatch.setattr(dual_branch, "PROJECTION_DIM", 16)


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("noise", NOISE_STRATEGIES)
def test_the_reference_computes_the_losses_and_gradients_of_saukit(noise: NoiseStrategy, num_classes: int) -> None:
    agreement = load("reference").check_against_saukit(noise, num_classes)
    assert agreement.loss_difference < 1e-5
    assert agreement.gradient_difference < 1e-4
    # Both kinds of synthetic images are there, or the noise strategies would not show.
    assert 0 < agreement.trusted_images < agreement.synthetic_images == 12


def test_a_reference_of_another_temperature_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load("reference")
    original = reference.contrastive_loss
    monkeypatch.setattr(reference, "contrastive_loss", lambda z, y, anchors, _: original(z, y, anchors, 0.11))
    with pytest.raises(RuntimeError, match="reference and saukit compute different steps"):
        reference.check_against_saukit("pos_neg", 10)


def test_the_reference_computes_the_prototypes_of_saukit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_room, "PROTOTYPE_PIXELS", 10 * 32 * 32)
    inputs, reference = load("inputs"), load("reference")
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    plan = inputs.mixed_plan(images, 4, inputs.paper_config("convnet-small", 8, "off"), CPU)
    network, views = inputs.new_network(plan, in_place=True), inputs.saukit_views(plan)
    pictures, labels = torch.from_numpy(images), torch.arange(24) % 4

    generator = torch.Generator().manual_seed(1)
    context = context_room.StepContext(
        network, views, Precision("off", "cpu"), plan.config, torch.ones(4), torch.zeros(4), generator
    )
    expected = context_room.class_prototypes(pictures, labels, context, generator)
    again = torch.Generator().manual_seed(1)
    batches = [
        (views.autoaugment(chunk, again), views.simclr(chunk, again), own)
        for chunk, own in zip(pictures.split(10), labels.split(10), strict=True)
    ]
    for ours, theirs in zip(expected, reference.class_prototypes(network, batches, 4, CPU), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert network.training


def test_mixes_have_the_clipped_area_and_the_mean_of_saukit() -> None:
    reference = load("reference")
    generator = np.random.default_rng(0)
    mixes = [reference.draw_mix(32, 32, generator) for _ in range(2000)]
    assert np.mean([mix.lam for mix in mixes]) == pytest.approx(0.5, abs=0.03)
    for mix in mixes:
        assert 0 <= mix.top <= mix.bottom <= 32 and 0 <= mix.left <= mix.right <= 32
        assert mix.bottom - mix.top <= (1 - mix.lam) ** 0.5 * 32
    assert any(mix.bottom - mix.top < int((1 - mix.lam) ** 0.5 * 32) for mix in mixes), "no box was clipped"


def test_cutout_clears_a_square_and_nothing_else() -> None:
    cutout = load("reference").Cutout(16)
    image = torch.ones(3, 32, 32)
    for _ in range(50):
        cut = cutout(image)
        rows, columns = (cut[0] == 0).any(1), (cut[0] == 0).any(0)
        assert 8 <= int(rows.sum()) <= 16 and 8 <= int(columns.sum()) <= 16
        assert torch.equal(cut[0] == 0, rows[:, None] & columns[None])
        assert torch.equal(cut[0], cut[1]) and torch.equal(cut[0], cut[2])
    assert bool((image == 1).all())


@pytest.mark.parametrize("threads, expected", [(1, (1, 1)), (2, (1, 1)), (4, (3, 1)), (16, (14, 2))])
def test_the_reference_has_as_many_workers_as_saukit_has_threads(threads: int, expected: tuple[int, int]) -> None:
    assert load("reference").worker_processes(threads) == expected


# --- every rung trains --------------------------------------------------------------------------------------------


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def test_every_rung_of_the_ladder_moves_its_network() -> None:
    inputs, ladder, reference = load("inputs"), load("ladder"), load("reference")
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    plan = inputs.mixed_plan(images, 4, inputs.paper_config("convnet-small", 8, "bf16"), CPU)
    batch = load("step").BatchOrder(ladder.Trainer(plan).training_set, 8, 0).batch(0)
    views = ladder.prepared_views(plan, batch)
    prototypes = ladder.random_prototypes(plan)
    before = weights(inputs.new_network(plan, in_place=True))

    step = reference.ReferenceStep(plan, prototypes)
    step(ladder.in_layout(views, torch.contiguous_format))
    assert set(step.meters) == {"mixup", "cutmix", "contrastive"}
    networks = {"reference": step.network}
    for rung in ladder.masked_rungs("bf16"):
        masked = ladder.MaskedStep(rung, plan, ladder.PreparedViews(views), prototypes)
        masked(batch)
        assert set(masked.losses) == set(step.meters)
        networks[rung.name] = masked.network
    for name, rung_plan in ladder.trainer_plans(plan).items():
        trainer = ladder.trainer_on_prepared_views(rung_plan, views, prototypes)
        trainer.advance()
        networks[name] = trainer.network
    assert len(networks) == 7
    moved = {name: float((weights(network) - before).norm()) for name, network in networks.items()}
    # One step from the same weights on the same views; only the draws of Mixup and CutMix differ, and the precision.
    for name, distance in moved.items():
        assert 0.5 * moved["reference"] < distance < 2 * moved["reference"], name


def test_without_half_precision_that_rung_is_left_out() -> None:
    names = [rung.name for rung in load("ladder").masked_rungs("off")]
    assert names == ["masks, no host reads", "activations in place", "channels_last", "fused SGD"]


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_remote_process_answers_by_name_and_says_how_it_ended() -> None:
    remote = load("remote")
    with remote.Remote(dict, {"add": operator.add, "end": os._exit}) as process:
        assert process.call("add", 1, 2) == 3
        with pytest.raises(RuntimeError, match="ended with exit code 3"):
            process.call("end", 3)


# --- results ------------------------------------------------------------------------------------------------------


def test_feed_prints_a_last_line_of_json_and_writes_the_whole_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "feed.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--batch-size", "8", "--batches", "1"]
    load("feed").main([*arguments, "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    head = json.loads(lines[-1])
    document: dict[str, Any] = json.loads(out.read_text())
    assert head["benchmark"] == "feed" and head["quick"] is True and head["device"] == "cpu"
    assert head.items() <= document.items()
    reference, saukit = document["candidates"]
    rates = [8000 / row["milliseconds_a_batch"]["median"] for row in (reference, saukit)]
    assert head["ratio"] == pytest.approx(rates[1] / rates[0], rel=1e-3)
    assert head["saukit_samples_per_second"] == pytest.approx(rates[1], rel=1e-3)
    for row in (reference, saukit):
        spread = row["milliseconds_a_batch"]
        assert len(spread["rounds"]) == 5
        assert (
            spread["min"] <= spread["lower_quartile"] <= spread["median"] <= spread["upper_quartile"] <= spread["max"]
        )
    assert document["environment"]["threads"] == 1 and document["environment"]["versions"]["torch"]
    assert document["images"].startswith(("random uint8 images", "CIFAR-10"))
    assert str(tmp_path) not in out.read_text()
    assert out.with_suffix(".png").stat().st_size > 1000


def test_threads_compares_one_with_several_as_found_and_busy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "threads.json"
    load("threads").main(["--quick", "--device", "cpu", "--threads", "1", "--batch-size", "8", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["state"], row["pixels"]) for row in rows] == [("as found", 8), ("all cores busy", 8)]
    for row in rows:
        assert row["one_thread"] == pytest.approx(8000 / row["milliseconds"]["one_thread"]["median"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["one_thread"] / row["all_threads"], rel=0.01)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_presets_compares_whole_runs_by_their_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "presets.json"
    load("presets").main(["--quick", "--device", "cpu", "--batch-size", "16", "--out", str(out)])
    found = json.loads(out.read_text())
    ldam, fast = found["rows"]
    assert (ldam["steps"], fast["steps"]) == (200 * math.ceil(12_406 / 16), 100 * (12_406 // 16))
    for row in (ldam, fast):
        assert row["hours"] == pytest.approx(row["steps"] * row["milliseconds_a_step"]["median"] / 3.6e6, abs=1e-3)
    assert found["ratio"] == pytest.approx(ldam["hours"] / fast["hours"], rel=0.05)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Options of the benchmarks of photos: a folder with two classes, and random weights of a tiny network."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 4)):
        for label, name in enumerate(("boot", "hat")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (90, 110, 3), dtype=np.uint8)
                pixels[..., label] //= 2
                Image.fromarray(pixels).resize((220, 180)).save(tmp_path / "photos" / part / name / f"{index}.jpg")
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.safetensors")
    paths = {"--root": "photos", "--weights": "weights.safetensors", "--out": "out.json"}
    return ["--device", "cpu", *(text for name, path in paths.items() for text in (name, str(tmp_path / path)))]


@pytest.mark.slow
def test_photos_are_deployed_with_the_classes_of_eval(
    tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(line: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Each command is a process of its own, in which torch is loaded already."""
        assert line[:2] == [sys.executable, "-c"]
        return Begun(*line[1:]).wait()

    monkeypatch.setattr(load("photo_storage"), "subprocess", SimpleNamespace(run=begun))
    training = ["--image-size", "96", "--backbone", "timm/test_efficientnet", "--steps", "3", "--batch-size", "8"]
    document = load("photo_deployed").main([*photos, *training])
    assert document["differing"] == 0 and document["with_another_class_than_eval"] == {"predict": 0, "onnx": 0}
    assert set(document["right"].values()) == {round(8 * document["top1"])}
    assert [row["command"] for row in document["commands"]] == ["make-lt", "train", "eval", "predict", "export"]
    assert document["peak_bytes"] == max(row["peak_bytes"] for row in document["commands"]) > 100e6
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


@pytest.mark.slow
def test_photo_step_has_ratios_of_its_medians_and_equal_heads(
    tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("photo_step")
    monkeypatch.setattr(module, "SIZE", 96)
    monkeypatch.setattr(module, "MIN_ROUNDS", 2)
    options = ["--quick", "--threads", "1", "--backbone", "test_efficientnet", "--batch-size", "4"]
    document = module.main([*photos, *options])
    rates = {row["name"]: row["images_per_second"] for row in document["candidates"]}
    reference, in_layout = "torchvision + timm", "the same, channels_last"
    assert document["ratio"] == pytest.approx(rates["saukit: SAU"] / rates[f"{reference}: SAU"], rel=0.02)
    assert document["ratio_channels_last"] == pytest.approx(rates["saukit: SAU"] / rates[f"{in_layout}: SAU"], rel=0.02)
    seconds = 1 / rates["saukit: features"] / document["epochs_of_frozen"] + 1 / rates["saukit: head"]
    assert document["ratio_frozen"] == pytest.approx(1 / seconds / rates[f"{reference}: frozen"], rel=0.02)
    top1 = document["top1_of_a_head"]
    assert top1.keys() == {reference, "saukit"} and abs(top1[reference] - top1["saukit"]) <= 1 / 8
    assert max(document["agreement"].values()) < 1e-4
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


def test_options_have_limits(capsys: pytest.CaptureFixture[str]) -> None:
    parser: argparse.ArgumentParser = load("measure").option_parser("A benchmark.")
    options = parser.parse_args(["--rounds", "5", "--batch-size", "8"])
    assert (options.rounds, options.batch_size, options.quick, options.device) == (5, 8, False, "auto")
    for arguments, message in ((["--rounds", "4"], "must be at least 5"), (["--threads", "0"], "must be at least 1")):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert message in capsys.readouterr().err


def test_a_random_data_set_is_used_where_the_variable_names_no_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = load("inputs")
    monkeypatch.setenv("SAUKIT_DATA", str(tmp_path))
    assert inputs.default_root() is None
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert inputs.default_root() == tmp_path


def test_a_list_has_the_counts_of_imagenet_lt() -> None:
    counts = load("photo_storage").list_counts(1000, 115_846)
    assert (len(counts), sum(counts), counts[0], counts[-1]) == (1000, 115_846, 1280, 5)
    assert counts == sorted(counts, reverse=True)


def test_make_lt_is_measured_on_a_folder_and_compared_with_pillow(tmp_path: Path) -> None:
    storage = load("photo_storage")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(8):
            coarse = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
            coarse.resize((260, 300), Image.Resampling.BICUBIC).save(tmp_path / "photos" / name / f"{index}.jpg")
    out = tmp_path / "photo_folder.json"
    storage.main(["--root", str(tmp_path / "photos"), "--quick", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["command"] == "python photo_storage.py --root DIR --quick --out photo_folder.json"
    assert found["image_size"] == 224 and found["images"] == {"train": 12, "test": 4}
    assert len(found["levels_from_pillow"]) == storage.COMPARED and 0 < max(found["levels_from_pillow"]) < 2
    (row,) = found["commands"]
    assert row["peak_bytes"] == found["peak_bytes"] > 50e6 and row["processor_seconds"] > 0
    assert out.with_suffix(".png").is_file()


def test_turns_alternate_and_only_the_first_round_warms_up() -> None:
    measure = load("measure")
    calls: list[str] = []
    candidates = [
        measure.Candidate(name, measure.steady(lambda name=name: calls.append(name)), units=2, warm_up=0)
        for name in ("a", "b")
    ]
    timings = measure.measure(candidates, rounds=2, device=CPU)
    assert "".join(calls) == "ab" + "bbaa" + "aabb"
    assert [len(timing.seconds) for timing in timings.values()] == [2, 2]


def test_a_ladder_compares_with_the_reference_and_with_the_rung_before() -> None:
    measure = load("measure")
    timings = {name: measure.Timing(name, (value,) * 5) for name, value in (("a", 0.4), ("b", 0.2), ("c", 0.1))}
    rows = measure.ladder_rows(timings, 10)
    assert [row["ratio_to_reference"] for row in rows] == [1, 2, 4]
    assert [row["ratio_to_previous"] for row in rows] == [1, 2, 2]
    assert [row["images_per_second"] for row in rows] == [25, 50, 100]
    shared = measure.ladder_rows(timings, 10, extra={"a": 0.4, "b": 0.2, "c": 0.1})
    assert [row["images_per_second"] for row in shared] == [12.5, 25, 50]


@pytest.mark.parametrize(
    "given, shown",
    [
        (["--root", "/a/b", "--out", "/c/d.json", "--quick"], "--root DIR --out d.json --quick"),
        (["--root=/a/b", "--out=/c/d.json"], "--root=DIR --out=d.json"),
        (["--workspace", "/home/me/runs", "--seeds", "3"], "--workspace DIR --seeds 3"),
    ],
)
def test_a_command_line_holds_no_folder_of_the_machine(given: list[str], shown: str) -> None:
    assert load("measure").command_line("feed.py", given) == f"python feed.py {shown}"


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s, t", [(0.0, 0.01), (0.0, 1.0), (0.3, 0.31), (0.5, 0.9), (0.99, 1.0)])
def test_a_step_of_the_reference_is_the_product_of_two_gaussians(s: float, t: float) -> None:
    """Bayes: q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0), where precisions add up."""
    x_t, x_0 = 0.7, -0.4
    step = load("ancestral").posterior(s, t)
    kept = (1 - t) / (1 - s)
    added = t**2 - (kept * s) ** 2  # x_t = kept x_s + sqrt(added) e
    if s == 0:
        mean, variance = x_0, 0.0
    else:
        variance = 1 / (1 / s**2 + kept**2 / added)
        mean = variance * ((1 - s) * x_0 / s**2 + kept * x_t / added)
    assert step.of_x_t * x_t + step.of_x_0 * x_0 == pytest.approx(mean, abs=1e-12)
    assert step.std**2 == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("s, t", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_a_step_goes_back_in_time(s: float, t: float) -> None:
    with pytest.raises(ValueError, match="0 <= s < t <= 1"):
        load("ancestral").posterior(s, t)


class GaussianFlow:
    """The exact velocity of images whose pixels are Gaussian, with a mean a class; `calls` holds times and classes."""

    def __init__(self, means: list[float], std: float) -> None:
        self.means, self.std = torch.tensor(means), std
        self.calls: list[tuple[float, list[int]]] = []

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.calls.append((float(timestep[0]), class_labels.tolist()))
        t = timestep.view(-1, 1, 1, 1) / 1000
        mean = self.means[class_labels].view(-1, 1, 1, 1)
        gain = (1 - t) * self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        clean = mean + gain * (sample - (1 - t) * mean)  # E[x_0 | x_t]
        return ((sample - clean) / t,)


@pytest.mark.parametrize("steps, tolerance", [(100, 0.06), (1000, 0.02)])
def test_the_reference_draws_gaussian_images_with_their_mean_and_spread(steps: int, tolerance: float) -> None:
    """With one spread for all classes, guidance moves the mean from that without a class on past that of the class."""
    guidance, std = 1.5, 0.2
    flow, labels = GaussianFlow([-0.2, 0.2, 0.1], std), np.arange(64) % 2
    images = load("ancestral").draw_ancestral(
        flow,
        Geometry(16, 16, patch=1, multiple=2),
        labels,
        np.arange(64),
        null_class=2,
        guidance=guidance,
        precision=Precision("off", "cpu"),
        device=CPU,
        steps=steps,
    )
    assert images.shape == (64, 3, 16, 16) and images.dtype == np.uint8
    pixels = images / 127.5 - 1
    for label, mean in enumerate(flow.means[:2].tolist()):
        drawn = pixels[labels == label]
        assert drawn.mean() == pytest.approx(0.1 + guidance * (mean - 0.1), abs=0.01)
        assert drawn.std() == pytest.approx(std, rel=tolerance)  # what is short of it goes away with more steps
    # The published way: in each step one pass for the classes and one without.
    assert [time for time, _ in flow.calls] == pytest.approx(np.repeat(1000 - np.arange(steps) * 1000 / steps, 2))
    assert [classes for _, classes in flow.calls] == [labels.tolist(), [2] * 64] * steps


@pytest.fixture
def quick_sampling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with a smaller network, and a reference of few steps."""
    sampling = load("sampling")
    small = dataclasses.replace(preset_values("tiny", (8, 8)), channels=(16, 32))
    monkeypatch.setattr(sampling, "preset_values", lambda *_: small)
    monkeypatch.setattr(sampling, "AMP", "off")
    monkeypatch.setattr(sampling, "STEPS", 3)
    monkeypatch.setattr(sampling, "QUICK_YARDSTICK_STEPS", 2)
    return sampling


def test_network_passes_are_those_that_are_made(quick_sampling: ModuleType, shared_val_work: Path) -> None:
    sampling = quick_sampling
    trainer = sampling.new_generator(load_split(Workspace(shared_val_work)), "tiny", 1, CPU)
    images = [0]

    def count(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: object) -> None:
        images[0] += len(arguments[0])

    trainer.average.register_forward_hook(count)
    ways = sampling.ways_to_draw(trainer, 4, sampling.SOLVERS, both=True)
    assert [way.batch_size for way in ways[:3]] == [4, 1, 4]
    assert [way.passes for way in ways[1:3]] == [6, 6]
    assert len({way.name for way in ways}) == len(ways)
    for way in ways:
        images[0] = 0
        drawn = way.draw(np.arange(2), np.arange(2))
        assert images[0] == 2 * way.passes, way.name
        assert drawn.shape == (2, 3, 8, 8) and (drawn == drawn[:, :1]).all(), "digits have no colour"


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=10)
    left_out = np.array([np.delete(values, i).mean() for i in range(10)])
    expected = values.std(ddof=1) / np.sqrt(10)
    assert load("sampling").jackknife_error(left_out) == pytest.approx(expected)


def test_a_difference_of_distances_knows_that_both_began_with_the_same_seeds() -> None:
    sampling, generator = load("sampling"), np.random.default_rng(0)
    real, features = generator.normal(size=(500, 4)), 0.5 + generator.normal(size=(200, 4))
    ours, far = sampling.distance(features, real), sampling.distance(features + 0.1, real)
    assert ours.error > 0
    difference = sampling.distance_difference(features + 0.1, features, real)
    assert difference.value == pytest.approx(far.value - ours.value)
    assert difference.error < 0.5 * ours.error  # the images' own scatter is in both


def test_real_images_are_of_the_classes_wanted_and_no_image_comes_twice() -> None:
    labels = np.repeat([0, 1, 2], [30, 20, 40])
    images = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)
    wanted = np.arange(60) % 3
    chosen = load("sampling")._real_images(images, labels, wanted)[:, 0, 0, 0]
    assert labels[chosen].tolist() == wanted.tolist()
    assert len(set(chosen.tolist())) == 60


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True], ids=["trained", "given"])
def test_sampling_prints_a_last_line_of_json_and_writes_the_whole_result(
    given: bool,
    quick_sampling: ModuleType,
    tmp_path: Path,
    shared_val_work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sampling, out = quick_sampling, tmp_path / "sampling.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--batch-size", "20", "--images", "100"]
    if given:
        trainer = sampling.new_generator(load_split(Workspace(shared_val_work)), "tiny", 1, CPU)
        trainer.average.save_pretrained(tmp_path / "generator" / "unet")
        arguments += ["--generator", str(tmp_path / "generator")]
    else:
        arguments += ["--train-steps", "2"]
    sampling.main([*arguments, "--out", str(out)])

    printed = capsys.readouterr().out
    assert ("generator: step 2 of 2" in printed) is not given
    head, document = json.loads(printed.splitlines()[-1]), json.loads(out.read_text())
    assert head["benchmark"] == "sampling" and head["quick"] is True and head.items() <= document.items()
    ours, alone, together = document["candidates"][:3]
    assert [row["batch_size"] for row in (ours, alone, together)] == [20, 1, 20]
    for row in document["candidates"]:
        milliseconds = row["milliseconds_a_batch"]
        assert len(milliseconds["rounds"]) == 5
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch_size"] / milliseconds["median"], rel=1e-3)
    for name, row in (("ratio_batch1", alone), ("ratio_equal_batch", together)):
        assert head[name] == pytest.approx(ours["images_per_second"] / row["images_per_second"], rel=1e-3)
    assert head["frechet_saukit"] == ours["frechet"] and head["frechet_ancestral"] == together["frechet"]
    assert document["frechet_real_training_images"]["frechet"] < ours["frechet"]
    assert document["frechet_images"] == 100 and document["frechet_features"]["test_images"] == 359
    assert document["generator"]["train_steps"] == (None if given else 2)
    assert str(tmp_path) not in out.read_text()
    assert out.with_suffix(".png").stat().st_size > 1000


def test_the_reference_in_another_precision_than_saukit_is_one_way_more(
    quick_sampling: ModuleType, shared_val_work: Path
) -> None:
    trainer = quick_sampling.new_generator(load_split(Workspace(shared_val_work)), "tiny", 1, CPU)
    trainer.precision = Precision("bf16", "cpu")
    own = [("dpm++", 12)]
    names = [way.name for way in quick_sampling.ways_to_draw(trainer, 64, own, both=True)]
    assert names == [
        "saukit, dpm++ 12 steps, batch 64, bf16",
        "ancestral, 3 steps, batch 1, float32",
        "ancestral, 3 steps, batch 64, bf16",
        "ancestral, 3 steps, batch 64, float32",
    ]
    assert [way.name for way in quick_sampling.ways_to_draw(trainer, 64, own, both=False)] == names[:3]


def test_sampling_wants_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("sampling").main(["--quick", "--batch-size", "1"])
    assert "--batch-size must be at least 2: one image at a time is measured anyway" in capsys.readouterr().err


# --- precision ----------------------------------------------------------------------------------------------------


def test_precisions_are_compared_seed_by_seed() -> None:
    top1 = {"off": [0.9, 0.8, 0.7], "bf16": [0.92, 0.79, 0.75]}
    runs = [{"amp": amp, "seed": seed, "top1": top1[amp][seed]} for seed in range(3) for amp in ("off", "bf16")]
    row = load("precision").compare(runs, "top1")
    assert row["differences"] == pytest.approx([0.02, -0.01, 0.05])
    assert row["mean_difference"] == pytest.approx(0.02)
    variances = [np.var(values, ddof=1) for values in top1.values()]
    assert row["seed_std"] == pytest.approx(np.mean(variances) ** 0.5)


def test_the_table_of_variants_is_the_mean_and_spread_over_seeds() -> None:
    variants = load("variants")
    shares = {"balanced_accuracy": [0.5, 0.7], "many": [1.0, 1.0], "medium": [0.5, 0.6], "few": [0.1, 0.4]}
    rows = [
        {"kind": "plain", "way": "ce+synth", "seed": seed, **{name: values[seed] for name, values in shares.items()}}
        for seed in range(2)
    ]
    rows.insert(1, {**rows[0], "kind": "none", "way": "ce"})
    table = variants.summarise(rows)
    assert [(row["kind"], row["way"], row["seeds"]) for row in table] == [("plain", "ce+synth", 2), ("none", "ce", 1)]
    for name, values in shares.items():
        assert table[0][name] == pytest.approx(100 * np.mean(values), abs=0.01)
        assert table[0][f"{name}_std"] == pytest.approx(100 * np.std(values, ddof=1), abs=0.01)
        assert table[1][f"{name}_std"] is None  # one seed has no spread


def test_variants_reuse_what_is_there_and_end_with_a_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = load("variants")
    options = ["--quick", "--threads", "1", "--work", str(tmp_path), "--seeds", "1", "--ways", "balanced-softmax"]
    variants.main([*options, "--kinds", "plain"])
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["benchmark"] == "variants" and first["data"] == "digits"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    variants.main([*options, "--kinds", "plain,no-guidance"])
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {path: again[path] for path in before} == before and len(again) > len(before)
    with pytest.raises(SystemExit):
        variants.main([*options, "--kinds", "plainn"])
    assert "unknown: plainn; known are base, steps150" in capsys.readouterr().err


DETAIL_METRICS: dict[str, set[str]] = {
    "initialisation": {"mixup", "cutmix", "contrastive"},
    "blur": {"contrastive"},
    "cutout": {"contrastive"},
    "autoaugment": {"contrastive"},
    "shares": {"cutmix"},
    "statistics": set(),
}


@pytest.fixture
def sau_plan() -> Any:
    inputs = load("inputs")
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    return inputs.mixed_plan(images, 4, inputs.paper_config("convnet-small", 16, "off"), CPU)


def first_step(plan: Any, details: set[str] | None = None, start: Any = None) -> tuple[dict[str, float], Any]:
    """Losses of the first step, and the network after it; from other weights than its own with `start`."""
    room = load("sau_details")
    trainer = room.VariedTrainer(plan, set())
    with contextlib.nullcontext() if details is None else room.patched(details, trainer):
        if start is not None:
            trainer.network.load_state_dict(start)
        trainer.advance()
    return {name: float(trainer.meters[name]) for name in ("mixup", "cutmix", "contrastive")}, trainer.network


def test_all_details_are_those_of_as_published(sau_plan: Any) -> None:
    room = load("sau_details")
    published = dataclasses.replace(sau_plan, config=dataclasses.replace(sau_plan.config, as_published=True))
    start = room.VariedTrainer(published, set()).network.state_dict()
    (losses, network), (found, patched) = (
        first_step(published),
        first_step(sau_plan, set(room.DETAILS), start=start),
    )
    assert found == losses
    for name, value in network.state_dict().items():
        assert torch.equal(value, patched.state_dict()[name]), name


@pytest.mark.parametrize("detail", DETAIL_METRICS)
def test_each_detail_changes_what_it_is_about_and_nothing_else(sau_plan: Any, detail: str) -> None:
    (own, network), (found, other) = first_step(sau_plan), first_step(sau_plan, {detail})
    assert first_step(sau_plan, set())[0] == own
    changed = {name for name in own if own[name] != found[name]}
    # A detail that is met before another one in the step moves what is sampled after it.
    assert changed == DETAIL_METRICS[detail] | ({"contrastive"} if detail == "shares" else set())
    assert load("sau_details").DETAILS.keys() == DETAIL_METRICS.keys()
    counts = [int(net.projection[1].num_batches_tracked) for net in (network, other)]
    assert counts == [2, 4 if detail == "statistics" else 2]


def test_prototypes_of_the_batchs_statistics_leave_the_network_as_it_was(sau_plan: Any) -> None:
    room = load("sau_details")
    plain, batch = (room.VariedTrainer(sau_plan, way) for way in (set(), {"batch"}))
    before = {name: value.clone() for name, value in batch.network.state_dict().items()}
    (one, _), (other, _) = (trainer._prototypes(0, begun=True) for trainer in (plain, batch))
    assert all(torch.equal(value, before[name]) for name, value in batch.network.state_dict().items())
    # An untrained network in eval mode maps all classes near one point; with a batch's statistics it does not.
    assert float((one @ one.T).min()) > float((other @ other.T).min())


def test_the_held_out_images_are_no_part_of_the_split(shared_work: Path) -> None:
    room, workspace = load("sau_details"), Workspace(shared_work)
    config = room.SplitConfig(dataset="digits", imb=50.0)
    found = room.held_out_images(workspace, config, None, None)
    split, test = load_split(workspace), room.load_test(workspace)
    taken = {image.tobytes() for part in (split.train, test) for image in np.asarray(part.images)}
    assert not taken & {image.tobytes() for image in found.images}
    assert np.bincount(found.labels, minlength=10)[9] > 100


@pytest.mark.slow
def test_what_is_planned_on_paper_is_what_a_dry_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-100-LT at ratio 100, of random images: the row of the record, and the counts of its split."""
    room, name = load("planning"), "CIFAR-100-LT, ratio 100: SAU"
    images, classes, side, given = room.ROWS[name]
    counts = profile_counts("exp", 500, 100, classes)
    draw = np.random.default_rng(0)
    train, test = (
        (draw.integers(0, 256, (sum(numbers), side, side, 3), dtype=np.uint8), np.repeat(np.arange(classes), numbers))
        for numbers in (counts, [1] * classes)
    )
    names = tuple(f"{label:03}" for label in range(classes))
    source = source_of_arrays(names, train, test, where="here")
    monkeypatch.setattr(split_room, "open_source", lambda *_: source)
    work = Workspace(tmp_path / "work")
    config = SplitConfig(dataset="folder", profile="none", image_size=side)
    make_split(config, work, root=tmp_path, force=False, reporter=Reporter(quiet=True))
    fields = {**given, "preset": "paper", "synthetic": False, "amp": "bf16", "as_published": False}
    plan = plan_training(TrainConfig(**fields), work, name=None, device=CPU)
    monkeypatch.undo()  # the projection has its size again, as in the record
    recorded = json.loads((FOLDER / "results" / "planning.json").read_text())["rows"]
    assert plan.training_images == sum(counts) == images
    for gpus in room.GPUS:
        (row,) = (row for row in recorded if (row["what"], row["gpus"]) == (name, gpus))
        assert room.row(name, images, classes, side, given, gpus) == row
        costs = dataclasses.asdict(run_costs(plan, processes=gpus))
        assert {**row, **costs, "steps": plan.total_steps} == row
