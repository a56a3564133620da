"""What a training run will be, before its first step: its data, its resolved configuration, its schedule."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from saukit.core.device import resolve_amp
from saukit.core.errors import DataError, UsageError
from saukit.core.extras import missing_packages
from saukit.core.state import STATES
from saukit.core.workspace import Workspace, require
from saukit.core.writing import sha256_file
from saukit.data.split import Split, load_split
from saukit.data.synthetic import SyntheticImages, load_cache
from saukit.data.types import Integers
from saukit.models.backbones import BACKBONES, count_parameters
from saukit.models.model_file import MODEL_NAME, ModelSpec
from saukit.training.config import ResolvedTrainConfig, TrainConfig, default_run_name
from saukit.training.methods import METHODS, MethodEntry
from saukit.training.presets import resolve
from saukit.training.training_set import batches_per_epoch

# An image that is validated costs about a third of one that is trained on: no more than a tenth of the time then.
VALIDATED_SHARE = 0.3
FEW_IMAGES, FEWEST = 1000, 4


@dataclass(frozen=True)
class TrainingPlan:
    """All that is known before the first step: what --dry-run shows and what `fit` carries out."""

    config: ResolvedTrainConfig
    name: str
    split: Split
    cache: SyntheticImages | None
    device: torch.device
    inputs: dict[str, str]
    weights_path: Path | None = None

    @property
    def training_images(self) -> int:
        """Real and synthetic images of the training set."""
        return len(self.split.train.labels) + (0 if self.cache is None else len(self.cache.labels))

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training set."""
        return batches_per_epoch(self.training_images, self.batch_size, drop_last=self.config.drop_last)

    @property
    def batch_size(self) -> int:
        """Images a batch; a set smaller than the batch is one batch."""
        return min(self.config.batch_size, self.training_images)

    @property
    def method(self) -> MethodEntry:
        """The method's row of the table."""
        return METHODS[self.config.method]

    @property
    def class_counts(self) -> Integers:
        """Images of each class of the training set, int64 [K]."""
        if self.cache is None:
            return self.split.class_counts
        return self.split.class_counts + np.bincount(self.cache.labels, minlength=self.split.num_classes)

    @property
    def counts_nothing(self) -> bool:
        """Whether the method is plain cross entropy, because it counts classes that all have one size."""
        return self.method.counts_classes and len(set(self.class_counts.tolist())) == 1

    @property
    def model_spec(self) -> ModelSpec:
        """What the trained model's file will say of it."""
        backbone = BACKBONES[self.config.backbone]
        return ModelSpec(
            method=self.config.method,
            backbone=self.config.backbone,
            classes=self.split.classes,
            image_size=self.split.image_size,
            mean=backbone.mean or self.split.mean,
            std=backbone.std or self.split.std,
            projection=self.method.projection,
            class_projection=self.method.class_projection,
            consistency=self.method.consistency,
            classifier=self.method.classifier if self.config.head is None else "cosine",
            standardize=self.config.tune == "head",
            crops=(4 if self.config.flip else 2) if self.config.multi_crop else 1,
            **asdict(self.split.fitting),
        )

    @property
    def disk_bytes(self) -> int:
        """Bytes that a run needs at most: three checkpoints of weights and optimizer, and the model."""
        moments = 1 if self.config.optimizer == "sgd" else 2
        copies = STATES * (1 + moments + (self.config.average is not None)) + 1
        with torch.device("meta"):
            return copies * 4 * count_parameters(self.model_spec.build_network())

    @property
    def drops_synthetic(self) -> bool:
        """Whether some steps have batches of real images alone."""
        stage = self.method.second_stage
        return self.config.real_finish > 0 or (stage is not None and stage.real_only)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.config.epochs is not None:
            return self.config.epochs * self.steps_per_epoch
        assert self.config.steps is not None
        return self.config.steps

    @property
    def validate_every(self) -> int:
        """Steps between two validations."""
        val = self.split.val
        return validation_interval(
            self.total_steps,
            self.steps_per_epoch,
            self.batch_size,
            0 if val is None else len(val.labels),
            chosen_by=self.config.select == "val",
        )

    def images_of(self, steps: int) -> int:
        """Images in the batches of the first `steps` steps, each counted as often as it is there."""
        per_epoch = min(self.steps_per_epoch * self.batch_size, self.training_images)
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * per_epoch + min(rest * self.batch_size, per_epoch)

    @property
    def head_steps(self) -> int:
        """Steps at the start that train the heads alone."""
        return round(self.config.head_share * self.total_steps)

    @property
    def check_from(self) -> int:
        """The first step of SAU's label check."""
        return round(self.config.check_after * self.total_steps)

    @property
    def first_part_steps(self) -> int:
        """Steps before the last part: a method's second stage, or real images alone (`real_finish`); else all."""
        stage = self.method.second_stage
        share = self.config.real_finish if stage is None else stage.share
        return self.total_steps - round(share * self.total_steps)

    def in_second_stage(self, step: int) -> bool:
        """Whether a step, counted from 0, belongs to the method's second stage."""
        if (stage := self.method.second_stage) is None:
            return False
        return step >= self.first_part_steps or step < round(stage.also_first * self.total_steps)


def validation_interval(total: int, per_epoch: int, batch_size: int, images: int, *, chosen_by: bool) -> int:
    """Steps between two validations of `images` images, of `total` steps of `batch_size`: an epoch, ten in a run at
    least. More than `FEW_IMAGES` are validated so seldom that it costs about a tenth of the time, but four times in a
    run where the best step is `chosen_by` them. The last step is always validated."""
    every = max(1, min(per_epoch, total // 10))
    if images <= FEW_IMAGES:
        return every
    affordable = math.ceil(images / (VALIDATED_SHARE * batch_size))
    return max(every, min(affordable, max(1, total // FEWEST if chosen_by else total)))


def plan_training(
    config: TrainConfig, workspace: Workspace, *, name: str | None, device: torch.device, may_freeze: bool = True
) -> TrainingPlan:
    """Load and verify what a run needs, and resolve its configuration; `may_freeze`: as in `resolve`.

    Raises: DataError if there is no split, no cache where one is asked for, or no validation part with `select: val`;
    UsageError for values that make no sense.
    """
    split = load_split(workspace)
    resolved = resolve(
        config,
        methods=METHODS,
        backbones=BACKBONES,
        cache_exists=workspace.synth.exists(),
        image_side=min(split.image_size),
        real_images=len(split.train.labels),
        default_flip=split.flip,
        device_type=device.type,
        amp=resolve_amp(config.amp, device),
        has_timm=not missing_packages("timm"),
        may_freeze=may_freeze,
    )
    backbone = resolved.backbone
    row, size = BACKBONES[backbone], f"{split.image_size[0]} x {split.image_size[1]}"
    if row.image_side is not None and split.image_size != (row.image_side, row.image_side):
        raise UsageError(
            f"backbone {backbone} takes images of {row.image_side} pixels, this split has {size}: "
            f"make one with `{workspace.command(f'saukit make-lt --image-size {row.image_side}')}`"
        )
    if min(split.image_size) < row.smallest_side:
        raise UsageError(
            f"backbone {backbone} needs images of at least {row.smallest_side} pixels, this split has {size}: "
            "use --backbone convnet-small"
        )
    if resolved.select == "val" and split.val is None:
        command = workspace.command("saukit make-lt --val-fraction 0.1")
        raise DataError(f"--select val needs a validation part: make the split with `{command}`")
    if resolved.cuda_graph and resolved.real_finish and len(split.train.labels) < resolved.batch_size:
        raise UsageError(
            f"cuda_graph needs batches of one size, and the {len(split.train.labels)} real images of real_finish do "
            f"not fill one of {resolved.batch_size}: use --no-cuda-graph, or a smaller --batch-size"
        )
    cache = load_cache(workspace, split) if resolved.synthetic else None
    inputs = {"split": split.manifest.digest} | ({} if cache is None else {"synth": cache.manifest.digest})
    path = _weights_path(resolved.weights, workspace)
    if path is not None:
        inputs["weights"] = sha256_file(path / MODEL_NAME if path.is_dir() else path)
    return TrainingPlan(resolved, name or default_run_name(resolved), split, cache, device, inputs, path)


def _weights_path(weights: str, workspace: Workspace) -> Path | None:
    """The file, or the run's folder, that `weights` names; None for none and pretrained."""
    if weights in ("none", "pretrained"):
        return None
    if weights.startswith("run:"):
        folder = workspace.run(weights.removeprefix("run:"))
        require(folder, kind="run", command=f"saukit train --name {weights.removeprefix('run:')}")
        return folder
    path = Path(weights)
    if not path.is_file():
        raise DataError(f"no weights at {path}: give a safetensors file, run:NAME, pretrained or none as --weights")
    return path


def learning_rate(step: int, plan: TrainingPlan) -> float:
    """The learning rate of a step counted from 0: linear warm-up, then half a cosine (Loshchilov and Hutter 2017).

    `cosine-epoch` holds it during an epoch, as SAU does; `cosine-step` moves with every step. `step` holds it during an
    epoch too, in the warm-up as well, and multiplies it by 0.01 after 80 % of the epochs and again after 90 % (Cao et
    al. 2019: after 160 and 180 of 200). The steps of the heads alone have a schedule of their own, and so
    has a second stage that restarts, without a warm-up.
    """
    base, warmup_share, starts = plan.config.lr, plan.config.warmup, [0, plan.head_steps]
    if plan.method.second_stage is not None and plan.method.second_stage.restarts:
        starts.append(plan.first_part_steps)
        if step >= plan.first_part_steps:
            warmup_share = 0.0
    start = max(first for first in starts if first <= step)
    total = min((first for first in starts if first > step), default=plan.total_steps) - start
    step -= start
    warmup = int(warmup_share * total)
    if plan.config.schedule == "step":
        epoch, epochs = step // plan.steps_per_epoch, total / plan.steps_per_epoch
        if epoch < (warm_epochs := round(warmup_share * epochs)):
            return base * (epoch + 1) / warm_epochs
        return base * 0.01 ** sum(epoch >= round(share * epochs) for share in (0.8, 0.9))
    if step < warmup:
        return base * (step + 1) / warmup
    if plan.config.schedule == "cosine-epoch":
        step = step // plan.steps_per_epoch * plan.steps_per_epoch
    return base * 0.5 * (1 + math.cos(math.pi * step / total))
