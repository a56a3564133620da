"""The training methods: what a step computes, and what it needs. Another one is a function and a row of `METHODS`.

A step yields its losses one after the other and goes on only when the trainer has called `backward` on the last one,
so the activations of one forward pass are freed before the next pass makes its own. Forward passes run in autocast,
losses in float32 outside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saukit.models.dual_branch import COSINE_SCALE, Classifier
from saukit.training.config import Method
from saukit.training.context import StepContext
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
from saukit.training.training_set import Batch

LDAM_LARGEST_MARGIN = 0.5
DEFERRED_BETA = 0.9999
FOCAL_GAMMA = 2.0
CMO_PROBABILITY = 0.5
GLMC_LABEL_POWER, GLMC_CONSISTENCY_WEIGHT = 1.2, 4.0
BCL_CLASSIFICATION_WEIGHT, BCL_CONTRASTIVE_WEIGHT = 2.0, 0.6

Losses = Iterator[tuple[str, Tensor]]


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
    yield "mixup", _mixed_loss(context.logits(mixup(first, second, lam)), batch, context, lam)


def _last_layer_cross_entropy(batch: Batch, context: StepContext) -> Tensor:
    view = context.views.crop_flip(batch.images, context.generator)
    logits = context.last_layer_logits(view)
    weights, smoothing = context.weights(batch.synthetic), context.config.label_smoothing
    return cross_entropy(logits, batch.labels, weights=weights, smoothing=smoothing)


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
    prototypes = context.class_embeddings()
    labels, temperature = torch.cat((batch.labels, batch.labels)), context.config.temperature
    loss = balanced_contrastive_loss(torch.cat((z1, z2)), labels, prototypes, temperature=temperature)
    yield "contrastive", BCL_CONTRASTIVE_WEIGHT * loss


def mixup_cutmix_step(batch: Batch, context: StepContext) -> Losses:
    """Mixup and CutMix of v1(A) and v1(B): SAU's synthetic-unaware branch, L_mix.

    How images are mixed does not depend on which are synthetic; what their labels weigh may.
    """
    first, second, lam = _mixed_views(batch, context)
    yield "mixup", _mixed_loss(context.logits(mixup(first, second, lam)), batch, context, lam)

    if context.config.as_published:
        lam = draw_beta_one_one(device=lam.device, generator=context.generator)
    # The box is clipped at the image's edge, so its label weight is what is left of it, not lam.
    box, kept_share = draw_cutmix_box(first.shape[2], first.shape[3], lam, generator=context.generator)
    yield "cutmix", _mixed_loss(context.logits(cutmix(first, second, box)), batch, context, kept_share)


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
    yield "cmo", _mixed_loss(context.logits(images), batch, context, torch.where(pastes, kept_share, 1.0))


def glmc_step(batch: Batch, context: StepContext) -> Losses:
    """GLMC (Du et al. 2023): a mixup and a CutMix of A with B should look alike, and rare classes count more and more.

    Of the mixup (g) and the CutMix (l), each of views of its own and with one lam: h is a projection, u a prediction
    from it of the other's, sg stops the gradient. L_c is the cross-entropy of a classifier that is for training alone,
    L_cb that of the one that predicts, its labels weighed by w_k = n_k^-1.2 (mean 1); T is the share of steps done.

        L_sim = -cos(u_g, sg(h_l)) - cos(u_l, sg(h_g))
        L = (1 - T^2) (L_c(g) + L_c(l)) + T^2 (L_cb(g) + L_cb(l)) + 4 L_sim

    The exponent, the weight 4 and a uniform B are those of their commands for CIFAR. Not as the authors have it:
    CutMix's label counts the pixels that were pasted, and T moves with every step, not every epoch.
    """
    views, generator = context.views, context.generator
    first, second, lam = _mixed_views(batch, context)
    mixed = mixup(first, second, lam)
    first, second = (views.crop_flip(images, generator) for images in (batch.images, batch.partner_images))
    box, kept_share = draw_cutmix_box(first.shape[2], first.shape[3], lam, generator=generator)
    of_mixup = context.mixture_outputs(mixed)
    of_cutmix = context.mixture_outputs(cutmix(first, second, box))
    late = context.done**2
    of_class = inverse_frequency_weights(context.class_counts, power=GLMC_LABEL_POWER)
    loss = torch.zeros_like(late)
    for (plain, own, _, predicted), other, share in ((of_mixup, of_cutmix, lam), (of_cutmix, of_mixup, kept_share)):
        # The weighted mean times the mean weight: their mean over the batch.
        weight = (share * of_class[batch.labels] + (1 - share) * of_class[batch.partner_labels]).mean()
        rebalanced = weight * _mixed_loss(own, batch, context, share, of_class)
        loss = loss + (1 - late) * _mixed_loss(plain, batch, context, share) + late * rebalanced
        loss = loss - GLMC_CONSISTENCY_WEIGHT * (predicted * other[2].detach()).sum(dim=1).mean()
    yield "glmc", loss


def _mixed_views(batch: Batch, context: StepContext) -> tuple[Tensor, Tensor, Tensor]:
    generator = context.generator
    first = context.views.crop_flip(batch.images, generator)
    second = context.views.crop_flip(batch.partner_images, generator)
    return first, second, draw_beta_one_one(device=first.device, generator=generator)


def _mixed_loss(
    logits: Tensor, batch: Batch, context: StepContext, lam: Tensor, of_class: Tensor | None = None
) -> Tensor:
    sides = (batch.synthetic, batch.labels), (batch.partner_synthetic, batch.partner_labels)
    first, second = (context.weights(s, None if of_class is None else of_class[labels]) for s, labels in sides)
    return mixed_cross_entropy(
        logits,
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
    assert context.prototypes is not None
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
    checked = batch.synthetic & context.prototypes[0].any()
    context.metrics["synthetic_images"] = checked.sum()
    context.metrics["trusted_images"] = (trusted & checked).sum()
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
    `consistency`: it needs GLMC's heads. `partners`: the step reads batch B; `balanced_partners`: that is
    class-balanced, A is not. `takes_prior` and `takes_real_finish`: the method has no remedy of its own for the
    imbalance that would count the training set. `own_prior`: the losses see log counts of that set; `post_hoc`: the
    trained classifier has them taken off (Menon et al. 2021, Eq. 9). `counts_classes`: its remedy counts that set, and
    does nothing where all classes have one size.
    """

    step: Callable[[Batch, StepContext], Losses]
    classifier_passes: int = 1
    projection_passes: int = 0
    partners: bool = False
    prototypes: bool = False
    class_projection: bool = False
    consistency: bool = False
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


NO_REMEDY: dict[str, Any] = {"takes_prior": True, "takes_real_finish": True}  # of its own
METHODS: dict[Method, MethodEntry] = {
    "sau": MethodEntry(sau_step, classifier_passes=2, projection_passes=2, partners=True, prototypes=True, **NO_REMEDY),
    "sau-aware": MethodEntry(sau_aware_step, projection_passes=2, prototypes=True, **NO_REMEDY),
    "mixup-cutmix": MethodEntry(mixup_cutmix_step, classifier_passes=2, partners=True, **NO_REMEDY),
    "ce": MethodEntry(cross_entropy_step, **NO_REMEDY),
    "focal": MethodEntry(focal_step, takes_smoothing=False, **NO_REMEDY),
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
    "glmc": MethodEntry(glmc_step, classifier_passes=2, partners=True, consistency=True),
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
