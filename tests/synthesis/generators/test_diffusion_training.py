from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, Interrupted, SaukitError
from saukit.core.interrupts import StopRequest
from saukit.core.state import load_state
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, make_split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators import diffusion_training as training_room
from saukit.synthesis.generators.diffusion import save_generator
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.generators.presets import PRESETS, DiffusionConfig, Preset
from saukit.synthesis.generators.training_images import TrainingImages
from saukit.synthesis.plan import resolve

SMALL = replace(PRESETS["tiny"][0], channels=(16, 32))
WITH_DROPOUT = replace(SMALL, dropout=0.3)


def trainer(
    config: SynthConfig, split: Split, cpu: torch.device, preset: Preset = SMALL, steps: int = 6
) -> GeneratorTrainer:
    resolved = resolve(replace(config, train_steps=steps, seed=1), split, cpu)
    assert isinstance(resolved, DiffusionConfig)
    return GeneratorTrainer(resolved, split, cpu, preset=preset)


def test_each_class_is_equally_likely_and_each_image_within_it(cpu: torch.device) -> None:
    labels = np.array([2, 0, 0, 0, 1, 0, 0, 1, 0, 0])  # 7, 2 and 1 images
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=1)  # a picture shows its own number
    data = TrainingImages(images, labels, 3, flip=False, balance=1.0, device=cpu)
    generator = torch.Generator().manual_seed(0)
    drawn, drawn_labels = data.draw(30_000, generator)
    numbers = drawn[:, 0, 0, 0].numpy()
    assert (labels[numbers] == drawn_labels.numpy()).all()
    shares = np.bincount(numbers, minlength=10) / 30_000
    expected = [1 / 3 / {0: 7, 1: 2, 2: 1}[label] for label in labels.tolist()]
    assert shares == pytest.approx(expected, abs=0.01)


def test_larger_images_are_learned_small_and_enlarged(micro: SynthConfig, cpu: torch.device, tmp_path: Path) -> None:
    """Against Pillow's bicubic resizing, which rounds between its two passes."""
    config = SplitConfig(dataset="digits", counts={str(digit): 2 for digit in range(10)}, image_size=96)
    make_split(config, Workspace(tmp_path), root=None, force=False, reporter=Reporter(quiet=True))
    split = load_split(Workspace(tmp_path))
    made = trainer(micro, split, cpu)
    assert made.size == (64, 64)
    assert made.data.images.shape == (20, 3, 64, 64)
    for own, drawn in zip(np.asarray(split.train.images), made.data.images.numpy(), strict=True):
        expected = Image.fromarray(own.transpose(1, 2, 0)).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected).transpose(2, 0, 1).astype(int) - drawn).max() <= 2
    images = made.sample(np.array([0, 1]), np.array([1, 2]), steps=2)
    assert images.shape == (2, 3, 96, 96) and images.dtype == np.uint8
    small = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((64, 64))) for image in images])
    back = np.stack([np.asarray(Image.fromarray(image).resize((96, 96))).transpose(2, 0, 1) for image in small])
    assert np.abs(back.astype(int) - images).mean() < 12  # nothing finer than 64 pixels show


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored_only_where_that_keeps_the_class(flip: bool, cpu: torch.device) -> None:
    image = np.zeros((1, 3, 2, 4), dtype=np.uint8)
    image[..., 0] = 255
    data = TrainingImages(image, np.array([0]), 1, flip=flip, balance=1.0, device=cpu)
    drawn, _ = data.draw(4000, torch.Generator().manual_seed(0))
    mirrored = (drawn[:, 0, 0, 3] == 255).double().mean()
    assert float(mirrored) == pytest.approx(0.5 if flip else 0, abs=0.05)


@pytest.mark.parametrize("preset", [SMALL, WITH_DROPOUT])
def test_a_resumed_training_reaches_the_same_bits(
    preset: Preset, micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path
) -> None:
    whole = trainer(micro, split, cpu, preset)
    losses = [float(whole.train_step()) for _ in range(6)]
    first = trainer(micro, split, cpu, preset)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(99)
    second = trainer(micro, split, cpu, preset)
    state = load_state(tmp_path / "checkpoint.pt", cpu, made_from=first.made_from, warn=print)
    assert state is not None
    second.load(state)
    assert [float(second.train_step()) for _ in range(3)] == losses[3:]
    for name, network in (("unet", whole.unet), ("average", whole.average)):
        other = getattr(second, name).state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in network.state_dict().items()), name


def test_training_lowers_the_loss(micro: SynthConfig, split: Split, cpu: torch.device) -> None:
    training = trainer(replace(micro, train_batch_size=32), split, cpu, steps=60)
    losses = [float(training.train_step()) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_the_learning_rate_warms_up_and_falls(micro: SynthConfig, split: Split, cpu: torch.device) -> None:
    training = trainer(micro, split, cpu, steps=200)
    rates = [training.learning_rate(step) for step in range(200)]
    top = SMALL.learning_rate
    assert rates[:10] == pytest.approx([top * (step + 1) / 10 for step in range(10)])
    assert rates[105] == pytest.approx(top * (0.01 + 0.99 / 2))
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert top / 100 < rates[-1] < top / 50


def test_a_loss_that_is_not_a_number_stops_with_the_remedy(
    micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path, reporter: Reporter
) -> None:
    training = trainer(micro, split, cpu)
    with torch.no_grad():
        training.unet.conv_in.weight.fill_(float("nan"))
    with StopRequest() as stop, pytest.raises(SaukitError, match="not a number any more at step 6: start over with"):
        training.run(tmp_path / "checkpoint.pt", stop=stop, reporter=reporter)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_signal_saves_and_names_the_command_that_continues(
    micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path, reporter: Reporter
) -> None:
    training = trainer(micro, split, cpu)
    stop = StopRequest()
    stop.signal_number = 15
    with pytest.raises(Interrupted, match="continue with: the same call") as caught:
        training.run(tmp_path / "c.pt", stop=stop, reporter=reporter)
    assert caught.value.exit_code == 143
    state = load_state(tmp_path / "c.pt", cpu, made_from=training.made_from, warn=print)
    assert state is not None
    assert state["step"] == 1


def test_a_state_of_another_training_is_not_taken(
    micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path
) -> None:
    own, heard = trainer(micro, split, cpu), list[str]()
    for field, value in (("seed", 7), ("train_steps", 9), ("tail", "cbdm"), ("train_batch_size", 5)):
        other = trainer(micro, split, cpu)
        other.config = replace(other.config, **{field: value})  # type: ignore[arg-type]
        other.save(tmp_path / "checkpoint.pt")
        (tmp_path / "checkpoint.previous.pt").unlink(missing_ok=True)
        with pytest.raises(CorruptArtifactError, match=rf"belongs to other work \({field}: .*start over with --force"):
            load_state(tmp_path / "checkpoint.pt", cpu, made_from=own.made_from, warn=heard.append)
    other = trainer(micro, split, cpu)  # what only chooses among the images is free
    other.config = replace(other.config, filter="classifier", min_confidence=0.5)
    assert other.made_from == own.made_from


def test_weights_that_are_no_numbers_are_not_saved(
    micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path, reporter: Reporter
) -> None:
    training = trainer(micro, split, cpu)
    training.average.conv_in.weight.data[0, 0, 0, 0] = float("inf")  # which no loss shows
    stop = StopRequest()
    stop.signal_number = 15
    with pytest.raises(SaukitError, match="the generator's weights are not numbers any more at step 1"):
        training.run(tmp_path / "c.pt", stop=stop, reporter=reporter)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"tail": "cbdm"}, {"balance": 0.0}], ids=str)
def test_every_variant_of_the_training_resumes_to_the_same_bits_and_draws(
    fields: dict[str, Any], micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path
) -> None:
    config = replace(micro, guidance=1.5, **fields)
    whole, plain = trainer(config, split, cpu), trainer(replace(micro, guidance=1.5), split, cpu)
    losses = [float(whole.train_step()) for _ in range(6)]
    assert losses != [float(plain.train_step()) for _ in range(6)]
    first, second = trainer(config, split, cpu), trainer(config, split, cpu)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    state = load_state(tmp_path / "checkpoint.pt", cpu, made_from=first.made_from, warn=print)
    assert state is not None
    second.load(state)
    assert [float(second.train_step()) for _ in range(3)] == losses[3:]
    labels, seeds = np.arange(4, dtype=np.int64), np.arange(4, dtype=np.int64)
    assert np.array_equal(whole.sample(labels, seeds), second.sample(labels, seeds))


def test_cbdm_contrasts_with_classes_by_their_frequency_and_leaves_dropped_labels_out(
    micro: SynthConfig, split: Split, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step computed again: the other classes that the network saw, and what the regulariser was told."""
    training = trainer(replace(micro, tail="cbdm", train_batch_size=4096), split, cpu, steps=2)
    asked: list[torch.Tensor] = []
    told: list[torch.Tensor] = []
    monkeypatch.setattr(training, "_velocity", lambda inputs, times, labels: asked.append(labels) or inputs)
    monkeypatch.setattr(training_room, "class_balancing_loss", lambda *given: told.append(given[3]) or given[0].mean())
    monkeypatch.setattr(training_room, "flow_matching_loss", lambda *_: training.unet.conv_in.weight.sum())
    training.train_step()
    (own, others), (labelled,) = asked, told
    assert torch.equal(labelled, own != split.num_classes)
    assert 0.08 < float((~labelled).double().mean()) < 0.12
    shares = torch.bincount(others, minlength=split.num_classes).double() / len(others)
    expected = split.class_counts / split.class_counts.sum()
    assert shares.numpy() == pytest.approx(expected, abs=5 * (0.25 / 4096) ** 0.5)


def test_natural_sampling_draws_images_and_not_classes(cpu: torch.device) -> None:
    labels = np.repeat([0, 1], [9, 1])
    data = TrainingImages(np.zeros((10, 3, 2, 2), np.uint8), labels, 2, flip=False, balance=0.0, device=cpu)
    drawn = data.draw(20_000, torch.Generator().manual_seed(0))[1]
    assert float((drawn == 1).double().mean()) == pytest.approx(0.1, abs=0.01)
    half = TrainingImages(np.zeros((10, 3, 2, 2), np.uint8), labels, 2, flip=False, balance=0.5, device=cpu)
    drawn = half.draw(20_000, torch.Generator().manual_seed(0))[1]
    assert float((drawn == 1).double().mean()) == pytest.approx(1 / (1 + 3), abs=0.01)  # 1 : sqrt(9)


def test_a_variation_starts_from_an_image_of_its_class(cpu: torch.device) -> None:
    labels = np.repeat([0, 1, 2], [12, 3, 1])
    images = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1).repeat(3, axis=1)  # a picture shows its own number
    data = TrainingImages(images, labels, 3, flip=False, balance=1.0, device=cpu)
    wanted, seeds = np.repeat([1, 2], 200).astype(np.int64), np.arange(400, dtype=np.int64)
    own = data.origins(wanted, seeds)[:, 0, 0, 0].numpy()
    assert (labels[own] == wanted).all() and set(own[:200].tolist()) == {12, 13, 14}
    # Chosen by the seed alone: another batch, another place in it, the same origin.
    assert np.array_equal(data.origins(wanted[7:9], seeds[7:9])[:, 0, 0, 0].numpy(), own[7:9])


def test_a_generator_of_another_workspace_draws_its_images(
    micro: SynthConfig, split: Split, cpu: torch.device, tmp_path: Path
) -> None:
    config = replace(micro, guidance=1.5)
    trained, other = trainer(config, split, cpu), trainer(replace(config, seed=7), split, cpu)
    for _ in range(4):
        trained.train_step()
    save_generator(tmp_path, trained.average)
    other.adopt(tmp_path / "generator")
    assert other.done
    labels, seeds = np.arange(4, dtype=np.int64), np.arange(4, dtype=np.int64)
    assert np.array_equal(other.sample(labels, seeds), trained.sample(labels, seeds))
    with pytest.raises(DataError, match=r"no generator in .*nowhere: give the folder synth/generator of another"):
        other.adopt(tmp_path / "nowhere")
    unet = tmp_path / "generator/unet/config.json"
    unet.write_text(unet.read_text().replace('"in_channels": 3', '"in_channels": 9'))
    with pytest.raises(DataError, match=r"the generator in .* cannot be read"):
        other.adopt(tmp_path / "generator")
