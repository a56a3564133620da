"""make-lt, synth, train and eval on digits in a loop, with a kill at a random moment of each round.

    python examples/soak.py --minutes 45 --out soak.json

Each round works in a workspace of its own until all four stages are complete, resuming after its kill. Recorded per
round: seconds, the largest memory of any process so far, files left outside the artefacts, and the model's SHA-256,
which has to be the same in every round. With matplotlib the figures are drawn beside the JSON file.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = (
    ("make-lt", "--imb", "50"),
    ("synth", "--per-class-target", "20", "--train-steps", "40", "--no-audit", "--preflight", "0", "--amp", "off"),
    ("train", "--method", "sau", "--steps", "60", "--batch-size", "16", "--amp", "off", "--name", "soak"),
    ("eval", "--run", "soak"),
)
RESUMED = ("synth", "train")


def call(arguments: tuple[str, ...], workspace: Path, *, kill_after: float | None = None) -> bool:
    """Run a stage; whether it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "saukit", *arguments, "-w", str(workspace), "--quiet"], stderr=subprocess.PIPE, text=True
    )
    try:
        _, error = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}: {error}")
    return False


def play(root: Path, draw: random.Random) -> dict[str, object]:
    """One round in a new workspace."""
    workspace, began = root / "work", time.monotonic()
    victim, moment = draw.randrange(len(STAGES)), draw.uniform(0.5, 15.0)
    killed = False
    for index, stage in enumerate(STAGES):
        if index == victim and call(stage, workspace, kill_after=moment):
            killed = True
            begun = (workspace / {"synth": "synth", "train": "runs/soak"}.get(stage[0], "-") / "config.yaml").exists()
            call((*stage, "--resume") if begun and stage[0] in RESUMED else stage, workspace)
        elif index != victim:
            call(stage, workspace)
    model = (workspace / "runs/soak/model.safetensors").read_bytes()
    record = {
        "killed": STAGES[victim][0] if killed else None,
        "after_seconds": round(moment, 2),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "files": sum(path.is_file() for path in workspace.rglob("*")),
        "strays": sorted(path.relative_to(workspace).as_posix() for path in workspace.rglob(".*")),
        "model": hashlib.sha256(model).hexdigest(),
    }
    shutil.rmtree(workspace)
    return record


def plot(rounds: list[dict[str, object]], path: Path) -> None:
    """Memory, files and seconds over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {"peak_memory_mib": "largest memory, MiB", "files": "files of a round", "seconds": "seconds of a round"}
    figure, axes = pyplot.subplots(len(names), 1, sharex=True, figsize=(7, 6), layout="constrained")
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
    draw, end = random.Random(given.seed), time.monotonic() + 60 * given.minutes
    rounds: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        while not rounds or time.monotonic() < end:
            rounds.append(play(Path(folder), draw))
            models = {record["model"] for record in rounds}
            document = {"rounds": rounds, "models": len(models), "kills": sum(bool(r["killed"]) for r in rounds)}
            given.out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(rounds[-1]), flush=True)
            if len(models) > 1 or rounds[-1]["strays"]:
                raise SystemExit("rounds differ, or left files behind")
    plot(rounds, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
