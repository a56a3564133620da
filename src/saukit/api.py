"""The commands as functions: a configuration and a workspace in, the stage's own result out.

    import saukit
    saukit.make_lt(saukit.SplitConfig(dataset="digits", imb=50), "work")
    saukit.train(saukit.TrainConfig(method="ce"), "work")
    print(saukit.evaluate(saukit.EvalConfig(), "work").document["balanced_accuracy"])

As the commands, each finds what the one before it left, and does nothing when the same thing is there already; unlike
them, a function continues interrupted work without being told to, and says nothing unless `verbose` is set. Errors
are `SaukitError` and its kinds.
"""

from collections.abc import Sequence
from pathlib import Path

from saukit.core.console import Reporter
from saukit.core.device import open_device
from saukit.core.options import at_home
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import SplitResult, make_split
from saukit.deploy import predict as prediction
from saukit.deploy.config import PredictConfig
from saukit.evaluation import compare as comparison
from saukit.evaluation import evaluate as evaluation
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.evaluation.jobs import job_devices
from saukit.models.classifier import load_classifier
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import SynthesisResult, synthesize
from saukit.training.config import TrainConfig
from saukit.training.distributed import joined
from saukit.training.stage import TrainingResult, fit
from saukit.training.trackers import TrackerName

__all__ = ["compare", "evaluate", "load_classifier", "make_lt", "predict", "synth", "train"]

Place = Workspace | str | Path


def make_lt(
    config: SplitConfig,
    workspace: Place,
    *,
    root: str | Path | None = None,
    force: bool = False,
    verbose: bool = False,
) -> SplitResult:
    """`saukit make-lt`: build a long-tailed split. `root` is the folder that holds the data set."""
    where = None if root is None else at_home(Path(root))
    return make_split(config, _workspace(workspace), root=where, force=force, reporter=_reporter(verbose))


def synth(
    config: SynthConfig,
    workspace: Place,
    *,
    device: str = "auto",
    force: bool = False,
    resume: bool = True,
    verbose: bool = False,
) -> SynthesisResult:
    """`saukit synth`: fill every class with synthetic images; trains the classifier that judges them if need be."""
    where, reporter = open_device(device), _reporter(verbose)
    return synthesize(config, _workspace(workspace), device=where, force=force, resume=resume, reporter=reporter)


def train(
    config: TrainConfig,
    workspace: Place,
    *,
    name: str | None = None,
    device: str = "auto",
    force: bool = False,
    resume: bool = True,
    tracker: TrackerName | None = None,
    verbose: bool = False,
) -> TrainingResult:
    """`saukit train`: train a network. `name` is the run's; None is made from the configuration."""
    where, reporter = open_device(device), _reporter(verbose)
    with joined(where):
        return fit(
            config,
            _workspace(workspace),
            name=name,
            device=where,
            force=force,
            resume=resume,
            reporter=reporter,
            tracker=tracker,
        )


def evaluate(
    config: EvalConfig, workspace: Place, *, device: str = "auto", force: bool = False, verbose: bool = False
) -> evaluation.EvalResult:
    """`saukit eval`: accuracies of a run on the test set; `.document` is its results.json."""
    return evaluation.evaluate(
        config, _workspace(workspace), device=open_device(device), force=force, reporter=_reporter(verbose)
    )


def compare(
    config: CompareConfig,
    workspace: Place,
    *,
    name: str = "main",
    device: str = "auto",
    jobs: int | None = None,
    force: bool = False,
    verbose: bool = False,
) -> comparison.ComparisonResult:
    """`saukit compare`: train and evaluate methods over seeds; `.document` is the comparison's compare.json.

    `jobs` trainings run side by side in processes of their own; 1 is in this process, None as many as the usable cores
    (on GPUs: as the GPUs).
    """
    open_device(device)
    return comparison.compare(
        config,
        _workspace(workspace),
        name=name,
        devices=job_devices(device, jobs),
        force=force,
        reporter=_reporter(verbose),
    )


def predict(
    config: PredictConfig,
    model: str | Path,
    images: Sequence[str | Path],
    workspace: Place = "saukit_work",
    *,
    device: str = "auto",
    verbose: bool = False,
) -> prediction.PredictResult:
    """`saukit predict`: classify image files, and those in folders.

    `model` is a run of `workspace`, a run's folder, a model.safetensors, or an exported folder. For images in memory
    call what `load_classifier` returns.
    """
    return prediction.predict(
        config,
        model,
        [at_home(Path(image)) for image in images],
        _workspace(workspace),
        device=open_device(device),
        reporter=_reporter(verbose),
    )


def _workspace(place: Place) -> Workspace:
    return place if isinstance(place, Workspace) else Workspace(at_home(Path(place)))


def _reporter(verbose: bool) -> Reporter:
    return Reporter(quiet=not verbose)
