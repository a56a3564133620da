"""What a trained network makes of images, in float32 and a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saukit.models.dual_branch import DualBranchNet
from saukit.models.model_file import ModelCard

BATCH_SIZE = 512


@dataclass(frozen=True)
class Predictions:
    """Of n images: `features` float32 [n, d], the backbone's; `probabilities` float32 [n, K], the classifier's."""

    features: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


def predict(
    network: DualBranchNet,
    card: ModelCard,
    images: npt.NDArray[np.uint8],
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> Predictions:
    """Features and class probabilities of images uint8 [n, 3, H, W], by the classifier alone, in eval mode.

    `network` is moved to `device`; its mode, training or eval, is afterwards what it was.
    """
    network = network.to(device)
    mean, std = (torch.tensor(values, device=device) for values in (card.mean, card.std))
    feature_dim, classes = network.classifier.in_features, network.classifier.out_features
    features = np.empty((len(images), feature_dim), np.float32)
    probabilities = np.empty((len(images), classes), np.float32)
    with network.inference():
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            found = network.backbone(normalise(torch.from_numpy(images[part]).to(device), mean, std))
            features[part] = found.float().cpu().numpy()
            probabilities[part] = network.classifier(found).float().softmax(1).cpu().numpy()
    return Predictions(features, probabilities)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std.

    Shapes: images uint8 [b, 3, H, W]; mean, std float32 [3]; returns float32 [b, 3, H, W].
    """
    scale, shift = 1 / (255 * std), -mean / std
    return images.to(torch.float32).mul_(scale[:, None, None]).add_(shift[:, None, None])
