"""The generator's training: balanced batches, flow matching, an average of the weights, checkpoints to go on from."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.core.interrupts import StopRequest
from saukit.core.seeding import derive_seed, torch_generator
from saukit.core.state import load_state, save_state
from saukit.synthesis.config import Preset, SynthConfig
from saukit.synthesis.diffusion import (
    TIME_SCALE,
    Geometry,
    build_unet,
    draw_images,
    draw_times,
    drop_labels,
    ema_decay,
    flow_matching_loss,
    interpolate,
    update_ema,
)

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from saukit.core.console import Reporter
    from saukit.data.split import Split
    from saukit.synthesis.plan import SynthesisPlan

CHECKPOINT_SECONDS = 30.0
NOTE_STEPS = 10  # .item() is a sync point: the loss is looked at every so many steps
GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


class BalancedImages:
    """Training images on a device, drawn so that each class is equally likely, whatever its count.

    `grey`: whether no image has any colour.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        num_classes: int,
        *,
        flip: bool,
        device: torch.device,
    ) -> None:
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=num_classes)
        self.images = torch.from_numpy(images).to(device)
        self.flip = flip
        self.grey = bool((images == images[:, :1]).all())
        self._order = torch.from_numpy(order).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch: uint8 images [count, 3, H, W], half of them mirrored if the split allows it, and labels [count]."""
        device = generator.device
        labels = torch.randint(len(self._counts), (count,), generator=generator, device=device)
        within = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        index = self._starts[labels] + (within * self._counts[labels]).long()
        images = self.images[self._order[index]]
        if self.flip:
            mirrored = torch.rand(count, generator=generator, device=device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return images, labels


@dataclass
class GeneratorTrainer:
    """A generator in training after `step` steps; what its steps draw depends on the seed and the step alone."""

    config: SynthConfig
    preset: Preset
    geometry: Geometry
    data: BalancedImages
    num_classes: int
    precision: Precision
    device: torch.device
    step: int = 0
    seconds: float = 0.0  # of training so far, earlier processes included

    def __post_init__(self) -> None:
        size = (self.geometry.height, self.geometry.width)
        self.unet = build_unet(self.preset, size, self.num_classes, self.config.seed).to(self.device)
        if self.device.type == "cuda":  # on a CPU, oneDNN's own layout is faster in bf16
            self.unet = self.unet.to(memory_format=torch.channels_last)
        self.average: UNet2DModel = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(),
            lr=self.preset.learning_rate,
            weight_decay=WEIGHT_DECAY,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.scaler = self.precision.scaler()
        self._recent: list[Tensor] = []

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        assert self.config.train_steps is not None
        return self.config.train_steps

    @property
    def done(self) -> bool:
        """Whether the training is complete."""
        return self.step >= self.total_steps

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over a twentieth of the steps (at most 1000), then a cosine to a hundredth."""
        warmup = max(1, min(1000, self.total_steps // 20))
        if step < warmup:
            return self.preset.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.total_steps - warmup)
        return self.preset.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    def train_step(self) -> Tensor:
        """One step; returns its loss [].

        Precision: the forward pass in autocast; interpolation, loss, clipping, optimizer and average in float32.
        """
        assert self.config.train_batch_size is not None
        generator = torch_generator(self.config.seed, "synth-batch", self.step, device=self.device)
        pixels, labels = self.data.draw(self.config.train_batch_size, generator)
        images = self.geometry.fold(pixels)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        times = draw_times(len(images), generator)
        labels = drop_labels(labels, self.num_classes, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        with self._dropout_state(), self.precision.autocast():
            noisy = interpolate(images, noise, times)
            velocity = self.unet(noisy, TIME_SCALE * times, class_labels=labels, return_dict=False)[0]
        loss = flow_matching_loss(velocity, images, noise)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        update_ema(self.average.parameters(), self.unet.parameters(), ema_decay(self.step, self.preset.ema_decay))
        self.step += 1
        return loss.detach()

    def run(self, checkpoint: Path, *, stop: StopRequest, reporter: Reporter, resume_command: str) -> None:
        """Train to the end, saving every half minute, at a signal and at the end.

        Raises: Interrupted after a signal, SaukitError if the loss stops being finite.
        """
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        self.unet.train()
        with reporter.progress("training the generator", self.total_steps, done=self.step) as progress:
            while not self.done:
                self._recent.append(self.train_step())
                now = time.monotonic()
                due = now - saved >= CHECKPOINT_SECONDS or self.done or stop.requested
                if due or len(self._recent) >= NOTE_STEPS:
                    progress.update(self.step, f"loss {self._recent_loss():.4f}")
                if due:
                    self.seconds = now - began
                    self.save(checkpoint)
                    saved = time.monotonic()
                if stop.requested:
                    raise stop.interrupted(resume_command)

    def save(self, path: Path) -> None:
        """Write all that the rest of the training depends on, atomically."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_state(path, state)

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `save` wrote."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.unet.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    @contextlib.contextmanager
    def _dropout_state(self) -> Iterator[None]:
        """Dropout draws from the global generator: give that a state which depends on seed and step alone."""
        if not self.preset.dropout:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, "synth-dropout", self.step))
            yield

    def _recent_loss(self) -> float:
        loss = float(torch.stack(self._recent).mean()) if self._recent else 0.0
        self._recent.clear()
        if not math.isfinite(loss):
            raise SaukitError(
                f"the generator's loss is not a number any more at step {self.step}: "
                "start over with `saukit synth --force --amp off`, or with another --seed"
            )
        return loss


def draw_batch(
    trainer: GeneratorTrainer,
    plan: SynthesisPlan,
    batch: slice,
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> npt.NDArray[np.uint8]:
    """The images of one batch of the plan, from the averaged weights; `steps` and `guidance` override the plan's."""
    steps = steps if steps is not None else plan.config.sampler_steps
    guidance = guidance if guidance is not None else plan.config.guidance
    assert steps is not None and guidance is not None
    images = draw_images(
        trainer.average,
        trainer.geometry,
        plan.labels[batch],
        plan.seeds[batch],
        null_class=trainer.num_classes,
        guidance=guidance,
        steps=steps,
        precision=trainer.precision,
        device=trainer.device,
    )
    if trainer.data.grey:  # a tint that no real image has would tell which images are synthetic
        grey = np.rint(images.mean(axis=1, keepdims=True)).astype(np.uint8)
        images = np.broadcast_to(grey, images.shape).copy()
    return images


def build_trainer(
    config: SynthConfig, preset: Preset, split: Split, *, precision: Precision, device: torch.device
) -> GeneratorTrainer:
    """An untrained generator of a resolved configuration, and the split's real training images on `device`."""
    train = split.train
    data = BalancedImages(train.images, train.labels, split.num_classes, flip=split.flip, device=device)
    geometry = Geometry.of(split.image_size, preset)
    return GeneratorTrainer(config, preset, geometry, data, split.num_classes, precision, device)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What `GeneratorTrainer.save` wrote; None if nothing is there. Raises: CorruptArtifactError if it is damaged."""
    return load_state(path, device) if path.exists() else None
