"""SHA-256 of every tensor that saukit writes: shows that a change to the code leaves results as they were.

    python examples/same_bits.py --saukit saukit --out before.json         # with the old code
    python examples/same_bits.py --saukit saukit --against before.json     # with the new code, on the same machine

It makes a split of digits, a cache from each generator, a filtered and an audited cache, a short run of each method,
and a comparison, in a temporary folder, with one thread. A digest covers the names, shapes, dtypes and bytes of a
file's tensors, not its metadata. Bits differ between processors and versions of torch: compare on one machine. Where
the old code calls an option otherwise: --rename "--variation 0.6" "--variation-of real --strength 0.6".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_pipelines  # of random weights, as the tests use them

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
OFFLINE = {"SAUKIT_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
NO_LOOK = "--preflight 0 --no-audit"
DIFFUSION = "--generator diffusion --preset tiny --train-steps 40 --train-batch-size 16 --amp off"
SAMPLING = "--sampler-steps 4 --sample-batch-size 16 --guidance 1.5"
TRAINING = "--preset small --batch-size 32 --amp off"
JUDGE = "--classifier judge"
# The cache of the workspace `main` is the one that runs train on.
CACHES = {
    "main": f"{DIFFUSION} {SAMPLING} --per-class-target 20 {NO_LOOK}",
    "cbdm": f"{DIFFUSION} {SAMPLING} --tail cbdm --per-class-target 8 --sampler unipc {NO_LOOK}",
    "variations": f"{DIFFUSION} {SAMPLING} --variation 0.6 --per-class-target 8 {NO_LOOK}",
    "folder": f"--generator folder --from {{root}}/images --per-class-target 16 {NO_LOOK}",
    "pipeline": f"--generator pipeline --model {{root}}/model --dtype float32 {SAMPLING} "
    f"--per-class-target 8 {NO_LOOK}",
    "cmo": f"--generator cmo --per-class-target 16 {NO_LOOK}",
    "filtered": f"--generator folder --from {{root}}/images --per-class-target 16 --reject-copies --max-tries 2 "
    f"--filter classifier --min-confidence 0.2 {JUDGE} {NO_LOOK}",
    "audited": f"{DIFFUSION} {SAMPLING} --per-class-target 12 --preflight 2 --audit {JUDGE}",
}
ON_REAL = ("ce", "class-balanced", "balanced-softmax", "logit-adjustment", "crt")
ON_BOTH = ("ldam-drw", "mixup-cutmix", "bcl", "sau-aware", "sau")
COMPARED = "balanced-softmax,sau+synth-prior1-finish0.5"
SEEDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saukit", default="saukit", help="the command that runs saukit, such as 'python -m saukit'")
    parser.add_argument("--out", type=Path, help="write the digests and accuracies here as JSON")
    parser.add_argument("--against", type=Path, help="an earlier --out: list what differs, and exit with 1 if anything")
    parser.add_argument("--rename", nargs=2, action="append", default=[], help="options here, and what to call instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_all(shlex.split(arguments.saukit), Path(folder), arguments.rename)
        document = collect(Path(folder))
    text = json.dumps(document, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    if arguments.against:
        sys.exit(report_differences(json.loads(arguments.against.read_text()), document))


def run_all(program: list[str], root: Path, renames: list[tuple[str, str]]) -> None:
    """Fill `root` with workspaces: `main`, and one for each other cache."""
    environment = {k: v for k, v in os.environ.items() if k not in ("SAUKIT_WORKSPACE", "SAUKIT_DATA")}
    environment |= ONE_THREAD | OFFLINE

    def saukit(workspace: str, command: str) -> None:
        for here, there in renames:
            command = command.replace(here, there)
        words = [*shlex.split(command), "-w", str(root / workspace), "--device", "cpu", "--quiet"]
        print(f"{time.strftime('%H:%M:%S')} saukit {shlex.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run([*program, *words], env=environment, cwd=root, stdout=sys.stderr)
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {shlex.join([*program, *words])}")

    saukit("main", "make-lt --dataset digits --imb 50 --seed 0")
    write_images(root / "main" / "split" / "test.safetensors", root / "images")
    tiny_pipelines.save_stable_diffusion(root / "model")
    for workspace, options in CACHES.items():
        if workspace != "main":
            shutil.copytree(root / "main" / "split", root / workspace / "split")
        if JUDGE in options:
            saukit(workspace, f"train --name judge --method balanced-softmax --no-synthetic --steps 100 {TRAINING}")
        saukit(workspace, f"synth --seed 0 {options.format(root=root)}")
    for method in (*ON_REAL, *ON_BOTH):
        synthetic = "--synthetic" if method in ON_BOTH else "--no-synthetic"
        saukit("main", f"train --name short-{method} --method {method} {synthetic} --steps 20 {TRAINING} --seed 3")
    saukit("main", f"compare --methods {COMPARED} --seeds {SEEDS} --name short --steps 60 {TRAINING}")


def write_images(part: Path, folder: Path) -> None:
    """The first twenty images of each class of a split's part as PNG; every other one twice as large, in colour."""
    tensors = load_file(part)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index, image in enumerate(tensors["images"][tensors["labels"] == label][:20]):
            picture = Image.fromarray(image.transpose(1, 2, 0))
            picture = picture.resize((16, 20)) if index % 2 else picture.convert("L")
            picture.save(folder / str(label) / f"{index:02}.png")


def collect(root: Path) -> dict[str, dict[str, object]]:
    """Digests of all tensor files below `root`, and the accuracies of the comparison's runs."""
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(root.rglob("results.json"))}
    return {
        "versions": {name: version(name) for name in ("torch", "numpy", "diffusers")},
        "tensors": {path.relative_to(root).as_posix(): digest(path) for path in sorted(root.rglob("*.safetensors"))},
        "accuracies": {run: [result["top1"], result["balanced_accuracy"]] for run, result in results.items()},
    }


def digest(path: Path) -> str:
    """SHA-256 of the tensors' names, dtypes, shapes and bytes, in the order of their names."""
    state = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        state.update(f"{name} {array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def report_differences(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> int:
    """Print what differs; 1 if anything does."""
    differences = [
        f"{part}: {name}: {before[part].get(name)} -> {after[part].get(name)}"
        for part in after
        for name in sorted(before[part].keys() | after[part].keys())
        if before[part].get(name) != after[part].get(name)
    ]
    print("\n".join(differences) or f"equal: {len(after['tensors'])} tensor files", file=sys.stderr)
    return int(bool(differences))


if __name__ == "__main__":
    main()
