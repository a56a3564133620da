"""What the benchmarks train on: real CIFAR-10 images where they are at hand, otherwise seeded noise of the same size.

Splits and synthetic images are made in memory; only `end_to_end.py` makes a real split in a temporary workspace.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import Manifest
from saukit.core.seeding import derive_seed, numpy_generator
from saukit.data.shots import shot_groups
from saukit.data.sources.table import CIFAR_MEAN, CIFAR_STD
from saukit.data.split import Part, Split
from saukit.data.synthetic import SyntheticImages
from saukit.models.dual_branch import DualBranchNet
from saukit.training.config import ResolvedTrainConfig
from saukit.training.plan import TrainingPlan
from saukit.training.presets import PRESETS
from saukit.training.views import Views

SIDE = 32
CIFAR_FOLDER = "cifar-10-batches-py"
SEED = 0
# About that of CIFAR-10 at ratio 100, filled up to 5,000 images a class.
REAL_SHARE = 0.25

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Images uint8 [N, 3, 32, 32], and in words what they are."""

    images: Images
    about: str


def default_root() -> Path | None:
    """The folder that SAUKIT_DATA names, if CIFAR-10 lies in it: the variable may be set for other data sets."""
    folder = os.environ.get("SAUKIT_DATA")
    return Path(folder) if folder and (Path(folder) / CIFAR_FOLDER).is_dir() else None


def load_pictures(root: Path | None, count: int) -> Pictures:
    """`count` training images of CIFAR-10 under `root`, in random order; without a root, noise."""
    generator = numpy_generator(SEED, "benchmark-pictures")
    if root is None:
        noise = generator.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
        return Pictures(noise, "random uint8 images of 32 x 32 pixels (seeded)")
    from torchvision.datasets import CIFAR10

    source = CIFAR10(str(root), train=True, download=False)
    chosen = generator.permutation(len(source.data))[:count]
    images = np.ascontiguousarray(source.data[chosen].transpose(0, 3, 1, 2))
    return Pictures(images, "CIFAR-10 training images")


def split_in_memory(images: Images, labels: Labels, num_classes: int) -> Split:
    """A split that was never on a disk; its manifest vouches for nothing."""
    counts = np.bincount(labels, minlength=num_classes).tolist()
    return Split(
        source="benchmark",
        classes=tuple(map(str, range(num_classes))),
        train=Part(images, labels, np.arange(len(labels))),
        val=None,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        flip=True,
        groups=shot_groups(counts, "thirds"),
        manifest=_no_manifest("split"),
    )


def as_synthetic(images: Images, labels: Labels) -> SyntheticImages:
    """Images that take the part of synthetic ones; how fast a step is does not depend on what they show."""
    return SyntheticImages(images, labels, np.zeros(len(labels), np.int64), _no_manifest("synth"))


def mixed_plan(images: Images, num_classes: int, config: ResolvedTrainConfig, device: torch.device) -> TrainingPlan:
    """A plan whose first quarter of the images are real and whose others take the part of synthetic ones.

    The labels are the classes in turn, so every class has a real image.
    """
    real = max(num_classes, int(REAL_SHARE * len(images)))
    labels = np.arange(len(images)) % num_classes
    split = split_in_memory(images[:real], labels[:real], num_classes)
    return TrainingPlan(config, "benchmark", split, as_synthetic(images[real:], labels[real:]), device, {})


def paper_config(backbone: str, batch_size: int, amp: str) -> ResolvedTrainConfig:
    """SAU with the paper's optimiser settings, resolved."""
    given = {"backbone": backbone, "batch_size": batch_size, "as_published": False}
    return ResolvedTrainConfig(
        method="sau",
        synthetic=True,
        preset="paper",
        weights="none",
        flip=True,
        amp=amp,  # type: ignore[arg-type]
        seed=SEED,
        **{**asdict(PRESETS["paper"]), **given},
    )


def new_network(plan: TrainingPlan, *, in_place: bool) -> DualBranchNet:
    """The network that saukit's trainer would start from, float32 and in torch's default memory layout.

    `in_place`: whether activations overwrite what they are computed from, as saukit's do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(plan.config.seed, "initialisation"))
        network = DualBranchNet(plan.config.backbone, plan.split.num_classes, projection=True)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = in_place
    return network.to(plan.device)


def saukit_views(plan: TrainingPlan) -> Views:
    """saukit's batched views with the plan's normalisation."""
    mean, std = (torch.tensor(values, device=plan.device) for values in (plan.split.mean, plan.split.std))
    return Views(mean, std, plan.config.flip)


def _no_manifest(kind: str) -> Manifest:
    return Manifest(kind, "in memory", {}, {}, {}, "cpu", "", {})
