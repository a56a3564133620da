"""A reference step of SAU in the manner of published implementations, to measure saukit's step against.

Feed: torchvision transforms on PIL images, in two DataLoaders with worker processes. Step: float32, NCHW, soft labels
from one-hot vectors, rows gathered by boolean indices, one backward pass over the sum of the losses, SGD as torch
gives it by default, losses read back with `.item()` in every step.

The mathematics is saukit's (`check_against_saukit` holds that), not that of the published SAU code, so that only speed
is compared. In one place that favours the reference: batch B needs one view and gets one, where the published code
computes three.

Shapes: b samples, K classes, d embedding dimensions, H x W pixels.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from inputs import SEED, Images, Labels, new_network, paper_config
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from saukit.core.device import Precision
from saukit.models.dual_branch import DualBranchNet
from saukit.training.config import Noise
from saukit.training.context import StepContext
from saukit.training.methods import sau_step
from saukit.training.mixup import draw_beta_one_one, draw_cutmix_box
from saukit.training.plan import TrainingPlan
from saukit.training.training_set import Batch

MOMENTUM = 0.9
PREFETCH = 2
PROTOTYPE_BATCH = 256
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

Transform = Callable[[Image.Image], Tensor]
Channels = Sequence[float]
Prototypes = tuple[Tensor, Tensor]


# --- the feed: PIL transforms in DataLoaders ---------------------------------------------------------------------


class Cutout:
    """A square of zeros at a uniform centre, clipped at the edge: on a normalised tensor [3, H, W]."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        """A copy of the image with its square."""
        height, width = image.shape[1:]
        top = int(torch.randint(height, ())) - self.size // 2
        left = int(torch.randint(width, ())) - self.size // 2
        image = image.clone()
        image[:, max(0, top) : max(0, top + self.size), max(0, left) : max(0, left + self.size)] = 0
        return image


def first_view(mean: Channels, std: Channels, side: int) -> Transform:
    """v1: random crop, flip."""
    return transforms.Compose([*_crop_flip(side), *_to_tensor(mean, std)])


def second_view(mean: Channels, std: Channels, side: int) -> Transform:
    """v2: random crop, flip, AutoAugment (CIFAR-10 policy), Cutout."""
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
    return transforms.Compose([*_crop_flip(side), policy, *_to_tensor(mean, std), Cutout(side // 2)])


def third_view(mean: Channels, std: Channels, side: int) -> Transform:
    """v3: the view of SimCLR."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.5),
            *_to_tensor(mean, std),
        ]
    )


def _crop_flip(side: int) -> list[nn.Module]:
    return [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]


def _to_tensor(mean: Channels, std: Channels) -> list[Callable[..., Tensor]]:
    return [transforms.ToTensor(), transforms.Normalize(mean, std)]


@dataclass(frozen=True)
class Pixels:
    """A data set as the transforms want it.

    Shapes: images uint8 [N, H, W, 3]; labels int64 [N]; synthetic bool [N].
    """

    images: Images
    labels: Labels
    synthetic: np.typing.NDArray[np.bool_]
    mean: Channels
    std: Channels

    @property
    def side(self) -> int:
        """Pixels a side."""
        return self.images.shape[1]

    def rows(self, chosen: slice) -> Pixels:
        """Some of the samples."""
        return Pixels(self.images[chosen], self.labels[chosen], self.synthetic[chosen], self.mean, self.std)


def pixels_of(plan: TrainingPlan) -> Pixels:
    """The plan's mixed training set, the real images first."""
    parts = [plan.split.train] if plan.cache is None else [plan.split.train, plan.cache]
    labels = np.concatenate([part.labels for part in parts])
    return Pixels(
        images=np.concatenate([part.images.transpose(0, 2, 3, 1) for part in parts]),
        labels=labels,
        synthetic=np.arange(len(labels)) >= len(plan.split.train.labels),
        mean=plan.split.mean,
        std=plan.split.std,
    )


Views = Dataset[tuple[Tensor | int | bool, ...]]


class PilViews(Views):
    """A sample is its views, its label, and whether it is synthetic."""

    def __init__(self, pixels: Pixels, views: Sequence[Transform]) -> None:
        self.pixels, self.views = pixels, views

    def __len__(self) -> int:
        return len(self.pixels.labels)

    def __getitem__(self, index: int) -> tuple[Tensor | int | bool, ...]:
        image = Image.fromarray(self.pixels.images[index])
        views = (view(image) for view in self.views)
        return (*views, int(self.pixels.labels[index]), bool(self.pixels.synthetic[index]))


@dataclass(frozen=True)
class ViewBatch:
    """The views of batches A and B: float32 [b, 3, H, W] each; labels int64 [b]; synthetic bool [b], of A."""

    v1: Tensor
    partner_v1: Tensor
    v2: Tensor
    v3: Tensor
    labels: Tensor
    partner_labels: Tensor
    synthetic: Tensor


def worker_processes(threads: int) -> tuple[int, int]:
    """Workers of loaders A and B: `threads` of them (at least one each), in proportion to what the loaders have to do.

    B makes the one cheap view of four, about an eighth of the work.
    """
    workers_b = max(1, threads // 8)
    return max(1, threads - workers_b), workers_b


@contextlib.contextmanager
def pil_feed(pixels: Pixels, batch_size: int, threads: int, device: torch.device) -> Iterator[Iterator[ViewBatch]]:
    """An endless feed: loader A yields v1, v2, v3, loader B yields v1. The worker processes end with the block.

    The samplers have no epochs, so no worker ever waits for a next one to begin.
    """
    make = (first_view, second_view, third_view)
    v1, v2, v3 = (view(pixels.mean, pixels.std, pixels.side) for view in make)
    with feed_of((PilViews(pixels, (v1, v2, v3)), PilViews(pixels, (v1,))), batch_size, threads, device) as feed:
        yield feed


@contextlib.contextmanager
def feed_of(
    datasets: Sequence[Views], batch_size: int, threads: int, device: torch.device
) -> Iterator[Iterator[ViewBatch]]:
    """As `pil_feed`, of the data sets of A and of B."""
    workers = worker_processes(threads)
    loaders = [
        iter(_endless_loader(dataset, batch_size, count, device, seed))
        for seed, (dataset, count) in enumerate(zip(datasets, workers, strict=True))
    ]

    def batches() -> Iterator[ViewBatch]:
        while True:
            a, b = (next(loader) for loader in loaders)
            a1, a2, a3, labels, synthetic, b1, partner_labels = (
                tensor.to(device, non_blocking=True) for tensor in (*a, *b[:2])
            )
            yield ViewBatch(a1, b1, a2, a3, labels, partner_labels, synthetic)

    try:
        yield batches()
    finally:
        # A loader's iterator ends its workers when it is collected.
        loaders.clear()
        gc.collect()


def _endless_loader(
    dataset: Views, batch_size: int, workers: int, device: torch.device, seed: int
) -> DataLoader[list[Tensor]]:
    generator = torch.Generator().manual_seed(SEED + seed)
    sampler = RandomSampler(dataset, num_samples=batch_size * 1_000_000, generator=generator)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


def pil_prototype_views(pixels: Pixels, threads: int) -> Iterable[list[Tensor]]:
    """Each sample once: v2, v3 and labels, in batches made by `threads` worker processes."""
    views = [view(pixels.mean, pixels.std, pixels.side) for view in (second_view, third_view)]
    return DataLoader(
        PilViews(pixels, views), batch_size=PROTOTYPE_BATCH, num_workers=threads, prefetch_factor=PREFETCH
    )


# --- the step ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """What Mixup and CutMix draw once a batch: lam and a box, rows top to bottom and columns left to right."""

    lam: float
    top: int
    bottom: int
    left: int
    right: int


def draw_mix(height: int, width: int, generator: np.random.Generator) -> Mix:
    """lam ~ Beta(1, 1); a box with sides sqrt(1 - lam) of the image's, its centre uniform, clipped at the edge."""
    lam = float(generator.beta(1, 1))
    box_height, box_width = int((1 - lam) ** 0.5 * height), int((1 - lam) ** 0.5 * width)
    top = int(generator.integers(height)) - box_height // 2
    left = int(generator.integers(width)) - box_width // 2
    return Mix(lam, max(0, top), min(height, top + box_height), max(0, left), min(width, left + box_width))


def sau_losses(
    network: DualBranchNet,
    views: ViewBatch,
    mix: Mix,
    prototypes: Prototypes,
    *,
    noise: Noise,
    temperature: float,
) -> dict[str, Tensor]:
    """The three losses of SAU, 0-d each; the label check is one of boolean indices."""
    classes = len(prototypes[0])
    target = F.one_hot(views.labels, classes).float()
    partner_target = F.one_hot(views.partner_labels, classes).float()

    mixed = mix.lam * views.v1 + (1 - mix.lam) * views.partner_v1
    mixup = soft_cross_entropy(network(mixed), mix.lam * target + (1 - mix.lam) * partner_target)

    cut = views.v1.clone()
    box = (..., slice(mix.top, mix.bottom), slice(mix.left, mix.right))
    cut[box] = views.partner_v1[box]
    height, width = cut.shape[-2:]
    kept = 1 - (mix.bottom - mix.top) * (mix.right - mix.left) / (height * width)
    cutmix = soft_cross_entropy(network(cut), kept * target + (1 - kept) * partner_target)

    z2, z3 = network.project(views.v2), network.project(views.v3)
    trusted = trusted_samples(z2, z3, views.labels, views.synthetic, prototypes)
    contrastive = branch_loss(z2, z3, views.labels, trusted, prototypes, noise=noise, temperature=temperature)
    return {"mixup": mixup, "cutmix": cutmix, "contrastive": contrastive}


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against soft labels [b, K], mean over the batch."""
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


@torch.no_grad()
def trusted_samples(z2: Tensor, z3: Tensor, labels: Tensor, synthetic: Tensor, prototypes: Prototypes) -> Tensor:
    """Label check: which samples carry the label of their nearest real neighbour in both views; bool [b].

    Real rows and synthetic rows are gathered, so the shapes differ from batch to batch.
    """
    real = ~synthetic
    candidate_labels = torch.cat((labels[real], torch.arange(len(prototypes[0]), device=labels.device)))
    trusted = real.clone()
    votes = []
    for z, own_prototypes in zip((z2, z3), prototypes, strict=True):
        candidates = torch.cat((z[real], own_prototypes))
        nearest = (z[synthetic] @ candidates.T).argmax(dim=1)
        votes.append(candidate_labels[nearest] == labels[synthetic])
    trusted[synthetic] = votes[0] & votes[1]
    return trusted


def branch_loss(
    z2: Tensor,
    z3: Tensor,
    labels: Tensor,
    trusted: Tensor,
    prototypes: Prototypes,
    *,
    noise: Noise,
    temperature: float,
) -> Tensor:
    """The contrastive loss over both views of batch and prototypes, with the rows that the noise strategy keeps."""
    classes = len(prototypes[0])
    labels = labels.clone()
    is_noise = ~trusted
    labels[is_noise] = classes + torch.arange(int(is_noise.sum().item()), device=labels.device)
    with_prototypes = torch.cat((trusted, trusted.new_ones(classes)))
    view_labels = torch.cat((labels, torch.arange(classes, device=labels.device)))

    embeddings = torch.cat((z2, prototypes[0], z3, prototypes[1]))
    row_labels, row_trusted = view_labels.repeat(2), with_prototypes.repeat(2)
    if noise == "drop":
        embeddings, row_labels = embeddings[row_trusted], row_labels[row_trusted]
    anchors = row_trusted if noise == "neg_only" else torch.ones_like(row_labels, dtype=torch.bool)
    return contrastive_loss(embeddings, row_labels, anchors, temperature)


def contrastive_loss(embeddings: Tensor, labels: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, Eq. 2), mean over the anchors; embeddings [n, d]."""
    similarity = embeddings[anchors] @ embeddings.T / temperature
    similarity = similarity - similarity.max(dim=1, keepdim=True).values.detach()
    others = (~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device))[anchors]
    positives = ((labels[anchors][:, None] == labels[None]) & others).float()
    log_probability = similarity - (similarity.exp() * others).sum(dim=1, keepdim=True).log()
    # Every anchor has its other view as a positive, so no count is 0.
    return -((positives * log_probability).sum(dim=1) / positives.sum(dim=1)).mean()


@torch.no_grad()
def class_prototypes(
    network: DualBranchNet, batches: Iterable[Sequence[Tensor]], num_classes: int, device: torch.device
) -> Prototypes:
    """For each class the mean embedding of v2, and of v3, in eval mode, L2-normalised: two of [K, d].

    `batches` yields v2, v3 and labels first. Embeddings are collected in host memory and picked class by class.
    """
    network.eval()
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    all_labels = []
    for v2, v3, labels, *_ in batches:
        for collected, view in zip(features, (v2, v3), strict=True):
            collected.append(network.project(view.to(device)).cpu())
        all_labels.append(labels.cpu())
    network.train()
    labels = torch.cat(all_labels)

    def means(collected: list[Tensor]) -> Tensor:
        joined = torch.cat(collected)
        return F.normalize(torch.stack([joined[labels == k].mean(dim=0) for k in range(num_classes)])).to(device)

    return means(features[0]), means(features[1])


class ReferenceStep:
    """The reference's network and optimiser; a call is one optimiser step on given views."""

    def __init__(self, plan: TrainingPlan, prototypes: Prototypes) -> None:
        config = plan.config
        self.network = new_network(plan, in_place=False)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.lr,
            momentum=MOMENTUM,
            weight_decay=config.weight_decay,
        )
        self.prototypes = prototypes
        self.noise, self.temperature = config.noise, config.temperature
        self.generator = np.random.default_rng(config.seed)
        self.meters: dict[str, float] = {}

    def __call__(self, views: ViewBatch) -> None:
        """Forward passes, one backward pass over the sum, the update, and the losses read back for the log."""
        self.network.train()
        mix = draw_mix(*views.v1.shape[-2:], self.generator)
        losses = sau_losses(self.network, views, mix, self.prototypes, noise=self.noise, temperature=self.temperature)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        for name, loss in losses.items():
            self.meters[name] = self.meters.get(name, 0.0) + loss.item()


# --- the same mathematics ----------------------------------------------------------------------------------------


class PreparedViews:
    """Stands in for saukit's views and returns tensors made before: only the step is left to measure.

    `crop_flip` is asked for batch A, then for batch B.
    """

    def __init__(self, views: ViewBatch) -> None:
        self._views = views
        self._first = itertools.cycle((views.v1, views.partner_v1))

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v1 of A and of B in turn."""
        return next(self._first)

    def autoaugment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v2."""
        return self._views.v2

    def simclr(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v3."""
        return self._views.v3


@dataclass(frozen=True)
class Agreement:
    """How far reference and saukit lie apart on the same views, relative; and what the label check found there."""

    loss_difference: float
    gradient_difference: float
    synthetic_images: int
    trusted_images: int


def check_against_saukit(
    noise: Noise, num_classes: int, *, backbone: str = "convnet-small", batch_size: int = 16, side: int = 8
) -> Agreement:
    """Compute losses and gradients of one step by both implementations, with the network in float64.

    Images of a class resemble each other and half of the synthetic labels are wrong, so that some are trusted and
    some are not.
    Raises: RuntimeError if a loss or the gradient differs.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = DualBranchNet(backbone, num_classes, projection=True).double()
    labels, partner_labels = torch.randint(num_classes, (2, batch_size), generator=generator)
    synthetic = torch.arange(batch_size) % 4 != 0
    shown = torch.where(torch.arange(batch_size) % 2 == 0, labels, (labels + 1) % num_classes)
    patterns = torch.randn((num_classes, 3, side, side), dtype=torch.float64, generator=generator)

    def view(of: Tensor) -> Tensor:
        shape = (len(of), 3, side, side)
        return patterns[of] + 0.05 * torch.randn(shape, dtype=torch.float64, generator=generator)

    views = ViewBatch(view(shown), view(partner_labels), view(shown), view(shown), labels, partner_labels, synthetic)
    with torch.no_grad():
        everyone = torch.arange(num_classes)
        prototypes = network.project(view(everyone)), network.project(view(everyone))

    context = StepContext(
        network=network,
        views=PreparedViews(views),  # type: ignore[arg-type]
        precision=Precision("off", "cpu"),
        config=replace(paper_config(backbone, batch_size, "off"), noise=noise),
        class_counts=torch.ones(num_classes),  # which SAU does not read
        logit_offsets=torch.zeros(num_classes),
        generator=torch.Generator().manual_seed(SEED),
        prototypes=prototypes,
    )
    # Where the partner's synthetic images are matters to their weight alone, and all weigh 1 here.
    batch = Batch(views.v1, labels, synthetic, views.partner_v1, partner_labels, torch.zeros_like(synthetic))
    ours, our_gradient = _losses_and_gradient(network, lambda: dict(sau_step(batch, context)))
    # The same draws as in saukit's step, by the same generator.
    again = torch.Generator().manual_seed(SEED)
    lam = draw_beta_one_one(device=again.device, generator=again)
    box, _ = draw_cutmix_box(side, side, lam, generator=again)
    mix = Mix(float(lam), int(box.top), int(box.bottom), int(box.left), int(box.right))
    theirs, their_gradient = _losses_and_gradient(
        network, lambda: sau_losses(network, views, mix, prototypes, noise=noise, temperature=0.1)
    )
    agreement = Agreement(
        loss_difference=max(abs(theirs[name] - value) / abs(value) for name, value in ours.items()),
        gradient_difference=float((their_gradient - our_gradient).norm() / our_gradient.norm()),
        synthetic_images=int(context.metrics["synthetic_images"]),
        trusted_images=int(context.metrics["trusted_images"]),
    )
    if agreement.loss_difference > LOSS_TOLERANCE or agreement.gradient_difference > GRADIENT_TOLERANCE:
        raise RuntimeError(
            f"reference and saukit compute different steps ({noise}, {num_classes} classes): {agreement}"
        )
    return agreement


def _losses_and_gradient(
    network: DualBranchNet, losses: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, float], Tensor]:
    """The losses and the gradient of their sum. In train mode, where BatchNorm's running statistics play no part."""
    network.train()
    values = losses()
    gradients = torch.autograd.grad(torch.stack(list(values.values())).sum(), list(network.parameters()))
    return {name: value.item() for name, value in values.items()}, torch.cat([g.flatten() for g in gradients])
