"""Random kills of make-lt, synth, train, compare and export, each followed by the command that continues it.

    python examples/kills.py --kills make-lt=10 synth=40 train=40 compare=10 export=10 --out kills.json

All is loaded once. Each command is a forked process that SIGPROF ends, as finally as SIGKILL would, after a random
share of the processor time that an undisturbed one takes: a busy machine does not shift the moment. Then the command is
repeated, with --resume where there is something to resume. Every file has to be that of an undisturbed workspace, but
for times, and no more than the interval between two checkpoints may be lost. With matplotlib the moments and the losses
are drawn beside the JSON file. With --work, what is in --out counts, and the search goes on until --minutes are over.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saukit.cli.main import run
from saukit.core.artifacts import MANIFEST_NAME, SEAL
from saukit.data import encoding
from saukit.models import dual_branch
from saukit.synthesis.generators import diffusion_training
from saukit.training import trainer

LAZY = ("saukit.cli.show", "saukit.deploy.export", "saukit.evaluation.compare", "saukit.synthesis.stage",
        "saukit.training.estimate", "torch._dynamo", "diffusers.models.unets.unet_2d",
        "diffusers.schedulers.scheduling_dpmsolver_multistep",
        "diffusers.schedulers.scheduling_unipc_multistep", "sklearn.datasets")  # fmt: skip
INTERVAL_SECONDS = 0.5  # between checkpoints, in place of 30
SMALL = ("--batch-size", "16", "--amp", "off")
COMMANDS: dict[str, tuple[str, ...]] = {
    "make-lt": ("make-lt", "--dataset", "folder", "--root", "{photos}", "--image-size", "96", "--imb", "4"),
    "synth": (
        "synth",
        "--per-class-target",
        "12",
        "--train-steps",
        "8",
        "--train-batch-size",
        "4",
        "--sampler-steps",
        "2",
        "--sample-batch-size",
        "4",
        "--no-audit",
        "--preflight",
        "0",
        "--amp",
        "off",
    ),
    "train": ("train", "--method", "sau", "--steps", "20", *SMALL, "--name", "killed"),
    "compare": ("compare", "--methods", "ce,sau+synth", "--seeds", "2", "--steps", "10", "--jobs", "1", *SMALL),
    "export": ("export", "given", "--to", "{workspace}/exported", "--format", "torch,hub"),
}
GIVEN = {"make-lt": (), "synth": ("split",), "train": ("split", "synth"), "compare": ("split", "synth"),
         "export": ("split", "synth", "runs")}  # fmt: skip
RESUMED = {"synth": "synth", "train": "runs/killed"}
TIMES = ("seconds", "per_second", "created", "memory_bytes", "files", "root", "reused")  # ends of names
DRAWN = (".png", ".csv", ".md")  # of a comparison; they have its seconds


def make_small() -> None:
    """One thread, a small projection, few files per shard, a short interval, all loaded: for forks of this process."""
    for name in LAZY:  # what commands load when they need it
        importlib.import_module(name)
    torch.set_num_threads(1)
    encoding.FILES_PER_SHARD = 64
    dual_branch.PROJECTION_HIDDEN = 32
    trainer.CHECKPOINT_SECONDS = diffusion_training.CHECKPOINT_SECONDS = INTERVAL_SECONDS


def call(arguments: tuple[str, ...], steps: Path, *, cpu_seconds: float | None = None) -> tuple[int, float]:
    """Run a command in a fork, to its end or for `cpu_seconds`; its exit code and the processor time it took."""
    child = os.fork()
    if child == 0:
        note_steps(steps)
        if cpu_seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        sys.argv = ["saukit", *arguments]
        try:
            run()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 0)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


Steps = list[tuple[str, int, float]]  # of which training, its number, and when


def note_steps(path: Path) -> None:
    """Have every training step write its training, its number and the time to `path`, which a kill does not undo."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def note(kind: Any, step: str, number: Callable[[Any], int], name: Callable[[Any], str]) -> None:
        run_whole = kind.run

        def run_noted(self: Any, *arguments: Any, **options: Any) -> Any:
            advance = getattr(self, step)

            def noted() -> Any:
                before, found = number(self), advance()
                os.write(descriptor, f"{name(self)} {before} {time.monotonic()}\n".encode())
                return found

            setattr(self, step, noted)
            return run_whole(self, *arguments, **options)

        kind.run = run_noted  # steps outside it are tried for an estimate

    def of_config(it: Any) -> str:
        config = it.plan.config
        return f"{config.method}-{config.synthetic}-{config.seed}"

    note(trainer.Trainer, "advance", lambda it: it.step_count, of_config)
    note(diffusion_training.GeneratorTrainer, "train_step", lambda it: it.step, lambda it: "generator")


def lost(before: Steps, after: Steps) -> dict[str, Any]:
    """Steps that were done twice, the seconds they had taken, and the longest time between two steps of a training."""
    done, seconds, gaps = 0, 0.0, [0.0]
    for training in {step[0] for step in before}:
        mine = [step for step in before if step[0] == training]
        gaps += [late[2] - early[2] for early, late in itertools.pairwise(mine)]
        first = min((number for name, number, _ in after if name == training), default=None)
        again = [moment for _, number, moment in mine if first is not None and number >= first]
        kept = [moment for _, number, moment in mine if first is None or number < first]
        done += len(again)
        seconds += again[-1] - (kept[-1] if kept else again[0]) if again else 0.0
    return {
        "steps_before": len(before),
        "steps_lost": done,
        "seconds_lost": round(seconds, 3),
        "longest_step_seconds": round(max(gaps), 3),
    }


def steps_in(path: Path) -> Steps:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, int(number), float(moment)) for name, number, moment in map(str.split, lines)]


def timeless(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: timeless(value) for name, value in document.items() if not name.endswith(TIMES)}
    return [timeless(item) for item in document] if isinstance(document, list) else document


def bits(workspace: Path) -> dict[str, str]:
    """Every file of the workspace, hidden ones too, with the SHA-256 of what no clock wrote."""
    found = {}
    for path in sorted(path for path in workspace.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = [content] if path.suffix == ".json" else content.splitlines()
            documents = [timeless(json.loads(line)) for line in lines]
            if path.name == MANIFEST_NAME:
                documents[0].pop(SEAL)  # of the times too
            content = json.dumps(documents).encode()
        if "comparisons" not in path.parts or path.suffix not in DRAWN:
            found[path.relative_to(workspace).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def photos(folder: Path) -> None:
    """Four classes of 160 pictures of 96 pixels each."""
    from PIL import Image

    draw = torch.Generator().manual_seed(0)
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for index in range(160):
            small = torch.randint(0, 256, (6, 6, 3), dtype=torch.uint8, generator=draw).numpy()
            Image.fromarray(small).resize((96, 96)).save(folder / name / f"{index:03d}.png")


class Ground:
    """The folder of this search: the workspace that all starts from, and what undisturbed commands make of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.base, self.steps = root, root / "base", root / "steps"
        if (self.base / "runs/given/manifest.json").exists():  # of a search before
            return
        photos(root / "photos")
        self.succeed(("make-lt", "--imb", "50", "-w", str(self.base), "-q"))
        self.succeed((*COMMANDS["synth"], "-w", str(self.base), "-q"))
        self.succeed(("train", "--method", "ce", "--steps", "4", *SMALL, "--name", "given", "-w", str(self.base), "-q"))

    def succeed(self, arguments: tuple[str, ...]) -> float:
        """Run a command to its end; the processor time it took."""
        code, seconds = call(arguments, self.steps)
        if code != 0:
            raise SystemExit(f"{' '.join(arguments)} failed with {code}")
        return seconds

    def started(self, name: str) -> tuple[Path, tuple[str, ...]]:
        """A workspace with what the command `name` needs, and that command."""
        workspace = self.root / "work"
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
        for part in GIVEN[name]:
            shutil.copytree(self.base / part, workspace / part)
        places = {"photos": self.root / "photos", "workspace": workspace}
        return workspace, (*(word.format(**places) for word in COMMANDS[name]), "-w", str(workspace), "-q")

    def undisturbed(self, name: str) -> tuple[float, dict[str, str]]:
        """The processor time of the command `name`, and the files it leaves."""
        kept = self.root / f"{name}.json"
        if not kept.exists():
            workspace, command = self.started(name)
            seconds = self.succeed(command)
            kept.write_text(json.dumps([seconds, bits(workspace)]))
        seconds, expected = json.loads(kept.read_text())
        return seconds, expected

    def kill(self, name: str, draw: random.Random) -> dict[str, Any]:
        """A random kill of the command `name` and what was lost. Ends the program if bits differ."""
        whole, expected = self.undisturbed(name)
        code = 0
        while code == 0:  # it was a little faster than its kill
            workspace, command = self.started(name)
            share = draw.uniform(0.02, 0.98)
            code, _ = call(command, self.steps, cpu_seconds=share * whole)
        if code != -signal.SIGPROF:
            raise SystemExit(f"{name} ended with {code}, not by its kill")
        before = steps_in(self.steps)
        begun = name in RESUMED and (workspace / RESUMED[name] / "config.yaml").exists()
        self.succeed((*command, "--resume") if begun else command)
        record = {"command": name, "share": round(share, 4), **lost(before, steps_in(self.steps))}
        found = bits(workspace)
        if differing := sorted({file for file, _ in found.items() ^ expected.items()}):
            raise SystemExit(f"{name} killed at {share}: not the same bits: {', '.join(differing)}")
        if record["seconds_lost"] > INTERVAL_SECONDS + 2 * record["longest_step_seconds"]:
            raise SystemExit(f"{name} killed at {share} lost more than the interval: {record}")
        return {**record, "same_bits": True}


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """When each kill came, and the seconds of training it cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(record["command"] for record in records))
    figure, (moments, losses) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for row, name in enumerate(names):
        mine = [record for record in records if record["command"] == name]
        moments.plot([record["share"] for record in mine], [row] * len(mine), "|", markersize=14)
        if any(record["steps_before"] for record in mine):
            losses.plot([r["share"] for r in mine], [r["seconds_lost"] for r in mine], ".", label=name)
    moments.set_yticks(range(len(names)), names)
    moments.set(xlabel="share of the command's processor time at the kill", xlim=(0, 1))
    losses.axhline(INTERVAL_SECONDS, color="grey", linestyle=":", label="interval")
    losses.set(xlabel="share of the command's processor time at the kill", title="seconds of training done twice")
    losses.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Search each command named, and write what happened after each kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", nargs="+", default=["make-lt=10", "synth=40", "train=40", "compare=10", "export=10"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--work", type=Path, help="A folder to go on in.")
    parser.add_argument("--out", type=Path, default=Path("kills.json"))
    given = parser.parse_args()
    make_small()
    end = time.monotonic() + 60 * given.minutes
    records = json.loads(given.out.read_text())["records"] if given.work and given.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(given.work or Path(folder))
        for name, kills in (each.split("=") for each in given.kills):
            for number in range(sum(r["command"] == name for r in records), int(kills)):
                if time.monotonic() > end:
                    return
                records.append(ground.kill(name, random.Random(f"{given.seed} {name} {number}")))
                print(json.dumps(records[-1]), flush=True)
                document = {
                    "command": f"python examples/kills.py --kills {' '.join(given.kills)} --seed {given.seed}",
                    "interval_seconds": INTERVAL_SECONDS,
                    "kills": {each: sum(r["command"] == each for r in records) for each in COMMANDS},
                    "same_bits": sum(r["same_bits"] for r in records),
                    "most_seconds_lost": max(r["seconds_lost"] for r in records),
                    "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
                    "records": records,
                }
                given.out.write_text(json.dumps(document, indent=1) + "\n")
    plot(records, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
