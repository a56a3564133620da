"""Drawing images: saukit's sampler against ancestral sampling as published, by speed and by distance to real images.

One generator draws them all: preset tiny, trained on CIFAR-10-LT at ratio 100 with 16 x 16 pixels, or on digits where
CIFAR-10 is not at hand and with --quick. saukit draws a batch at a time with few steps of a multistep solver, guided in
the middle of the path. The reference (`ancestral.py`) takes 100 steps with guidance in each: one image at a time in
float32, as published, and at saukit's batch size and precision. `ratio_batch1` and `ratio_equal_batch` are saukit's
images/s over the reference's.

Beside each stands the Frechet distance to the real test images, in the features of a classifier that was trained on all
training images, balanced: with other features than Inception's it is no FID, and comparable only within a result.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ancestral import PASSES_A_STEP, STEPS, draw_ancestral
from inputs import SEED, Images, Labels
from measure import MIN_ROUNDS, Bar, Candidate, Document, Timing, begin, finish, measure, option_parser, steady

from saukit.core.config import Amp
from saukit.core.console import Reporter
from saukit.core.device import Precision, keep_freed_memory
from saukit.core.seeding import derive_seed, numpy_generator
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, load_test, make_split
from saukit.models.inference import predict
from saukit.models.model_file import MODEL_NAME, load_model
from saukit.synthesis.audit.distances import frechet_distance
from saukit.synthesis.config import PresetName, Sampler, SynthConfig
from saukit.synthesis.generators.diffusion_model import GUIDANCE_INTERVAL, is_guided, solver_times
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.generators.presets import DiffusionConfig, preset_values
from saukit.synthesis.generators.protocol import without_colour
from saukit.synthesis.plan import resolve
from saukit.training.config import TrainConfig
from saukit.training.stage import fit

PRESET: PresetName = "tiny"
AMP: Amp = "auto"
IMB = 100.0
CIFAR_SIDE = 16
SOLVERS: tuple[tuple[Sampler, int], ...] = (
    ("dpm++", 8),
    ("dpm++", 10),
    ("dpm++", 12),
    ("dpm++", 18),
    ("unipc", 8),
    ("unipc", 10),
    ("unipc", 12),
)
QUICK_SOLVERS: tuple[tuple[Sampler, int], ...] = (("unipc", 10),)
QUICK_TRAIN_STEPS, QUICK_BATCH = 200, 32
IMAGES, QUICK_IMAGES = 2000, 1000  # a distance
FOLDS = 10  # of the jackknife
BACKBONES = {"cifar10": "resnet32-w16", "digits": "convnet-small"}
YARDSTICK_STEPS, QUICK_YARDSTICK_STEPS = 800, 200

Features = npt.NDArray[np.float32]
Draw = Callable[[Labels, Labels], Images]


@dataclass(frozen=True)
class Way:
    """A way to draw images.

    draw(labels, seeds): a batch. passes: how many images the network sees for one image drawn. group: ways of one
    group draw from one distribution, so the distance of the first of them is that of all.
    """

    name: str
    draw: Draw
    batch_size: int
    passes: int
    group: str


@dataclass(frozen=True)
class Distance:
    """A Frechet distance with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Yardstick:
    """What images are measured with: the features of a classifier, and those of the real test images [m, d]."""

    features: Callable[[Images], Features]
    real: Features
    about: Document


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--generator", type=Path, help="a trained generator to draw from: the folder synth/generator")
    parser.add_argument("--preset", choices=("tiny", "small", "base"), default=PRESET, help="of the generator")
    parser.add_argument("--image-size", type=int, default=CIFAR_SIDE, help="pixels a side of CIFAR-10")
    parser.add_argument("--train-steps", type=int, help="of the generator (default: the preset's; 200 with --quick)")
    parser.add_argument("--images", type=int, help="images that a distance is taken of (2000; 1000 with --quick)")
    options = parser.parse_args(arguments)
    if options.batch_size == 1:
        parser.error("--batch-size must be at least 2: one image at a time is measured anyway")
    device = begin(options)
    keep_freed_memory()  # as saukit's commands do; the reference has the benefit too

    with tempfile.TemporaryDirectory() as folder:
        long_tailed, balanced = (Workspace(Path(folder) / name) for name in ("long-tailed", "balanced"))
        dataset = "digits" if options.quick or options.root is None else "cifar10"
        image_size = None if dataset == "digits" else options.image_size
        root = options.root if dataset == "cifar10" else None
        whole = SplitConfig(dataset=dataset, image_size=image_size, profile="none")
        tailed = dataclasses.replace(whole, profile="exp", imb=IMB)
        for workspace, config in ((long_tailed, tailed), (balanced, whole)):
            make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
        split = load_split(long_tailed)
        train_steps = options.train_steps or (QUICK_TRAIN_STEPS if options.quick else None)
        trainer = new_generator(split, options.preset, train_steps, device)
        if options.generator is None:
            train(trainer)
        else:
            trainer.adopt(options.generator)
        steps = QUICK_YARDSTICK_STEPS if options.quick else YARDSTICK_STEPS
        yardstick = train_yardstick(balanced, BACKBONES[dataset], steps, device)
        everything = load_split(balanced).train

    batch_size = options.batch_size or (QUICK_BATCH if options.quick else trainer.preset.sample_batch_size)
    ways = ways_to_draw(trainer, batch_size, QUICK_SOLVERS if options.quick else SOLVERS, both=not options.quick)
    print(
        f"sampling on {device}: {dataset} of {split.image_size[0]} x {split.image_size[1]} pixels, preset "
        f"{options.preset}, guidance {trainer.config.guidance:g}; milliseconds a batch of each way's own size"
    )
    candidates = [_candidate(way, trainer.num_classes) for way in ways]
    timings = measure(candidates, rounds=options.rounds or MIN_ROUNDS, device=device)

    whole_folds = FOLDS * trainer.num_classes  # so many images that each fold has all classes equally often
    images = options.images or (QUICK_IMAGES if options.quick else IMAGES)
    labels, seeds = _order(max(1, images // whole_folds) * whole_folds, trainer.num_classes)
    features = {way.group: _drawn(way, labels, seeds, yardstick) for way in _one_a_group(ways)}
    features["real"] = yardstick.features(_real_images(everything.images, everything.labels, labels))
    distances = {group: distance(rows, yardstick.real) for group, rows in features.items()}
    rows = [_row(way, timings[way.name], distances[way.group]) for way in ways]
    _print_rows(rows, distances["real"])

    ours, alone, together = rows[:3]
    ratios = [round(ours["images_per_second"] / row["images_per_second"], 4) for row in (alone, together)]
    difference = distance_difference(features[ways[0].group], features[ways[2].group], yardstick.real)
    print(
        f"saukit is {ratios[0]:.1f} x as fast as the reference as published, {ratios[1]:.1f} x at equal batch; "
        f"its distance less the reference's is {difference.value:+.3f}, error {difference.error:.3f}"
    )
    return finish(
        "sampling",
        {
            "ratio_batch1": ratios[0],
            "ratio_equal_batch": ratios[1],
            "frechet_saukit": ours["frechet"],
            "frechet_ancestral": together["frechet"],
            "frechet_difference_error": round(difference.error, 4),
            "saukit_images_per_second": ours["images_per_second"],
            "batch_size": together["batch_size"],
        },
        {
            "images": f"{dataset}, {split.image_size[0]} x {split.image_size[1]} pixels, ratio {IMB:g}",
            "generator": {
                "preset": options.preset,
                "parameters": sum(weight.numel() for weight in trainer.average.parameters()),
                "train_steps": None if options.generator else trainer.total_steps,  # a given one does not tell
                "amp": trainer.config.amp,
                "guidance": trainer.config.guidance,
                "guidance_interval": GUIDANCE_INTERVAL,
            },
            "frechet_features": yardstick.about,
            "frechet_images": len(labels),
            "frechet_real_training_images": _as_row(distances["real"]),
            "frechet_saukit_minus_ancestral": _as_row(difference),
            "candidates": rows,
        },
        {f"images a minute, {dataset}, preset {options.preset}, {device.type}": _bars(rows)},
        options=options,
        arguments=_without_folders(arguments),
        device=device,
    )


# --- the generator ------------------------------------------------------------------------------------------------


def new_generator(split: Split, preset: PresetName, train_steps: int | None, device: torch.device) -> GeneratorTrainer:
    """saukit's own generator for the split, untrained."""
    config = resolve(SynthConfig(preset=preset, train_steps=train_steps, amp=AMP, seed=SEED), split, device)
    assert isinstance(config, DiffusionConfig)
    return GeneratorTrainer(config, split, device, preset=preset_values(preset, split.image_size))


def train(trainer: GeneratorTrainer) -> None:
    """Train it to the end, as `saukit synth` does but for the checkpoints."""
    began = time.perf_counter()
    trainer.unet.train()
    while not trainer.done:
        loss = trainer.train_step()
        if trainer.step % 100 == 0 or trainer.done:
            spent = f"{time.perf_counter() - began:.0f} s"
            print(f"generator: step {trainer.step} of {trainer.total_steps}, loss {loss:.4f}, {spent}", flush=True)


# --- ways to draw -------------------------------------------------------------------------------------------------


def ways_to_draw(
    trainer: GeneratorTrainer, batch_size: int, solvers: Sequence[tuple[Sampler, int]], *, both: bool
) -> list[Way]:
    """saukit's own, the reference as published, the reference at equal batch and precision, and what else is looked at.

    both: the reference at equal batch in float32 too, where saukit's precision is another.
    """
    own: tuple[Sampler, int] = (trainer.config.sampler, trainer.preset.sampler_steps)
    full = Precision("off", trainer.device.type)
    ways = [
        saukit_way(trainer, *own, batch_size),
        ancestral_way(trainer, 1, full),
        ancestral_way(trainer, batch_size, trainer.precision),
    ]
    if both and trainer.precision != full:
        ways.append(ancestral_way(trainer, batch_size, full))
    return [*ways, *(saukit_way(trainer, *solver, batch_size) for solver in solvers if solver != own)]


def saukit_way(trainer: GeneratorTrainer, sampler: Sampler, steps: int, batch_size: int) -> Way:
    """saukit's sampler as `saukit synth` calls it, with this solver and this many steps."""
    own = copy.copy(trainer)
    own.config = dataclasses.replace(trainer.config, sampler=sampler, sampler_steps=steps)
    guided = sum(is_guided(t, own.config.guidance) for t in solver_times(steps, sampler=sampler))
    name = f"saukit, {sampler} {steps} steps"
    return Way(f"{name}, batch {batch_size}, {_named(own.precision)}", own.sample, batch_size, steps + guided, name)


def ancestral_way(trainer: GeneratorTrainer, batch_size: int, precision: Precision) -> Way:
    """The reference with the guidance of saukit's sampler, but in every step."""

    def draw(labels: Labels, seeds: Labels) -> Images:
        images = draw_ancestral(
            trainer.average,
            trainer.geometry,
            labels,
            seeds,
            null_class=trainer.num_classes,
            guidance=trainer.config.guidance,
            precision=precision,
            device=trainer.device,
            steps=STEPS,
        )
        if trainer.data.grey:  # as saukit's sampler does
            images = without_colour(images)
        return images

    name = f"ancestral, {STEPS} steps"
    return Way(f"{name}, batch {batch_size}, {_named(precision)}", draw, batch_size, PASSES_A_STEP * STEPS, name)


def _named(precision: Precision) -> str:
    return "float32" if precision.amp == "off" else precision.amp


def _candidate(way: Way, num_classes: int) -> Candidate:
    """A turn is one batch; with an image at a time, two images."""
    labels, seeds = _order(way.batch_size, num_classes)

    def work() -> None:
        way.draw(labels, seeds)

    return Candidate(way.name, steady(work), units=2 if way.batch_size == 1 else 1, warm_up=0)


# --- distances ----------------------------------------------------------------------------------------------------


def train_yardstick(workspace: Workspace, backbone: str, steps: int, device: torch.device) -> Yardstick:
    """A classifier of all the training images of a balanced split, and what it makes of the test images."""
    print(f"yardstick: {backbone}, {steps} steps on all training images", flush=True)
    config = TrainConfig(method="ce", synthetic=False, preset="small", backbone=backbone, steps=steps, seed=SEED)
    fit(config, workspace, name="yardstick", device=device, force=False, resume=False, reporter=Reporter(quiet=True))
    network, spec = load_model(workspace.run("yardstick") / MODEL_NAME)
    test = load_test(workspace)
    found = predict(network, spec, test.images, device=device)
    top1 = float((found.probabilities.argmax(1) == test.labels).mean())
    print(f"yardstick: top-1 {top1:.3f} on {len(test.labels):,} test images", flush=True)
    about = {
        "network": f"{backbone}, pooled features, trained {steps} steps on all training images, balanced",
        "dimensions": found.features.shape[1],
        "top1": round(top1, 4),
        "test_images": len(test.labels),
    }
    return Yardstick(lambda images: predict(network, spec, images, device=device).features, found.features, about)


def _order(count: int, num_classes: int) -> tuple[Labels, Labels]:
    """Labels and seeds [n], the classes in turn."""
    seeds = [derive_seed(SEED, "benchmark-image", index) for index in range(count)]
    return np.arange(count) % num_classes, np.array(seeds, dtype=np.int64)


def _one_a_group(ways: Sequence[Way]) -> list[Way]:
    """Of each group the way that is drawn from for its distance: the first with a batch, in the precision of saukit."""
    chosen: dict[str, Way] = {}
    for way in ways:
        if way.group not in chosen or chosen[way.group].batch_size == 1:
            chosen[way.group] = way
    return list(chosen.values())


def _drawn(way: Way, labels: Labels, seeds: Labels, yardstick: Yardstick) -> Features:
    """The features of this way's images for all labels and seeds."""
    began = time.perf_counter()
    parts = [slice(start, start + way.batch_size) for start in range(0, len(labels), way.batch_size)]
    images = np.concatenate([way.draw(labels[part], seeds[part]) for part in parts])
    print(f"drew {len(images):,} images: {way.name}, {time.perf_counter() - began:.0f} s", flush=True)
    return yardstick.features(images)


def _real_images(images: Images, labels: Labels, wanted: Labels) -> Images:
    """Training images of the labels that are wanted, each at most once while there are enough."""
    generator = numpy_generator(SEED, "benchmark-real-images")
    chosen = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        places, pool = np.flatnonzero(wanted == label), generator.permutation(np.flatnonzero(labels == label))
        chosen[places] = np.resize(pool, len(places))
    return images[chosen]


def distance(features: Features, real: Features) -> Distance:
    """The Frechet distance of images to the real ones; its error by a jackknife over tenths of the images."""
    whole, left_out = _with_folds_left_out(features, real)
    return Distance(whole, jackknife_error(left_out))


def distance_difference(features: Features, others: Features, real: Features) -> Distance:
    """How much farther from the real images the first lie than the others, row i of both from the same seed."""
    (whole, left_out), (other_whole, other_left_out) = (_with_folds_left_out(f, real) for f in (features, others))
    return Distance(whole - other_whole, jackknife_error(left_out - other_left_out))


def _with_folds_left_out(features: Features, real: Features) -> tuple[float, npt.NDArray[np.float64]]:
    """The distance of all images, and without each of the tenths."""
    folds = np.array_split(np.arange(len(features)), FOLDS)
    left_out = [frechet_distance(np.delete(features, fold, axis=0), real) for fold in folds]
    return frechet_distance(features, real), np.array(left_out)


def jackknife_error(left_out: npt.NDArray[np.float64]) -> float:
    """Standard error of a statistic from its values with each of g equal folds left out (Efron, Stein 1981)."""
    g = len(left_out)
    return float(np.sqrt((g - 1) / g * np.square(left_out - left_out.mean()).sum()))


# --- results ------------------------------------------------------------------------------------------------------


def _row(way: Way, timing: Timing, found: Distance) -> Document:
    return {
        "name": way.name,
        "batch_size": way.batch_size,
        "network_passes_an_image": way.passes,
        "milliseconds_a_batch": timing.spread,
        "images_per_second": round(way.batch_size / timing.median, 4),
        **_as_row(found),
    }


def _as_row(found: Distance) -> Document:
    return {"frechet": round(found.value, 4), "frechet_error": round(found.error, 4)}


def _print_rows(rows: Sequence[Mapping[str, Any]], real: Distance) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}}  {'passes':>6}  {'images/s':>9}  {'x batch 1':>9}  {'distance':>8}  {'error':>6}")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['network_passes_an_image']:6}  {row['images_per_second']:9.2f}  "
            f"{row['images_per_second'] / rows[1]['images_per_second']:9.1f}  {row['frechet']:8.3f}  "
            f"{row['frechet_error']:6.3f}"
        )
    print(f"{'real training images':{width}}  {'':6}  {'':9}  {'':9}  {real.value:8.3f}  {real.error:6.3f}")


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The reference first; the preset's own solver stands out."""
    own = rows[0]["name"]
    in_order = sorted(rows, key=lambda row: row["images_per_second"])
    return [
        Bar(
            row["name"],
            60 * row["images_per_second"],
            f"{row['images_per_second'] / rows[1]['images_per_second']:.1f} x, distance {row['frechet']:.2f}",
            "saukit" if row["name"] == own else "reference" if row["name"].startswith("ancestral") else "between",
        )
        for row in in_order
    ]


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """The arguments with the generator's folder, which means nothing elsewhere, replaced by a word."""
    shown = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        after_equals = "--generator=DIR" if argument.startswith("--generator=") else argument
        shown.append("DIR" if before == "--generator" else after_equals)
    return shown


if __name__ == "__main__":
    main()
