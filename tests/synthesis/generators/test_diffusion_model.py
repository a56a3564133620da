import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.synthesis.generators.diffusion_model import (
    Geometry,
    build_scheduler,
    build_unet,
    class_balancing_loss,
    drop_labels,
    ema_decay,
    flow_matching_loss,
    guided_velocity,
    interpolate,
    sample_images,
    sample_times,
    solve,
    solver_times,
    starting_noise,
    update_ema,
)
from saukit.synthesis.generators.presets import PRESETS

OFF = Precision("off", "cpu")


def test_path_and_loss_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    images, noise, velocity = (rng.normal(size=(3, 2, 4, 4)) for _ in range(3))
    times = np.array([0.0, 0.3, 1.0])
    points = interpolate(torch.tensor(images), torch.tensor(noise), torch.tensor(times)).numpy()
    total, count = 0.0, 0
    for n, t in enumerate(times):
        for place in np.ndindex(2, 4, 4):
            x, e = images[n][place], noise[n][place]
            assert points[n][place] == pytest.approx((1 - t) * x + t * e)
            total += (velocity[n][place] - (e - x)) ** 2
            count += 1
    loss = flow_matching_loss(*(torch.tensor(array) for array in (velocity, images, noise)))
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert loss.dtype == torch.float32


def test_times_are_logit_normal() -> None:
    times = sample_times(20_000, torch.Generator().manual_seed(0)).double()
    logits = torch.log(times / (1 - times))
    assert float(logits.mean()) == pytest.approx(0, abs=0.03)
    assert float(logits.std()) == pytest.approx(1, abs=0.03)


def dpm_solver_plus_plus_2m(velocity: Any, noise: float, times: list[float]) -> float:
    """Algorithm 2 of Lu et al. 2022 (arXiv 2211.01095) for one number, in plain floats; alpha = 1 - t, sigma = t."""

    def half_log_snr(t: float) -> float:
        return math.log((1 - t) / t)

    x, before, previous = noise, None, None
    for index, t in enumerate(times):
        data = x - t * velocity(x, t)
        following = times[index + 1] if index + 1 < len(times) else 0.0
        if following == 0.0:  # h is infinite there, the update is the data prediction
            return data
        h = half_log_snr(following) - half_log_snr(t)
        estimate = data
        if before is not None and previous is not None:
            r = (half_log_snr(t) - half_log_snr(previous)) / h
            estimate = (1 + 1 / (2 * r)) * data - before / (2 * r)
        x = following / t * x - (1 - following) * math.expm1(-h) * estimate
        before, previous = data, t
    raise AssertionError


@pytest.mark.parametrize("steps", [2, 5, 12, 18])
def test_the_scheduler_is_the_papers_algorithm_on_this_modules_path(steps: int) -> None:
    def velocity(x: Any, t: float) -> Any:
        return 0.7 * x - 0.4 * t + 0.1 * x * x

    noise = torch.linspace(-2, 2, 5).view(5, 1, 1, 1)
    drawn = solve(velocity, noise, steps).flatten().tolist()
    expected = [dpm_solver_plus_plus_2m(velocity, start, solver_times(steps)) for start in noise.flatten().tolist()]
    assert drawn == pytest.approx(expected, abs=2e-5)


def test_the_solver_follows_the_exact_flow_of_gaussian_data() -> None:
    """For images N(m, s^2) the velocity is known, and noise z ends at m + s z: right only if sigma is this t."""
    mean, deviation = 0.3, 0.5

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = ((1 - t) * deviation) ** 2 + t**2
        centred = x - (1 - t) * mean
        of_image = mean + (1 - t) * deviation**2 / variance * centred
        of_noise = t / variance * centred
        return of_noise - of_image

    noise = torch.linspace(-2.5, 2.5, 11).view(11, 1, 1, 1)
    exact = mean + deviation * noise
    errors = {steps: float((solve(velocity, noise, steps) - exact).abs().max()) for steps in (6, 12, 48)}
    assert errors[48] < 0.01
    assert errors[48] < errors[12] < errors[6] < 0.3


def test_the_network_is_told_a_thousand_times_the_time() -> None:
    scheduler = build_scheduler()
    scheduler.set_timesteps(10)
    told: list[float] = []

    def unet(sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        told.append(float(timestep[0]))
        return (torch.zeros_like(sample),)

    geometry = Geometry(8, 8, 1, 2)
    sample_images(
        unet,
        geometry,
        np.array([0]),
        np.array([1]),
        null_class=2,
        guidance=1.0,
        steps=10,
        precision=OFF,
        device=torch.device("cpu"),
    )
    assert told == pytest.approx([1000 * sigma for sigma in scheduler.sigmas[:-1].tolist()])
    assert told == pytest.approx(scheduler.timesteps.tolist(), abs=1)  # what a plain diffusers loop would tell it


@pytest.mark.parametrize(("t", "guidance", "passes"), [(0.5, 3.0, 2), (0.5, 1.0, 1), (0.95, 3.0, 1), (0.05, 3.0, 1)])
def test_guidance_is_its_formula_within_the_interval(t: float, guidance: float, passes: int) -> None:
    of_class = {0: 1.0, 1: 2.0, 7: -0.5}  # 7 is the null class
    seen: list[int] = []

    def unet(sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        seen.append(len(sample))
        return (sample * torch.tensor([of_class[int(label)] for label in class_labels]).view(-1, 1, 1, 1),)

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    velocity = guided_velocity(unet, x, t, torch.tensor([0, 1]), null_class=7, guidance=guidance)
    assert seen == [2 * passes]
    for index, label in enumerate((0, 1)):
        plain, null = of_class[label] * x[index], of_class[7] * x[index]
        expected = null + guidance * (plain - null) if passes == 2 else plain
        assert torch.allclose(velocity[index], expected)


def test_a_tenth_of_the_labels_is_dropped() -> None:
    labels = torch.arange(20_000) % 5
    kept = drop_labels(labels, 5, torch.Generator().manual_seed(0))
    assert float((kept == 5).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(kept[kept != 5], labels[kept != 5])


def test_the_average_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    average = [torch.zeros(3), torch.zeros(2, 2)]
    plain = [0.0] * 7
    for step in range(30):
        weights = [torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator)]
        decay = min(0.9, (1 + step) / (10 + step))
        assert ema_decay(step, 0.9) == decay
        update_ema(average, weights, decay)
        now = [*weights[0].tolist(), *weights[1].flatten().tolist()]
        plain = [decay * old + (1 - decay) * new for old, new in zip(plain, now, strict=True)]
    assert [*average[0].tolist(), *average[1].flatten().tolist()] == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (32, 32), (30, 50), (64, 64), (100, 70)])
@pytest.mark.parametrize("line", [PRESETS["tiny"][0], PRESETS["tiny"][1], PRESETS["tiny"][2]])
def test_folding_and_unfolding_give_the_pixels_back(size: tuple[int, int], line: Any) -> None:
    geometry = Geometry.of(size, line)
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    folded = geometry.fold(pixels)
    assert folded.shape == (2, *geometry.shape)
    assert all(side % 2 ** (len(line.channels) - 1) == 0 for side in folded.shape[2:])
    assert float(folded.min()) >= -1
    assert float(folded.max()) <= 1
    assert torch.equal(geometry.unfold(folded), pixels)


def test_values_outside_the_pixel_range_are_clamped() -> None:
    geometry = Geometry(2, 2, 1, 1)
    values = torch.tensor([-3.0, 3.0, 0.0, 1 / 127.5 * 0.6]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert geometry.unfold(values)[0, 0].flatten().tolist() == [0, 255, 128, 128]


@pytest.mark.parametrize("size", [(8, 8), (11, 9), (32, 32), (64, 64)])
def test_the_network_takes_every_size(size: tuple[int, int]) -> None:
    line = PRESETS["tiny"][sum(max(size) > limit for limit in (16, 48))]
    geometry = Geometry.of(size, line)
    state = torch.random.get_rng_state()
    unet = build_unet(line, size, 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing global was touched
    pixels = torch.zeros(2, 3, *size, dtype=torch.uint8)
    out = unet(geometry.fold(pixels), torch.tensor([1.0, 2.0]), class_labels=torch.tensor([0, 3]), return_dict=False)[0]
    assert out.shape == (2, *geometry.shape)
    assert unet.config.num_class_embeds == 4


def test_the_seed_decides_the_first_weights() -> None:
    def weights(seed: int) -> Tensor:
        return next(iter(build_unet(PRESETS["tiny"][0], (8, 8), 3, seed=seed).parameters()))

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_noise_depends_on_the_images_own_seed_alone() -> None:
    together = starting_noise(np.array([5, 6, 7]), (3, 4, 4))
    assert torch.equal(together[1:2], starting_noise(np.array([6]), (3, 4, 4)))
    assert not torch.equal(together[0], together[1])


def test_an_image_that_is_not_finite_is_an_error() -> None:
    def unet(sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (torch.full_like(sample, float("nan")),)

    with pytest.raises(SaukitError, match="not finite: run `saukit synth --force` with --amp off"):
        sample_images(
            unet,
            Geometry(8, 8, 1, 2),
            np.array([0]),
            np.array([1]),
            null_class=2,
            guidance=1.0,
            steps=2,
            precision=OFF,
            device=torch.device("cpu"),
        )


@pytest.mark.parametrize("labelled", [(True, True, True), (True, False, True)])
def test_the_class_balancing_loss_is_that_of_a_plain_loop_and_moves_each_side_by_its_share(
    labelled: tuple[bool, ...],
) -> None:
    """Qin et al. 2023, Algorithm 1; an image whose label was dropped adds nothing, but is one of the batch."""
    rng = np.random.default_rng(0)
    mine, other = (torch.tensor(rng.normal(size=(3, 2, 4, 4)), requires_grad=True) for _ in range(2))
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    loss = class_balancing_loss(mine, other, times, torch.tensor(labelled))
    expected = 0.0
    for n in range(3):
        if not labelled[n]:
            continue
        square = float((mine[n] - other[n]).square().mean())
        expected += float(times[n]) * (square + 0.25 * square) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None and other.grad is not None
    # The gradient of the image's own class has weight 1, that of the other one a quarter, in opposite directions.
    torch.testing.assert_close(other.grad, -0.25 * mine.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_solver_follows_the_exact_flow_from_any_time(sampler: Any, strength: float) -> None:
    """Data N(m, s^2): the path of a point keeps its place in units of the marginal's standard deviation."""
    mean, std = 0.7, 0.4

    def scale(t: float) -> float:
        return math.sqrt((1 - t) ** 2 * std**2 + t**2)

    def velocity(x: Tensor, t: float) -> Tensor:
        place = (x - (1 - t) * mean) / scale(t)
        change = (-(1 - t) * std**2 + t) / scale(t)
        return -mean + place * change

    first = solver_times(40, sampler=sampler, strength=strength)[0]
    assert first == pytest.approx(strength, rel=0.05)
    places = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    start = (1 - first) * mean + scale(first) * places
    drawn = solve(velocity, start, 40, sampler=sampler, strength=strength)
    torch.testing.assert_close(drawn, mean + std * places, atol=0.01, rtol=0)


def test_a_weak_variation_stays_near_its_origin_and_a_strong_one_does_not() -> None:
    """An exact velocity for data that is N(0, 0.3^2) per pixel: what is left of the origin falls with the strength."""

    def unet(sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        t = float(timestep[0]) / 1000
        variance = (1 - t) ** 2 * 0.3**2 + t**2
        return (sample * (t - (1 - t) * 0.3**2) / variance,)

    geometry = Geometry(8, 8, 1, 1)
    origin = torch.randint(60, 196, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels, seeds = np.zeros(64, dtype=np.int64), np.arange(64, dtype=np.int64)
    left = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        drawn = sample_images(
            unet,
            geometry,
            labels,
            seeds,
            null_class=1,
            guidance=1.0,
            steps=20,
            precision=OFF,
            device=torch.device("cpu"),
            origin=origin,
            strength=strength,
        )
        left.append(float(np.corrcoef(origin.flatten().numpy(), drawn.flatten())[0, 1]))
    assert left[0] > 0.9 and left == sorted(left, reverse=True) and left[3] < 0.1
