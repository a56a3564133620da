"""A reference sampler in the manner of published code, to measure saukit's against: ancestral sampling as in DDPM.

One image, or one batch, is drawn in 100 steps (Ho, Jain, Abbeel 2020, arXiv 2006.11239, Algorithm 2) with
classifier-free guidance (Ho, Salimans 2022, arXiv 2207.12598) in every step: one forward pass for the class and one
without it, 200 of them an image. Fresh noise is added after every step but the last. Predicted images are not clipped
to [-1, 1] as in DDPM's code: in trials here that made distances larger on digits, and no difference on CIFAR-10.

The network is saukit's and predicts a velocity, so the noise schedule is that of its path x_t = (1 - t) x_0 + t e:
alpha = 1 - t and sigma = t in the formulas of Kingma et al. (2021, arXiv 2107.00630, Appendix A), which are DDPM's for
continuous times.

Shapes: n images; c, h, w of the network's tensors, H x W pixels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from inputs import Images, Labels

from saukit.core.device import Precision
from saukit.core.seeding import torch_generator
from saukit.synthesis.generators.diffusion_model import TIME_SCALE, Geometry, Velocity, starting_noise

STEPS = 100
PASSES_A_STEP = 2


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0): its mean is `of_x_t` x_t + `of_x_0` x_0, its standard deviation `std`."""

    of_x_t: float
    of_x_0: float
    std: float


def posterior(s: float, t: float) -> Posterior:
    """The step from time t to an earlier time s.

    With alpha_{t|s} = alpha_t / alpha_s and sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2:

        mean      alpha_{t|s} sigma_s^2 / sigma_t^2 x_t + alpha_s sigma_{t|s}^2 / sigma_t^2 x_0
        variance  sigma_{t|s}^2 sigma_s^2 / sigma_t^2

    Raises: ValueError unless 0 <= s < t <= 1.
    """
    if not 0 <= s < t <= 1:
        raise ValueError(f"the times of a step must be 0 <= s < t <= 1, got s = {s} and t = {t}")
    alpha = (1 - t) / (1 - s)
    variance = t**2 - alpha**2 * s**2
    return Posterior(alpha * s**2 / t**2, (1 - s) * variance / t**2, math.sqrt(variance) * s / t)


def step_times(steps: int) -> list[float]:
    """The times from 1 to 0, `steps` equal steps apart."""
    return [1 - step / steps for step in range(steps)] + [0.0]


@torch.no_grad()
def draw_ancestral(
    unet: Velocity,
    geometry: Geometry,
    labels: Labels,
    seeds: Labels,
    *,
    null_class: int,
    guidance: float,
    precision: Precision,
    device: torch.device,
    steps: int = STEPS,
) -> Images:
    """One batch of images uint8 [n, 3, H, W] for `labels` and `seeds`, both int64 [n].

    They start from the noise that saukit's own images with these seeds start from.
    Precision: the network in autocast; guidance and the steps in float32.
    """
    classes = torch.from_numpy(labels).to(device)
    no_class = torch.full_like(classes, null_class)
    generator = torch_generator(int(seeds[0]), "ancestral-noise", device=device)
    x = starting_noise(seeds, geometry.shape).to(device)
    with precision.autocast():  # once around all steps: the weights are cast once
        for t, s in itertools.pairwise(step_times(steps)):
            clock = torch.full((len(x),), TIME_SCALE * t, device=device)
            of_class = unet(x, clock, class_labels=classes, return_dict=False)[0].float()
            of_null = unet(x, clock, class_labels=no_class, return_dict=False)[0].float()
            velocity = of_null + guidance * (of_class - of_null)
            x_0 = x - t * velocity
            step = posterior(s, t)
            x = step.of_x_t * x + step.of_x_0 * x_0
            if s > 0:
                x = x + step.std * torch.randn(x.shape, generator=generator, device=device)
    return geometry.unfold(x).cpu().numpy()
