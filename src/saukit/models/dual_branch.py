"""The dual-branch network of SAU (Li, Song and Zheng, ICONIP 2024): one backbone, a classifier and a projection.

The other methods train the same network with fewer, or other, heads.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saukit.models.backbones import BACKBONES, build_backbone

PROJECTION_HIDDEN = 2048
PROJECTION_DIM = 128
COSINE_SCALE = 30.0  # LDAM-DRW's
CENTRE = 0.875  # share of the side that the second crop keeps; timm's own evaluation keeps as much

Classifier = Literal["linear", "cosine"]
Crops = Literal[1, 2, 4]


class CosineClassifier(nn.Linear):
    """Logits are scaled cosines, 30 cos(x, w_k), as LDAM's margins ask for (Cao et al. 2019)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def start_from_means(self, features: Tensor, labels: Tensor) -> None:
        """Take the direction of each class's mean feature as its weights, as LIFT does (Shi et al. 2024).

        Before its first step it is the classifier of the nearest class mean by cosine.
        Shapes: features float32 [n, d]; labels int64 [n], every class at least once.
        """
        sums = torch.zeros_like(self.weight).index_add_(0, labels, features)
        with torch.no_grad():
            self.weight.copy_(F.normalize(sums, dim=1))  # the mean's direction is the sum's

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] -> [b, K]."""
        return COSINE_SCALE * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Standardize(nn.Module):
    """(x - mean) / std of features, with figures that are set once and do not learn."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("std", torch.ones(feature_dim))

    mean: Tensor
    std: Tensor

    def fit(self, features: Tensor) -> None:
        """Take mean and standard deviation from features float32 [n, d]; a feature that never varies keeps 1."""
        self.mean.copy_(features.mean(0))
        std = features.std(0, correction=0)
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] -> [b, d]."""
        return (x - self.mean) / self.std


class DualBranchNet(nn.Module):
    """A classifier for the synthetic-unaware branch and a projection for the synthetic-aware one.

    Inference uses the classifier alone; a method without a contrastive loss has no projection. `class_projection`
    turns the classifier's weights into one embedding a class, for balanced contrastive learning. `consistency` adds
    GLMC's heads that predict nothing: another classifier, a projection and a prediction from it. `standardize` puts
    a standardisation of the features before the heads, for a backbone that does not learn. `crops`: the features are
    the mean over so many views of an image, 1: the image, 2: its centre too, 4: both mirrored too.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        projection: bool,
        class_projection: bool = False,
        consistency: bool = False,
        classifier: Classifier = "linear",
        standardize: bool = False,
        crops: Crops = 1,
    ) -> None:
        super().__init__()
        self.crops = crops
        self.only_side = BACKBONES[backbone].image_side
        self.backbone = build_backbone(backbone)
        feature_dim = int(self.backbone.feature_dim)  # type: ignore[arg-type]
        self.standardize = Standardize(feature_dim) if standardize else nn.Identity()
        head = nn.Linear if classifier == "linear" else CosineClassifier
        self.classifier = head(feature_dim, num_classes)
        self.projection = _projection_head(feature_dim) if projection else None
        self.class_projection = _class_projection_head(feature_dim) if class_projection else None
        self.consistency = _consistency_heads(feature_dim, num_classes) if consistency else None
        self._is_compiled = False

    def features(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, H, W] -> features [b, d]; features of the backbone [b, d] are taken as they are."""
        features: Tensor = self.standardize(self.backbone_features(images) if images.dim() == 4 else images)
        return features

    def backbone_features(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, H, W] -> the mean of the backbone's features over their crops [b, d]."""
        views = [images] if self.crops == 1 else [images, _centre(images, self.only_side)]
        if self.crops == 4:
            views += [view.flip(3) for view in views]
        features: Tensor = self.backbone(views[0])
        for view in views[1:]:
            features = features + self.backbone(view)
        return features / len(views) if len(views) > 1 else features

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, H, W], or features of the backbone [b, d] -> logits [b, K]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def project(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, H, W] -> L2-normalised embeddings float32 [b, 128]."""
        return self.project_views(images)[0]

    def project_views(self, *views: Tensor) -> tuple[Tensor, ...]:
        """`project` of several views [b, 3, H, W] each, with BatchNorm's statistics those of each view by itself.

        The projection's wide matrices meet all views in one product, so that a gradient of four million numbers is
        made, converted and added up once.
        """
        assert self.projection is not None
        features = torch.cat([self.features(view) for view in views])
        for layer in self.projection:
            if isinstance(layer, nn.BatchNorm1d):
                features = torch.cat([layer(view) for view in features.chunk(len(views))])
            else:
                features = layer(features)
        return F.normalize(features.float(), dim=1).chunk(len(views))

    def project_classes(self) -> Tensor:
        """One embedding a class, from the classifier's weights (Zhu et al. 2022); float32 [K, 128].

        L2-normalised; the gradient reaches the classifier.
        """
        assert self.class_projection is not None
        embeddings: Tensor = self.class_projection(self.classifier.weight)
        return F.normalize(embeddings.float(), dim=1)

    def mixture_outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """GLMC's outputs (Du et al. 2023) for images [b, 3, H, W], float32.

        Logits [b, K] of the classifier that is for training alone, and of the one that predicts; projection and
        prediction [b, 128], L2-normalised.
        """
        assert self.consistency is not None
        features = self.features(images)
        logits, projected = self.consistency["classifier"](features), self.consistency["projection"](features)
        predicted = self.consistency["prediction"](projected)
        return (
            logits.float(),
            self.classifier(features).float(),
            F.normalize(projected.float(), dim=1),
            F.normalize(predicted.float(), dim=1),
        )

    def frozen_logits(self, images: Tensor) -> Tensor:
        """As `forward`, but only the classifier learns: the backbone runs in eval mode and without gradient."""
        with self.inference():
            features = self.features(images)
        logits: Tensor = self.classifier(features)
        return logits

    def compile_backbone(self) -> None:
        """Compile the backbone for training; its forward passes of one shape share one piece of compiled code."""
        self.backbone.compile(dynamic=False)
        self._is_compiled = True

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode, without gradient and uncompiled: a second compilation for other shapes would not pay."""
        training = self.training
        # Asked for only where it is needed, because it imports the compiler, which takes seconds.
        uncompiled = torch.compiler.set_stance("force_eager") if self._is_compiled else contextlib.nullcontext()
        self.eval()
        try:
            with torch.no_grad(), uncompiled:
                yield
        finally:
            self.train(training)


def _centre(images: Tensor, only_side: int | None) -> Tensor:
    """The centre of images [b, 3, H, W] as it is; enlarged for a backbone that takes `only_side` pixels alone."""
    height, width = images.shape[2:]
    sides = [round(CENTRE * side) for side in (height, width)]
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    centre = images[:, :, top : top + sides[0], left : left + sides[1]]
    if only_side is None:
        return centre
    return F.interpolate(centre, size=(only_side, only_side), mode="bicubic", align_corners=False)


def _projection_head(feature_dim: int) -> nn.Sequential:
    """d - 2048 - 2048 - 128 with BatchNorm and ReLU between."""
    return nn.Sequential(
        nn.Linear(feature_dim, PROJECTION_HIDDEN, bias=False),
        nn.BatchNorm1d(PROJECTION_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(PROJECTION_HIDDEN, PROJECTION_HIDDEN, bias=False),
        nn.BatchNorm1d(PROJECTION_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(PROJECTION_HIDDEN, PROJECTION_DIM),
    )


def _class_projection_head(feature_dim: int) -> nn.Sequential:
    """d - d - 128 with BatchNorm and ReLU between."""
    return nn.Sequential(
        nn.Linear(feature_dim, feature_dim),
        nn.BatchNorm1d(feature_dim),
        nn.ReLU(inplace=True),
        nn.Linear(feature_dim, PROJECTION_DIM),
    )


def _consistency_heads(feature_dim: int, num_classes: int) -> nn.ModuleDict:
    """Linear, as the authors have them."""
    sizes = {
        "classifier": (feature_dim, num_classes),
        "projection": (feature_dim, PROJECTION_DIM),
        "prediction": (PROJECTION_DIM, PROJECTION_DIM),
    }
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
