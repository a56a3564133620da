"""What a frozen backbone makes of a training set, computed once and kept for every method and seed.

    features/<name>.safetensors    train float32 [N, d] (real, then synthetic), val float32 [n, d] where there is one

The name is a digest of all that the features depend on, and the file holds a digest of its own bytes. It may be
removed at any time: it is computed again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saukit.core.artifacts import load_tensors, save_tensors
from saukit.core.console import Reporter
from saukit.core.device import Precision
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.workspace import Workspace
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import predict
from saukit.training.plan import TrainingPlan

CHUNK = 512  # images between two lines of progress

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FrozenFeatures:
    """Features float32 [N, d] of the training set, the real images first, and [n, d] of the validation part."""

    train: Features
    val: Features | None


def frozen_features(
    plan: TrainingPlan, network: DualBranchNet, workspace: Workspace, reporter: Reporter
) -> FrozenFeatures:
    """The features of the plan's images, from the file that keeps them or computed now."""
    path = workspace.root / "features" / f"{_key(plan)}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    parts = [plan.split.train.images] + ([] if plan.cache is None else [plan.cache.images])
    val = None if plan.split.val is None else plan.split.val.images
    total = sum(map(len, parts)) + (0 if val is None else len(val))
    reporter.say(f"computing the features of {total:,} images with the frozen {plan.config.backbone}, once")
    done, found = 0, []
    with reporter.progress("features", total) as progress:
        for images in [*parts, *([] if val is None else [val])]:
            chunks = []
            for start in range(0, len(images), CHUNK):
                chunks.append(images_features(plan, network, images[start : start + CHUNK]))
                done += len(chunks[-1])
                progress.update(done)
            found.append(np.concatenate(chunks))
    made = FrozenFeatures(np.concatenate(found[: len(parts)]), None if val is None else found[-1])
    tensors = {"train": made.train} | ({} if made.val is None else {"val": made.val})
    save_tensors(path, tensors, {"sha256": _digest(made)})
    return made


def images_features(plan: TrainingPlan, network: DualBranchNet, images: npt.NDArray[np.uint8]) -> Features:
    """What the frozen backbone of `network` makes of images uint8 [n, 3, H, W]: float32 [n, d]."""
    precision = Precision(plan.config.amp, plan.device.type)
    return predict(network, plan.model_spec, images, device=plan.device, precision=precision).features


def _key(plan: TrainingPlan) -> str:
    config = plan.config
    facts = [plan.inputs, config.backbone, config.weights, config.amp, plan.device.type]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(features: FrozenFeatures) -> str:
    sha = hashlib.sha256(features.train.tobytes())
    if features.val is not None:
        sha.update(features.val.tobytes())
    return sha.hexdigest()


def _read(path: Path) -> FrozenFeatures | None:
    """What the file keeps; None if it is not there, or not as it was written."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        kept = FrozenFeatures(tensors["train"], tensors.get("val"))
    except (CorruptArtifactError, DataError, KeyError):
        return None
    return kept if metadata.get("sha256") == _digest(kept) else None
