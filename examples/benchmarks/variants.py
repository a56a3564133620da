"""What synthetic images are worth: accuracy on real images, and on real + synthetic images of each kind.

Every run has the same network, batches and number of optimiser steps; a seed is that of the generator, of its images
and of the training, and the split is the same for all. One workspace a kind and seed, under --work; what is there
already is not made again, so a table can grow. Plain training (`ce`) is done on every kind, other ways on one of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inputs import default_root
from measure import Bar, Document, begin, device_parser, finish

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import refilter, synthesize
from saukit.training.config import TrainConfig
from saukit.training.stage import fit

GENERATOR = "base"  # the kind whose generator the kinds below draw from
MEASURES = ("balanced_accuracy", "many", "medium", "few")

# Kinds that need a training of the generator.
TRAINED: dict[str, SynthConfig] = {
    GENERATOR: SynthConfig(train_steps=1000),
    "steps150": SynthConfig(train_steps=150),
    "steps300": SynthConfig(train_steps=300),
    "natural": SynthConfig(balance=0.0, train_steps=1000),
    "natural150": SynthConfig(balance=0.0, train_steps=150),
    "cbdm150": SynthConfig(tail="cbdm", balance=0.0, train_steps=150),
}
# Kinds that draw otherwise, or choose, from the same generator.
_JUDGED = SynthConfig(filter="classifier", classifier="balanced-softmax")
DRAWN: dict[str, SynthConfig] = {
    "plain": SynthConfig(),
    "filtered": _JUDGED,
    "nocopy": SynthConfig(reject_copies=True),
    "no-guidance": SynthConfig(guidance=1.0),
    "guidance3": SynthConfig(guidance=3.0),
    "real0.4": SynthConfig(variation=0.4),
    "real0.7": SynthConfig(variation=0.7),
}
# Kinds that choose anew from the images of "plain", so that nothing replaces what is rejected.
CHOSEN: dict[str, SynthConfig] = {"passing": _JUDGED}
KINDS = {**TRAINED, **DRAWN, **CHOSEN}
# On real images alone.
REAL: dict[str, TrainConfig] = {
    "ce": TrainConfig(method="ce"),
    "balanced-softmax": TrainConfig(method="balanced-softmax"),
    "ce-real-prior1.5": TrainConfig(method="ce", prior_correction=1.5),
    "mix-real-prior1": TrainConfig(method="mixup-cutmix", prior_correction=1.0),
    "sau-real-prior1": TrainConfig(method="sau", prior_correction=1.0),
}
# On real and synthetic images.
MIXED: dict[str, TrainConfig] = {
    "ce+synth": TrainConfig(method="ce"),
    "ce-weight.5+synth": TrainConfig(method="ce", synthetic_weight=0.5),
    "ce-prior.5+synth": TrainConfig(method="ce", prior_correction=0.5),
    "ce-prior.75+synth": TrainConfig(method="ce", prior_correction=0.75),
    "ce-prior1+synth": TrainConfig(method="ce", prior_correction=1.0),
    "ce-w.5-prior.75+synth": TrainConfig(method="ce", synthetic_weight=0.5, prior_correction=0.75),
    "mix+synth": TrainConfig(method="mixup-cutmix"),
    "mix-prior.75+synth": TrainConfig(method="mixup-cutmix", prior_correction=0.75),
    "sau+synth": TrainConfig(method="sau"),
    "sau-prior.5+synth": TrainConfig(method="sau", prior_correction=0.5),
    "sau-prior.75+synth": TrainConfig(method="sau", prior_correction=0.75),
    "sau-prior1+synth": TrainConfig(method="sau", prior_correction=1.0),
}


@dataclass(frozen=True)
class Study:
    """A data set with its budget."""

    split: SplitConfig
    steps: int
    per_class_target: int | None


STUDIES = {
    "digits": Study(SplitConfig(dataset="digits", imb=50.0), 400, None),
    "cifar10": Study(SplitConfig(dataset="cifar10", imb=100.0, image_size=16), 1000, 1000),
}


def main(arguments: Sequence[str] | None = None) -> Document:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = device_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", choices=STUDIES, default="digits")
    parser.add_argument("--root", type=Path, default=default_root(), help="folder with CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("saukit_variants"), help="where the workspaces are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0")
    parser.add_argument("--kinds", help="comma-separated, of: " + ", ".join(KINDS))
    parser.add_argument("--more-on", help="the kind that is trained on in other ways too")
    parser.add_argument("--ways", help="comma-separated, of: " + ", ".join({**REAL, **MIXED}))
    options = parser.parse_args(arguments)
    kinds = _listed(parser, options.kinds, KINDS, ["plain"] if options.quick else [*DRAWN])
    ways = _listed(parser, options.ways, {**REAL, **MIXED}, ["ce", "balanced-softmax"])
    device = begin(options)
    study = STUDIES[options.data]
    if options.quick:
        study = replace(study, steps=50, per_class_target=20)
    quiet = Reporter(quiet=True)

    def workspace(kind: str, seed: int) -> Workspace:
        """Of a kind and seed, with the split that all share; a judge is the run on real images of that seed."""
        found = Workspace(options.work / f"{kind}-{seed}")
        found.root.mkdir(parents=True, exist_ok=True)
        if not found.split.exists():
            found.split.symlink_to(os.path.relpath(shared.split, found.root))
        return found

    def cache(kind: str, seed: int) -> Workspace:
        here = workspace(kind, seed)
        config = replace(KINDS[kind], seed=seed, per_class_target=study.per_class_target, preflight=0, audit=False)
        if options.quick:
            config = replace(config, train_steps=5, sampler_steps=2)
        if kind not in TRAINED:
            if not (options.work / f"{GENERATOR}-{seed}" / "synth" / "generator" / "unet").exists():
                cache(GENERATOR, seed)
            generator = options.work / f"{GENERATOR}-{seed}" / "synth" / "generator"
            config = replace(config, model=str(generator), train_steps=None)
        if config.classifier is not None:
            judge = here.root / "runs" / config.classifier
            judge.parent.mkdir(exist_ok=True)
            if not judge.exists():
                real = workspace("none", seed).run(config.classifier)
                judge.symlink_to(os.path.relpath(real, judge.parent))
        if kind in CHOSEN:
            if not here.synth.exists():
                shutil.copytree(cache("plain", seed).synth, here.synth)
            refilter(config, here, device=device, reporter=quiet)
        else:
            synthesize(config, here, device=device, force=False, resume=True, reporter=quiet)
        return here

    rows: list[Document] = []

    def train(here: Workspace, kind: str, way: str, seed: int) -> None:
        config = replace({**REAL, **MIXED}[way], preset="small", steps=study.steps, seed=seed, synthetic=way in MIXED)
        fit(config, here, name=way, device=device, force=False, resume=True, reporter=quiet)
        found = evaluate(EvalConfig(run=way), here, device=device, force=False, reporter=quiet).document
        groups = {name: (found["groups"][name] or {}).get("top1") for name in ("many", "medium", "few")}
        rows.append(
            {"kind": kind, "way": way, "seed": seed, "top1": found["top1"]}
            | {"balanced_accuracy": found["balanced_accuracy"], **groups}
        )
        print("  ".join(f"{name} {_shown(value)}" for name, value in rows[-1].items()), flush=True)

    shared = Workspace(options.work / "base")
    root = None if study.split.dataset == "digits" else options.root
    make_split(study.split, shared, root=root, force=False, reporter=quiet)
    for seed in range(options.seeds):
        for way in (way for way in ways if way in REAL):
            train(workspace("none", seed), "none", way, seed)
        for kind in kinds:
            here = cache(kind, seed)
            train(here, kind, "ce+synth", seed)
            if kind == options.more_on:
                for way in (way for way in ways if way in MIXED and way != "ce+synth"):
                    train(here, kind, way, seed)
    table = summarise(rows)
    for row in table:
        print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()))
    best = max(table, key=lambda row: float(row["few"]))
    real = next(row for row in table if row["way"] == "balanced-softmax")
    return finish(
        "variants",
        {"data": options.data, "best_few": best["few"], "best": f"{best['kind']} {best['way']}"}
        | {"balanced_softmax_few": real["few"]},
        {"steps": study.steps, "per_class_target": study.per_class_target, "table": table, "runs": rows},
        {f"few-shot accuracy in %, {options.data}": [_bar(row) for row in table]},
        options=options,
        arguments=arguments,
        device=device,
    )


def summarise(rows: Sequence[dict[str, Any]]) -> list[Document]:
    """One row a kind and way: the mean over seeds of each measure in %, and the standard deviation."""
    table = []
    for kind, way in dict.fromkeys((row["kind"], row["way"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
        entry: Document = {"kind": kind, "way": way, "seeds": len(mine)}
        for measure in MEASURES:
            values = [100 * row[measure] for row in mine]
            entry[measure] = round(statistics.fmean(values), 2)
            entry[f"{measure}_std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        table.append(entry)
    return table


def _bar(row: Document) -> Bar:
    spread = "" if row["few_std"] is None else f"± {row['few_std']:.1f}"
    look = "reference" if row["kind"] == "none" else "saukit"
    return Bar(f"{row['kind']}: {row['way']}", row["few"], f"{row['few']:.1f} {spread}".strip(), look)


def _listed(parser: Any, text: str | None, known: dict[str, Any], default: list[str]) -> list[str]:
    names = default if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    return names


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
