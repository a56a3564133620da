"""What a method's step has at hand besides its batch, and the prototypes of SAU's label check."""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saukit.core.device import Precision
from saukit.models.dual_branch import DualBranchNet
from saukit.training.config import ResolvedTrainConfig
from saukit.training.distributed import Share, total
from saukit.training.training_set import StoredImages
from saukit.training.views import Views

# Pixels a batch of the prototypes' pass has at most: 2,048 images of 32 x 32, 41 of 224 x 224.
PROTOTYPE_PIXELS = 2**21


@dataclass(frozen=True)
class StepContext:
    """What a method's step has at hand besides its batch. A method's own hyperparameter is a field of `config`.

    `logit_offsets` are added to the logits that the classification losses see. `second_stage`: the last part of a
    method with two stages has begun. `done`: the share of the steps before this one. `metrics` takes 0-d tensors for
    the log. `share` is this process's part of the batch, None for all of it: views are of its images, while logits and
    embeddings are those of all b samples.

    Shapes: done float32 []; class_counts and logit_offsets float32 [K], the counts those of the whole training set;
        prototypes: two of [K, d], or None for a method without.
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
    done: Tensor = field(default_factory=lambda: torch.zeros(()))
    share: Share | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, images: Tensor) -> Tensor:
        """One forward pass of the classifier in autocast, plus the offsets in full precision; float32 [b, K]."""
        with self.precision.autocast():
            features = self.network.features(images)
            logits: Tensor = self.network.classifier(features)
            if self.config.as_published and self.network.projection is not None:
                with torch.no_grad():  # for BatchNorm's statistics: the authors' network computes both heads each time
                    self.network.projection(features)
        return self._of_batch(logits.float()) + self.logit_offsets

    def embeddings(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Forward passes of backbone and projection in autocast, one per view; L2-normalised float32 [b, d] each."""
        with self.precision.autocast():
            embeddings = self.network.project_views(*views)
        return tuple(map(self._of_batch, embeddings))

    def last_layer_logits(self, images: Tensor) -> Tensor:
        """As `logits`, without the offsets, and the classifier alone learns."""
        with self.precision.autocast():
            logits = self.network.frozen_logits(images)
        return self._of_batch(logits.float())

    def mixture_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs of that name for all b samples, from one forward pass in autocast."""
        with self.precision.autocast():
            outputs = self.network.mixture_outputs(images)
        return tuple(map(self._of_batch, outputs))

    def class_embeddings(self) -> Tensor:
        """One embedding per class, from the classifier's weights; L2-normalised float32 [K, d]."""
        with self.precision.autocast():
            embeddings = self.network.project_classes()
        return embeddings if self.share is None else self.share.replicated(embeddings)

    def _of_batch(self, mine: Tensor) -> Tensor:
        return mine if self.share is None else self.share.gather(mine)

    def weights(self, synthetic: Tensor, of_class: Tensor | None = None) -> Tensor | None:
        """What each image weighs in the classification losses: bool [b] to float32 [b]; `of_class` [b] are factors.

        None where all weigh 1: what such a run computes does not depend on this option's arithmetic.
        """
        weight = self.config.synthetic_weight
        if weight == 1:
            return of_class
        weights = torch.ones_like(synthetic, dtype=torch.float32).masked_fill_(synthetic, weight)
        return weights if of_class is None else weights * of_class


def class_prototypes(
    images: Tensor | StoredImages, labels: Tensor, context: StepContext, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each class the mean of z2, and of z3, over the split's real training images in eval mode, L2-normalised.

    Both views go through the network in one forward pass: in eval mode BatchNorm keeps no statistics of a batch.

    Shapes: images uint8 [n, 3, H, W], on the labels' device, in host memory or on disk; labels int64 [N] of the first N
        of them, every class at least once; returns two of [K, d].
    """
    sums: Tensor | int = 0
    # On an accelerator a large batch, or the launches of its kernels would take longer than the kernels.
    most = 256 if labels.device.type == "cpu" else 2048
    batch_size = min(most, max(1, PROTOTYPE_PIXELS // math.prod(images.shape[2:])))
    for start in range(0, len(labels), batch_size):
        end, views = min(start + batch_size, len(labels)), context.views
        mine = slice(start, end)
        if (share := Share.of(end - start)) is not None:
            mine, views = slice(start + share.rows.start, start + share.rows.stop), replace(views, share=share)
        chunk = images[mine].to(labels.device, non_blocking=True)
        both = torch.cat((views.autoaugment(chunk, generator), views.simclr(chunk, generator)))
        with context.network.inference(), context.precision.autocast():
            embeddings = context.network.project(both)
        one_hot = F.one_hot(labels[mine], len(context.class_counts)).float()
        sums = sums + one_hot.T @ embeddings.float().view(2, len(chunk), -1)
    # The mean's direction is the sum's: the count cancels in the normalisation.
    z2, z3 = F.normalize(total(torch.as_tensor(sums)), dim=2)
    return z2, z3
