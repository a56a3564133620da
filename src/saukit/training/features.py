"""What a frozen backbone makes of images, computed once and kept for every method, seed and evaluation.

    features/<digest>.safetensors    features float32 [n, d] of one part of a split, or of its synthetic images

The name is a digest of all that the features depend on, and the file holds a digest of its own bytes. It may be
removed at any time: it is computed again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saukit.core.artifacts import load_tensors, save_tensors
from saukit.core.console import Reporter
from saukit.core.device import Precision
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.machine import slices
from saukit.core.workspace import Workspace
from saukit.data.images import ImageStore
from saukit.data.types import Floats
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import FLOAT32, Predictions, backbone_features, predict
from saukit.models.model_file import ModelSpec
from saukit.training.distributed import is_first, rank, size, total
from saukit.training.plan import TrainingPlan

CHUNK = 128  # images between two lines of progress, and of each process in turn


@dataclass(frozen=True)
class FrozenFeatures:
    """Floats float32 [N, d] of the training set, the real images first, and [n, d] of the validation part."""

    train: Floats
    val: Floats | None


@dataclass(frozen=True)
class FeatureStore:
    """The features that the backbone of `network` makes of images in this `precision`, kept in the workspace.

    Several processes share the work, in whole chunks: the bits of a prediction depend on its batch.
    """

    workspace: Workspace
    network: DualBranchNet
    spec: ModelSpec
    device: torch.device
    reporter: Reporter
    precision: Precision = FLOAT32

    def of(self, images: ImageStore, name: str) -> Floats:
        """What the frozen backbone makes of images uint8 [n, 3, H, W]: float32 [n, d], not standardised.

        `name` identifies the images: a digest of what they are from, and the part.
        """
        spec, network, amp = self.spec, self.network, self.precision.amp
        facts = [name, spec.backbone, spec.crops, spec.mean, spec.std, _digest_of(network), amp, self.device.type]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        path = self.workspace.root / "features" / f"{key}.safetensors"
        if (kept := _read(path, len(images))) is not None:
            return kept
        made = np.zeros((len(images), network.classifier.in_features), np.float32)
        with self.reporter.progress(f"features ({name.split()[-1]})", len(images)) as progress:
            for rows in _own_chunks(len(images)):
                chunk = images[rows]
                made[rows] = backbone_features(network, spec, chunk, device=self.device, precision=self.precision)
                progress.update(min(rows.start + size() * CHUNK, len(images)))
        total(torch.from_numpy(made))
        if is_first():
            save_tensors(path, {"features": made}, {"sha256": hashlib.sha256(made.tobytes()).hexdigest()})
        return made

    def predict(self, images: ImageStore, name: str) -> Predictions:
        """`inference.predict` of images that `name` identifies; the features of a frozen backbone are kept."""
        inputs = self.of(images, name) if self.spec.standardize else images
        features = np.zeros((len(images), self.network.classifier.in_features), np.float32)
        logits = np.zeros((len(images), self.network.classifier.out_features), np.float32)
        for rows in _own_chunks(len(images)):
            found = predict(self.network, self.spec, inputs[rows], device=self.device)
            features[rows], logits[rows] = found.features, found.logits
        for mine in (features, logits):
            total(torch.from_numpy(mine))
        return Predictions(features, logits)


def frozen_features(
    plan: TrainingPlan, network: DualBranchNet, workspace: Workspace, reporter: Reporter
) -> FrozenFeatures:
    """The features of the plan's images, from the files that keep them or computed now."""
    precision = Precision(plan.config.amp, plan.device.type)
    store = FeatureStore(workspace, network, plan.model_spec, plan.device, reporter, precision)
    train = store.of(plan.split.train.images, f"{plan.inputs['split']} train")
    if plan.cache is not None:
        train = np.concatenate([train, store.of(plan.cache.images, f"{plan.inputs['synth']} synth")])
    val = None if plan.split.val is None else store.of(plan.split.val.images, f"{plan.inputs['split']} val")
    return FrozenFeatures(train, val)


def _own_chunks(count: int) -> list[slice]:
    """The chunks of `count` images that are this process's."""
    return list(slices(count, CHUNK))[rank() :: size()]


def _digest_of(network: DualBranchNet) -> str:
    """SHA-256 over the backbone's weights."""
    sha = hashlib.sha256()
    for name, value in network.backbone.state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _read(path: Path, count: int) -> Floats | None:
    """What the file keeps; None if it is not there, or not as it was written."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        kept: Floats = tensors["features"]
    except (CorruptArtifactError, DataError, KeyError):
        return None
    intact = metadata.get("sha256") == hashlib.sha256(kept.tobytes()).hexdigest() and len(kept) == count
    return kept if intact else None
