"""What a frozen backbone makes of images, computed once and kept for every method, seed and evaluation.

    features/<digest>.safetensors    features float32 [n, d] of one part of a split, or of its synthetic images

The name is a digest of all that the features depend on, and the file holds a digest of its own bytes. It may be
removed at any time: it is computed again.
"""

from __future__ import annotations

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


def frozen_features(
    plan: TrainingPlan, network: DualBranchNet, workspace: Workspace, reporter: Reporter
) -> FrozenFeatures:
    """The features of the plan's images, from the files that keep them or computed now."""
    spec, device, precision = plan.model_spec, plan.device, Precision(plan.config.amp, plan.device.type)

    def of(images: ImageStore, name: str) -> Floats:
        return kept_features(
            network, spec, images, name, workspace, device=device, precision=precision, reporter=reporter
        )

    train = of(plan.split.train.images, f"{plan.inputs['split']} train")
    if plan.cache is not None:
        train = np.concatenate([train, of(plan.cache.images, f"{plan.inputs['synth']} synth")])
    val = None if plan.split.val is None else of(plan.split.val.images, f"{plan.inputs['split']} val")
    return FrozenFeatures(train, val)


def kept_features(
    network: DualBranchNet,
    spec: ModelSpec,
    images: ImageStore,
    name: str,
    workspace: Workspace,
    *,
    device: torch.device,
    precision: Precision = FLOAT32,
    reporter: Reporter,
) -> Floats:
    """What the frozen backbone of `network` makes of images uint8 [n, 3, H, W]: float32 [n, d], not standardised.

    `name` identifies the images: a digest of what they are from, and the part. Several processes share the work.
    """
    facts = [name, spec.backbone, spec.crops, spec.mean, spec.std, _digest_of(network), precision.amp, device.type]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = workspace.root / "features" / f"{key}.safetensors"
    if (kept := _read(path, len(images))) is not None:
        return kept
    made = np.zeros((len(images), network.classifier.in_features), np.float32)
    with reporter.progress(f"features ({name.split()[-1]})", len(images)) as progress:
        for rows in list(slices(len(images), CHUNK))[rank() :: size()]:
            made[rows] = backbone_features(network, spec, images[rows], device=device, precision=precision)
            progress.update(min(rows.start + size() * CHUNK, len(images)))
    total(torch.from_numpy(made))
    if is_first():
        save_tensors(path, {"features": made}, {"sha256": hashlib.sha256(made.tobytes()).hexdigest()})
    return made


def predict_kept(
    network: DualBranchNet,
    spec: ModelSpec,
    images: ImageStore,
    name: str,
    workspace: Workspace,
    *,
    device: torch.device,
    reporter: Reporter,
) -> Predictions:
    """`predict` of images that `name` identifies; a frozen backbone's features of them are kept.

    Several processes share the work, in whole chunks: the bits of a prediction depend on its batch.
    """
    inputs: ImageStore | Floats = images
    if spec.standardize:
        inputs = kept_features(network, spec, images, name, workspace, device=device, reporter=reporter)
    features = np.zeros((len(images), network.classifier.in_features), np.float32)
    logits = np.zeros((len(images), network.classifier.out_features), np.float32)
    for rows in list(slices(len(images), CHUNK))[rank() :: size()]:
        found = predict(network, spec, inputs[rows], device=device)
        features[rows], logits[rows] = found.features, found.logits
    for mine in (features, logits):
        total(torch.from_numpy(mine))
    return Predictions(features, logits)


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
