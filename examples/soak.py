"""make-lt, synth, train and eval on digits in a loop, with a kill at a random moment of each round.

    python examples/soak.py --minutes 45 --out soak.json

One workspace and one process live through all rounds: every stage is made again with --force, in that process, but for
one stage of each round, which a forked process begins and SIGPROF ends as in kills.py; the process that lives on
continues it. Recorded at each round's end: seconds (of the clock, and of the processor, which a busy machine does not
change), that process's own memory, open files and threads, the files on disk (temporary ones too), hidden files left
behind, and the model's SHA-256, which has to be the same in every round. With matplotlib the figures are drawn beside
the JSON file.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kills import COMMANDS, call, make_small

from saukit.cli.main import run

STAGES = {"split": ("make-lt", "--imb", "50"), "synth": COMMANDS["synth"], "runs/killed": COMMANDS["train"],
          "runs/killed/results.json": ("eval", "--run", "killed")}  # fmt: skip
RESUMED = ("synth", "train")


def live(parent: Connection) -> None:
    """Run the commands that come through `parent` until there is none; tell what this process has become."""
    while arguments := parent.recv():
        sys.argv, code, began = ["saukit", *arguments], 0, time.process_time()
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        size = {"memory_mib": int(status["RssAnon"].split()[0]) // 1024, "threads": int(status["Threads"])}
        parent.send(
            (code, time.process_time() - began, {**size, "open_files": sum(1 for _ in Path("/proc/self/fd").iterdir())})
        )


def play(root: Path, alive: Connection, draw: random.Random, whole: dict[str, float]) -> dict[str, Any]:
    """One round; the first fills `whole`, the processor time of each stage, and kills nothing."""
    workspace, began, killed, size, spent = root / "work", time.monotonic(), None, {}, 0.0
    victim, share = draw.choice(list(STAGES)) if whole else None, draw.uniform(0.02, 0.98)
    for made, stage in STAGES.items():
        command, code = (*stage, "-w", str(workspace), "--quiet"), 0
        if made == victim:
            code, seconds = call((*command, "--force"), root / "steps", cpu_seconds=share * whole[made])
            spent += seconds
            killed = stage[0] if code == -signal.SIGPROF else None
        if made != victim or killed:
            folder = workspace / made
            begun = (folder / "config.yaml").exists() and not (folder / "manifest.json").exists()
            way = "--resume" if killed and begun and stage[0] in RESUMED else "--force"
            alive.send((*command, way))
            code, seconds, size = alive.recv()
            whole.setdefault(made, seconds)
            spent += seconds
        if code != 0:
            raise SystemExit(f"{' '.join(command)} ended with {code}")
    return {
        "killed": killed,
        "at_share": round(share, 3) if killed else None,
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(spent, 2),
        **size,
        "largest_fork_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "files": sum(path.is_file() for path in root.rglob("*")),
        "strays": sorted(path.relative_to(root).as_posix() for path in workspace.rglob(".*")),
        "model": hashlib.sha256((workspace / "runs/killed/model.safetensors").read_bytes()).hexdigest(),
    }


def plot(rounds: list[dict[str, Any]], path: Path) -> None:
    """Memory, files and seconds over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {"memory_mib": "memory of the process that lives on, MiB", "files": "files on disk",
             "open_files": "its open files", "processor_seconds": "processor seconds of a round"}  # fmt: skip
    figure, axes = pyplot.subplots(len(names), 1, sharex=True, figsize=(7, 7), layout="constrained")
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        axis.plot(range(1, len(rounds) + 1), [record[name] for record in rounds], marker=".")
        axis.set_title(title, loc="left")
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("round")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Play rounds until the time is up, and write what happened after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    given = parser.parse_args()
    draw, began = random.Random(given.seed), time.monotonic()
    rounds: list[dict[str, Any]] = []
    whole: dict[str, float] = {}
    make_small()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tempfile.tempdir = os.environ["TMPDIR"] = str(root / "temporary")
        Path(tempfile.tempdir).mkdir()
        (root / "steps").touch()
        alive, other = multiprocessing.Pipe()
        multiprocessing.get_context("fork").Process(target=live, args=(other,), daemon=True).start()
        while not rounds or time.monotonic() < began + 60 * given.minutes:
            rounds.append(play(root, alive, draw, whole))
            models = {record["model"] for record in rounds}
            document = {
                "command": f"python examples/soak.py --minutes {given.minutes:g} --seed {given.seed}",
                "minutes": round((time.monotonic() - began) / 60, 1),
                "kills": sum(record["killed"] is not None for record in rounds),
                "models": len(models),
                "rounds": rounds,
            }
            given.out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(rounds[-1]), flush=True)
            if len(models) > 1 or rounds[-1]["strays"]:
                raise SystemExit("rounds differ, or left files behind")
        alive.send(())
    plot(rounds, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
