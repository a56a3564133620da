"""Who judges the candidates of a workspace: the scores stored with them, and the classes they are taken for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from saukit.core.artifacts import MANIFEST_NAME
from saukit.core.console import Reporter
from saukit.core.errors import EnvironmentFault
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.core.writing import sha256_file
from saukit.data.split import Split
from saukit.data.types import Floats, Images, Integers
from saukit.models.model_file import MODEL_NAME
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.prompts import PromptBook
from saukit.synthesis.judging.duplicates import CopyDetector
from saukit.synthesis.judging.neighbours import NeighbourScorer
from saukit.synthesis.judging.scorers import ClassifierScorer, ClipScorer, classifier_scorer
from saukit.synthesis.judging.selection import BRIGHTEST, CLIP, CONFIDENCE, DISTANCE, Rules
from saukit.training.config import TrainConfig
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.stage import fit

COPY_DISTANCE = "copy_distance"
JUDGE_NAME: Final = "balanced-softmax"  # of its run: the method's
JUDGE = TrainConfig(method=JUDGE_NAME, synthetic=False)
# Passes over the real images: below, the judge knows too little of a large split; above, it learns nothing more of a
# tiny one. In between its budget is that of `train`.
LEAST_EPOCHS, MOST_EPOCHS = 5, 400


@dataclass(frozen=True)
class Score:
    """A number for each image: `compute(images uint8 [n, 3, H, W], labels int64 [n])` gives float32 [n].

    `digest` identifies what gives it: equal digests give equal scores.
    """

    name: str
    digest: str
    compute: Callable[[Images, Integers], Floats]


@dataclass(frozen=True)
class Judges:
    """What judges the candidates of one split; None is a judge that the configuration does not ask for."""

    scores: tuple[Score, ...]
    classifier: ClassifierScorer | None
    clip: ClipScorer | None
    detector: CopyDetector | None

    @property
    def copies(self) -> CopyDetector:
        """The detector of copies, for a configuration that asks for it."""
        assert self.detector is not None
        return self.detector

    def probabilities(self, images: Images) -> Floats:
        """Class probabilities [n, K] by CLIP where it judges, else by the classifier."""
        if self.clip is not None:
            return self.clip.probabilities(images)
        assert self.classifier is not None
        return self.classifier.features_and_probabilities(images)[1]


def open_judges(
    config: SynthConfig, workspace: Workspace, split: Split, device: torch.device, reporter: Reporter
) -> Judges:
    """The judges that a resolved configuration asks for; the classifier is trained if it names none.

    Raises: DataError for a classifier that is not there or belongs to another split, EnvironmentFault for a missing
    extra or a CLIP model that cannot be loaded; Interrupted after a signal.
    """
    scores: list[Score] = []
    classifier, clip, detector = None, None, None
    if "clip" in config.filters:
        book = PromptBook.of(split.classes)
        clip = ClipScorer(config.clip_model, book.lines, device)
        scores.append(Score(CLIP, f"{config.clip_model} {clip.revision} {book.digest}", clip.similarity))
    if config.needs_classifier:
        _train_judge(config, workspace, device, reporter)
        name = config.classifier or JUDGE_NAME
        folder, command = workspace.run(name), f"saukit train --name {name}"
        classifier = classifier_scorer(folder, name, split.classes, device)
        manifest = require(folder, kind="run", command=command)
        require_made_from(manifest, folder, split=split.manifest, command=command)
        scores.insert(0, Score(CONFIDENCE, sha256_file(folder / MODEL_NAME), classifier.confidence))
    if "aid" in config.filters and classifier is not None:
        near = NeighbourScorer(classifier.features, split.train.images, split.train.labels)
        scores.append(Score(DISTANCE, f"{split.manifest.digest} {scores[0].digest}", near.distance))
    if config.audit or config.reject_copies:
        judge = classifier if classifier is not None and classifier.is_pretrained else None
        features = None if judge is None else judge.features
        found = detector = CopyDetector(split.train.images, flip=split.flip, device=device, features=features)
        # The split's digest covers its `flip` too; the word sets these scores apart from those of a saukit that took a
        # mirrored image for a copy everywhere.
        digest = split.manifest.digest if split.flip else f"{split.manifest.digest} unmirrored"
        digest += "" if judge is None else f" {scores[0].digest}"
        scores.append(Score(COPY_DISTANCE, digest, lambda images, labels: found.nearest(images).distance))
    if config.generator == "pipeline":  # its safety checker makes images black
        scores.append(Score(BRIGHTEST, "1", lambda images, labels: images.max(axis=(1, 2, 3)).astype(np.float32)))
    return Judges(tuple(scores), classifier, clip, detector)


def judge_to_train(config: SynthConfig, workspace: Workspace, device: torch.device) -> TrainingPlan | None:
    """The training of the classifier that `open_judges` is going to do; None if there is none to do."""
    if not config.needs_classifier or config.classifier is not None:
        return None
    if (workspace.run(JUDGE_NAME) / MANIFEST_NAME).exists():
        return None  # however long it was trained: its owner chose that
    judge = JUDGE
    plan = plan_training(judge, workspace, name=JUDGE_NAME, device=device)
    if plan.config.weights != "none":  # features that no image of the split has shaped, on a GPU too
        judge = replace(judge, tune="head")
        plan = plan_training(judge, workspace, name=JUDGE_NAME, device=device)
    least, most = LEAST_EPOCHS * plan.steps_per_epoch, MOST_EPOCHS * plan.steps_per_epoch
    if least <= plan.total_steps <= most:
        return plan
    steps = min(max(plan.total_steps, least), most)
    return plan_training(replace(judge, steps=steps), workspace, name=JUDGE_NAME, device=device)


def rules_of(config: SynthConfig) -> Rules:
    """What a candidate has to be, by a configuration."""
    return Rules(
        min_confidence=config.min_confidence if "classifier" in config.filters else None,
        min_clip=config.min_clip if "clip" in config.filters else None,
        distances=(config.min_distance, config.max_distance) if "aid" in config.filters else None,
        reject_copies=config.reject_copies,
        reject_black=config.generator == "pipeline",
    )


def _train_judge(config: SynthConfig, workspace: Workspace, device: torch.device, reporter: Reporter) -> None:
    if (plan := judge_to_train(config, workspace, device)) is not None:
        reporter.say(
            f"training the judge, a classifier of the real images (run {plan.name}): {plan.total_steps:,} steps of "
            f"{plan.batch_size} images; --classifier names another run"
        )
        try:
            fit(plan.config, workspace, name=plan.name, device=device, force=False, resume=True, reporter=reporter)
        except EnvironmentFault as error:  # weights that are out of reach: the options it names are those of train
            command = workspace.command(f"saukit train --method {JUDGE_NAME} --no-synthetic")
            raise EnvironmentFault(f"{error}; train it with `{command}`, then repeat this command") from error
