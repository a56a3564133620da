"""The training methods: what a step computes, and what it needs. Another one is a function and a line in `METHODS`.

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
from saukit.models.dual_branch import COSINE_SCALE, Classifier, DualBranchNet
from saukit.training.config import Method, Noise
from saukit.training.losses import (
    balanced_contrastive_loss,
    class_balanced_weights,
    cross_entropy,
    ldam_loss,
    ldam_margins,
    mixed_cross_entropy,
    prior_offsets,
    synthetic_aware_loss,
)
from saukit.training.mixing import cutmix, draw_beta_one_one, draw_cutmix_box, mixup
from saukit.training.training_set import Batch
from saukit.training.views import (
    autoaugment_view,
    crop_flip_view,
    simclr_view,
)

LDAM_LARGEST_MARGIN = 0.5
DEFERRED_BETA = 0.9999
BCL_CLASSIFICATION_WEIGHT, BCL_CONTRASTIVE_WEIGHT = 2.0, 0.6

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
    `synthetic_weight` is what a synthetic image weighs in those losses, a real one weighing 1. `second_stage` is
    whether the last part of a method with two stages has begun.

    Shapes: logit_offsets float32 [K]; class_counts float32 [K], of the mixed training set; prototypes: two of [K, d],
        or None for a method without.
    """

    network: DualBranchNet
    views: Views
    precision: Precision
    logit_offsets: Tensor
    class_counts: Tensor
    synthetic_weight: float
    second_stage: bool
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

    def weights(self, synthetic: Tensor) -> Tensor | None:
        """What each image weighs in the classification losses: bool [b] to float32 [b]; None if all weigh 1.

        Without weights where they are all 1: what such a run computes does not depend on this option's arithmetic.
        """
        if self.synthetic_weight == 1:
            return None
        return torch.ones_like(synthetic, dtype=torch.float32).masked_fill_(synthetic, self.synthetic_weight)


def cross_entropy_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Cross entropy on v1(A)."""
    yield "ce", _loss_of_first_view(batch, step)


def balanced_softmax_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Balanced softmax (Ren et al. 2020) on v1(A): cross entropy whose offsets are the mixed training set's counts."""
    yield "balanced_softmax", _loss_of_first_view(batch, step)


def ldam_drw_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """LDAM on v1(A), in the second stage with deferred re-weighting (Cao et al. 2019, Algorithm 1)."""
    logits = step.logits(step.views.crop_flip(batch.images, step.generator))
    weights = step.weights(batch.synthetic)
    if step.second_stage:
        of_class = class_balanced_weights(step.class_counts, beta=DEFERRED_BETA)[batch.labels]
        weights = of_class if weights is None else weights * of_class
    margins = ldam_margins(step.class_counts, largest=LDAM_LARGEST_MARGIN)
    yield "ldam", ldam_loss(logits, batch.labels, margins, scale=COSINE_SCALE, weights=weights)


def crt_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Classifier re-training (Kang et al. 2020, Sec. 4.1): cross entropy, then a new classifier on frozen features.

    In the second stage batches are class-balanced, and backbone and BatchNorm's statistics stay as they are.
    """
    if not step.second_stage:
        yield "ce", _loss_of_first_view(batch, step)
        return
    view = step.views.crop_flip(batch.images, step.generator)
    with step.precision.autocast():
        logits = step.network.frozen_logits(view)
    yield "crt", cross_entropy(logits.float(), batch.labels, weights=step.weights(batch.synthetic))


def bcl_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Balanced contrastive learning (Zhu et al. 2022): 2 L_LC + 0.6 L_BCL.

    L_LC is cross entropy with logit compensation, balanced softmax, on v2(A); L_BCL contrasts two views v3 of A and a
    prototype a class, made of the classifier's weights. Not the authors' own: the two weights (their code for
    ImageNet-LT has 1 and 0.35), the linear classifier, and the projection, which is SAU's, so that backbones compare.
    """
    generator = step.generator
    logits = step.logits(step.views.autoaugment(batch.images, generator))
    loss = cross_entropy(logits, batch.labels, weights=step.weights(batch.synthetic))
    yield "balanced_softmax", BCL_CLASSIFICATION_WEIGHT * loss

    z1, z2 = step.embeddings(step.views.simclr(batch.images, generator), step.views.simclr(batch.images, generator))
    with step.precision.autocast():
        prototypes = step.network.project_classes()
    loss = balanced_contrastive_loss(
        torch.cat((z1, z2)), torch.cat((batch.labels, batch.labels)), prototypes, temperature=step.temperature
    )
    yield "contrastive", BCL_CONTRASTIVE_WEIGHT * loss


def _loss_of_first_view(batch: Batch, step: Step) -> Tensor:
    logits = step.logits(step.views.crop_flip(batch.images, step.generator))
    return cross_entropy(logits, batch.labels, weights=step.weights(batch.synthetic))


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
    first, second = step.weights(batch.synthetic), step.weights(batch.partner_synthetic)
    weights = None if first is None or second is None else (first, second)
    return mixed_cross_entropy(logits, batch.labels, batch.partner_labels, lam, weights=weights)


def sau_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """SAU: L = L_mix + L_SC (Li, Song and Zheng 2024). L_mix ignores which images are synthetic, L_SC checks them."""
    yield from mixup_cutmix_step(batch, step)
    yield from _synthetic_aware_branch(batch, step)


def sau_aware_step(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
    """SAU without its synthetic-unaware branch: cross entropy on v1(A) in L_mix's place, for the classifier's sake."""
    yield from cross_entropy_step(batch, step)
    yield from _synthetic_aware_branch(batch, step)


def _synthetic_aware_branch(batch: Batch, step: Step) -> Iterator[tuple[str, Tensor]]:
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
class SecondStage:
    """The last `share` of a method's steps. `anew`: with a new classifier, momentum and schedule of the rate."""

    share: float = 0.2
    class_balanced: bool = False
    anew: bool = False


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table of methods: its step, and what that asks of network, batches and schedule.

    `classifier_passes` and `projection_passes` are how often a batch goes forward and backward through the network and
    ends in the classifier, or in the projection. `prototypes` are means of real images (`class_prototypes`).
    `takes_prior` and `takes_real_finish`: the method has no remedy of its own for the imbalance, which would count the
    mixed training set to the end. `own_prior`: the losses see log counts of that set; `post_hoc`: the trained
    classifier has them taken off (Menon et al. 2021, Eq. 9).
    """

    step: Callable[[Batch, Step], Iterator[tuple[str, Tensor]]]
    classifier_passes: int = 1
    projection_passes: int = 0
    prototypes: bool = False
    class_projection: bool = False
    classifier: Classifier = "linear"
    own_prior: bool = False
    takes_prior: bool = False
    takes_real_finish: bool = False
    post_hoc: bool = False
    class_balanced: bool = False
    second_stage: SecondStage | None = None

    @property
    def projection(self) -> bool:
        """Whether the network needs a projection."""
        return self.projection_passes > 0

    @property
    def views_per_step(self) -> int:
        """Images that go through the backbone for each image of a batch."""
        return self.classifier_passes + self.projection_passes


METHODS: dict[Method, MethodEntry] = {
    "sau": MethodEntry(
        sau_step, classifier_passes=2, projection_passes=2, prototypes=True, takes_prior=True, takes_real_finish=True
    ),
    "sau-aware": MethodEntry(
        sau_aware_step, projection_passes=2, prototypes=True, takes_prior=True, takes_real_finish=True
    ),
    "mixup-cutmix": MethodEntry(mixup_cutmix_step, classifier_passes=2, takes_prior=True, takes_real_finish=True),
    "ce": MethodEntry(cross_entropy_step, takes_prior=True, takes_real_finish=True),
    "class-balanced": MethodEntry(cross_entropy_step, class_balanced=True, takes_real_finish=True),
    "balanced-softmax": MethodEntry(balanced_softmax_step, own_prior=True),
    "logit-adjustment": MethodEntry(cross_entropy_step, post_hoc=True),
    # The second stages' share is that of the authors' CIFAR schedule, 40 of 200 epochs, and for cRT the same.
    "ldam-drw": MethodEntry(ldam_drw_step, classifier="cosine", second_stage=SecondStage()),
    "crt": MethodEntry(crt_step, second_stage=SecondStage(class_balanced=True, anew=True)),
    "bcl": MethodEntry(bcl_step, projection_passes=2, class_projection=True, own_prior=True),
}


def logit_offsets(
    method: Method, prior_correction: float | None, *, real_counts: Tensor, mixed_counts: Tensor
) -> Tensor:
    """What a run's classification losses add to the logits.

    A method with a prior of its own: the log counts of the mixed training set, each image one whatever it weighs. The
    others: `prior_correction` times the log counts of the real training images, and zeros if that is None.

    Shapes: real_counts, mixed_counts float32 [K], all positive; returns float32 [K].
    """
    if METHODS[method].own_prior:
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
