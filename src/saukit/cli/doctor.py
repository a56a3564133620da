"""`saukit doctor`: versions, devices, arithmetic, disk and extras."""

import importlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from saukit.cli.options import Call, stage_command


@stage_command(without=("config", "device", "dry_run", "force"))
def command(call: Call) -> None:
    """Show what this machine has for saukit; fails with exit code 5 if a required package cannot be used.

    Example:

      saukit doctor
    """
    from saukit.core.artifacts import package_versions
    from saukit.core.errors import EnvironmentFault
    from saukit.core.extras import EXTRAS, missing_packages
    from saukit.core.words import format_bytes

    problems = [problem for package in ("torch", "torchvision", "diffusers") if (problem := _import_problem(package))]
    place = call.workspace_path.absolute()
    existing = next(parent for parent in [place, *place.parents] if parent.exists())
    document: dict[str, Any] = {
        "versions": package_versions(),
        "processor": platform.processor() or platform.machine(),
        "threads": None if problems else _threads(),
        "devices": [] if problems else _devices(),
        "free_disk_bytes": shutil.disk_usage(existing).free,
        "start_with": None if problems else _start_with(call.workspace_path),
        "extras": {name: not missing_packages(name) for name in EXTRAS},
        "problems": problems,
    }
    rows = [[name, version] for name, version in document["versions"].items()]
    if document["threads"] is not None:
        used, usable = document["threads"]["used"], document["threads"]["usable_cores"]
        rows += [["threads", f"{used}, this process may use {usable} of {document['threads']['cores']} cores"]]
    for device in document["devices"]:
        works = "a training step works" if device["problem"] is None else device["problem"]
        rows.append([device["name"], "; ".join([f"amp {device['amp']}, {device['about']}", *device["limits"], works])])
    rows += [["free disk", f"{format_bytes(document['free_disk_bytes'])} at {existing}"]]
    if document["start_with"] is not None:
        rows += [["method", document["start_with"]]]
    rows += [
        [f"extra {name}", "installed" if there else f"not installed: pip install 'saukit[{name}]'"]
        for name, there in document["extras"].items()
    ]
    call.reporter.table("saukit doctor", ["what", "here"], rows, text_columns=2)
    call.reporter.document(document)
    if problems:
        raise EnvironmentFault("; ".join(problems) + ": install torch and torchvision together, then diffusers")


def _import_problem(package: str) -> str | None:
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{package} cannot be imported ({str(error).splitlines()[0]})"
    return None


def _start_with(workspace: Path) -> str | None:
    """Which method to start with on the workspace's split and the best device here; None without a split."""
    from saukit.core.artifacts import read_manifest
    from saukit.core.device import resolve_device
    from saukit.core.extras import missing_packages
    from saukit.core.workspace import Workspace
    from saukit.training.advice import default_passes, starting_method
    from saukit.training.presets import PHOTO_SIDE

    opened = Workspace(workspace)
    split = read_manifest(opened.split, kind="split", verify=False)
    if split is None:
        return None
    passes = default_passes(split.summary["train_images"], device_type=resolve_device("auto").type)
    pretrained = split.summary["image_size"] > PHOTO_SIDE and not missing_packages("timm")
    return starting_method(passes, synthetic=opened.synth.exists(), pretrained=pretrained)


def _threads() -> dict[str, int]:
    """Threads that a command computes with, the cores it may use, and the machine's."""
    import torch

    from saukit.core.device import limit_threads
    from saukit.core.machine import usable_cores

    limit_threads()
    return {"used": torch.get_num_threads(), "usable_cores": usable_cores(), "cores": os.cpu_count() or 1}


def _devices() -> list[dict[str, Any]]:
    """The devices here, the arithmetic that suits each, and whether a training step works there."""
    import torch

    from saukit.core.device import GPUS, describe_device, device_count, free_memory, limits, resolve_amp
    from saukit.core.words import format_bytes

    rows: list[dict[str, Any]] = []
    for device in [torch.device("cpu"), *(torch.device(kind, i) for kind in GPUS for i in range(device_count(kind)))]:
        about = describe_device(device)
        if device.type != "cpu":
            about += f", {format_bytes(free_memory(device))} free"
        row = {"name": str(device), "amp": resolve_amp("auto", device), "about": about, "limits": limits(device)}
        rows.append({**row, "problem": _try_step(device)})
    return rows


def _try_step(device: Any) -> str | None:
    """Why one step with every view does not work on a device; None if it does."""
    import torch

    from saukit.core.device import Precision, resolve_amp
    from saukit.models.dual_branch import DualBranchNet
    from saukit.training.views import Views

    try:
        network = DualBranchNet("convnet-small", 2, projection=True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
        precision = Precision(resolve_amp("auto", device), device.type)
        generator = torch.Generator(device).manual_seed(0)
        views = Views(torch.zeros(3, device=device), torch.ones(3, device=device), flip=True)
        images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device=device)
        seen = [view(images, generator) for view in (views.crop_flip, views.autoaugment, views.simclr)]
        with precision.autocast():
            loss = network(seen[0]).float().square().mean() + sum(network.project(x).float().sum() for x in seen[1:])
        scaler = precision.scaler()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not bool(torch.stack([weight.detach().isfinite().all() for weight in network.parameters()]).all()):
            return "a training step gives weights that are not numbers"
    except (RuntimeError, TypeError, AssertionError) as error:
        return f"a training step fails: {str(error).splitlines()[0]}"
    return None
