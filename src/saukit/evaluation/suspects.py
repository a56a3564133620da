"""Label suspects: real images whose label is probably wrong, by confident learning (Northcutt et al. 2021).

    t_j = mean of p(j | x) over the images labelled j          suspect: another class j with p(j | x) >= t_j, the most
                                                               probable of these, and p(label | x) < t_label

p is out of fold: five logistic regressions, each on the features of the other four fifths, which a frozen backbone made
without having seen a label. A network that was trained on the labels has learned the wrong ones too: there p is its own
confidence on the validation part, and without one the out-of-fold confidence on its features, which misses many.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import CONFIG_NAME, added_files
from saukit.core.config import load_saved
from saukit.core.console import Reporter
from saukit.core.device import Precision
from saukit.core.documents import read_text
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace
from saukit.core.writing import csv_text, write_text
from saukit.data.part_files import read_part_files
from saukit.data.split import Part, Split
from saukit.data.types import Integers
from saukit.models.inference import predict
from saukit.models.model_file import MODEL_NAME, load_model
from saukit.training.config import ResolvedTrainConfig
from saukit.training.features import FeatureStore

SUSPECTS_NAME = "suspects.csv"
COLUMNS = ("part", "index", "file", "label", "suggested", "confidence", "class_mean", "confidence_of_suggested")
AGAIN = "look for them again with `saukit eval --suspects --force`"
FOLDS = 5
# Of 150 random labels among 3,068 photos of clothes 110 are found (4 s on one core), of 60 among 1,797 digits 45.
INVERSE_STRENGTH, TOLERANCE = 4.0, 1e-3  # scikit-learn's C times the number of standardised features, and its tol
MOST_WORK = 1e9  # images x features x classes: about two minutes on one core

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Suspects:
    """How many of `images` are suspects, how that was found, and where they are listed.

    problem: why they were not looked for.
    """

    path: Path
    count: int
    images: int
    how: str
    problem: str | None = None

    @property
    def sentence(self) -> str:
        """The result in a line."""
        if self.problem is not None:
            return f"label suspects: not looked for, {self.problem}"
        return f"label suspects: {self.count:,} of {self.images:,} real images, by {self.how}: {self.path}"

    @property
    def document(self) -> dict[str, Any]:
        """The same as plain values."""
        values = {"file": str(self.path), "suspects": self.count, "images": self.images, "by": self.how}
        return values if self.problem is None else {"problem": self.problem}


def suspected(probabilities: Floats, labels: Integers) -> tuple[Integers, Integers, Floats]:
    """The suspects among n images, the least likely label first, the class that each is suggested to be, and t [K].

    A class without images has no t and is suggested for none. Shapes: probabilities [n, K]; labels [n].
    """
    rows = np.arange(len(labels))
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[rows, labels]
    with np.errstate(invalid="ignore"):
        means = np.bincount(labels, own, len(counts)) / np.where(counts, counts, np.nan)
    over = np.where(probabilities >= means, probabilities, -np.inf)  # nan compares as false
    suggested = over.argmax(1)
    found = np.flatnonzero((over.max(1) > -np.inf) & (suggested != labels) & (own < means[labels]))
    found = found[np.argsort((own - probabilities[rows, suggested])[found], kind="stable")]
    return found, suggested[found], means


def out_of_fold(features: Floats, labels: Integers, num_classes: int) -> tuple[Floats, Integers]:
    """Probabilities [m, K] of the images of classes with at least `FOLDS` of them, and their rows [m].

    Each is of a logistic regression on the standardised features of the other folds.
    Shapes: features [n, d]; labels [n].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.flatnonzero(np.bincount(labels, minlength=num_classes)[labels] >= FOLDS)
    there = np.unique(labels[rows])
    probabilities = np.zeros((len(rows), num_classes))
    if len(there) > 1:
        regression = LogisticRegression(C=INVERSE_STRENGTH / features.shape[1], tol=TOLERANCE)
        model = make_pipeline(StandardScaler(), regression)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        probabilities[:, there] = cross_val_predict(
            model, features[rows], labels[rows], cv=folds, method="predict_proba"
        )
    else:
        probabilities[:, there] = 1
    return probabilities, rows


def find_suspects(
    name: str, workspace: Workspace, split: Split, *, device: torch.device, reporter: Reporter
) -> Suspects:
    """Look for suspects with the run `name`, and write its suspects.csv."""
    folder = workspace.run(name)
    network, spec = load_model(folder / MODEL_NAME)
    parts = {part: of for part, of in (("train", split.train), ("val", split.val)) if of is not None}
    how = "out-of-fold confidence on the features of the frozen backbone"
    if not spec.standardize:
        how = "the run's confidence on the validation part"
        if split.val is None:
            how = "out-of-fold confidence on features that have learned these labels (a validation part shows more)"
        else:
            parts = {"val": split.val}
    labels = np.concatenate([of.labels for of in parts.values()])
    path, work = folder / SUSPECTS_NAME, len(labels) * network.classifier.in_features * split.num_classes
    if work > MOST_WORK and how.startswith("out-of-fold"):
        problem = (
            f"{len(labels):,} images x {network.classifier.in_features:,} features x {split.num_classes:,} classes "
            f"are more than {MOST_WORK:,.0f}"
        )
        return Suspects(path, 0, len(labels), how, problem)
    if how.startswith("the run's"):
        probabilities: Floats = predict(network, spec, parts["val"].images, device=device).probabilities
        rows = np.arange(len(labels))
    else:
        reporter.say(f"looking for label suspects among {len(labels):,} real images: {FOLDS} logistic regressions")
        precision = Precision(load_saved(ResolvedTrainConfig, folder / CONFIG_NAME).amp, device.type)
        store = FeatureStore(workspace, network, spec, device, reporter, precision)

        def features(part: str, of: Part) -> Floats:
            if not spec.standardize:
                return predict(network, spec, of.images, device=device).features
            return store.of(of.images, f"{split.manifest.digest} {part}")

        every = np.concatenate([features(part, of) for part, of in parts.items()])
        probabilities, rows = out_of_fold(every, labels, split.num_classes)
    found, suggested, means = suspected(probabilities, labels[rows])
    places = [(part, row, int(label)) for part, of in parts.items() for row, label in enumerate(of.labels)]
    files = read_part_files(workspace.split, {part: len(of.labels) for part, of in parts.items()})
    lines: list[tuple[object, ...]] = [COLUMNS]
    for at, other in zip(found.tolist(), suggested.tolist(), strict=True):
        part, row, label = places[rows[at]]
        file = files[part][row] if part in files else ""
        shares = [f"{share:.6f}" for share in (probabilities[at, label], means[label], probabilities[at, other])]
        lines.append((part, row, file, split.classes[label], split.classes[other], *shares))
    with workspace.lock(folder), added_files(folder, kind="run", files=[SUSPECTS_NAME]):
        write_text(path, csv_text(lines))
    return Suspects(path, len(found), len(rows), how)


def read_suspects(path: Path) -> list[dict[str, str]]:
    """The rows of a suspects.csv, by the names of its columns. Raises: CorruptArtifactError for what is not one."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, remedy=AGAIN), newline="")))
    except csv.Error as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}; {AGAIN}") from None
    for number, row in enumerate(rows, start=1):
        if row.keys() != {*COLUMNS} or None in row.values():
            raise CorruptArtifactError(f"{path} is damaged: row {number} has not {', '.join(COLUMNS)}; {AGAIN}")
    return rows
