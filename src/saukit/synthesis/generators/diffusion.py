"""The split's own diffusion model as a generator: trained on the split, or taken from another workspace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from saukit.core.console import Reporter
from saukit.core.device import resolve_amp, using_threads
from saukit.core.documents import START_OVER
from saukit.core.errors import CorruptArtifactError
from saukit.core.files import reading
from saukit.core.interrupts import StopRequest
from saukit.core.state import load_state
from saukit.core.writing import atomic_path, sha256_file, sync_folder
from saukit.data.split import Split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.diffusion_model import build_scheduler, is_guided, solver_times
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.generators.presets import DiffusionConfig, auto_preset, default_steps, drawn_size, preset_values
from saukit.synthesis.generators.protocol import CHECKPOINT, GeneratorEntry, Images, Integers
from saukit.training.distributed import first_before_others, from_first

if TYPE_CHECKING:
    from diffusers import UNet2DModel

UNET, WEIGHTS = "generator/unet/config.json", "generator/unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "generator/scheduler/scheduler_config.json"


class DiffusionGenerator:
    """The trained diffusion model; `digest` is that of its weights' file."""

    capacity = None

    def __init__(self, trainer: GeneratorTrainer, digest: str) -> None:
        self._trainer, self.digest = trainer, digest

    @property
    def description(self) -> dict[str, Any]:
        """The network, and how long it was trained."""
        trainer = self._trainer
        steps = trainer.total_steps if trainer.seconds else None
        return {
            "generator": "diffusion",
            "preset": trainer.config.preset,
            "amp": trainer.config.amp,
            "parameters": sum(weight.numel() for weight in trainer.average.parameters()),
            "patch": trainer.preset.patch,
            "drawn_size": list(trainer.size),
            "train_steps": steps,
            "train_seconds": round(trainer.seconds, 1),
            "train_steps_per_second": None if steps is None else round(steps / trainer.seconds, 2),
        }

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """Images of `labels` from the noise of `seeds`."""
        return self._trainer.sample(labels, seeds)


class DiffusionTraining:
    """The diffusion model before its training, of which nothing is left for a model of another workspace."""

    capacity = None

    def __init__(self, config: DiffusionConfig, split: Split, device: torch.device) -> None:
        """Raises: DataError if the model that `config` names is not there or was made for other images."""
        self._trainer = GeneratorTrainer(config, split, device)
        if config.model is not None:
            self._trainer.adopt(Path(config.model))

    @property
    def disk_bytes(self) -> int:
        """Weights fourteen times over: model, average and two moments, three times while a checkpoint is written."""
        return 56 * sum(int(weight.numel()) for weight in self._trainer.average.parameters())

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """Images from the weights of the moment."""
        return self._trainer.sample(labels, seeds)

    def estimate_seconds(self, labels: Integers, seeds: Integers) -> tuple[float, float]:
        """Seconds of the training and of one batch, from a few steps of an untrained copy."""
        trainer = GeneratorTrainer(self._trainer.config, self._trainer.split, self._trainer.device)
        config = trainer.config
        with using_threads(trainer.threads):
            step = _best_seconds(lambda: float(trainer.train_step()), 3) if trainer.total_steps else 0.0
            network_pass = _best_seconds(lambda: trainer.sample(labels, seeds, steps=2, guidance=1.0), 2) / 2
        passes = sum(2 if is_guided(t, config.guidance) else 1 for t in solver_times(config.sampler_steps))
        return step * trainer.total_steps, network_pass * passes

    def train(
        self, folder: Path, *, stop: StopRequest, reporter: Reporter, announce: Callable[[], None]
    ) -> DiffusionGenerator:
        """Train to the end from where the checkpoint stands, and write the network and its scheduler.

        Of several processes the first one trains and the others read its last checkpoint, unless a batch has parts
        that they share.
        """
        config = self._trainer.config
        if config.train_parts == 1:
            return first_before_others(lambda: self._train(folder, stop, reporter, announce))
        return self._train(folder, stop, reporter, announce)

    def _train(
        self, folder: Path, stop: StopRequest, reporter: Reporter, announce: Callable[[], None]
    ) -> DiffusionGenerator:
        trainer, checkpoint = self._trainer, folder / CHECKPOINT
        state = load_state(checkpoint, trainer.device, made_from=trainer.made_from, warn=reporter.warn)
        if state is not None:
            with reading(checkpoint, remedy=START_OVER, fault=CorruptArtifactError):
                trainer.load(state)
            reporter.say(f"continuing at step {trainer.step:,} of {trainer.total_steps:,}")
        if trainer.size != trainer.split.image_size:
            drawn, wanted = (f"{height} x {width}" for height, width in (trainer.size, trainer.split.image_size))
            reporter.say(f"this generator samples images of {drawn} pixels, enlarged to {wanted}")
        was_done = trainer.done
        if not was_done:
            from_first(announce)
            trainer.run(checkpoint, stop=stop, reporter=reporter)

        def saved() -> str:
            if not was_done or not all((folder / name).is_file() for name in (UNET, WEIGHTS, SCHEDULER)):
                save_generator(folder, trainer.average)
            return sha256_file(folder / WEIGHTS)

        return DiffusionGenerator(trainer, from_first(saved))


def save_generator(folder: Path, unet: UNet2DModel) -> None:
    """Write `unet` and its scheduler to generator/ in `folder` so that diffusers loads them, flushed to disk."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights, metadata={"format": "pt"}))
    with atomic_path(folder / UNET) as temporary:
        unet.to_json_file(temporary)
    with atomic_path(folder / SCHEDULER) as temporary:
        build_scheduler().to_json_file(temporary)
    sync_folder(folder / "generator")


def _settle(config: SynthConfig, split: Split, device: torch.device) -> dict[str, Any]:
    size = drawn_size(split.image_size)
    name = auto_preset(size, device.type) if config.preset == "auto" else config.preset
    preset = preset_values(name, size)
    values: dict[str, Any] = {"preset": name, "amp": resolve_amp(config.amp, device)}
    values |= {field: getattr(preset, field) for field in ("guidance", "sampler_steps", "sample_batch_size")}
    if config.model is None:  # else there is no training
        values["train_batch_size"] = preset.train_batch_size
        values["train_steps"] = default_steps(preset, len(split.train.labels), config.train_batch_size)
    return values


def _problems(config: SynthConfig) -> Iterator[str]:
    """What limits alone do not say. Pipelines may be distilled, with one step and guidance 0; this model is not."""
    if config.train_parts > (config.train_batch_size or config.train_parts):
        yield f"train_parts must be at most train_batch_size ({config.train_batch_size}), got {config.train_parts}"
    if config.guidance is not None and not 1 <= config.guidance <= 20:
        yield f"guidance must be at least 1 (none) and at most 20 with generator diffusion, got {config.guidance}"
    if config.sampler_steps == 1:
        yield "sampler_steps must be at least 2 with generator diffusion, got 1"


def _best_seconds(work: Callable[[], object], times: int) -> float:
    """The quickest of `times` runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


ENTRY = GeneratorEntry(
    open=lambda config, split, device, reporter: DiffusionTraining(config, split, device),
    settle=_settle,
    problems=_problems,
    resolved=DiffusionConfig,
    files=(UNET, WEIGHTS, SCHEDULER),
    of_split_alone=True,
)
