"""Who judges the candidates of a workspace: the scores stored with them, and the classes they are taken for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import sha256_file
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.data.split import Split
from saukit.models.model_file import MODEL_NAME
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.prompts import PromptBook
from saukit.synthesis.judging.duplicates import CopyDetector
from saukit.synthesis.judging.scorers import ClassifierScorer, ClipScorer, classifier_scorer
from saukit.synthesis.judging.selection import CLIP, CONFIDENCE, Rules

COPY_DISTANCE = "copy_distance"
Images = npt.NDArray[np.uint8]
TrainClassifier = Callable[[], str]  # makes sure that a run on the split's real images is there; its name


@dataclass(frozen=True)
class Score:
    """A number for each image: `compute(images uint8 [n, 3, H, W], labels int64 [n])` gives float32 [n].

    `digest` identifies what gives it: equal digests give equal scores.
    """

    name: str
    digest: str
    compute: Callable[[Images, npt.NDArray[np.int64]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Judges:
    """What looks at the candidates of one split. `classifier_run` is the name of the classifier's run."""

    scores: tuple[Score, ...]
    classifier: ClassifierScorer | None
    classifier_run: str | None
    clip: ClipScorer | None
    detector: CopyDetector | None

    def probabilities(self, images: Images) -> npt.NDArray[np.float32]:
        """Class probabilities [n, K] by CLIP where it judges, else by the classifier."""
        if self.clip is not None:
            return self.clip.probabilities(images)
        assert self.classifier is not None
        return self.classifier.features_and_probabilities(images)[1]


def open_judges(
    config: SynthConfig,
    workspace: Workspace,
    split: Split,
    device: torch.device,
    train_classifier: TrainClassifier | None,
) -> Judges:
    """The judges that a resolved configuration asks for.

    Raises: DataError for a classifier that is not there or belongs to another split, EnvironmentFault for a missing
    extra or a CLIP model that cannot be loaded.
    """
    scores: list[Score] = []
    classifier, run, clip, detector = None, None, None, None
    if config.needs_classifier:
        classifier, run, digest = _open_classifier(config, workspace, split, device, train_classifier)
        scores.append(Score(CONFIDENCE, digest, classifier.confidence))
    if "clip" in config.filters:
        book = PromptBook.of(split.classes)
        clip = ClipScorer(config.clip_model, book.lines, device)
        scores.append(Score(CLIP, f"{config.clip_model} {clip.revision} {book.digest}", clip.similarity))
    if config.audit or config.reject_copies:
        found = detector = CopyDetector(split.train.images, flip=split.flip, device=device)
        # The split's digest tells its `flip` too; the word tells these scores from those of a saukit that took a
        # mirrored image for a copy everywhere.
        digest = split.manifest.digest if split.flip else f"{split.manifest.digest} unmirrored"
        scores.append(Score(COPY_DISTANCE, digest, lambda images, labels: found.nearest(images).distance))
    return Judges(tuple(scores), classifier, run, clip, detector)


def rules_of(config: SynthConfig) -> Rules:
    """What a candidate has to be, by a configuration."""
    filters = config.filters
    return Rules(
        min_confidence=config.min_confidence if "classifier" in filters else None,
        min_clip=config.min_clip if "clip" in filters else None,
        reject_copies=config.reject_copies,
    )


def _open_classifier(
    config: SynthConfig,
    workspace: Workspace,
    split: Split,
    device: torch.device,
    train_classifier: TrainClassifier | None,
) -> tuple[ClassifierScorer, str, str]:
    """The classifier, its run's name and its weights' digest."""
    name = config.classifier
    if name is None:
        if train_classifier is None:
            raise ValueError("this configuration needs a classifier: give train_classifier, or the name of a run")
        name = train_classifier()
    folder = workspace.run(name)
    scorer = classifier_scorer(folder, name, split.classes, device)
    manifest = require(folder, kind="run", command=f"saukit train --name {name}")
    require_made_from(manifest, folder, split=split.manifest, command=f"saukit train --name {name}")
    return scorer, name, sha256_file(folder / MODEL_NAME)
