"""One process against two that torchrun starts: the same losses and weights, and what the exchange costs.

    python examples/benchmarks/ranks.py equality --dataset digits --imb 50 --steps 200 --out ranks_digits.json
    python examples/benchmarks/ranks.py equality --dataset cifar10 --imb 100 --image-size 16 --out ranks_cifar10.json
    python examples/benchmarks/ranks.py speed --out ranks_speed.json
    python examples/benchmarks/ranks.py jobs --out ranks_jobs.json
    python examples/benchmarks/ranks.py memory --out ranks_memory.json

`equality` trains each method with one thread: in one process, and in two with --sync-batchnorm, which share the batch.
Two sums of the same float32 numbers in another order differ by rounding, and training multiplies a difference. So it
shows too what becomes of one process whose first layer starts at the next float32 numbers, and (--explain) of two in
float64. Methods that --out has with the same settings stay as they are: the same command goes on.
`speed` times two processes of one thread and one process of two threads in turn. `jobs` makes a comparison with
`compare --jobs 1` and with `--jobs 2`, and a cache with one process and with two. `memory` is what one process and two
hold of CIFAR-10 (SAUKIT_DATA) when all images have been looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from inputs import default_root
from measure import command_line

from saukit.core.artifacts import package_versions, write_json
from saukit.core.console import Reporter
from saukit.core.device import keep_freed_memory, limit_threads
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.images import RowsOf
from saukit.data.split import make_split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.config import TrainConfig
from saukit.training.distributed import is_first, joined, seconds_waited, size, wait_for_all
from saukit.training.features import FeatureStore
from saukit.training.methods import METHODS
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.trainer import Trainer

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
PROCESSES = 2
# Name, pixels and configuration of what `speed` times; the backbones start from random weights.
LITE = {"backbone": "timm/tf_efficientnet_lite0", "batch_size": 8}
SPEED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet32-w16, 32 px", 32, {"backbone": "resnet32-w16", "batch_size": 64}),
    ("resnet32-w64, 32 px", 32, {"backbone": "resnet32-w64", "batch_size": 8}),
    ("EfficientNet-Lite0, 224 px, fine-tuned", 224, LITE),
    ("EfficientNet-Lite0, 224 px, frozen: features", 224, LITE),
)
FEATURES = 256  # images
SPEED_STEPS = 4
# What `equality` compares with one process, which it trains once in float32 and once in float64.
TWO, NUDGED, DOUBLE = "float32", "float32, one process, the first layer at the next numbers", "float64"
TOGETHER = 4  # methods between two writings of the record: starting processes takes as long as a short training
SHOWN_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equality", "speed", "jobs", "memory", "work"))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", type=Path, default=default_root(), help="folder with CIFAR-10 (default: SAUKIT_DATA)")
    parser.add_argument("--imb", type=float, default=50)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--explain", default="ce,sau,bcl", help="methods that are trained in float64 too")
    parser.add_argument("--per-class-target", type=int, default=60, help="real + synthetic images of `equality`")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="turns of `speed`; those in --out are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=json.loads, help=argparse.SUPPRESS)  # of `work`: what a process is to do
    options = parser.parse_args(arguments)
    if options.what == "work":
        work(options.jobs)
        return {}
    started, load = time.monotonic(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    goes_on = options.what in ("equality", "speed") and options.out and options.out.exists()
    before = json.loads(options.out.read_text()) if goes_on else {}
    works = {"equality": equality, "speed": speed, "jobs": side_by_side, "memory": memory}
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for found in works[options.what](options, Path(folder), before):
            document = {
                "command": command_line("examples/benchmarks/ranks.py", arguments or sys.argv[1:]),
                **found,
                "seconds": before.get("seconds", 0) + round(time.monotonic() - started),
                "load_before": load,
                "processor": platform.processor() or platform.machine(),
                "versions": package_versions(),
            }
            if options.out:
                write_json(options.out, document)
    print(json.dumps(document, indent=2))
    return document


def equality(options: argparse.Namespace, root: Path, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Largest differences of losses and weights between one process and two, after each method."""
    asked = ("dataset", "imb", "image_size", "steps", "batch_size", "per_class_target")
    settings = {"processes": PROCESSES, **{name: getattr(options, name) for name in asked}}
    if before and {name: before.get(name) for name in settings} != settings:
        raise SystemExit(f"{options.out} was made with other settings: give another --out, or delete it")
    workspace = Workspace(root / "work")
    given = {} if options.image_size is None else {"image_size": options.image_size}
    split = SplitConfig(dataset=options.dataset, imb=options.imb, **given)
    root_of_data = None if options.dataset == "digits" else options.root
    make_split(split, workspace, root=root_of_data, force=False, reporter=QUIET)
    few = SynthConfig(
        preset="tiny",
        per_class_target=options.per_class_target,
        train_steps=20,
        train_batch_size=8,
        sampler_steps=2,
        preflight=0,
        audit=False,
    )
    synthesize(few, workspace, device=CPU, force=False, resume=False, reporter=QUIET)
    fields = {"steps": options.steps, "batch_size": options.batch_size, "preset": "small", "synthetic": True}
    fields |= {"amp": "off", "sync_batchnorm": True}
    rows: dict[str, dict[str, Any]] = dict(before.get("methods", {}))
    explained = options.explain.split(",")
    missing = [
        m for m in options.methods.split(",") if DOUBLE not in rows.get(m, {}) and (m in explained or m not in rows)
    ]

    def outcomes(hows: list[tuple[str, dict[str, Any]]], processes: int) -> list[dict[str, Any]]:
        job = {"workspace": str(workspace.root)}
        jobs = [{**job, **how, "config": {**fields, "method": method}, "out": str(root / f"{n}.pt")}
                for n, (method, how) in enumerate(hows)]  # fmt: skip
        return run(jobs, processes)

    for start in range(0, len(missing), TOGETHER):
        together = missing[start : start + TOGETHER]
        both = [(m, how) for m in together for how in ({}, {"double": True})[: 1 + (m in explained)]]
        alone = outcomes([*both, *((m, {"nudge": True}) for m in together)], 1)
        alone, nudged = alone[: len(both)], alone[len(both) :]
        two = outcomes(both, PROCESSES)
        rows |= {method: {} for method in together}
        for (method, how), one, other in zip(both, alone, two, strict=True):
            rows[method][DOUBLE if how else TWO] = compared(one, other)
            if not how:
                rows[method][NUDGED] = compared(one, nudged[together.index(method)])
        yield {**settings, "methods": rows}
    yield {**settings, "methods": rows}


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Differences between a run of one process and another run; those of losses relative, with their growth."""
    losses = [abs(a - b) / max(abs(a), 1) for a, b in zip(one["losses"], two["losses"], strict=True)]
    largest = {"weights": 0.0, "statistics": 0.0}  # BatchNorm's may be hundreds of times as large as weights
    for name, value in one["weights"].items():
        if "num_batches" in name:
            continue
        kind = "statistics" if "running" in name else "weights"
        largest[kind] = max(largest[kind], float((value - two["weights"][name]).abs().max()))
    return {
        "loss_by_step": {step: losses[step - 1] for step in SHOWN_STEPS if step <= len(losses)},
        "largest": {"loss": max(losses), **largest},
        "last_loss": [one["losses"][-1], two["losses"][-1]],
        "bits_equal_in_both_processes": two["equal"],
    }


def speed(options: argparse.Namespace, root: Path, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Images/s of two processes of one thread and of one of two threads, and the share of time in exchanges."""
    jobs = []
    for name, side, given in SPEED:
        workspace = Workspace(root / f"{side}")
        if not workspace.split.exists():
            split = SplitConfig(dataset="digits", imb=50, image_size=side)
            make_split(split, workspace, root=None, force=False, reporter=QUIET)
        config = {"method": "ce", "preset": "small", "steps": SPEED_STEPS + 2, "amp": "off", "weights": "none", **given}
        job = {"workspace": str(workspace.root), "config": config, "out": str(root / f"{len(jobs)}.pt")}
        jobs.append({**job, "features": "features" in name})
    kinds = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
    turns: dict[str, list[list[dict[str, Any]]]] = before.get("turns", {kind: [] for kind in kinds})
    loads = before.get("load_before_turns", [])
    for _ in range(options.rounds):
        loads.append(round(os.getloadavg()[0], 1))
        for kind, (processes, threads) in kinds.items():
            shutil.rmtree(root / "224" / "features", ignore_errors=True)
            found = run(jobs, processes, threads=threads)
            turns[kind].append([{"rate": each["rate"], "waited": each["waited"]} for each in found])
        yield {"rows": speeds(turns), "about": speeds.__doc__, "turns": turns, "load_before_turns": loads}


def speeds(turns: dict[str, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Medians of turns; an exchange's time includes waiting for the other process."""
    rows = []
    for index, (name, _, given) in enumerate(SPEED):
        rates = {kind: [turn[index]["rate"] for turn in of] for kind, of in turns.items()}
        one, two = (statistics.median(values) for values in rates.values())
        waited = [turn[index]["waited"] for turn in turns["two processes, one thread each"]]
        rows.append(
            {
                "what": name,
                "batch_size": given["batch_size"],
                "images_per_second": {kind: statistics.median(values) for kind, values in rates.items()},
                "ratio": round(two / one, 2),
                "share_of_time_in_exchanges": statistics.median(waited),
            }
        )
    return rows


def side_by_side(options: argparse.Namespace, root: Path, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Seconds of a comparison and of a cache by one process and by two, and whether their files have the same bytes."""
    compare = ["compare", "--methods", "ce,balanced-softmax", "--seeds", "2", "--steps", "100"]
    synth = ["synth", "--per-class-target", "142", "--train-steps", "60", "--preflight", "0", "--no-audit"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m", "saukit"]
    ways = {
        "compare --jobs": (["-m", "saukit", *compare, "--jobs", "1"], ["-m", "saukit", *compare, "--jobs", "2"]),
        "synth": (["-m", "saukit", *synth], [*torchrun, *synth]),
        "synth --train-parts 2": (
            ["-m", "saukit", *synth, "--train-parts", "2"],
            [*torchrun, *synth, "--train-parts", "2"],
        ),
    }
    make_split(SplitConfig(imb=50), Workspace(root / "work"), root=None, force=False, reporter=QUIET)
    rows = {}
    for name, commands in ways.items():
        seconds, digests = [], []
        for index, command in enumerate(commands):
            workspace = shutil.copytree(root / "work", root / f"{name} {index}")
            seconds.append(round(saukit(command, workspace), 1))
            digests.append(digests_of(workspace))
        rows[name] = {
            "seconds": {"one process": seconds[0], "two": seconds[1]},
            "ratio": round(seconds[0] / seconds[1], 2),
            "files": len(digests[0]),
            "equal_bytes": digests[0] == digests[1],
        }
    yield {"rows": rows, "about": "seconds of the whole command; files but for those that tell times"}


def memory(options: argparse.Namespace, root: Path, before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each process holds of CIFAR-10's training images, all of which were looked at, and of its own (Linux)."""
    workspace = Workspace(root / "work")
    split = SplitConfig(dataset="cifar10", profile="none")
    make_split(split, workspace, root=default_root(), force=False, reporter=QUIET)
    config = {"method": "ce", "preset": "small", "steps": 2, "batch_size": 8, "amp": "off"}
    job = {"workspace": str(workspace.root), "config": config, "out": str(root / "memory.pt"), "memory": True}
    stored = workspace.split.joinpath("train.safetensors").stat().st_size
    rows = {str(n): run([job], n)[0] for n in (1, PROCESSES)}
    yield {"split_mib": round(stored / 2**20, 1), "processes": rows, "about": memory.__doc__}


def occupied(plan: TrainingPlan) -> dict[str, Any]:
    """MiB of each process once all images have been looked at."""
    trainer = Trainer(plan)
    trainer.advance()
    assert isinstance(trainer.training_set.images, torch.Tensor)
    int(trainer.training_set.images.sum(dtype=torch.int64))
    wait_for_all()
    kib, of_split = (
        dict.fromkeys(("Rss", "Pss", "Private_Dirty", "split Rss", "split Pss", "split Private_Dirty"), 0),
        "",
    )
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the line of a mapping
            of_split = "split " if line.endswith("train.safetensors") else ""
        elif name[:-1] in kib:
            kib[name[:-1]] += int(rest.split()[0])
            if of_split:
                kib[of_split + name[:-1]] += int(rest.split()[0])
    mine = torch.tensor(list(kib.values()), dtype=torch.float64) / 1024
    parts = [torch.empty_like(mine) for _ in range(size())]
    torch.distributed.all_gather(parts, mine) if size() > 1 else parts[0].copy_(mine)
    wait_for_all()
    return {"mib": [dict(zip(kib, part.round().tolist(), strict=True)) for part in parts]}


def saukit(command: list[str], workspace: Path) -> float:
    """Seconds that a command of the program takes, with one thread."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command, "-q", "-w", str(workspace)], check=True, env=environment)
    return time.perf_counter() - began


def digests_of(workspace: Path) -> dict[str, str]:
    """SHA-256 of each file by its path without what tells times; of a log its losses."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        if not path.is_file() or path.name in (
            "manifest.json",
            "source.json",
            "compare.json",
            "compare.csv",
            "compare.md",
        ):
            continue
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([line["losses"] for line in lines]).encode()
        if path.name == "results.json":
            content = json.dumps({**json.loads(content), "run": None}).encode()
        found[path.relative_to(workspace).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def run(jobs: list[dict[str, Any]], processes: int, *, threads: int = 1) -> list[dict[str, Any]]:
    """What `work` leaves of each job, from one process or several."""
    program = [str(Path(__file__).resolve()), "work", "--jobs", json.dumps(jobs)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *program]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return [torch.load(job["out"], weights_only=True) for job in jobs]


def work(jobs: list[dict[str, Any]]) -> None:
    """Train as each job's configuration says; the first process writes losses, weights and times."""
    limit_threads()
    keep_freed_memory()
    with joined(CPU):
        for job in jobs:
            workspace = Workspace(Path(job["workspace"]))
            plan = plan_training(TrainConfig(**job["config"]), workspace, name=None, device=CPU)
            with in_double() if job.get("double") else contextlib.nullcontext():
                found = (
                    occupied(plan)
                    if job.get("memory")
                    else extract(plan, workspace)
                    if job.get("features")
                    else train(plan, nudge=job.get("nudge", False), double=job.get("double", False))
                )
            if is_first():
                torch.save(found, job["out"])


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """While entered, losses are computed in float64; pixels are not, which are the same in every process."""
    float32 = torch.Tensor.float

    def of(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.dtype in (torch.float64, torch.int64) else float32(tensor)

    torch.Tensor.float = of  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.float = float32  # type: ignore[method-assign]


def extract(plan: TrainingPlan, workspace: Workspace) -> dict[str, Any]:
    """Images/s of a frozen backbone's features, and the share of time in exchanges."""
    network, images = Trainer(plan).network, RowsOf(plan.split.train.images, slice(0, FEATURES))
    began, waited = time.perf_counter(), seconds_waited()
    FeatureStore(workspace, network, plan.model_spec, CPU, QUIET).of(images, "some train")
    seconds = time.perf_counter() - began
    return {"rate": round(len(images) / seconds, 1), "waited": round((seconds_waited() - waited) / seconds, 3)}


def train(plan: TrainingPlan, *, nudge: bool = False, double: bool = False) -> dict[str, Any]:
    """Losses step by step, the weights, images/s and the share of time in exchanges without the first two steps.

    `nudge`: the first layer begins with the next float32 numbers; `double`: network and losses are in float64.
    """
    trainer = Trainer(plan)
    if nudge:
        weight = next(trainer.network.parameters()).detach()
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    if double:
        trainer.network.double()
        trainer.network.backbone.register_forward_pre_hook(lambda _, given: tuple(x.double() for x in given))
    losses, times = [], []
    for _ in range(plan.total_steps):
        times.append((time.perf_counter(), seconds_waited()))
        trainer.meters = {}
        trainer.advance()
        losses.append(sum(float(v) for k, v in trainer.meters.items() if k != "steps" and "images" not in k))
    seconds, waited = (end - start for start, end in zip(times[2], times[-1], strict=True))
    weights = trainer.network.state_dict()
    return {
        "losses": losses,
        "weights": weights,
        "rate": round((len(times) - 3) * plan.batch_size / seconds, 1),
        "waited": round(waited / seconds, 3),
        "equal": _equal_everywhere(weights),
    }


def _equal_everywhere(weights: dict[str, torch.Tensor]) -> bool:
    """Whether all processes have the same bits."""
    if size() == 1:
        return True
    flat = torch.cat([value.double().flatten() for value in weights.values()])
    parts = [torch.empty_like(flat) for _ in range(size())]
    torch.distributed.all_gather(parts, flat)
    return all(torch.equal(part, flat) for part in parts)


if __name__ == "__main__":
    main()
