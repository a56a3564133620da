"""Losses of long-tailed training and of the SAU method, in full precision whatever autocast says.

float16 and bfloat16 inputs are computed in float32, float32 and float64 as they are. Everything is masks on static
shapes: nothing here makes the host wait for the device.

Shapes: b samples, K classes (one prototype each), d embedding dimensions, n = 2 (b + K) embeddings.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import widest

NoiseStrategy = Literal["pos_neg", "neg_only", "drop"]
NOISE_STRATEGIES: tuple[NoiseStrategy, ...] = ("pos_neg", "neg_only", "drop")


def cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the batch; with weights sum_i w_i CE_i / sum_i w_i, as torch does with class weights.

    Over the sum of the weights and not over b: a weight then says how much one image counts beside another, and not
    also how large the step is, which would follow from how many images of little weight a batch happens to have.
    `smoothing` is label smoothing's share of the uniform distribution in the target (Szegedy et al. 2016, Sec. 7).

    Shapes: logits [b, K]; labels int64 [b]; weights [b], positive; returns [].
    Raises: ValueError if b differs.
    """
    _check_per_sample(logits, labels=labels, weights=weights)
    scores = _full_precision(logits)
    if weights is None:
        return F.cross_entropy(scores, labels, label_smoothing=smoothing)
    losses = F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)
    return (weights * losses).sum() / weights.sum()


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss (Lin et al. 2017, Eq. 4) of the softmax: mean of (1 - p)^gamma CE, p the true class's probability.

    Shapes: as `cross_entropy`, and its weighted mean. Raises: ValueError if b differs.
    """
    _check_per_sample(logits, labels=labels, weights=weights)
    losses = F.cross_entropy(_full_precision(logits), labels, reduction="none")
    losses = (-torch.expm1(-losses)) ** gamma * losses
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def mixed_cross_entropy(
    logits: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor | float,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of a mixed batch, lam CE(y_a) + (1 - lam) CE(y_b): the soft form without one-hot targets.

    Mixup: Zhang et al. 2018, Section 2; CutMix: Yun et al. 2019, Eq. 1. With weights (w_a, w_b) each term has that of
    the image whose label it is:

        sum_i (lam w_ai CE(y_ai) + (1 - lam) w_bi CE(y_bi)) / sum_i (lam w_ai + (1 - lam) w_bi)

    `smoothing` as in `cross_entropy`.

    Shapes: logits [b, K]; labels_a, labels_b int64 [b]; lam a number or a tensor [] or [b]; weights two of [b],
        positive; returns [].
    Raises: ValueError if b differs.
    """
    _check_per_sample(logits, labels=labels_a)
    _check_per_sample(logits, labels=labels_b)
    log_probabilities = F.log_softmax(_full_precision(logits), dim=1)
    term_a = F.nll_loss(log_probabilities, labels_a, reduction="none")
    term_b = F.nll_loss(log_probabilities, labels_b, reduction="none")
    if smoothing:
        uniform = -log_probabilities.mean(dim=1)
        term_a, term_b = ((1 - smoothing) * term + smoothing * uniform for term in (term_a, term_b))
    if weights is None:
        return (lam * term_a + (1 - lam) * term_b).mean()
    _check_per_sample(logits, weights=weights[0])
    _check_per_sample(logits, weights=weights[1])
    share_a, share_b = lam * weights[0], (1 - lam) * weights[1]
    return (share_a * term_a + share_b * term_b).sum() / (share_a + share_b).sum()


def prior_offsets(class_counts: Tensor, tau: float) -> Tensor:
    """What logit adjustment adds to the logits that a loss sees: tau log n_k (Menon et al. 2021, Eq. 10).

    Counts serve as well as shares, since softmax ignores what all classes have in common. Cross-entropy with tau = 1
    and the counts of the training set is balanced softmax (Ren et al. 2020, Eq. 4); tau = 0 adds nothing.

    Shapes: class_counts [K], all positive; returns [K], float32 if the counts are whole numbers.
    """
    return tau * class_counts.log()


def class_balanced_weights(class_counts: Tensor, *, beta: float) -> Tensor:
    """Class weights by the effective number of images, (1 - beta) / (1 - beta^n_k) (Cui et al. 2019), mean 1.

    Shapes: class_counts [K], all positive; beta in [0, 1); returns float32 [K].
    """
    # 1 - beta^n by expm1 and in double precision: as written it would lose the digits that tell classes apart.
    weights = (
        (1 - beta) / -torch.expm1(class_counts.to(widest(class_counts.device)) * math.log(beta))
        if beta
        else torch.ones_like(class_counts)
    )
    return (weights / weights.mean()).float()


def inverse_frequency_weights(class_counts: Tensor, *, power: float = 1.0) -> Tensor:
    """Class weights 1 / n_k^power, mean 1. Shapes: class_counts float32 [K], all positive; returns [K]."""
    weights = class_counts**-power
    return weights / weights.mean()


def ldam_margins(class_counts: Tensor, *, largest: float) -> Tensor:
    """Label-distribution-aware margins C / n_k^(1/4) (Cao et al. 2019, Sec. 3.2); the rarest class has `largest`.

    Shapes: class_counts [K], all positive; returns [K].
    """
    margins = class_counts**-0.25
    return margins * (largest / margins.max())


def ldam_loss(
    logits: Tensor, labels: Tensor, margins: Tensor, *, scale: float, weights: Tensor | None = None
) -> Tensor:
    """LDAM loss (Cao et al. 2019, Sec. 3.2): cross-entropy with the true class's cosine lowered by its margin.

    Shapes: logits [b, K], scale times cosines; labels int64 [b]; margins [K], in units of the cosine; weights [b],
        positive; returns [].
    Raises: ValueError if b differs.
    """
    _check_per_sample(logits, labels=labels)
    is_true_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    lowered = _full_precision(logits) - scale * (is_true_class * margins)
    return cross_entropy(lowered, labels, weights=weights)


def balanced_contrastive_loss(z: Tensor, labels: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    """Balanced contrastive loss (Zhu et al. 2022): class-averaging and class-complement.

    As supervised contrastive learning, but each class enters the denominator with the mean of its terms instead of
    their sum, and every class is there, because its prototype is one more sample of it. Prototypes are no anchors.

        L_i = -1 / |P_i| sum_{p in P_i} log( exp(z_i z_p / t) / sum_k 1 / |S_ik| sum_{j in S_ik} exp(z_i z_j / t) )

    with S_ik the samples and the prototype of class k without i itself, and P_i those of i's own class.

    Shapes: z [n, d], L2-normalised; labels int64 [n]; prototypes [K, d], L2-normalised, row k for class k; returns [].
    Raises: ValueError if n or d differ.
    """
    if labels.shape != z.shape[:1] or prototypes.shape[1:] != z.shape[1:]:
        raise ValueError(
            f"labels must be [n] = [{z.shape[0]}] and prototypes [K, d] with d = {z.shape[1]}, "
            f"got {list(labels.shape)} and {list(prototypes.shape)}"
        )
    n, classes = len(z), len(prototypes)
    with torch.autocast(z.device.type, enabled=False):
        z, prototypes = _full_precision(z), _full_precision(prototypes)
        similarity = z @ torch.cat((z, prototypes)).T / temperature
        every_label = torch.cat((labels, _class_labels(prototypes)))
        others = ~torch.eye(n, n + classes, dtype=torch.bool, device=z.device)
        positives = others & (labels[:, None] == every_label)
        # log sum_j exp(s_ij - log |S_i,y_j|): each class's mean. A sample is not among those of its own class.
        sizes = (every_label[:, None] == every_label).sum(dim=0) - positives.long()
        scores = (similarity - sizes.clamp(min=1).to(similarity).log()).masked_fill(
            ~others, torch.finfo(similarity.dtype).min
        )
        log_denominator = scores.logsumexp(dim=1)
        positive_mean = similarity.masked_fill(~positives, 0).sum(dim=1) / positives.sum(dim=1)
        return (log_denominator - positive_mean).mean()


@torch.no_grad()
def label_check(
    z2: Tensor, z3: Tensor, labels: Tensor, synthetic: Tensor, prototypes2: Tensor, prototypes3: Tensor
) -> Tensor:
    """Which labels to trust (SAU, arXiv 2408.16273): a synthetic label must be its nearest real neighbour's, twice.

    In each of the two views a synthetic sample's nearest neighbour by cosine is sought among the batch's real samples
    and the prototypes. The sample is trusted only if both neighbours carry its own label. Real samples are trusted.

    Shapes: z2, z3 [b, d], L2-normalised; labels int64 [b]; synthetic bool [b]; prototypes2, prototypes3 [K, d],
        L2-normalised, row k for class k; returns bool [b].
    Raises: ValueError if b, K or d differ.
    """
    _check_branch_shapes(z2, z3, labels, synthetic, prototypes2, prototypes3)
    agree2 = _nearest_real_label(z2, labels, synthetic, prototypes2) == labels
    agree3 = _nearest_real_label(z3, labels, synthetic, prototypes3) == labels
    return ~synthetic | (agree2 & agree3)


def _nearest_real_label(z: Tensor, labels: Tensor, synthetic: Tensor, prototypes: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        z = _full_precision(z)
        candidates = torch.cat((z, prototypes.to(z)))
        similarity = z @ candidates.T
    candidate_labels = torch.cat((labels, _class_labels(prototypes)))
    is_real = torch.cat((~synthetic, synthetic.new_ones(len(prototypes))))
    return candidate_labels[similarity.masked_fill(~is_real, -torch.inf).argmax(dim=1)]


def supervised_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    anchors: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, Eq. 2), mean over the anchors that have a positive.

        L = mean_i -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / t) / sum_{a in A(i)} exp(z_i z_a / t) )

    A(i) is every other embedding, P(i) those of them with i's label. An anchor without positives contributes nothing
    and is not counted; without any anchor the loss is 0, and so is its gradient.

    Shapes: embeddings [n, d], L2-normalised; labels int64 [n]; returns [].
        anchors bool [n]: rows that may be anchors (all of them by default).
        present bool [n]: rows that exist; the others are neither anchor nor positive nor negative.
    Raises: ValueError if n differs.
    """
    n = len(embeddings)
    for name, tensor in (("labels", labels), ("anchors", anchors), ("present", present)):
        if tensor is not None and tensor.shape != (n,):
            raise ValueError(f"{name} must be [n] = [{n}], got {list(tensor.shape)}")
    every_row = torch.ones(n, dtype=torch.bool, device=embeddings.device)
    present = every_row if present is None else present
    anchors = present if anchors is None else anchors & present

    with torch.autocast(embeddings.device.type, enabled=False):
        z = _full_precision(embeddings)
        similarity = z @ z.T / temperature
        others = ~torch.eye(n, dtype=torch.bool, device=z.device) & present
        positives = others & (labels[:, None] == labels)
        # The lowest finite number, not -inf: a row without others must not make NaN, not even in the gradient.
        log_denominator = similarity.masked_fill(~others, torch.finfo(z.dtype).min).logsumexp(dim=1)
        positive_count = positives.sum(dim=1)
        positive_mean = similarity.masked_fill(~positives, 0).sum(dim=1) / positive_count.clamp(min=1)
        counted = anchors & (positive_count > 0)
        per_anchor = (log_denominator - positive_mean).masked_fill(~counted, 0)
        return per_anchor.sum() / counted.sum().clamp(min=1)


def synthetic_aware_loss(
    z2: Tensor,
    z3: Tensor,
    labels: Tensor,
    synthetic: Tensor,
    prototypes2: Tensor,
    prototypes3: Tensor,
    *,
    temperature: float,
    strategy: NoiseStrategy,
) -> tuple[Tensor, Tensor]:
    """The loss of SAU's synthetic-aware branch: label check, then the contrastive loss over 2 (b + K) embeddings.

    Both views of the batch and of the prototypes are contrasted together; a prototype is one more real sample of its
    class, without gradient. Prototypes of zeros are not there yet: they are left out, and every label is trusted. A
    synthetic sample whose label fails `label_check` is noise, and the strategy says what becomes of it:

        pos_neg   it gets a label of its own: only its other view is its positive, it stays a negative of the others
        neg_only  it stays a negative of the others, but is nobody's positive and no anchor
        drop      it leaves the loss

    Shapes: z2, z3 [b, d], L2-normalised; labels int64 [b]; synthetic bool [b]; prototypes2, prototypes3 [K, d],
        L2-normalised, row k for class k; returns the loss [] and the trusted samples bool [b].
    Raises: ValueError if b, K or d differ.
    """
    begun = prototypes2.any()
    trusted = label_check(z2, z3, labels, synthetic, prototypes2, prototypes3) | ~begun
    with torch.autocast(z2.device.type, enabled=False):
        z2, z3 = _full_precision(z2), _full_precision(z3)
        embeddings = torch.cat((z2, prototypes2.detach().to(z2), z3, prototypes3.detach().to(z3)))
    batch, classes = len(labels), len(prototypes2)
    own_label = classes + torch.arange(batch, device=labels.device)
    view_labels = torch.cat((torch.where(trusted, labels, own_label), _class_labels(prototypes2)))
    present = torch.cat((torch.ones_like(trusted), begun.expand(classes)))
    both_trusted = torch.cat((trusted, begun.expand(classes))).repeat(2)
    loss = supervised_contrastive_loss(
        embeddings,
        torch.cat((view_labels, view_labels)),
        temperature=temperature,
        anchors=both_trusted if strategy == "neg_only" else None,
        present=both_trusted if strategy == "drop" else present.repeat(2),
    )
    return loss, trusted


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _class_labels(prototypes: Tensor) -> Tensor:
    return torch.arange(len(prototypes), device=prototypes.device)


def _check_per_sample(logits: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != logits.shape[:1]:
            raise ValueError(f"{name} must be [b] = [{logits.shape[0]}], got {list(tensor.shape)}")


def _check_branch_shapes(
    z2: Tensor, z3: Tensor, labels: Tensor, synthetic: Tensor, prototypes2: Tensor, prototypes3: Tensor
) -> None:
    batch, dimensions = z2.shape
    expected = {
        "z3": (z3, (batch, dimensions)),
        "labels": (labels, (batch,)),
        "synthetic": (synthetic, (batch,)),
        "prototypes2": (prototypes2, (len(prototypes2), dimensions)),
        "prototypes3": (prototypes3, (len(prototypes2), dimensions)),
    }
    problems = [
        f"{name} must be {list(shape)}, got {list(tensor.shape)}"
        for name, (tensor, shape) in expected.items()
        if tensor.shape != shape
    ]
    if problems:
        raise ValueError("; ".join(problems))
