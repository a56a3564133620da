"""The time that `saukit train --dry-run` estimates, beside the time of the run.

    python examples/benchmarks/estimates.py --weights tf_efficientnet_lite0.safetensors --out results/cpu/estimates.json

Each run is estimated twice, from a few images and from real steps (`--measure`), then made. The estimate is of an
otherwise idle machine: let nothing else run. The processor's seconds, of all threads, show whether something did.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import command_line

from saukit.core.artifacts import package_versions, write_json
from saukit.core.console import Reporter
from saukit.core.device import keep_freed_memory, limit_threads
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.training.config import TrainConfig
from saukit.training.estimate import estimate_seconds
from saukit.training.plan import plan_training
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
ALLOWED = 0.2
LITE: dict[str, Any] = {"backbone": "timm/tf_efficientnet_lite0", "amp": "off"}
# Pixels and configuration.
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "ce, resnet32-w16": (32, {"method": "ce", "backbone": "resnet32-w16", "batch_size": 64, "steps": 60}),
    "balanced softmax, convnet-small, 8 px": (8, {"method": "balanced-softmax", "batch_size": 128, "steps": 200}),
    "sau, resnet32-w16": (32, {"method": "sau", "backbone": "resnet32-w16", "batch_size": 64, "steps": 20}),
    "ce, resnet32-w64": (32, {"method": "ce", "backbone": "resnet32-w64", "batch_size": 16, "steps": 15}),
    "photo head, 224 px": (224, {**LITE, "preset": "photo-small", "method": "balanced-softmax", "multi_crop": False}),
    "fine-tuned, 224 px": (224, {**LITE, "method": "ce", "preset": "small", "batch_size": 16, "steps": 40}),
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of EfficientNet-Lite0; without it the photos' runs are left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    limit_threads()
    keep_freed_memory()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (side, given) in RUNS.items():
            if side > 64:
                if options.weights is None:
                    continue
                given = {**given, "weights": str(options.weights)}
            workspace = Workspace(Path(folder) / str(side))
            if not workspace.split.exists():
                make_split(
                    SplitConfig(dataset="digits", imb=50, image_size=side),
                    workspace,
                    root=None,
                    force=False,
                    reporter=QUIET,
                )
            rows.append({"run": name, "steps": given.get("steps"), **checked(given, workspace)})
            print(rows[-1], flush=True)
    document = {
        "command": command_line("estimates.py", arguments or sys.argv[1:]),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "allowed": ALLOWED,
        "within": all(abs(row["estimate_over_run"] - 1) <= ALLOWED for row in rows),
        "rows": rows,
        "versions": package_versions(),
    }
    if options.out:
        write_json(options.out, document)
    return document


def checked(given: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """The estimates of a run, and what it took."""
    config = TrainConfig(**{"preset": "small", **given})
    plan = plan_training(config, workspace, name="run", device=CPU)
    estimated = statistics.median(estimate_seconds(plan) for _ in range(3))
    measured = estimate_seconds(plan, measure=True)
    wall, processor = time.perf_counter(), time.process_time()
    fit(config, workspace, name="run", device=CPU, force=True, resume=False, reporter=QUIET)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "estimated_seconds": round(estimated, 2),
        "estimated_by_measure": round(measured, 2),
        "run_seconds": round(wall, 2),
        "run_processor_seconds": round(processor, 2),
        "estimate_over_run": round(estimated / wall, 3),
    }


if __name__ == "__main__":
    main()
