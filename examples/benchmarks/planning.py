"""What runs on four long-tailed sets cost on one and on eight H100, on paper: `training.costs` and assumptions.

    python examples/benchmarks/planning.py --out results/planning.json

Nothing here was measured on a GPU. `ASSUMED` holds what is assumed; the counts come from the code of `--dry-run`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import split_in_memory

from saukit.core.artifacts import write_json
from saukit.data.images import stored_bytes
from saukit.models.backbones import count_parameters
from saukit.training.config import ResolvedTrainConfig
from saukit.training.costs import run_costs
from saukit.training.plan import TrainingPlan
from saukit.training.presets import PRESETS

ASSUMED = {
    "peak_flops": 989.4e12,  # of an H100 SXM in bf16, without sparsity
    "share_of_peak": 0.25,
    "decoded_images_per_second_and_core": 250,
    "cores_per_gpu": 16,
    "exchange_bytes_per_second": 300e9,  # of an all-reduce between eight GPUs of one machine
}
GPUS = (1, 8)
# Images and classes of the sets; network and budget are ours to choose, and those customary in long-tail papers.
ROWS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "CIFAR-100-LT, ratio 100: SAU": (10_847, 100, 32, {"method": "sau", "epochs": 200, "batch_size": 128}),
    "ImageNet-LT: ResNeXt-50": (
        115_846, 1000, 224, {"method": "balanced-softmax", "backbone": "resnext50", "epochs": 90, "batch_size": 256},
    ),
    "Places-LT: ResNet-152": (
        62_500, 365, 224,
        {"method": "balanced-softmax", "backbone": "timm/resnet152", "epochs": 30, "batch_size": 128},
    ),
    "iNaturalist 2018: ResNet-50": (
        437_513, 8142, 224,
        {"method": "balanced-softmax", "backbone": "timm/resnet50", "epochs": 90, "batch_size": 512},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Described:
    """Photos that are not here: their shape, and their bytes on disk."""

    shape: tuple[int, ...]
    nbytes: int

    def __len__(self) -> int:
        return self.shape[0]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = [row(name, *facts, gpus) for name, facts in ROWS.items() for gpus in GPUS]
    document = {"assumed": ASSUMED, "rows": rows}
    print(json.dumps(document, indent=2))
    if options.out:
        write_json(options.out, document)
    return document


def row(name: str, images: int, classes: int, side: int, given: dict[str, Any], gpus: int) -> dict[str, Any]:
    """Steps, operations, bytes and hours of one run."""
    plan = described_plan(images, classes, side, given)
    costs = run_costs(plan, processes=gpus)
    with torch.device("meta"):
        parameters = count_parameters(plan.model_spec.build_network())
    computing = costs.flops / (gpus * ASSUMED["peak_flops"] * ASSUMED["share_of_peak"])
    decoded = plan.images_of(plan.total_steps) if side > 64 else 0
    decoding = decoded / (gpus * ASSUMED["cores_per_gpu"] * ASSUMED["decoded_images_per_second_and_core"])
    exchange = plan.total_steps * 4 * parameters / ASSUMED["exchange_bytes_per_second"] if gpus > 1 else 0.0
    return {
        "what": name,
        "gpus": gpus,
        "epochs": given["epochs"],
        "batch_size": given["batch_size"],
        "steps": plan.total_steps,
        "parameters": parameters,
        **asdict(costs),
        "hours": round((max(computing, decoding) + exchange) / 3600, 2),
        "limited_by": "decoding" if decoding > computing else "computing",
        "hours_of": {k: round(v / 3600, 3) for k, v in
                     (("computing", computing), ("decoding", decoding), ("exchange", exchange))},
    }  # fmt: skip


def described_plan(images: int, classes: int, side: int, given: dict[str, Any]) -> TrainingPlan:
    """A plan over images that are not here."""
    shape = (images, 3, side, side)
    stored: Any = Described(shape, stored_bytes(images, 256)) if side > 64 else np.broadcast_to(np.uint8(0), shape)
    split = split_in_memory(stored, np.arange(images) % classes, classes)
    values = {**asdict(PRESETS["paper"]), "as_published": False, "weights": "none", **given}
    config = ResolvedTrainConfig(preset="paper", synthetic=False, flip=True, amp="bf16", **values)
    return TrainingPlan(config, "planned", split, None, torch.device("cpu"), {})


if __name__ == "__main__":
    main()
