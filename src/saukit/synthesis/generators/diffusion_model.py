"""Class-conditional flow matching on images: the network, what it learns, and how images are sampled from it.

Learning: the straight path x_t = (1 - t) x + t e from an image x (t = 0) to noise e (t = 1); the network predicts its
velocity e - x (rectified flow: Liu, Gong, Liu 2023, arXiv 2209.03003; flow matching: Lipman et al. 2023, arXiv
2210.02747). Times are logit-normal, which spends the work on the middle of the path (Esser et al. 2024, arXiv
2403.03206, Eq. 19). It needs no noise schedule to tune, and few solver steps.

Sampling: DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) or UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867),
diffusers' schedulers with `prediction_type="flow_prediction"`: their sigma is this module's t, and their data
prediction sample - sigma * output is x = x_t - t v. The network sees 1000 t, as diffusers' flow schedulers do. A
variation starts at t = strength from a noised image instead of from noise at t = 1 (SDEdit: Meng et al. 2022, arXiv
2108.01073), on the solver's times scaled by the strength. Classifier-free guidance (Ho, Salimans 2022, arXiv
2207.12598) acts only in the middle of the path (Kynkaanniemi et al. 2024, arXiv 2404.07724): at high noise it costs
diversity, at low noise it does nothing, and leaving it out there halves its cost.

Network space: pixels in [-1, 1], the edge repeated to a size that the stages can halve, `patch` x `patch` pixels
folded into channels (`Geometry`). So `generator/unet` samples folded images; `manifest.json` records the patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.core.seeding import derive_seed
from saukit.data.types import Images, Integers
from saukit.synthesis.config import Sampler
from saukit.synthesis.generators.presets import Preset

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel, UniPCMultistepScheduler

TIME_SCALE = 1000.0  # the network's clock: 1000 t
GUIDANCE_INTERVAL = (0.2, 0.8)  # in t: noise of 0.25 to 4 times the image, sigma in EDM's terms
CLASS_DROPOUT = 0.1
COMMITMENT = 0.25  # gamma of CBDM
HEAD_CHANNELS = 64  # of an attention head; on a CPU wider heads are quicker


class Velocity(Protocol):
    """A network: noisy images, their times in 1000 t, and their classes to velocities."""

    def __call__(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        """Velocities [n, c, h, w] of `sample` [n, c, h, w] at `timestep` [n] for `class_labels` [n]."""


@dataclass(frozen=True)
class Geometry:
    """How images [n, 3, H, W] become the network's tensors [n, 3 p^2, H' / p, W' / p], and back."""

    height: int
    width: int
    patch: int
    multiple: int  # of the padded sides: patch * 2^(stages - 1)

    @staticmethod
    def of(image_size: tuple[int, int], preset: Preset) -> Geometry:
        """The geometry of a preset's network on images of `image_size`."""
        height, width = image_size
        return Geometry(height, width, preset.patch, preset.patch * 2 ** (len(preset.channels) - 1))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width after padding."""
        return -(-self.height // self.multiple) * self.multiple, -(-self.width // self.multiple) * self.multiple

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image for the network."""
        height, width = self.padded
        return 3 * self.patch**2, height // self.patch, width // self.patch

    def fold(self, pixels: Tensor) -> Tensor:
        """Images [n, 3, H, W] of 0 to 255, uint8 or float, to float32 in network space."""
        height, width = self.padded
        images = pixels.float() / 127.5 - 1
        if (height, width) != (self.height, self.width):
            images = functional.pad(images, (0, width - self.width, 0, height - self.height), mode="replicate")
        return functional.pixel_unshuffle(images, self.patch)

    def unfold(self, images: Tensor) -> Tensor:
        """Network space to uint8 images [n, 3, H, W]: cropped, clamped and rounded."""
        images = functional.pixel_shuffle(images, self.patch)[..., : self.height, : self.width]
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def build_unet(preset: Preset, image_size: tuple[int, int], num_classes: int, seed: int) -> UNet2DModel:
    """An untrained network with weights from `seed`; class `num_classes` is the null class of guidance."""
    from diffusers import UNet2DModel

    geometry = Geometry.of(image_size, preset)
    channels, height, width = geometry.shape
    attended = [preset.channels[-1], *(c for c, on in zip(preset.channels, preset.attention, strict=True) if on)]
    with torch.random.fork_rng(devices=[]):  # diffusers draws from the global generator
        torch.manual_seed(derive_seed(seed, "synth-init"))
        unet: UNet2DModel = UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=preset.channels,
            layers_per_block=preset.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in preset.attention),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(preset.attention)),
            attention_head_dim=min(HEAD_CHANNELS, *attended),
            norm_num_groups=16,
            dropout=preset.dropout,
            num_class_embeds=num_classes + 1,
        )
        # Start from the zero velocity: the first steps then learn the mean, not to undo a random output.
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_scheduler(sampler: Sampler = "dpm++") -> DPMSolverMultistepScheduler | UniPCMultistepScheduler:
    """The solver of this module's flow, with sigma = t: DPM-Solver++ 2M, or UniPC of order 2."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    solver = DPMSolverMultistepScheduler if sampler == "dpm++" else UniPCMultistepScheduler
    return solver(
        num_train_timesteps=int(TIME_SCALE),
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        final_sigmas_type="zero",
        lower_order_final=True,
    )


def sample_times(count: int, generator: torch.Generator) -> Tensor:
    """Logit-normal times in (0, 1), float32 [count], on the generator's device."""
    return torch.sigmoid(torch.randn(count, generator=generator, device=generator.device))


def interpolate(images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e. Shapes: images and noise [n, c, h, w]; times [n]."""
    times = times.view(-1, 1, 1, 1)
    return (1 - times) * images + times * noise


def flow_matching_loss(velocity: Tensor, images: Tensor, noise: Tensor) -> Tensor:
    """Mean square of the error of the velocity, whose target is e - x, in float32; returns []."""
    return functional.mse_loss(velocity.float(), noise.float() - images.float())


def class_balancing_loss(velocity: Tensor, other_velocity: Tensor, times: Tensor, labelled: Tensor) -> Tensor:
    """The class-balancing regulariser of CBDM (Qin et al. 2023, arXiv 2305.00562, Algorithm 1), in float32; returns [].

    It draws the prediction for an image's class towards that for another one, the more the noisier the image is: what
    classes share is then learned by the tail from the head. When the network is trained from scratch the other class
    comes by the training images' frequencies, and images whose label was dropped add nothing. The paper's weight tau t
    with tau = 1 / 1000 and t up to 1000 is this module's t; its noise predictions are velocities here, as in the loss
    it is added to.

    Shapes: velocity and other_velocity, for the image's class and the other one, [n, c, h, w]; times [n]; labelled
        bool [n], False for dropped labels.
    """
    mine, other = velocity.float(), other_velocity.float()
    towards_other = (mine - other.detach()).square().mean(dim=(1, 2, 3))
    towards_mine = (mine.detach() - other).square().mean(dim=(1, 2, 3))
    return (labelled * times * (towards_other + COMMITMENT * towards_mine)).mean()


def drop_labels(labels: Tensor, null_class: int, generator: torch.Generator) -> Tensor:
    """`labels` with a tenth of them, drawn at random, replaced by the null class."""
    dropped = torch.rand(labels.shape, generator=generator, device=generator.device) < CLASS_DROPOUT
    return torch.where(dropped, torch.full_like(labels, null_class), labels)


def ema_decay(step: int, limit: float) -> float:
    """Decay of the average after `step` steps: (1 + step) / (10 + step), at most `limit`, so short runs work."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)


def solver_times(steps: int, *, sampler: Sampler = "dpm++", strength: float = 1.0) -> list[float]:
    """The times of the solver's network passes, from almost `strength` downwards; after the last comes 0.

    A variation of strength s takes s times the steps, at least 2, on the times of that many steps scaled by s.
    """
    return _solver(steps, sampler, strength)[1]


def _solver(steps: int, sampler: Sampler, strength: float) -> tuple[Any, list[float]]:
    """A scheduler that is ready for its first step, and the times of its steps."""
    scheduler = build_scheduler(sampler)
    scheduler.set_timesteps(max(2, round(strength * steps)))
    scheduler.set_begin_index(0)
    scheduler.sigmas = scheduler.sigmas * strength
    return scheduler, scheduler.sigmas[:-1].tolist()


def is_guided(t: float, guidance: float) -> bool:
    """Whether guidance of this strength acts at time t."""
    low, high = GUIDANCE_INTERVAL
    return guidance != 1 and low <= t <= high


def guided_velocity(unet: Velocity, x: Tensor, t: float, labels: Tensor, *, null_class: int, guidance: float) -> Tensor:
    """v = v_null + w (v_class - v_null) within the guidance interval, else v_class; float32.

    Shapes: x [n, c, h, w]; labels [n]. With guidance, one forward pass of 2 n images.
    """
    guided = is_guided(t, guidance)
    if guided:
        x, labels = torch.cat([x, x]), torch.cat([labels, torch.full_like(labels, null_class)])
    timestep = torch.full((len(x),), TIME_SCALE * t, device=x.device)
    velocity = unet(x, timestep, class_labels=labels, return_dict=False)[0].float()
    if not guided:
        return velocity
    of_class, of_null = velocity.chunk(2)
    return of_null + guidance * (of_class - of_null)


def starting_noise(seeds: Integers, shape: tuple[int, int, int]) -> Tensor:
    """Noise float32 [n, c, h, w] of images with `seeds` [n], from a CPU generator each: the same on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def solve(
    velocity: Callable[[Tensor, float], Tensor],
    start: Tensor,
    steps: int,
    *,
    sampler: Sampler = "dpm++",
    strength: float = 1.0,
) -> Tensor:
    """The images at t = 0 of the paths that are `start` [n, c, h, w] at t = strength."""
    scheduler, times = _solver(steps, sampler, strength)
    x = start
    for timestep, t in zip(scheduler.timesteps, times, strict=True):
        x = scheduler.step(velocity(x, t), timestep, x).prev_sample
    return x


@torch.no_grad()
def sample_images(
    unet: Velocity,
    geometry: Geometry,
    labels: Integers,
    seeds: Integers,
    *,
    null_class: int,
    guidance: float,
    steps: int,
    precision: Precision,
    device: torch.device,
    sampler: Sampler = "dpm++",
    origin: Tensor | None = None,
    strength: float = 1.0,
) -> Images:
    """One batch of images uint8 [n, 3, H, W] for `labels` and `seeds`, both int64 [n].

    origin: uint8 [n, 3, H, W] on `device`, images to vary with `strength` in (0, 1]; None samples from noise.
    Precision: the network in autocast; guidance and the solver in float32.
    Raises: SaukitError if the network's output is not finite.
    """
    start = starting_noise(seeds, geometry.shape).to(device)
    classes = torch.from_numpy(labels).to(device)
    if origin is not None:
        first = solver_times(steps, sampler=sampler, strength=strength)[0]
        start = interpolate(geometry.fold(origin), start, torch.full((len(start),), first, device=device))

    def velocity(x: Tensor, t: float) -> Tensor:
        return guided_velocity(unet, x, t, classes, null_class=null_class, guidance=guidance)

    with precision.autocast():  # once around all steps: the weights are cast once
        x = solve(velocity, start, steps, sampler=sampler, strength=1.0 if origin is None else strength)
    if not math.isfinite(float(x.sum())):
        raise SaukitError(
            "the generator sampled an image that is not finite: run `saukit synth --force` with --amp off or more steps"
        )
    return geometry.unfold(x).cpu().numpy()
