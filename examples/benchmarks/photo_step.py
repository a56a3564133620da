"""Feed and step on photos at 224 pixels: saukit's trainer against a torchvision + timm loop with the same network.

`ratio`: fine-tuning with SAU, four views of each image. The reference has the views of SAU's authors in DataLoaders, as
many worker processes as saukit has threads, and timm's network as it is; its step is that of `reference.py`, whose
losses and gradients are saukit's (checked here on this network). `ratio_frozen`: a linear head on the frozen network.
The reference decodes each image and computes its features in every epoch, saukit does so once for `EPOCHS` of them.
`ratio_channels_last` and `ratio_frozen_channels_last`: the same against a reference in that memory layout.

Equal accuracy: saukit trains a head on the features of the reference's feed and network, and on its own, with
--root DIR (train/CLASS and test/CLASS) and --weights FILE. Without --root photos are generated, for the speed alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from inputs import SEED, as_synthetic, paper_config
from ladder import in_layout, random_prototypes
from measure import MIN_ROUNDS, Bar, Candidate, Document, Timing, Work, begin, device_parser, finish, measure, steady
from photo_storage import SIZE, link_photos, make_photos
from reference import PREFETCH, ReferenceStep, Views, check_against_saukit, feed_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from saukit.core.console import Reporter
from saukit.core.device import keep_freed_memory, resolve_amp
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, load_test, make_split
from saukit.models.inference import backbone_features, predict
from saukit.training.features import FrozenFeatures
from saukit.training.plan import TrainingPlan
from saukit.training.presets import PRESETS
from saukit.training.trainer import Trainer

BACKBONE = "tf_efficientnet_lite0"
EPOCHS = 10
REFERENCE, IN_LAYOUT, SAUKIT = "torchvision + timm", "the same, channels_last", "saukit"
QUICK_PHOTOS = 200  # of each part, for the accuracy
FLIP = transforms.RandomHorizontalFlip()


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with train/CLASS and test/CLASS (default: generated photos)")
    parser.add_argument("--weights", type=Path, help="safetensors file of the network (default: at random)")
    parser.add_argument("--batch-size", type=int, help="images of batch A a step")
    parser.add_argument("--backbone", default=BACKBONE, help="a name of timm's")
    options = parser.parse_args(arguments)
    device = begin(options)
    keep_freed_memory()
    batch_size = options.batch_size or (8 if options.quick else 32)
    agreement = check_against_saukit("pos_neg", 10, backbone=f"timm/{options.backbone}", side=64)
    print(f"reference and saukit compute the same losses and gradients: {agreement}")
    with tempfile.TemporaryDirectory() as folder:
        root = options.root
        if root is None:
            root = Path(folder) / "root"
            photos = make_photos(Path(folder) / "photos")
            for part, count in (("train", 500), ("test", 100)):
                link_photos(photos, root / part, count)
        workspace = Workspace(Path(folder) / "work")
        config = SplitConfig(dataset="folder", image_size=SIZE)
        make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
        tuned, frozen = _plans(workspace, options.backbone, options.weights, batch_size, device)
        timings = measure(
            [*_fine_tuning(tuned, root / "train", options.threads), *_frozen(frozen, root / "train", options.threads)],
            rounds=MIN_ROUNDS,
            device=device,
        )
        accuracies = None
        if options.root is not None:
            accuracies = _accuracies(frozen, workspace, root, options.threads, QUICK_PHOTOS if options.quick else None)
            print(f"top-1 of a head: {accuracies}")
    seconds = {name: timing.median for name, timing in timings.items()}
    own = seconds[f"{SAUKIT}: features"] / EPOCHS + seconds[f"{SAUKIT}: head"]
    ratios = {
        "ratio": seconds[f"{REFERENCE}: SAU"] / seconds[f"{SAUKIT}: SAU"],
        "ratio_channels_last": seconds[f"{IN_LAYOUT}: SAU"] / seconds[f"{SAUKIT}: SAU"],
        "ratio_frozen": seconds[f"{REFERENCE}: frozen"] / own,
        "ratio_frozen_channels_last": seconds[f"{IN_LAYOUT}: frozen"] / own,
    }
    for name, timing in timings.items():
        print(f"{name}: {batch_size / timing.median:,.1f} images/s")
    return finish(
        "photo_step",
        {name: round(value, 4) for name, value in ratios.items()},
        {
            "images": "generated JPEGs" if options.root is None else f"photos of {len(tuned.split.classes)} classes",
            "image_size": SIZE,
            "backbone": options.backbone,
            "batch_size": batch_size,
            "amp": tuned.config.amp,
            "epochs_of_frozen": EPOCHS,
            "agreement": {"loss": agreement.loss_difference, "gradient": agreement.gradient_difference},
            "top1_of_a_head": accuracies,
            "candidates": [
                {
                    "name": name,
                    "milliseconds": timing.spread,
                    "images_per_second": round(batch_size / timing.median, 2),
                }
                for name, timing in timings.items()
            ],
        },
        {
            "images/s, SAU's four views": [_bar(timings, name, "SAU", batch_size) for name in NAMES],
            f"images/s, frozen, mean of {EPOCHS} epochs": [
                *(_bar(timings, name, "frozen", batch_size) for name in NAMES[:2]),
                Bar(SAUKIT, batch_size / own, f"{ratios['ratio_frozen']:.1f} x", "saukit"),
            ],
        },
        options=options,
        arguments=arguments,
        device=device,
    )


NAMES = (REFERENCE, IN_LAYOUT, SAUKIT)


def _bar(timings: dict[str, Timing], name: str, task: str, batch_size: int) -> Bar:
    first, own = timings[f"{REFERENCE}: {task}"].median, timings[f"{name}: {task}"].median
    return Bar(name, batch_size / own, f"{first / own:.2f} x", "saukit" if name == SAUKIT else "reference")


def _plans(
    workspace: Workspace, backbone: str, weights: Path | None, batch_size: int, device: torch.device
) -> tuple[TrainingPlan, TrainingPlan]:
    """SAU on the whole network, the test photos in the place of synthetic ones; and a head on the frozen one."""
    split, test = load_split(workspace), load_test(workspace)
    given = {
        "backbone": f"timm/{backbone}",
        "weights": "none" if weights is None else str(weights),
        "amp": resolve_amp("auto", device),
    }
    sau = replace(paper_config("resnext50", batch_size, "off"), views="photo", lr=1e-3, **given)
    preset = PRESETS["photo-small"]
    head = replace(
        sau, method="ce", synthetic=False, preset="photo-small", tune="head", views="small", epochs=None,
        steps=preset.steps, lr=preset.lr, weight_decay=100 / len(split.train.labels), schedule=preset.schedule,
    )  # fmt: skip
    cache = as_synthetic(test.images, test.labels)
    return (
        TrainingPlan(sau, "benchmark", split, cache, device, {}, weights),
        TrainingPlan(head, "benchmark", split, None, device, {}, weights),
    )


# --- fine-tuning --------------------------------------------------------------------------------------------------


class PhotoViews(Views):
    """Photos of a folder, decoded once, in the views of SAU's authors for ImageNet-LT."""

    def __init__(self, folder: Path, views: Sequence[transforms.Compose]) -> None:
        self.photos, self.views = ImageFolder(folder), views

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor | int | bool, ...]:
        image, label = self.photos[index]
        return (*(view(image) for view in self.views), label, index % 2 == 1)


def author_views(mean: Sequence[float], std: Sequence[float]) -> tuple[transforms.Compose, transforms.Compose]:
    """v1, and v2 which is v3 too."""
    crop = [transforms.RandomResizedCrop(SIZE, scale=(0.08, 1.0)), FLIP]
    end = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    first = [*crop, transforms.ColorJitter(0.4, 0.4, 0.4, 0.0), transforms.RandAugment(2, 10), *end]
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return transforms.Compose(first), transforms.Compose([*crop, jitter, transforms.RandomGrayscale(p=0.2), *end])


def _fine_tuning(plan: TrainingPlan, photos: Path, threads: int) -> list[Candidate]:
    spec = plan.model_spec
    first, second = author_views(spec.mean, spec.std)
    datasets = PhotoViews(photos, (first, second, second)), PhotoViews(photos, (first,))

    def reference(layout: torch.memory_format) -> Candidate:
        step = ReferenceStep(plan, random_prototypes(plan))
        step.network = step.network.to(memory_format=layout)  # type: ignore[call-overload]

        @contextmanager
        def session() -> Iterator[Work]:
            with feed_of(datasets, plan.batch_size, threads, plan.device) as feed:
                yield lambda: step(in_layout(next(feed), layout))

        return Candidate(f"{_name(layout)}: SAU", session, 1, 1)

    trainer = Trainer(plan)
    trainer.step_count, trainer.prototypes = 1, random_prototypes(plan)  # its epoch has begun
    return [*map(reference, LAYOUTS), Candidate(f"{SAUKIT}: SAU", steady(trainer.advance), 1, 1)]


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def _name(layout: torch.memory_format) -> str:
    return REFERENCE if layout == torch.contiguous_format else IN_LAYOUT


# --- a head on the frozen network ---------------------------------------------------------------------------------


def evaluation_view(mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """The centre square, as the split has it."""
    size = transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC)
    return transforms.Compose(
        [size, transforms.CenterCrop(SIZE), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )


def _frozen(plan: TrainingPlan, photos: Path, threads: int) -> list[Candidate]:
    spec = plan.model_spec
    data = ImageFolder(photos, evaluation_view(spec.mean, spec.std))
    trainer = Trainer(plan)
    backbone, classes = trainer.network.backbone, plan.split.num_classes

    def reference(layout: torch.memory_format) -> Candidate:
        network = _timm_network(plan).to(memory_format=layout)  # type: ignore[call-overload]
        head = nn.Linear(backbone.feature_dim, classes).to(plan.device)
        optimizer = torch.optim.SGD(head.parameters(), lr=plan.config.lr, momentum=0.9)

        @contextmanager
        def session() -> Iterator[Work]:
            sampler = RandomSampler(data, num_samples=plan.batch_size * 1_000_000)
            loader = DataLoader(data, plan.batch_size, sampler=sampler, num_workers=threads, prefetch_factor=PREFETCH)
            feed = iter(loader)

            def work() -> None:
                images, labels = (tensor.to(plan.device) for tensor in next(feed))
                with torch.no_grad():
                    features = network(images.contiguous(memory_format=layout))
                loss = nn.functional.cross_entropy(head(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()

            yield work

        # The first batches of each worker lie ready when the timing begins; they would flatter the reference.
        return Candidate(f"{_name(layout)}: frozen", session, 2, PREFETCH * threads)

    rows = iter(range(10**9))

    def features() -> None:
        at = next(rows) * plan.batch_size % (len(plan.split.train.labels) - plan.batch_size)
        images = plan.split.train.images[at : at + plan.batch_size]
        backbone_features(trainer.network, spec, images, device=plan.device, precision=trainer.step.context.precision)

    headed = Trainer(plan)
    headed.use_features(FrozenFeatures(_random_features(plan, backbone.feature_dim), None))
    return [
        *map(reference, LAYOUTS),
        Candidate(f"{SAUKIT}: features", steady(features), 2, 1),
        Candidate(f"{SAUKIT}: head", steady(headed.advance), 20, 5),
    ]


def _random_features(plan: TrainingPlan, dim: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((len(plan.split.train.labels), dim), np.float32)


def _timm_network(plan: TrainingPlan) -> nn.Module:
    """timm's network in eval mode, with the weights that the plan starts from, in float32."""
    network = timm.create_model(plan.config.backbone.removeprefix("timm/"), num_classes=0)
    network.load_state_dict(Trainer(plan).network.backbone.network.state_dict())
    return network.to(plan.device).eval()


def _accuracies(
    plan: TrainingPlan, workspace: Workspace, root: Path, threads: int, most: int | None
) -> dict[str, float]:
    """Top-1 on the test photos of a head on the features of each; `most` photos of a part, evenly chosen."""
    spec, test = plan.model_spec, load_test(workspace)
    view = evaluation_view(spec.mean, spec.std)
    network = _timm_network(plan).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {}
    for name in (REFERENCE, SAUKIT):
        trainer, of = Trainer(plan), {}
        for part, images, labels in (
            ("train", plan.split.train.images, plan.split.train.labels),
            ("test", test.images, test.labels),
        ):
            rows = np.arange(len(labels))[:: 1 if most is None else max(1, len(labels) // most)]
            if name == SAUKIT:
                precision = trainer.step.context.precision
                made = backbone_features(trainer.network, spec, images[rows], device=plan.device, precision=precision)
            else:
                data = ImageFolder(root / part, view)
                if not np.array_equal(labels, data.targets):
                    raise RuntimeError(f"the split has other {part} photos than {root / part}")
                loader = DataLoader(Subset(data, rows.tolist()), 32, num_workers=threads)
                with torch.no_grad():
                    parts = [network(batch.to(plan.device, memory_format=torch.channels_last)) for batch, _ in loader]
                made = torch.cat(parts).cpu().numpy()
            of[part] = made, labels[rows]
        # As many rows as the split has: what was left out repeats what was taken.
        repeated = np.arange(len(plan.split.train.labels)) * len(of["train"][0]) // len(plan.split.train.labels)
        trainer.training_set = replace(
            trainer.training_set, labels=torch.from_numpy(of["train"][1][repeated]).to(plan.device)
        )
        trainer.use_features(FrozenFeatures(of["train"][0][repeated], None))
        for _ in range(plan.total_steps):
            trainer.advance()
        guessed = predict(trainer.network, spec, of["test"][0], device=plan.device).logits.argmax(1)
        found[name] = round(float((guessed == of["test"][1]).mean()), 4)
    return found


if __name__ == "__main__":
    main()
