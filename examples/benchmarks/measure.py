"""What the benchmarks share: options, alternating timing, what a result was measured on, and how it is written."""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from inputs import default_root

import saukit
from saukit.core.artifacts import package_versions, write_json
from saukit.core.device import limit_threads, resolve_device
from saukit.core.plots import bare, colour, new_figure, save_figure, styled
from saukit.core.words import format_bytes

MIN_ROUNDS = 5
BAR_COLOURS = {"reference": "#9aa5b1", "between": "#8fb3d9", "saukit": "#2f6db3"}

Work = Callable[[], None]
Document = dict[str, Any]


# --- options ------------------------------------------------------------------------------------------------------


def option_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark of speed has."""
    parser = device_parser(description)
    parser.add_argument("--batch-size", type=_positive, help="images of batch A a step")
    parser.add_argument("--rounds", type=_rounds, help=f"how often each candidate has its turn, at least {MIN_ROUNDS}")
    parser.add_argument(
        "--root",
        type=Path,
        default=default_root(),
        help="folder with CIFAR-10 (default: SAUKIT_DATA, if it lies there; otherwise random images)",
    )
    return parser


def device_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small batches and few repeats: minutes on two cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_positive, help="threads of torch, and worker processes of a reference")
    parser.add_argument("--out", type=Path, help="write the whole result to this JSON file, and a plot beside it")
    return parser


def begin(options: argparse.Namespace) -> torch.device:
    """Settle threads and device, as saukit's commands do."""
    limit_threads()
    if options.threads is None:
        options.threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    options.load_average = [round(load, 2) for load in os.getloadavg()]  # before this adds its own
    return resolve_device(options.device)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _rounds(text: str) -> int:
    number = int(text)
    if number < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_ROUNDS}, or the spread means nothing, got {number}")
    return number


# --- timing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What is timed: `session` opens what it needs for a turn and yields the work of one unit.

    A turn is `warm_up` units that are not timed, then `units` that are.
    """

    name: str
    session: Callable[[], AbstractContextManager[Work]]
    units: int
    warm_up: int


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of work, the mean of each turn."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median turn."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> Document:
        """Median, extremes and quartiles, in milliseconds."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        values = {
            "median": self.median,
            "min": min(self.seconds),
            "lower_quartile": low,
            "upper_quartile": high,
            "max": max(self.seconds),
        }
        milliseconds = {name: round(1e3 * value, 4) for name, value in values.items()}
        return {**milliseconds, "rounds": [round(1e3 * value, 4) for value in self.seconds]}


def steady(work: Work) -> Callable[[], AbstractContextManager[Work]]:
    """The session of a candidate that needs nothing but its work."""

    @contextmanager
    def session() -> Iterator[Work]:
        yield work

    return session


def measure(candidates: Sequence[Candidate], *, rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the candidates in turns, so that a slow minute of the machine hits all of them.

    The first round only warms up; the order of the candidates is reversed from round to round.
    """
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for turn in range(rounds + 1):
        for candidate in candidates if turn % 2 == 0 else reversed(candidates):
            with candidate.session() as work:
                for _ in range(candidate.warm_up if turn else max(1, candidate.warm_up)):
                    work()
                if turn:
                    seconds[candidate.name].append(timed(work, candidate.units, device) / candidate.units)
        done = "warmed up" if turn == 0 else f"round {turn} of {rounds}"
        latest = "" if turn == 0 else ": " + "  ".join(f"{1e3 * values[-1]:.1f}" for values in seconds.values()) + " ms"
        print(done + latest, flush=True)
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def timed(work: Work, repeats: int, device: torch.device) -> float:
    """Seconds that `repeats` calls take, the device waited for before and after."""
    gc.collect()  # not in the midst of what is timed
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- memory -------------------------------------------------------------------------------------------------------


def peak_memory(device: torch.device) -> Document:
    """Bytes: the largest resident size of this process and of its workers, and on a GPU what torch allocated at most.

    Pages that workers share with this process count in each of them.
    """
    workers = [_peak_resident(child.pid) for child in multiprocessing.active_children()]
    memory: Document = {"process_bytes": _peak_resident(os.getpid()), "worker_bytes": workers}
    if device.type == "cuda":
        memory["gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return memory


def describe_memory(memory: Mapping[str, Any]) -> str:
    """The same in words."""
    words = [f"process {format_bytes(memory['process_bytes'])}"]
    if memory["worker_bytes"]:
        words.append(f"workers {' + '.join(map(format_bytes, memory['worker_bytes']))}")
    if "gpu_bytes" in memory:
        words.append(f"GPU {format_bytes(memory['gpu_bytes'])}")
    return ", ".join(words)


def _peak_resident(process: int | None) -> int:
    """Largest resident size of a process, in bytes.

    From /proc where there is one: getrusage would also count the parent that the process was forked from.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- results ------------------------------------------------------------------------------------------------------


def ladder_rows(timings: Mapping[str, Timing], batch_size: int, *, extra: Mapping[str, float] | None = None) -> list:
    """A row a rung, first the reference: milliseconds a step, images/s, ratios to the reference and the rung before.

    `extra` holds seconds a step that are measured apart and belong to a rung's step too.
    """
    rows: list[Document] = []
    for name, timing in timings.items():
        share = 0.0 if extra is None else extra[name]
        total = timing.median + share
        row: Document = {"name": name, "milliseconds": timing.spread}
        if extra is not None:
            row["prototype_milliseconds_a_step"] = round(1e3 * share, 4)
        row["total_milliseconds"] = round(1e3 * total, 4)
        row["images_per_second"] = round(batch_size / total, 2)
        first, before = (rows[0], rows[-1]) if rows else (row, row)
        row["ratio_to_reference"] = round(first["total_milliseconds"] / row["total_milliseconds"], 4)
        row["ratio_to_previous"] = round(before["total_milliseconds"] / row["total_milliseconds"], 4)
        rows.append(row)
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A ladder as aligned lines."""
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}}  {'ms':>9}  {'images/s':>9}  {'x reference':>11}  {'x previous':>10}")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['total_milliseconds']:9.1f}  {row['images_per_second']:9,.0f}  "
            f"{row['ratio_to_reference']:11.2f}  {row['ratio_to_previous']:10.2f}"
        )


def environment(device: torch.device, options: argparse.Namespace) -> Document:
    """What a figure depends on besides the code: hardware, threads, versions, and how busy the machine was."""
    gpu = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average_before": options.load_average,
        "threads": options.threads,
        "device": device.type,
        "gpu": gpu,
        "versions": {**package_versions(), "saukit": saukit.__version__},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def command_line(script: str, arguments: Sequence[str]) -> str:
    """The command as it can be repeated elsewhere: folders of this machine are left out."""
    hidden: dict[str, Callable[[str], str]] = {
        "--root": lambda path: "DIR",
        "--workspace": lambda path: "DIR",
        "--work": lambda path: "DIR",
        "--generator": lambda path: "DIR",
        "--out": lambda path: Path(path).name,
        "--weights": lambda path: Path(path).name,
    }
    shown = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if before in hidden:
            argument = hidden[before](argument)
        elif equals and option in hidden:
            argument = f"{option}={hidden[option](value)}"
        shown.append(argument)
    return shlex.join(["python", script, *shown])


@dataclass(frozen=True)
class Bar:
    """A bar of a plot: what it stands for, its length, and what is written beside it."""

    label: str
    value: float
    text: str
    kind: str = "between"


def ladder_bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Bars of images/s with each rung's ratio to the reference."""
    kinds = ["reference", *["between"] * (len(rows) - 2), "saukit"]
    return [
        Bar(row["name"], row["images_per_second"], f"{row['ratio_to_reference']:.2f} x", kind)
        for row, kind in zip(rows, kinds, strict=True)
    ]


def finish(
    benchmark: str,
    summary: Mapping[str, Any],
    details: Mapping[str, Any],
    plots: Mapping[str, Sequence[Bar]],
    *,
    options: argparse.Namespace,
    arguments: Sequence[str],
    device: torch.device,
    script: str | None = None,
) -> Document:
    """Write the result if --out is given, and print its summary as the one last line of JSON.

    script: the file of the benchmark, where it has another name.

    plots: title -> bars, one above the other in the picture.
    """
    head = {"benchmark": benchmark, **summary, "device": device.type, "quick": options.quick}
    if not all(math.isfinite(value) for value in head.values() if isinstance(value, float)):
        raise RuntimeError(f"a ratio is not finite: {head}")
    document = {
        **head,
        "command": command_line(f"{script or benchmark}.py", arguments),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(device, options),
        **details,
    }
    if options.out is not None:
        write_json(options.out, document)
        save_bars(options.out.with_suffix(".png"), plots)
        print(f"wrote {options.out} and {options.out.with_suffix('.png').name}")
    print(json.dumps(head), flush=True)
    return document


@styled
def save_bars(path: Path, plots: Mapping[str, Sequence[Bar]]) -> None:
    """Horizontal bars, one group a plot."""
    count = sum(len(bars) + 1.5 for bars in plots.values())
    figure, (axes,) = new_figure(0.4 + 0.24 * count, width=6.4)
    ink = colour("ink")
    at, ticks, labels = 0.0, [], []
    longest = max(bar.value for bars in plots.values() for bar in bars)
    for title, bars in plots.items():
        axes.text(0, at, title, fontsize=8, fontweight="bold", color=ink, va="center")
        # Each group has a scale of its own: the networks of two groups differ by an order of magnitude.
        scale = longest / max(bar.value for bar in bars)
        for bar in bars:
            at += 1
            axes.barh(at, bar.value * scale, color=BAR_COLOURS[bar.kind], height=0.75)
            axes.text(bar.value * scale, at, f" {bar.value:,.0f}  ({bar.text})", fontsize=7, color=ink, va="center")
            ticks.append(at)
            labels.append(bar.label)
        at += 1.5
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xticks([])
    bare(axes)
    axes.set_xlim(0, 1.55 * longest)
    axes.invert_yaxis()
    save_figure(figure, path)
