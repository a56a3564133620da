"""A head on a frozen backbone from a folder of photos to a deployed model: what each command takes, and whether the
classes of the test photos are the same three times.

`eval` classifies the test images of the split, `predict` the files that they were made from, and
`examples/onnx_predict.py`, which needs no saukit, prepares the same files and runs the exported model.onnx.
`differing`: files whose class by predict or by ONNX is not that of eval.

    python photo_deployed.py --root DIR --weights tf_efficientnet_lite0.safetensors --method class-balanced

`--root` holds train/CLASS and test/CLASS. Options that are not the script's own go to `saukit train`.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import Bar, Document, begin, device_parser, finish
from photo_storage import run_command

from saukit.core.words import format_bytes

ONNX_PREDICT = Path(__file__).parents[1] / "onnx_predict.py"
TRAIN = ("train", "--preset", "photo-small", "--no-synthetic", "--name", "head")


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser("A head on a frozen backbone, trained, evaluated, predicted and exported.")
    parser.add_argument("--root", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--image-size", type=int, default=224)
    options, training = parser.parse_known_args(arguments)
    device = begin(options)
    files = sorted(str(path) for path in (options.root / "test").rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        place, model = ["-w", f"{folder}/work"], f"{folder}/model"
        work = [*place, "--device", device.type]
        size = ["--image-size", str(options.image_size)]
        made = run_command("make-lt", "--dataset", "folder", "--root", str(options.root), *size, *work)
        trained = run_command(*TRAIN, *training, *work)
        evaluated = run_command("eval", "--run", "head", "--json", *work)
        predicted = run_command("predict", "head", *files, *work)
        exported = run_command("export", "head", "--to", model, "--format", "onnx", *place)
        started = time.perf_counter()
        line = [sys.executable, str(ONNX_PREDICT), model, *files]
        onnx = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
        onnx_seconds = round(time.perf_counter() - started, 1)
        mistakes = (Path(folder) / "work/runs/head/errors.csv").read_text("utf-8")
    truth = {file: Path(file).relative_to(options.root / "test").parts[0] for file in files}
    wrong = {str(options.root / row["file"]): row["predicted"] for row in csv.DictReader(mistakes.splitlines())}
    if not wrong.keys() <= truth.keys():
        raise RuntimeError(f"errors.csv names files that are not there: {sorted(wrong.keys() - truth.keys())[:3]}")
    found = {
        "eval": truth | wrong,
        **{
            name: {row["image"]: row["class"] for row in csv.DictReader(text.splitlines())}
            for name, text in (("predict", predicted[1]), ("onnx", onnx))
        },
    }
    result = json.loads(evaluated[1])
    right = {name: sum(classes[file] == truth[file] for file in files) for name, classes in found.items()}
    if right["eval"] != round(result["top1"] * len(files)):
        raise RuntimeError(f"eval has {result['top1']} of {len(files)} right, and errors.csv leaves {right['eval']}")
    differing = {name: sum(found[name][file] != found["eval"][file] for file in files) for name in ("predict", "onnx")}
    commands = [row for row, _ in (made, trained, evaluated, predicted, exported)]
    print(f"of {len(files)} test photos right: {right}; with another class than by eval: {differing}")
    print(f"top-1 {result['top1']:.4f}, balanced {result['balanced_accuracy']:.4f}")
    return finish(
        "photo_deployed",
        {
            "differing": sum(differing.values()),
            "top1": round(result["top1"], 4),
            "balanced_accuracy": round(result["balanced_accuracy"], 4),
            "train_seconds": commands[1]["seconds"],
            "peak_bytes": max(row["peak_bytes"] for row in commands),
        },
        {
            "images": f"{result['run']['real_images']:,} photos to train on, {len(files)} to test on",
            "image_size": options.image_size,
            "right": right,
            "with_another_class_than_eval": differing,
            "commands": commands,
            "onnx_predict_seconds": onnx_seconds,
            **{
                name: result["run"]["config"][name]
                for name in ("method", "backbone", "steps", "batch_size", "multi_crop")
            },
        },
        {
            "seconds": [
                Bar(row["command"], row["seconds"], f"peak {format_bytes(row['peak_bytes'])}", "saukit")
                for row in commands
            ]
        },
        options=options,
        arguments=arguments,
        device=device,
    )


if __name__ == "__main__":
    main()
