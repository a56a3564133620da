"""The training methods: what a step computes, and what it needs. Another one is a function and a row of `METHODS`.

A step yields its losses one after the other and goes on only when the trainer has called `backward` on the last one,
so the activations of one forward pass are freed before the next pass makes its own. Forward passes run in autocast,
losses in float32 outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import Precision
from saukit.models.dual_branch import COSINE_SCALE, Classifier, DualBranchNet
from saukit.training.config import Method, ResolvedTrainConfig
from saukit.training.losses import (
    balanced_contrastive_loss,
    class_balanced_weights,
    cross_entropy,
    focal_loss,
    inverse_frequency_weights,
    ldam_loss,
    ldam_margins,
    mixed_cross_entropy,
    prior_offsets,
    synthetic_aware_loss,
)
from saukit.training.mixup import cutmix, draw_beta_one_one, draw_cutmix_box, mixup
from saukit.training.training_set import Batch, StoredImages
from saukit.training.views import Views

LDAM_LARGEST_MARGIN = 0.5
DEFERRED_BETA = 0.9999
FOCAL_GAMMA = 2.0
CMO_PROBABILITY = 0.5
BCL_CLASSIFICATION_WEIGHT, BCL_CONTRASTIVE_WEIGHT = 2.0, 0.6

# Pixels a batch of the prototypes' pass has at most: 2,048 images of 32 x 32, 41 of 224 x 224.
PROTOTYPE_PIXELS = 2**21

Losses = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class StepContext:
    """What a method's step has at hand besides its batch. A method's own hyperparameter is a field of `config`.

    `logit_offsets` are added to the logits that the classification losses see. `second_stage`: the last part of a
    method with two stages has begun. `metrics` takes 0-d tensors for the log.

    Shapes: class_counts and logit_offsets float32 [K], the counts those of the whole training set; prototypes: two of
        [K, d], or None for a method without.
    """

    network: DualBranchNet
    views: Views
    precision: Precision
    config: ResolvedTrainConfig
    class_counts: Tensor
    logit_offsets: Tensor
    generator: torch.Generator
    prototypes: tuple[Tensor, Tensor] | None = None
    second_stage: bool = False
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, images: Tensor) -> Tensor:
        """One forward pass of the classifier in autocast, plus the offsets in full precision; float32 [b, K]."""
        with self.precision.autocast():
            features = self.network.features(images)
            logits: Tensor = self.network.classifier(features)
            if self.config.as_published and self.network.projection is not None:
                with torch.no_grad():  # for BatchNorm's statistics: the authors' network computes both heads each time
                    self.network.projection(features)
        return logits.float() + self.logit_offsets

    def embeddings(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Forward passes of backbone and projection in autocast, one per view; L2-normalised float32 [b, d] each."""
        with self.precision.autocast():
            return self.network.project_views(*views)

    def weights(self, synthetic: Tensor, of_class: Tensor | None = None) -> Tensor | None:
        """What each image weighs in the classification losses: bool [b] to float32 [b]; `of_class` [b] are factors.

        None where all weigh 1: what such a run computes does not depend on this option's arithmetic.
        """
        weight = self.config.synthetic_weight
        if weight == 1:
            return of_class
        weights = torch.ones_like(synthetic, dtype=torch.float32).masked_fill_(synthetic, weight)
        return weights if of_class is None else weights * of_class


def cross_entropy_step(batch: Batch, context: StepContext) -> Losses:
    """Cross-entropy on v1(A)."""
    yield "ce", _cross_entropy(context.views.crop_flip(batch.images, context.generator), batch, context)


def balanced_softmax_step(batch: Batch, context: StepContext) -> Losses:
    """Balanced softmax (Ren et al. 2020) on v1(A): cross-entropy whose offsets count the whole training set."""
    yield "balanced_softmax", _cross_entropy(context.views.crop_flip(batch.images, context.generator), batch, context)


def _cross_entropy(view: Tensor, batch: Batch, context: StepContext, of_class: Tensor | None = None) -> Tensor:
    weights = context.weights(batch.synthetic, None if of_class is None else of_class[batch.labels])
    return cross_entropy(context.logits(view), batch.labels, weights=weights, smoothing=context.config.label_smoothing)


def class_weights_step(batch: Batch, context: StepContext) -> Losses:
    """Cross-entropy on v1(A) with class weights 1 / n_k, n_k of the whole training set (scikit-learn's "balanced")."""
    view = context.views.crop_flip(batch.images, context.generator)
    yield "ce", _cross_entropy(view, batch, context, inverse_frequency_weights(context.class_counts))


def focal_step(batch: Batch, context: StepContext) -> Losses:
    """Focal loss (Lin et al. 2017) on v1(A), gamma 2."""
    logits = context.logits(context.views.crop_flip(batch.images, context.generator))
    yield "focal", focal_loss(logits, batch.labels, gamma=FOCAL_GAMMA, weights=context.weights(batch.synthetic))


def ldam_drw_step(batch: Batch, context: StepContext) -> Losses:
    """LDAM on v1(A), in the second stage with deferred re-weighting (Cao et al. 2019, Algorithm 1)."""
    logits = context.logits(context.views.crop_flip(batch.images, context.generator))
    of_class = class_balanced_weights(context.class_counts, beta=DEFERRED_BETA) if context.second_stage else None
    weights = context.weights(batch.synthetic, None if of_class is None else of_class[batch.labels])
    margins = ldam_margins(context.class_counts, largest=LDAM_LARGEST_MARGIN)
    yield "ldam", ldam_loss(logits, batch.labels, margins, scale=COSINE_SCALE, weights=weights)


def crt_step(batch: Batch, context: StepContext) -> Losses:
    """Classifier re-training (Kang et al. 2020, Sec. 4.1): cross-entropy, then a new classifier on frozen features.

    In the second stage batches are class-balanced, and backbone and BatchNorm's statistics stay as they are.
    """
    if not context.second_stage:
        yield from cross_entropy_step(batch, context)
    else:
        yield "crt", _last_layer_cross_entropy(batch, context)


def synaug_step(batch: Batch, context: StepContext) -> Losses:
    """SYNAuG (Ye-Bin et al. 2023): mixup of v1(A) and v1(B), then the last layer alone, fine-tuned on real images.

    In the second stage batches are class-balanced and real, and backbone and BatchNorm's statistics stay as they are.
    """
    if context.second_stage:
        yield "last_layer", _last_layer_cross_entropy(batch, context)
        return
    first, second, lam = _mixed_views(batch, context)
    yield "mixup", _mixed_loss(mixup(first, second, lam), batch, context, lam)


def _last_layer_cross_entropy(batch: Batch, context: StepContext) -> Tensor:
    view = context.views.crop_flip(batch.images, context.generator)
    with context.precision.autocast():
        logits = context.network.frozen_logits(view)
    weights, smoothing = context.weights(batch.synthetic), context.config.label_smoothing
    return cross_entropy(logits.float(), batch.labels, weights=weights, smoothing=smoothing)


def bcl_step(batch: Batch, context: StepContext) -> Losses:
    """Balanced contrastive learning (Zhu et al. 2022): 2 L_LC + 0.6 L_BCL.

    L_LC is cross-entropy with logit compensation, balanced softmax, on v2(A); L_BCL contrasts two views v3 of A and a
    prototype per class, made from the classifier's weights. Not as the authors have it: the two weights (their code for
    ImageNet-LT has 1 and 0.35), the linear classifier, and the projection, which is SAU's, so that backbones compare.
    """
    views, generator = context.views, context.generator
    loss = _cross_entropy(views.autoaugment(batch.images, generator), batch, context)
    yield "balanced_softmax", BCL_CLASSIFICATION_WEIGHT * loss

    z1, z2 = context.embeddings(views.simclr(batch.images, generator), views.simclr(batch.images, generator))
    with context.precision.autocast():
        prototypes = context.network.project_classes()
    labels, temperature = torch.cat((batch.labels, batch.labels)), context.config.temperature
    loss = balanced_contrastive_loss(torch.cat((z1, z2)), labels, prototypes, temperature=temperature)
    yield "contrastive", BCL_CONTRASTIVE_WEIGHT * loss


def mixup_cutmix_step(batch: Batch, context: StepContext) -> Losses:
    """Mixup and CutMix of v1(A) and v1(B): SAU's synthetic-unaware branch, L_mix.

    How images are mixed does not depend on which are synthetic; what their labels weigh may.
    """
    first, second, lam = _mixed_views(batch, context)
    yield "mixup", _mixed_loss(mixup(first, second, lam), batch, context, lam)

    if context.config.as_published:
        lam = draw_beta_one_one(device=lam.device, generator=context.generator)
    # The box is clipped at the image's edge, so its label weight is what is left of it, not lam.
    box, kept_share = draw_cutmix_box(first.shape[2], first.shape[3], lam, generator=context.generator)
    yield "cutmix", _mixed_loss(cutmix(first, second, box), batch, context, kept_share)


def cmo_step(batch: Batch, context: StepContext) -> Losses:
    """CMO (Park et al. 2022, Algorithm 1): in every second step, by chance, CutMix of B, the tail, onto A.

    Each class is as likely in B, as their code has it: its sampler weighs an image of class k with 1 / n_k. Cross
    entropy alone in the second stage, which is the first 4 and the last 3 of their 200 epochs. Not as the authors have
    it: boxes may have odd sides.
    """
    if context.second_stage:
        yield from cross_entropy_step(batch, context)
        return
    background, foreground, lam = _mixed_views(batch, context)
    generator = context.generator
    box, kept_share = draw_cutmix_box(background.shape[2], background.shape[3], lam, generator=generator)
    pastes = torch.rand((), device=lam.device, generator=generator) < CMO_PROBABILITY
    images = torch.where(pastes, cutmix(background, foreground, box), background)
    yield "cmo", _mixed_loss(images, batch, context, torch.where(pastes, kept_share, 1.0))


def _mixed_views(batch: Batch, context: StepContext) -> tuple[Tensor, Tensor, Tensor]:
    generator = context.generator
    first = context.views.crop_flip(batch.images, generator)
    second = context.views.crop_flip(batch.partner_images, generator)
    return first, second, draw_beta_one_one(device=first.device, generator=generator)


def _mixed_loss(images: Tensor, batch: Batch, context: StepContext, lam: Tensor) -> Tensor:
    first, second = context.weights(batch.synthetic), context.weights(batch.partner_synthetic)
    return mixed_cross_entropy(
        context.logits(images),
        batch.labels,
        batch.partner_labels,
        lam,
        weights=None if first is None or second is None else (first, second),
        smoothing=context.config.label_smoothing,
    )


def sau_step(batch: Batch, context: StepContext) -> Losses:
    """SAU: L = L_mix + L_SC (Li, Song and Zheng 2024). L_mix ignores which images are synthetic, L_SC checks them."""
    yield from mixup_cutmix_step(batch, context)
    yield from _synthetic_aware_branch(batch, context)


def sau_aware_step(batch: Batch, context: StepContext) -> Losses:
    """SAU without its synthetic-unaware branch: cross-entropy on v1(A) instead of L_mix, to train the classifier."""
    yield from cross_entropy_step(batch, context)
    yield from _synthetic_aware_branch(batch, context)


def _synthetic_aware_branch(batch: Batch, context: StepContext) -> Losses:
    views, generator, config = context.views, context.generator, context.config
    if context.prototypes is None:
        raise RuntimeError("SAU needs prototypes")
    z2, z3 = context.embeddings(views.autoaugment(batch.images, generator), views.simclr(batch.images, generator))
    loss, trusted = synthetic_aware_loss(
        z2,
        z3,
        batch.labels,
        batch.synthetic,
        *context.prototypes,
        temperature=config.temperature,
        strategy=config.noise,
    )
    context.metrics["synthetic_images"] = batch.synthetic.sum()
    context.metrics["trusted_images"] = (trusted & batch.synthetic).sum()
    yield "contrastive", loss


@dataclass(frozen=True)
class SecondStage:
    """The last `share` of a method's steps, and the first `also_first`.

    `restarts`: with a new classifier, momentum and learning-rate schedule. `real_only`: without synthetic images.
    """

    share: float = 0.2
    also_first: float = 0.0
    class_balanced: bool = False
    real_only: bool = False
    restarts: bool = False


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table of methods: its step, and what that asks of network, batches and schedule.

    `classifier_passes` and `projection_passes` are how often a batch goes forward and backward through the network and
    ends in the classifier, or in the projection. `prototypes` are means of real images (`class_prototypes`).
    `partners`: the step reads batch B; `balanced_partners`: that is class-balanced, A is not. `takes_prior` and
    `takes_real_finish`: the method has no remedy of its own for the imbalance that would count the training set.
    `own_prior`: the losses see log counts of that set; `post_hoc`: the trained classifier has them taken off (Menon et
    al. 2021, Eq. 9). `counts_classes`: its remedy counts that set, and does nothing where all classes have one size.
    """

    step: Callable[[Batch, StepContext], Losses]
    classifier_passes: int = 1
    projection_passes: int = 0
    partners: bool = False
    prototypes: bool = False
    class_projection: bool = False
    classifier: Classifier = "linear"
    own_prior: bool = False
    takes_prior: bool = False
    takes_real_finish: bool = False
    takes_smoothing: bool = True
    counts_classes: bool = False
    post_hoc: bool = False
    class_balanced: bool = False
    balanced_partners: bool = False
    pastes: bool = False
    second_stage: SecondStage | None = None

    @property
    def projection(self) -> bool:
        """Whether the network needs a projection."""
        return self.projection_passes > 0

    @property
    def views_per_step(self) -> int:
        """Images that go through the backbone for each image of a batch."""
        return self.classifier_passes + self.projection_passes

    @property
    def takes_cosine(self) -> bool:
        """Whether its classifier may be a cosine classifier, which has no bias to take log counts off."""
        return not self.post_hoc

    @property
    def takes_features(self) -> bool:
        """Whether it trains on features of a frozen backbone: one view of an image, without boxes of pixels."""
        return self.views_per_step == 1 and not self.pastes


METHODS: dict[Method, MethodEntry] = {
    "sau": MethodEntry(
        sau_step,
        classifier_passes=2,
        projection_passes=2,
        partners=True,
        prototypes=True,
        takes_prior=True,
        takes_real_finish=True,
    ),
    "sau-aware": MethodEntry(
        sau_aware_step, projection_passes=2, prototypes=True, takes_prior=True, takes_real_finish=True
    ),
    "mixup-cutmix": MethodEntry(
        mixup_cutmix_step, classifier_passes=2, partners=True, takes_prior=True, takes_real_finish=True
    ),
    "ce": MethodEntry(cross_entropy_step, takes_prior=True, takes_real_finish=True),
    "focal": MethodEntry(focal_step, takes_prior=True, takes_real_finish=True, takes_smoothing=False),
    "class-weights": MethodEntry(class_weights_step, takes_real_finish=True, counts_classes=True),
    "class-balanced": MethodEntry(cross_entropy_step, class_balanced=True, takes_real_finish=True),
    "balanced-softmax": MethodEntry(balanced_softmax_step, own_prior=True, counts_classes=True),
    "logit-adjustment": MethodEntry(cross_entropy_step, post_hoc=True, counts_classes=True),
    # The second stages' share is that of the authors' CIFAR schedule, 40 of 200 epochs, and for cRT the same.
    "ldam-drw": MethodEntry(ldam_drw_step, classifier="cosine", takes_smoothing=False, second_stage=SecondStage()),
    "crt": MethodEntry(crt_step, second_stage=SecondStage(class_balanced=True, restarts=True)),
    "cmo": MethodEntry(
        cmo_step,
        partners=True,
        balanced_partners=True,
        pastes=True,
        second_stage=SecondStage(3 / 200, also_first=4 / 200),
    ),
    "synaug": MethodEntry(synaug_step, partners=True, second_stage=SecondStage(class_balanced=True, real_only=True)),
    "bcl": MethodEntry(bcl_step, projection_passes=2, class_projection=True, own_prior=True),
}


def logit_offsets(
    method: MethodEntry, prior_correction: float | None, *, real_counts: Tensor, all_counts: Tensor
) -> Tensor:
    """What a run's classification losses add to the logits.

    A method with a prior of its own: the log counts of the whole training set, each image one whatever it weighs. The
    others: `prior_correction` times the log counts of the real training images, and zeros if that is None.

    Shapes: real_counts, all_counts float32 [K], all positive; returns float32 [K].
    """
    if method.own_prior:
        return prior_offsets(all_counts, 1.0)
    return prior_offsets(real_counts, prior_correction or 0.0)


def class_prototypes(
    images: Tensor | StoredImages, labels: Tensor, context: StepContext, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each class the mean of z2, and of z3, over the split's real training images in eval mode, L2-normalised.

    Both views go through the network in one forward pass: in eval mode BatchNorm keeps no statistics of a batch.

    Shapes: images uint8 [n, 3, H, W], on the labels' device, in host memory or on disk; labels int64 [N] of the first N
        of them, every class at least once; returns two of [K, d].
    """
    total: Tensor | int = 0
    # On an accelerator a large batch, or the launches of its kernels would take longer than the kernels.
    batch_size = min(2048 if labels.is_cuda else 256, max(1, PROTOTYPE_PIXELS // math.prod(images.shape[2:])))
    for start in range(0, len(labels), batch_size):
        chunk = images[start : min(start + batch_size, len(labels))].to(labels.device, non_blocking=True)
        both = torch.cat((context.views.autoaugment(chunk, generator), context.views.simclr(chunk, generator)))
        with context.network.inference(), context.precision.autocast():
            embeddings = context.network.project(both)
        one_hot = F.one_hot(labels[start : start + batch_size], len(context.class_counts)).float()
        total = total + one_hot.T @ embeddings.float().view(2, len(chunk), -1)
    # The mean's direction is the sum's: the count cancels in the normalisation.
    z2, z3 = F.normalize(torch.as_tensor(total), dim=2)
    return z2, z3
