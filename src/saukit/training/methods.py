"""The training methods: what one step computes. Another method is a function and a line in `METHODS`.

A step yields its losses one after the other and goes on only when the trainer has called `backward` on the last one,
so the activations of one forward pass are freed before the next pass makes its own. Forward passes run in autocast,
losses in float32 outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import Precision
from saukit.models.dual_branch import DualBranchNet
from saukit.training.augment import (
    autoaugment_view,
    crop_flip_view,
    simclr_view,
)
from saukit.training.config import OWN_PRIOR, Method, Noise
from saukit.training.losses import cross_entropy, mixed_cross_entropy, prior_offsets, synthetic_aware_loss
from saukit.training.mixing import cutmix, draw_beta_one_one, draw_cutmix_box, mixup
from saukit.training.mixture import Batch

# Pixels a batch of the prototypes' pass has at most: 2,048 images of 32 x 32, 41 of 224 x 224.
PROTOTYPE_PIXELS = 2**21


@dataclass(frozen=True)
class Views:
    """The augmented views of a batch of uint8 images [b, 3, H, W], normalised and channels-last.

    Crop padding is H / 8 and Cutout's side H / 2: SAU's 4 and 16 at 32 pixels.
    """

    mean: Tensor
    std: Tensor
    side: int
    flip: bool

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v1: random crop with padding, horizontal flip."""
        view = crop_flip_view(images, self.mean, self.std, padding=self._padding, flip=self.flip, generator=generator)
        return view.contiguous(memory_format=torch.channels_last)

    def autoaugment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v2: crop, flip, AutoAugment (CIFAR-10 policy), Cutout."""
        view = autoaugment_view(
            images,
            self.mean,
            self.std,
            padding=self._padding,
            flip=self.flip,
            cutout_size=self.side // 2,
            generator=generator,
        )
        return view.contiguous(memory_format=torch.channels_last)

    def simclr(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v3: resized crop, flip, colour jitter, grey, blur (SimCLR)."""
        view = simclr_view(images, self.mean, self.std, flip=self.flip, generator=generator)
        return view.contiguous(memory_format=torch.channels_last)

    @property
    def _padding(self) -> int:
        return max(1, self.side // 8)


@dataclass
class Step:
    """What a step has at hand besides its batch; `metrics` takes 0-d tensors for the log.

    `logit_offsets` are added to the logits that the classification losses see (`logit_offsets` below makes them), and
    `synthetic_weight` is what a synthetic image weighs in those losses, a real one weighing 1.

    Shapes: logit_offsets float32 [K]; prototypes: two of [K, d], or None without a projection.
    """

    network: DualBranchNet
    views: Views
    precision: Precision
    logit_offsets: Tensor
    synthetic_weight: float
    prototypes: tuple[Tensor, Tensor] | None
    noise: Noise
    temperature: float
    generator: torch.Generator
    metrics: dict[str, Tensor]

    def logits(self, images: Tensor) -> Tensor:
        """One forward pass of the classifier in autocast, and the prior's offsets in full; float32 [b, K]."""
        with self.precision.autocast():
            logits: Tensor = self.network(images)
        return logits.float() + self.logit_offsets

    def embeddings(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Forward passes of backbone and projection in autocast, one a view; L2-normalised float32 [b, d] each."""
        with self.precision.autocast():
            return self.network.project_views(*views)

    def weights(self, synthetic: Tensor) -> Tensor:
        """What each image weighs in the classification losses: bool [b] to float32 [b]."""
        return torch.ones_like(synthetic, dtype=torch.float32).masked_fill_(synthetic, self.synthetic_weight)


def cross_entropy_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Cross entropy on v1(A)."""
    yield "ce", _loss_of_first_view(batch, step)


def balanced_softmax_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Balanced softmax (Ren et al. 2020) on v1(A): cross entropy whose offsets are the mixed training set's counts."""
    yield "balanced_softmax", _loss_of_first_view(batch, step)


def _loss_of_first_view(batch: Batch, step: Step) -> Tensor:
    logits = step.logits(step.views.crop_flip(batch.images, step.generator))
    # Without weights where they are all 1: what such a run computes does not depend on this option's arithmetic.
    weights = None if step.synthetic_weight == 1 else step.weights(batch.synthetic)
    return cross_entropy(logits, batch.labels, weights=weights)


def mixup_cutmix_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Mixup and CutMix of v1(A) and v1(B): SAU's synthetic-unaware branch, L_mix.

    How images are mixed does not depend on which are synthetic; what their labels weigh may.
    """
    generator = step.generator
    first = step.views.crop_flip(batch.images, generator)
    second = step.views.crop_flip(batch.partner_images, generator)
    lam = draw_beta_one_one(device=first.device, generator=generator)

    mixed = step.logits(mixup(first, second, lam))
    yield "mixup", _mixed_loss(mixed, batch, step, lam)

    # The box is clipped at the image's edge, so its label weight is what is left of it, not lam.
    box, kept_share = draw_cutmix_box(first.shape[2], first.shape[3], lam, generator=generator)
    cut = step.logits(cutmix(first, second, box))
    yield "cutmix", _mixed_loss(cut, batch, step, kept_share)


def _mixed_loss(logits: Tensor, batch: Batch, step: Step, lam: Tensor) -> Tensor:
    weights = None
    if step.synthetic_weight != 1:
        weights = step.weights(batch.synthetic), step.weights(batch.partner_synthetic)
    return mixed_cross_entropy(logits, batch.labels, batch.partner_labels, lam, weights=weights)


def sau_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """SAU: L = L_mix + L_SC (Li, Song and Zheng 2024). L_mix ignores which images are synthetic, L_SC checks them."""
    yield from mixup_cutmix_step(batch, step)

    generator = step.generator
    if step.prototypes is None:
        raise RuntimeError("SAU needs prototypes")
    z2, z3 = step.embeddings(
        step.views.autoaugment(batch.images, generator), step.views.simclr(batch.images, generator)
    )
    loss, trusted = synthetic_aware_loss(
        z2,
        z3,
        batch.labels,
        batch.synthetic,
        *step.prototypes,
        temperature=step.temperature,
        strategy=step.noise,
    )
    step.metrics["synthetic_images"] = batch.synthetic.sum()
    step.metrics["trusted_images"] = (trusted & batch.synthetic).sum()
    yield "contrastive", loss


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table of methods: its step, and how often a batch goes forward and backward through the network.

    `classifier_passes` end in the classifier, `projection_passes` in the projection.
    """

    step: Callable[[Batch, Step], Iterator[tuple[str, Tensor]]]
    classifier_passes: int
    projection_passes: int = 0

    @property
    def projection(self) -> bool:
        """Whether the network needs a projection."""
        return self.projection_passes > 0

    @property
    def views_per_step(self) -> int:
        """Images that go through the backbone for each image of a batch."""
        return self.classifier_passes + self.projection_passes


METHODS: dict[Method, MethodEntry] = {
    "sau": MethodEntry(sau_step, classifier_passes=2, projection_passes=2),
    "ce": MethodEntry(cross_entropy_step, classifier_passes=1),
    "balanced-softmax": MethodEntry(balanced_softmax_step, classifier_passes=1),
    "mixup-cutmix": MethodEntry(mixup_cutmix_step, classifier_passes=2),
}


def logit_offsets(
    method: Method, prior_correction: float | None, *, real_counts: Tensor, mixed_counts: Tensor
) -> Tensor:
    """What a run's classification losses add to the logits.

    balanced-softmax: the log counts of the mixed training set, each image one whatever it weighs. The others:
    `prior_correction` times the log counts of the real training images, and zeros if that is None.

    Shapes: real_counts, mixed_counts float32 [K], all positive; returns float32 [K].
    """
    if method in OWN_PRIOR:
        return prior_offsets(mixed_counts, 1.0)
    return prior_offsets(real_counts, 0.0 if prior_correction is None else prior_correction)


def class_prototypes(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    network: DualBranchNet,
    views: Views,
    precision: Precision,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """For each class the mean of z2, and of z3, over the split's real training images in eval mode, L2-normalised.

    Both views go through the network in one forward pass: in eval mode BatchNorm keeps no statistics of a batch.

    Shapes: images uint8 [N, 3, H, W], on the labels' device or in host memory; labels int64 [N], every class at least
        once; returns two of [K, d].
    """
    total: Tensor | int = 0
    # On an accelerator a large batch, or the launches of its kernels would take longer than the kernels.
    batch_size = min(2048 if labels.is_cuda else 256, max(1, PROTOTYPE_PIXELS // images[0, 0].numel()))
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size].to(labels.device, non_blocking=True)
        both = torch.cat((views.autoaugment(chunk, generator), views.simclr(chunk, generator)))
        with network.inference(), precision.autocast():
            embeddings = network.project(both)
        one_hot = F.one_hot(labels[start : start + batch_size], num_classes).float()
        total = total + one_hot.T @ embeddings.float().view(2, len(chunk), -1)
    # The mean's direction is the sum's: the count cancels in the normalisation.
    z2, z3 = F.normalize(torch.as_tensor(total), dim=2)
    return z2, z3
