"""The evaluation stage: a run's accuracies on the test set, its mistakes, and pictures of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import (
    CONFIG_NAME,
    FORMAT_VERSION,
    Manifest,
    added_files,
    check_document,
    read_manifest,
    write_json,
)
from saukit.core.config import load_saved, to_mapping
from saukit.core.console import Reporter
from saukit.core.device import suited_threads, using_threads
from saukit.core.documents import read_json
from saukit.core.errors import DataError
from saukit.core.plots import save_figure
from saukit.core.shapes import COUNT, SHARE, SOME, Maybe, Rows, Shape, all_of
from saukit.core.workspace import Workspace, command_for, require, require_made_from
from saukit.data.part_files import read_part_files
from saukit.data.shots import GROUP_NAMES
from saukit.data.split import Part, Split, load_split, load_test
from saukit.data.types import Floats
from saukit.evaluation.charts import confusion_figure, per_class_figure
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.errors import ERRORS_NAME, ERRORS_PICTURE, mistakes, save_errors, write_errors
from saukit.evaluation.metrics import (
    ECE_BINS,
    calibration_bins,
    confusion_matrix,
    expected_calibration_error,
    group_accuracy,
    precision_recall_f1,
    top_k_accuracy,
)
from saukit.evaluation.statistics import mean
from saukit.evaluation.suspects import Suspects, find_suspects
from saukit.models.model_file import MODEL_NAME, load_model
from saukit.training.config import TrainConfig
from saukit.training.distributed import from_first
from saukit.training.features import FeatureStore

RESULTS_NAME = "results.json"
PER_CLASS_NAME = "per_class.png"
CONFUSION_NAME = "confusion.png"
FILES = (RESULTS_NAME, PER_CLASS_NAME, CONFUSION_NAME, ERRORS_NAME, ERRORS_PICTURE)
_GROUP = {"classes": [str], "images": SOME, "train_images": COUNT, "top1": SHARE}
_CLASS = all_of("class group", str) | all_of("train_images test_images", COUNT)
_BIN = {"low": SHARE, "high": SHARE, "images": COUNT, "confidence": Maybe(SHARE), "accuracy": Maybe(SHARE)}
# What of results.json somebody reads.
SHAPE: Shape = (
    {"format_version": COUNT, "groups_rule": str, "split": {"source": str}, "run": {"name": str}, "test_images": SOME}
    | all_of("top1 balanced_accuracy ece macro_f1", SHARE)
    | {"top5": Maybe(SHARE), "groups": all_of(" ".join(GROUP_NAMES), Maybe(_GROUP))}
    | {"per_class": Rows("K", _CLASS | all_of("top1 precision recall f1", Maybe(SHARE)))}
    | {"confusion": Rows("K", Rows("K", COUNT)), "calibration": Rows("bins", _BIN)}
)


@dataclass(frozen=True)
class EvalResult:
    """A run's results.json as a document, whether it was there already, and where its pictures are.

    suspects: real images whose label may be wrong, if they were asked for.
    """

    document: dict[str, Any]
    folder: Path
    computed: bool
    suspects: Suspects | None = None

    @property
    def files(self) -> list[Path]:
        """results.json, errors.csv and the pictures."""
        return [self.folder / name for name in FILES]


def evaluate(
    config: EvalConfig, workspace: Workspace, *, device: torch.device, force: bool, reporter: Reporter
) -> EvalResult:
    """Evaluate a run's model on the split's test set, whole, and write results.json, errors.csv and pictures beside it;
    suspects.csv too, if `config` asks for it. Of several processes all predict and the first one writes.

    Raises: DataError without a split or a run, or if the run belongs to another split.
    """
    name = choose_run(workspace, config.run)
    folder = workspace.run(name)
    run = require(folder, kind="run", command=f"saukit train --name {name}")
    split = load_split(workspace)
    require_made_from(run, folder, split=split.manifest, command=f"saukit train --name {name}")
    result = _evaluate(name, workspace, run, split, device=device, force=force, reporter=reporter)
    if config.suspects:
        found = from_first(lambda: find_suspects(name, workspace, split, device=device, reporter=reporter))
        return replace(result, suspects=found)
    return result


def _evaluate(
    name: str,
    workspace: Workspace,
    run: Manifest,
    split: Split,
    *,
    device: torch.device,
    force: bool,
    reporter: Reporter,
) -> EvalResult:
    """The evaluation that is there, or a new one."""
    folder = workspace.run(name)
    if run.files.keys() >= set(FILES) and not force:
        return EvalResult(read_results(folder, split.classes), folder, computed=False)
    network, spec = load_model(folder / MODEL_NAME)
    if spec.classes != split.classes:
        raise DataError(
            f"the model of {folder} knows {len(spec.classes)} classes, this split has {split.num_classes}: "
            "train again on this split"
        )
    test = load_test(workspace)
    reporter.say(f"evaluating {name} on {len(test.labels):,} test images")
    with using_threads(suited_threads(split.image_size, device)):
        store = FeatureStore(workspace, network, spec, device, reporter)
        probabilities = store.predict(test.images, f"{split.manifest.digest} test").probabilities
    training = load_saved(TrainConfig, folder / CONFIG_NAME)
    document = result_document(probabilities, test, split)
    document["run"] = {"name": name, "digest": run.digest, "config": to_mapping(training), **run.summary}
    confusion = confusion_matrix(probabilities, test.labels)

    def write() -> None:
        with workspace.lock(folder), added_files(folder, kind="run", files=FILES):
            write_json(folder / RESULTS_NAME, document)
            accuracies = {name: [entry["top1"] for entry in document["per_class"]]}
            names, counts = split.classes, split.class_counts.tolist()
            title = f"{name}: accuracy per class (real training images)"
            figure = per_class_figure(
                accuracies, classes=names, counts=counts, members=split.groups.members, title=title
            )
            save_figure(figure, folder / PER_CLASS_NAME)
            width = min(9.0, max(4.5, 0.2 * len(names)))
            title = f"{name}: confusion matrix, % of the true class"
            figure = confusion_figure(confusion, classes=names, counts=counts, title=title, width=width)
            save_figure(figure, folder / CONFUSION_NAME)
            wrong = mistakes(probabilities, test.labels)
            files = read_part_files(workspace.split, {"test": len(test.labels)}).get("test")
            write_errors(folder / ERRORS_NAME, wrong, names, files)
            title = f"{name}: {len(wrong.rows):,} of {len(test.labels):,} test images misclassified"
            save_errors(folder / ERRORS_PICTURE, wrong, test.images[wrong.shown], names, files, title=title)

    from_first(write)
    return EvalResult(document, folder, computed=True)


def read_results(folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    """The results.json of a run on `classes`. Raises: CorruptArtifactError for what `result_document` does not make."""
    path = folder / RESULTS_NAME
    remedy = f"evaluate again with `{command_for(folder, f'saukit eval --force --run {folder.name}')}`"
    document: dict[str, Any] = read_json(path, remedy=remedy)
    known = {"K": classes, "bins": range(ECE_BINS)}
    check_document(document, SHAPE, path, remedy=remedy, known=known, also=_uncounted)
    return document


def _uncounted(document: dict[str, Any]) -> Iterator[str]:
    images = document["test_images"]
    if images != sum(row["images"] for row in document["calibration"] if None not in row.values()):
        yield f"calibration is not that of {images} test images"


def choose_run(workspace: Workspace, name: str | None) -> str:
    """The run to evaluate: `name`, or the one completed last. Raises: DataError that lists the runs there are."""
    names = workspace.run_names()
    if name is None and not names:
        command = workspace.command("saukit train")
        raise DataError(f"no run is complete in {workspace.root / 'runs'}: run `{command}` first")
    if name is not None and name not in names:
        read_manifest(workspace.run(name), kind="run")  # one that is damaged says so
        known = f"complete runs: {', '.join(names)}" if names else "no run is complete"
        raise DataError(f"no complete run {name!r} in {workspace.root / 'runs'} ({known})")
    return name if name is not None else names[-1]


def result_document(probabilities: Floats, test: Part, split: Split) -> dict[str, Any]:
    """The figures of results.json, all shares in [0, 1]; a group without classes is null.

    Balanced accuracy and macro F1 are means over the classes that have test images.
    Shapes: probabilities [n, K], in the order of the test part.
    """
    confusion = confusion_matrix(probabilities, test.labels)
    scores = precision_recall_f1(confusion)
    group_of = {c: name for name, rows in split.groups.members.items() for c in rows}
    counts = split.class_counts
    groups = group_accuracy(confusion, split.groups.members, GROUP_NAMES)
    for group in filter(None, groups.values()):
        rows = group["classes"]
        group |= {"classes": [split.classes[c] for c in rows], "train_images": int(counts[rows].sum())}
    return {
        "format_version": FORMAT_VERSION,
        "top1": float(np.mean(probabilities.argmax(1) == test.labels)),
        "top5": top_k_accuracy(probabilities, test.labels, 5),
        "balanced_accuracy": mean([score["recall"] for score in scores]),
        "macro_f1": mean([score["f1"] for score in scores]),
        "ece": expected_calibration_error(probabilities, test.labels),
        "calibration": calibration_bins(probabilities, test.labels),
        "test_images": len(test.labels),
        "groups": groups,
        "groups_rule": split.groups.rule,
        "per_class": [
            {
                "class": split.classes[c],
                "group": group_of[c],
                "train_images": int(counts[c]),
                "test_images": int(confusion[c].sum()),
                "top1": scores[c]["recall"],
                **scores[c],
            }
            for c in range(split.num_classes)
        ],
        "confusion": confusion.tolist(),
        "split": {"digest": split.manifest.digest, "source": split.source},
    }
