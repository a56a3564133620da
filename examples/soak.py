"""make-lt, synth, train and eval on digits in a loop, with a kill at a random moment of each round.

    python examples/soak.py --minutes 45 --out soak.json

Each round works in a workspace of its own until all four stages are complete, resuming after its kill, which comes as
in kills.py. Recorded per round: seconds, the largest memory of any process so far, files left outside the artefacts,
and the model's SHA-256, which has to be the same in every round. With matplotlib the figures are drawn beside the JSON.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

from kills import COMMANDS, RESUMED, call, make_small

STAGES = (("make-lt", "--imb", "50"), COMMANDS["synth"], COMMANDS["train"], ("eval", "--run", "killed"))


def play(root: Path, draw: random.Random, whole: dict[str, float]) -> dict[str, object]:
    """One round in a new workspace; the first fills `whole`, the processor time of each stage, and kills nothing."""
    workspace, began, killed = root / "work", time.monotonic(), None
    victim, share = draw.choice(STAGES) if whole else None, draw.uniform(0.02, 0.98)
    for stage in STAGES:
        command, name = (*stage, "-w", str(workspace), "--quiet"), stage[0]
        code, seconds = call(command, root / "steps", cpu_seconds=share * whole[name] if stage is victim else None)
        if stage is victim and code == -signal.SIGPROF:
            killed = name
            begun = name in RESUMED and (workspace / RESUMED[name] / "config.yaml").exists()
            code, _ = call((*command, "--resume") if begun else command, root / "steps")
        if code != 0:
            raise SystemExit(f"{' '.join(command)} failed with {code}")
        whole.setdefault(name, seconds)
    model = (workspace / "runs/killed/model.safetensors").read_bytes()
    record = {
        "killed": killed,
        "at_share": round(share, 3) if killed else None,
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
    whole: dict[str, float] = {}
    make_small()
    with tempfile.TemporaryDirectory() as folder:
        while not rounds or time.monotonic() < end:
            rounds.append(play(Path(folder), draw, whole))
            models = {record["model"] for record in rounds}
            document = {"rounds": rounds, "models": len(models), "kills": sum(bool(r["killed"]) for r in rounds)}
            given.out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(rounds[-1]), flush=True)
            if len(models) > 1 or rounds[-1]["strays"]:
                raise SystemExit("rounds differ, or left files behind")
    plot(rounds, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
