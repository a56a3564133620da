"""The generator's training: flow matching on balanced batches, an average of the weights, checkpoints to go on from."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saukit.core.config import to_mapping
from saukit.core.console import Reporter
from saukit.core.device import COPIES_ASIDE, Precision, suited_threads, using_threads
from saukit.core.errors import DataError, SaukitError
from saukit.core.files import check_tree, reading
from saukit.core.interrupts import StopRequest
from saukit.core.options import options_of
from saukit.core.seeding import derive_seed, torch_generator
from saukit.core.state import is_finite, save_state
from saukit.data.split import Split
from saukit.data.types import Images, Integers
from saukit.synthesis.generators.diffusion_model import (
    TIME_SCALE,
    Geometry,
    build_unet,
    class_balancing_loss,
    drop_labels,
    ema_decay,
    flow_matching_loss,
    interpolate,
    sample_images,
    sample_times,
    update_ema,
)
from saukit.synthesis.generators.presets import DiffusionConfig, Preset, drawn_size, preset_values
from saukit.synthesis.generators.protocol import without_colour
from saukit.synthesis.generators.training_images import TrainingImages, resized
from saukit.training.distributed import Share, any_stops, is_first, rank, size, sum_in_order, wait_for_all

if TYPE_CHECKING:
    from diffusers import UNet2DModel

CHECKPOINT_SECONDS = 30.0
NOTE_STEPS = 10  # .item() is a sync point: the loss is looked at every so many steps
GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


class GeneratorTrainer:
    """A generator in training after `step` steps; what its steps draw depends on the seed and the step alone.

    `preset` None is the configuration's. `average` holds the weights that sample; `seconds` counts the training so far,
    earlier processes included.
    """

    def __init__(
        self, config: DiffusionConfig, split: Split, device: torch.device, *, preset: Preset | None = None
    ) -> None:
        self.config, self.split, self.device = config, split, device
        self.size = drawn_size(split.image_size)
        self.preset = preset or preset_values(config.preset, self.size)
        self.geometry = Geometry.of(self.size, self.preset)
        self.num_classes = split.num_classes
        self.precision = Precision(config.amp, device.type)
        self.threads = suited_threads(self.size, device)
        train = split.train
        self.data = TrainingImages(
            train.images,
            train.labels,
            split.num_classes,
            size=self.size,
            flip=split.flip,
            balance=config.balance,
            device=device,
        )
        self.step, self.seconds = 0, 0.0
        self.unet = build_unet(self.preset, self.size, self.num_classes, config.seed).to(device)
        if device.type in COPIES_ASIDE:  # on a CPU, oneDNN's own layout is faster in bf16
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
        """Steps of the whole training; 0 where another workspace's generator samples."""
        return self.config.train_steps or 0

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
        generator = torch_generator(self.config.seed, "synth-batch", self.step, device=self.device)
        count, parts = self.config.train_batch_size or self.preset.train_batch_size, self.config.train_parts
        pixels, labels = self.data.draw(count, generator)
        images = self.geometry.fold(pixels)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        times = sample_times(len(images), generator)
        labels = drop_labels(labels, self.num_classes, generator)
        others = self.data.draw_classes(len(labels), generator) if self.config.tail == "cbdm" else None
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)

        def loss_of(part: int) -> Tensor:
            """The share of the batch's loss that is of one of its parts."""
            rows = Share(count, part, parts).rows
            with self._dropout_state(part), self.precision.autocast():
                noisy = interpolate(images[rows], noise[rows], times[rows])
                velocity = self._velocity(noisy, times[rows], labels[rows])
                loss = flow_matching_loss(velocity, images[rows], noise[rows])
                if others is not None:
                    of_others = self._velocity(noisy, times[rows], others[rows])
                    labelled = labels[rows] != self.num_classes
                    loss = loss + class_balancing_loss(velocity, of_others, times[rows], labelled)
            share: Tensor = loss * ((rows.stop - rows.start) / count)
            return share

        loss = self._backward(loss_of)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        update_ema(self.average.parameters(), self.unet.parameters(), ema_decay(self.step, self.preset.ema_decay))
        self.step += 1
        return loss

    def _backward(self, loss_of: Callable[[int], Tensor]) -> Tensor:
        """The gradients of the losses of all parts, added in their order, and the sum of these losses.

        So the bits do not depend on which process computes which part.
        """
        shares = [Share(self.config.train_parts, at, size()).rows for at in range(size())]
        weights, rows = list(self.unet.parameters()), []
        lengths = [weight.numel() for weight in weights]
        loss = torch.zeros((), device=self.device)
        for part in range(shares[rank()].start, shares[rank()].stop):
            part_loss = loss_of(part)
            self.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
            loss = loss + part_loss.detach()
            if size() > 1:
                rows.append(torch.cat([part_loss.detach().view(1), *(weight.grad.flatten() for weight in weights)]))
                self.optimizer.zero_grad(set_to_none=True)
        if size() > 1:
            mine = torch.stack(rows) if rows else loss.new_empty(0, 1 + sum(lengths))
            summed = sum_in_order(mine, [share.stop - share.start for share in shares])
            loss, *gradients = torch.split(summed, [1, *lengths])
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = torch.empty_like(weight).copy_(gradient.view_as(weight))
        return loss.view(())

    def _velocity(self, inputs: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        velocity: Tensor = self.unet(inputs, TIME_SCALE * times, class_labels=labels, return_dict=False)[0]
        return velocity

    def run(self, checkpoint: Path, *, stop: StopRequest, reporter: Reporter) -> None:
        """Train to the end, saving every half minute, at a signal and at the end.

        Raises: Interrupted after a signal, SaukitError if the loss stops being finite.
        """
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        self.unet.train()
        with (
            using_threads(self.threads),
            reporter.progress("training the generator", self.total_steps, done=self.step) as progress,
        ):
            while not self.done:
                self._recent.append(self.train_step())
                now = time.monotonic()
                may_wait = self.device.type == "cpu" or self.step % NOTE_STEPS == 0
                stopping = any_stops(stop, may_wait=may_wait)
                due = now - saved >= CHECKPOINT_SECONDS or self.done or stopping
                if due or len(self._recent) >= NOTE_STEPS:
                    progress.update(self.step, f"loss {self._recent_loss():.4f}")
                if due:
                    self.seconds = now - began
                    if not self.is_finite:
                        raise self._not_finite("weights are not numbers")
                    if is_first():
                        self.save(checkpoint)
                    saved = time.monotonic()
                if stopping:
                    wait_for_all()  # until the state is saved
                    raise stop.interrupted()

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
        save_state(path, state, made_from=self.made_from)

    @property
    def is_finite(self) -> bool:
        """Whether all weights and moments are numbers."""
        return is_finite([each.state_dict() for each in (self.unet, self.average, self.optimizer)])

    @property
    def made_from(self) -> dict[str, str]:
        """What a state of this training belongs to: its options, but for those of selection, and its split."""
        entries = options_of(type(self.config))
        values = {
            name: repr(value)
            for name, value in to_mapping(self.config).items()
            if name not in entries or not entries[name].reselects
        }
        return {"kind": "state of a generator's training", **values, "split": self.split.manifest.digest}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `save` wrote."""
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.unet.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def sample(
        self,
        labels: Integers,
        seeds: Integers,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Images:
        """Images uint8 [n, 3, H, W] of the split's size from the averaged weights, enlarged if they are drawn smaller.

        `steps` and `guidance` override the configuration's.
        """
        config = self.config
        with using_threads(self.threads):
            images = sample_images(
                self.average,
                self.geometry,
                labels,
                seeds,
                null_class=self.num_classes,
                guidance=config.guidance if guidance is None else guidance,
                steps=steps or config.sampler_steps,
                precision=self.precision,
                device=self.device,
                sampler=config.sampler,
                origin=None if config.variation is None else self.data.origins(labels, seeds),
                strength=config.variation or 1.0,
            )
        if self.size != self.split.image_size:
            images = resized(torch.from_numpy(images), self.split.image_size).numpy()
        return without_colour(images) if self.data.grey else images

    def adopt(self, folder: Path) -> None:
        """Sample from the trained generator in `folder`, which another `saukit synth` wrote, without any training.

        Raises: DataError if there is none, or if it was made for other images or classes.
        """
        from diffusers import UNet2DModel

        if not (folder / "unet" / "config.json").is_file():
            raise DataError(f"no generator in {folder}: give the folder synth/generator of another workspace")
        remedy = "give the folder synth/generator of another workspace, its weights in safetensors"
        with reading(f"the generator in {folder}", remedy=remedy):
            check_tree(folder)
            unet: UNet2DModel = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
            with torch.inference_mode():  # a configuration may say what no network can do
                pixels = torch.zeros(1, unet.config.in_channels, *np.broadcast_to(unet.config.sample_size, 2).tolist())
                unet(pixels, 0, class_labels=torch.zeros(1, dtype=torch.int64))
        if not is_finite(unet.state_dict()):
            raise DataError(f"the generator in {folder} has weights that are not numbers: give another one")
        found, config = unet.config, self.average.config
        for field in ("in_channels", "out_channels", "sample_size", "num_class_embeds"):
            here, there = getattr(config, field), getattr(found, field)
            if tuple(np.atleast_1d(here)) != tuple(np.atleast_1d(there)):
                raise DataError(
                    f"the generator in {folder} does not fit this split and preset ({field} is {there}, not {here}): "
                    "give one that was trained on a split like this one, with the same --preset"
                )
        self.average = unet.to(self.device).eval().requires_grad_(False)
        if self.device.type in COPIES_ASIDE:
            self.average = self.average.to(memory_format=torch.channels_last)
        self.step = self.total_steps

    @contextlib.contextmanager
    def _dropout_state(self, part: int) -> Iterator[None]:
        """Dropout draws from the global generator: give that a state which depends on seed, step and part alone."""
        if not self.preset.dropout:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, "synth-dropout", self.step, part))
            yield

    def _recent_loss(self) -> float:
        loss = float(torch.stack(self._recent).mean()) if self._recent else 0.0
        self._recent.clear()
        if not math.isfinite(loss):
            raise self._not_finite("loss is not a number")
        return loss

    def _not_finite(self, what: str) -> SaukitError:
        return SaukitError(
            f"the generator's {what} any more at step {self.step}: "
            "start over with `saukit synth --force --amp off`, or with another --seed"
        )
