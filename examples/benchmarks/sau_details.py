"""What SAU's details are worth: when its label check begins and how prototypes are made, and how its authors have it.

Held-out real images of the class take the part of synthetic ones, so every label is right and a perfect check trusts
all. Every run has the preset `small` and the same number of steps. A way is a name of `WAYS`, or several joined by +.
Runs are kept under --work, and what is there is not made again, so a table can grow.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import as_synthetic, default_root
from measure import Bar, Document, begin, device_parser, finish
from torch import Tensor, nn

from saukit.core.artifacts import write_json
from saukit.core.console import Reporter
from saukit.core.documents import parse_json, read_text
from saukit.core.seeding import derive_seed
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig, settled
from saukit.data.sources.table import open_source
from saukit.data.split import Part, load_split, load_test, make_split
from saukit.data.synthetic import SyntheticImages
from saukit.models.backbones import initialise_fan_in
from saukit.models.inference import predict
from saukit.training import views as views_room
from saukit.training.config import TrainConfig
from saukit.training.context import StepContext
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.trainer import Trainer
from saukit.training.views import Views

# How the label check goes.
CHECKS = {
    "plain": "the check begins at once, prototypes at each epoch's start in eval mode, as published",
    **{f"after{share}": f"every label is trusted in the first {share} of the steps" for share in (0.1, 0.25, 0.5)},
    "refresh100": "prototypes every 100 steps",
    "batch": "prototypes with BatchNorm's statistics of the batch",
}
# What the authors' code has otherwise.
DETAILS = {
    "initialisation": "He, fan-in, for convolutions and linear layers",
    "blur": "PIL's Gaussian in v3",
    "cutout": "black",
    "autoaugment": "grey around, bicubic shears, rotation one way",
    "shares": "two draws for mixup and CutMix",
    "statistics": "all four forward passes move the projection's BatchNorm",
}
WAYS = {**CHECKS, **DETAILS, "published": "all six"}
STUDIES = {
    "digits": (SplitConfig(dataset="digits", imb=50.0), 300, None),
    "cifar10": (SplitConfig(dataset="cifar10", imb=100.0, image_size=16), 600, 2000),
}
TRUST_EVERY = 100


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", choices=STUDIES, default="digits")
    parser.add_argument("--root", type=Path, default=default_root(), help="folder with CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("saukit_details"), help="where split and runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ways", default=",".join(CHECKS), help="comma-separated, of: " + ", ".join(WAYS))
    options = parser.parse_args(arguments)
    ways = options.ways.split(",")
    if unknown := {part for way in ways for part in way.split("+")} - set(WAYS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(WAYS)}")
    device = begin(options)
    config, steps, target = STUDIES[options.data]
    steps = 20 if options.quick else steps
    root = None if options.data == "digits" else options.root
    workspace = Workspace(options.work / options.data)
    make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
    held_out = held_out_images(workspace, config, root, target)

    rows: list[Document] = []
    for seed in range(options.seeds):
        for way in ways:
            kept = workspace.root / f"{way}-{steps}x{options.batch_size}-seed{seed}.json"
            if not kept.exists():
                given = TrainConfig(method="sau", preset="small", steps=steps, batch_size=options.batch_size, seed=seed)
                plan = plan_training(given, workspace, name=way, device=device)
                plan = replace(plan, cache=held_out, config=replace(plan.config, synthetic=True))
                write_json(kept, {"way": way, "seed": seed, **run(plan, set(way.split("+")), load_test(workspace))})
            rows.append(parse_json(read_text(kept, remedy="delete it"), where=str(kept), remedy="delete it"))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    table = summarise(rows)
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    best = max(table, key=lambda row: float(row["balanced_accuracy"]))
    title = f"balanced accuracy in %, {options.data}, {steps} steps of {options.batch_size}"
    return finish(
        "sau_details",
        {"data": options.data, "best": best["way"], "balanced_accuracy": best["balanced_accuracy"]},
        {"steps": steps, "batch_size": options.batch_size, "synthetic_images": len(held_out.labels)}
        | {"table": table, "runs": rows},
        {
            title: [
                Bar(row["way"], row["balanced_accuracy"], f"trusted {row['trusted']:.0f} %", "saukit") for row in table
            ]
        },
        options=options,
        arguments=arguments,
        device=device,
    )


def held_out_images(
    workspace: Workspace, config: SplitConfig, root: Path | None, target: int | None
) -> SyntheticImages:
    """Real images that neither part of the split has, so many that each class has `target`, or the largest's number."""
    split, source = load_split(workspace), open_source(settled(config), root)
    taken = [split.train.source_indices]
    if source.test_labels is None:
        taken.append(load_test(workspace).source_indices)
    rest = np.setdiff1d(np.arange(len(source.train_labels)), np.concatenate(taken))
    counts, chosen = split.class_counts, []
    for label, count in enumerate(counts):
        of_class = rest[source.train_labels[rest] == label]
        chosen.append(of_class[: max(0, (target or counts.max()) - count)])
    positions = np.concatenate(chosen)
    pixels = source.load(split.image_size[0], Reporter(quiet=True))
    return as_synthetic(pixels.read("train", positions, split.image_size[0]), source.train_labels[positions])


def run(plan: TrainingPlan, way: set[str], test: Part) -> Document:
    """Train one network and evaluate its last step on the test set."""
    share = sum(float(part.removeprefix("after")) for part in way if part.startswith("after"))
    plan = replace(plan, config=replace(plan.config, check_after=share, as_published=False))
    trainer = VariedTrainer(plan, way)
    curve: list[float | None] = []
    started = time.process_time()
    with patched(set(DETAILS) if "published" in way else way, trainer):
        for step in range(plan.total_steps):
            trainer.advance()
            if (step + 1) % min(TRUST_EVERY, plan.total_steps) == 0:
                curve.append(trainer._log_line(None)["trusted_share"])
    seconds = time.process_time() - started
    found = predict(trainer.network, plan.model_spec, test.images, device=plan.device).logits.argmax(1) == test.labels
    accuracies = np.array([found[test.labels == label].mean() for label in range(plan.split.num_classes)])
    return {
        "balanced_accuracy": round(float(accuracies.mean()), 4),
        "few": round(float(accuracies[list(plan.split.groups.members["few"])].mean()), 4),
        "trusted": None if curve[-1] is None else round(curve[-1], 4),
        "trusted_curve": [None if value is None else round(value, 4) for value in curve],
        "processor_seconds": round(seconds, 1),
    }


class VariedTrainer(Trainer):
    """saukit's trainer with prototypes made in other ways."""

    def __init__(self, plan: TrainingPlan, way: set[str]) -> None:
        super().__init__(plan)
        self._way = way

    def _batch(self, step: int) -> Any:
        if "refresh100" in self._way and step % 100 == 0:
            self.prototypes = None
        return super()._batch(step)

    def _prototypes(self, epoch: int, *, begun: bool) -> tuple[Tensor, Tensor]:
        if "batch" not in self._way:
            return super()._prototypes(epoch, begun=begun)
        kept = {
            module: (module.running_mean, module.running_var) for module in self.network.modules() if is_norm(module)
        }
        for module in kept:  # without them a batch's own statistics are taken in eval mode too
            module.running_mean = module.running_var = None
        found = super()._prototypes(epoch, begun=begun)
        for module, (mean, variance) in kept.items():
            module.running_mean, module.running_var = mean, variance
        return found


def is_norm(module: nn.Module) -> bool:
    """Whether it is BatchNorm."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class PartlyPublished(StepContext):
    """A context in which only some details are the authors'; `config.as_published` means the two shares."""

    statistics: bool = False

    def logits(self, images: Tensor) -> Tensor:
        """As `StepContext`."""
        return StepContext.logits(replace(self, config=replace(self.config, as_published=self.statistics)), images)


class PartlyPublishedViews:
    """Views with the authors' blur, or Cutout, or both."""

    def __init__(self, own: Views, details: set[str]) -> None:
        published = replace(own, as_published=True)
        self.crop_flip = own.crop_flip
        self.autoaugment = (published if "cutout" in details else own).autoaugment
        self.simclr = (published if "blur" in details else own).simclr


@contextmanager
def patched(details: set[str], trainer: Trainer) -> Iterator[None]:
    """Have the trainer's step with these details as published and no others."""
    if "initialisation" in details:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(trainer.plan.config.seed, "initialisation"))
            for part in trainer.network.children():
                initialise_fan_in(part)
    context = trainer.step.context
    facts = {field.name: getattr(context, field.name) for field in fields(context)}
    facts["config"] = replace(context.config, as_published="shares" in details)
    facts["views"] = PartlyPublishedViews(context.views, details)
    trainer.step.context = PartlyPublished(**facts, statistics="statistics" in details)
    original: Callable[..., Tensor] = views_room.autoaugment

    def autoaugment(*given: Any, as_published: bool) -> Tensor:
        return original(*given, as_published="autoaugment" in details)

    views_room.autoaugment = autoaugment  # type: ignore[assignment]
    try:
        yield
    finally:
        views_room.autoaugment = original


def summarise(rows: Sequence[Document]) -> list[Document]:
    """A row a way: means over seeds in %, standard deviations, and the paired difference to the first way."""
    table = []
    first = [row for row in rows if row["way"] == rows[0]["way"]]
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        entry: Document = {"way": way, "seeds": len(mine)}
        for measure in ("balanced_accuracy", "few"):
            values = [100 * row[measure] for row in mine]
            entry[measure] = round(statistics.fmean(values), 2)
            entry[f"{measure}_std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        pairs = zip(mine, first, strict=True)
        entry["differences"] = [
            round(100 * (own["balanced_accuracy"] - its["balanced_accuracy"]), 2) for own, its in pairs
        ]
        entry["trusted"] = round(100 * statistics.fmean(row["trusted"] or 0.0 for row in mine), 1)
        table.append(entry)
    return table


if __name__ == "__main__":
    main()
