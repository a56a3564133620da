"""The training stage: `fit` makes `runs/<name>` from the workspace's split and cache; `Trainer` holds the loop."""

from dataclasses import dataclass
from pathlib import Path

import torch

from saukit.core.artifacts import MANIFEST_NAME, Manifest, check_disk_space
from saukit.core.console import Reporter
from saukit.core.device import describe_device, reset_peak_memory, suited_threads, using_threads
from saukit.core.documents import START_OVER
from saukit.core.errors import CorruptArtifactError, UsageError
from saukit.core.extras import missing_packages
from saukit.core.files import reading
from saukit.core.ranks import restarts
from saukit.core.state import remove_states
from saukit.core.workspace import State, Workspace, prepare, require
from saukit.models.backbones import count_parameters
from saukit.training.advice import starting_method
from saukit.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, lower_learning_rate, made_from
from saukit.training.config import ResolvedTrainConfig, TrainConfig
from saukit.training.distributed import from_first, held_by_first, is_first, require_same, size
from saukit.training.features import frozen_features
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.presets import PHOTO_SIDE
from saukit.training.trackers import TrackerName, require_tracker
from saukit.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """A run: whether it was there already ("complete") or made now ("new", "partial" if resumed), and where it is."""

    state: State
    name: str
    folder: Path
    config: ResolvedTrainConfig
    manifest: Manifest


def fit(
    config: TrainConfig,
    workspace: Workspace,
    *,
    name: str | None,
    device: torch.device,
    force: bool,
    resume: bool,
    reporter: Reporter,
    tracker: TrackerName | None = None,
    advise: bool = False,
) -> TrainingResult:
    """Train a network on the workspace's split, and on its cache if asked for, and write `runs/<name>`.

    `tracker` gets the figures of the log too; what it keeps is not part of the run. `advise` says which method to
    start with. Of several processes (`distributed.joined`) all compute and the first one writes; a job that torchrun
    has restarted continues by itself.
    Raises: as `plan_training` and `core.workspace.prepare`; Interrupted after a signal, once the state is saved.
    """
    if tracker is not None:
        require_tracker(tracker)  # before a folder is made
    resume, force = resume or restarts() > 0, force and not restarts()
    plan = plan_training(config, workspace, name=name, device=device)
    folder = workspace.run(plan.name)
    origin = made_from(plan.config, plan.inputs)
    if size() > 1:
        require_same("configurations or inputs", origin)
        _check_shares(plan)

    def prepared() -> State:
        if resume and not force and config.lr is not None:
            lower_learning_rate(folder, plan.config, reporter)
        return prepare(
            folder,
            plan.config,
            kind="run",
            force=force,
            resume=resume,
            another="another --name",
            inputs=plan.inputs,
        )

    with held_by_first(workspace.lock(folder)):
        trainer = None
        if from_first(lambda: force or not (folder / MANIFEST_NAME).exists()):
            check_disk_space(folder, plan.disk_bytes)
            reset_peak_memory(device)
            with using_threads(suited_threads(plan.split.image_size, device)):
                trainer = Trainer(plan)  # first: pretrained weights that are out of reach cost no earlier run
        state = from_first(prepared)
        if trainer is None:
            manifest = read_complete(folder)
            if is_first():
                remove_states(folder / CHECKPOINT_NAME)  # a kill may have come just after the manifest
        else:
            with using_threads(suited_threads(plan.split.image_size, device)):
                _announce(trainer, reporter)
                if advise and plan.config.weights == "none":  # else the method is what the records advise
                    passes = plan.images_of(plan.total_steps) / len(plan.split.train.labels)
                    reporter.say(f"no --method given: {starting_method(passes, synthetic=plan.cache is not None)}")
                if plan.config.tune == "head":
                    trainer.use_features(frozen_features(plan, trainer.network, workspace, reporter))
                saved = load_checkpoint(folder / CHECKPOINT_NAME, device, made_from=origin, warn=reporter.warn)
                require_same("checkpoints", None if saved is None else saved.step)
                if saved is not None:
                    with reading(folder / CHECKPOINT_NAME, remedy=START_OVER, fault=CorruptArtifactError):
                        trainer.restore(saved)
                    reporter.say(f"resuming {plan.name} at step {trainer.step_count} of {plan.total_steps}")
                side = (1, 1) if plan.config.tune == "head" else plan.split.image_size  # features are small
                with using_threads(suited_threads(side, device)):
                    manifest = trainer.run(folder, reporter, tracker=tracker)
    return TrainingResult(state, plan.name, folder, plan.config, manifest)


def _check_shares(plan: TrainingPlan) -> None:
    """Raises: UsageError for what several processes cannot do."""
    config, least = plan.config, 2 * size()
    if config.cuda_graph:
        raise UsageError(f"cuda_graph records the step of one process, and this job has {size()}: use --no-cuda-graph")
    if config.compile and config.sync_batchnorm:
        raise UsageError("compile has no sync_batchnorm under torchrun: use --no-compile or --no-sync-batchnorm")
    counts = [plan.training_images, *([len(plan.split.train.labels)] if plan.drops_synthetic else [])]
    for count in counts:
        batch = min(config.batch_size, count)
        rest = 0 if config.drop_last else count % batch
        if batch < least or 1 < rest < least:
            raise UsageError(
                f"a batch of {batch if batch < least else rest} images leaves one of {size()} processes fewer than "
                "two, which BatchNorm needs: use fewer processes, another --batch-size, or --drop-last"
            )


def _announce(trainer: Trainer, reporter: Reporter) -> None:
    """Say what is about to be trained, on what and with what."""
    plan, config = trainer.plan, trainer.plan.config
    loss: str = config.method
    if config.prior_correction is not None:
        loss += f", prior correction {config.prior_correction:g}"
    if config.synthetic_weight != 1:
        loss += f", synthetic weight {config.synthetic_weight:g}"
    if config.label_smoothing:
        loss += f", label smoothing {config.label_smoothing:g}"
    if config.check_after:
        loss += f", label check after {100 * config.check_after:g}% of the steps"
    if config.real_finish:
        loss += f", the last {100 * config.real_finish:g}% of the steps on real images alone"
    if plan.counts_nothing:
        reporter.warn(
            f"{config.method} counts the training set, whose classes all have {plan.class_counts[0]:,} images: "
            "this is cross entropy; `--method ce --prior-correction 1` counts the real images"
        )
    if config.weights == "none" and min(plan.split.image_size) > PHOTO_SIDE and missing_packages("timm"):
        reporter.warn(
            "training from scratch, and photos want a network pretrained on others: pip install 'saukit[timm]', then "
            "repeat this command with --force"
        )
    processes = f"{size()} processes, each on " if size() > 1 else ""
    real, views = trainer.training_set.real_count, trainer.method.views_per_step
    reporter.say(
        f"training {plan.name}: {loss}, preset {config.preset}, {config.backbone} "
        f"({count_parameters(trainer.network) / 1e6:.2f} M parameters), {real:,} real + "
        f"{len(trainer.training_set) - real:,} synthetic images, {plan.total_steps:,} steps of {plan.batch_size} "
        f"({plan.total_steps / plan.steps_per_epoch:.1f} epochs, {views} view{'s'[: views > 1]} per image), "
        f"{config.amp if config.amp != 'off' else 'float32'} on {processes}{describe_device(plan.device)}, "
        f"{trainer.training_set.describe()}"
    )


def read_complete(folder: Path) -> Manifest:
    """The verified manifest of a complete run."""
    return require(folder, kind="run", command="saukit train")
