"""What a network makes of images, a batch at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saukit.core.device import Precision
from saukit.core.machine import slices
from saukit.data.images import ImageStore
from saukit.data.types import Floats
from saukit.models.dual_branch import DualBranchNet
from saukit.models.model_file import ModelSpec

BATCH_SIZE = 512
BATCH_PIXELS = 2**21  # 512 images of 64 x 64, 41 of 224 x 224
FLOAT32 = Precision("off", "cpu")


@dataclass(frozen=True)
class Predictions:
    """Of n images: `features` float32 [n, d], the backbone's; `logits` float32 [n, K], the classifier's."""

    features: Floats
    logits: Floats

    @property
    def probabilities(self) -> Floats:
        """Class probabilities float32 [n, K]."""
        return torch.from_numpy(self.logits).softmax(1).numpy()


def predict(
    network: DualBranchNet,
    spec: ModelSpec,
    images: ImageStore | Floats,
    *,
    device: torch.device,
    precision: Precision = FLOAT32,
    batch_size: int = BATCH_SIZE,
) -> Predictions:
    """Features and logits of images uint8 [n, 3, H, W], by backbone and classifier alone, in eval mode.

    What the backbone made of images, float32 [n, d], is taken in their place.

    `network` is moved to `device`, into channels_last, where a CPU convolves twice as fast; its mode, training or eval,
    is afterwards what it was. The one way from pixels to predictions: evaluation, validation while training, the judge
    of synthetic images and `saukit predict` call it.
    """
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = np.empty((len(images), network.classifier.in_features), np.float32)
    logits = np.empty((len(images), network.classifier.out_features), np.float32)
    for part, batch in _batches(images, spec, device, batch_size):
        with network.inference(), precision.autocast():
            found = network.features(batch)
            features[part] = found.float().cpu().numpy()
            logits[part] = network.classifier(found).float().cpu().numpy()
    return Predictions(features, logits)


def backbone_features(
    network: DualBranchNet,
    spec: ModelSpec,
    images: ImageStore,
    *,
    device: torch.device,
    precision: Precision = FLOAT32,
    batch_size: int = BATCH_SIZE,
) -> Floats:
    """What the backbone alone makes of images uint8 [n, 3, H, W]: float32 [n, d], not standardised; as `predict`."""
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = np.empty((len(images), network.classifier.in_features), np.float32)
    for part, batch in _batches(images, spec, device, batch_size):
        with network.inference(), precision.autocast():
            features[part] = network.backbone_features(batch).float().cpu().numpy()
    return features


def images_per_batch(shape: tuple[int, ...], batch_size: int = BATCH_SIZE) -> int:
    """How many images [n, 3, H, W], or features [n, d], are computed at once."""
    return max(1, min(batch_size, BATCH_PIXELS // max(1, math.prod(shape[1:]) // 3)))


def _batches(
    images: ImageStore | Floats, spec: ModelSpec, device: torch.device, batch_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Images, normalised, or features as they are, on `device`, a batch at a time."""
    mean, std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
    batch_size = images_per_batch(images.shape, batch_size)
    for part in slices(len(images), batch_size):
        batch = torch.from_numpy(images[part]).to(device)
        yield part, normalise(batch, mean, std) if batch.dim() == 4 else batch


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std.

    Shapes: images uint8 [b, 3, H, W]; mean, std float32 [3]; returns float32 [b, 3, H, W].
    """
    scale, shift = 1 / (255 * std), -mean / std
    if images.device.type == "cpu" and not images.is_contiguous():
        rows = images.movedim(1, 3).flatten(2)  # [b, H, 3 W] without a copy where a pixel's colours lie side by side
        scale, shift = scale.expand(images.shape[3], 3).flatten(), shift.expand(images.shape[3], 3).flatten()
        pixels = rows.to(torch.float32).mul_(scale).add_(shift)
        return pixels.view(len(images), images.shape[2], images.shape[3], 3).movedim(3, 1)
    return images.to(torch.float32).mul_(scale[:, None, None]).add_(shift[:, None, None])
