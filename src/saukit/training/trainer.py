"""The training stage: `fit` makes `runs/<name>` from the workspace's split and cache, `Trainer` holds the loop."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saukit.core.artifacts import CONFIG_NAME, MANIFEST_NAME, Manifest, check_disk_space, write_manifest
from saukit.core.console import Reporter, format_duration
from saukit.core.device import Precision, describe_device, peak_flops, peak_memory, reset_peak_memory, synchronise
from saukit.core.errors import EnvironmentFault, SaukitError
from saukit.core.extras import require_extra
from saukit.core.interrupts import StopRequest
from saukit.core.seeding import derive_seed, torch_generator
from saukit.core.workspace import State, Workspace, prepare, require
from saukit.data.split import Part
from saukit.models.backbones import count_parameters
from saukit.models.inference import predict
from saukit.models.model_file import MODEL_NAME, save_model
from saukit.training.checkpoint import CHECKPOINT_NAME, TrainingState, load_checkpoint, save_checkpoint
from saukit.training.config import ResolvedTrainConfig, TrainConfig
from saukit.training.losses import prior_offsets
from saukit.training.methods import Views, class_prototypes, logit_offsets
from saukit.training.metrics_log import MetricsLog
from saukit.training.plan import TrainingPlan, learning_rate, plan_training
from saukit.training.step import StepInputs, Stepper
from saukit.training.throughput import step_flops
from saukit.training.training_set import BatchOrder, build_mixture
from saukit.training.wording import describe_line, describe_loss, long_run_warning

METRICS_NAME = "metrics.jsonl"
LOG_EVERY_STEPS = 20
CHECKPOINT_SECONDS = 30.0
LONG_RUN_SECONDS = 24 * 3600.0


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
    tensorboard: bool = False,
) -> TrainingResult:
    """Train a network on the workspace's split, and on its cache if asked for, and write `runs/<name>`.

    `tensorboard` writes the log as TensorBoard events too; they are no part of the run.
    Raises: as `plan_training` and `core.workspace.prepare`; Interrupted after a signal, once the state is saved.
    """
    if tensorboard:
        require_extra("tensorboard", purpose="--tensorboard")  # before a folder is made
    plan = plan_training(config, workspace, name=name, device=device)
    folder = workspace.run(plan.name)
    with workspace.lock(folder):
        if force or not (folder / MANIFEST_NAME).exists():
            check_disk_space(folder, plan.disk_bytes)
        state = prepare(
            folder,
            plan.config,
            kind="run",
            force=force,
            resume=resume,
            another="another --name",
            inputs=plan.inputs,
        )
        if state == "complete":
            manifest = read_complete(folder)
            (folder / CHECKPOINT_NAME).unlink(missing_ok=True)  # a kill may have come just after the manifest
        else:
            reset_peak_memory(device)
            trainer = Trainer(plan)
            trainer.announce(reporter)
            if (folder / CHECKPOINT_NAME).exists():
                trainer.restore(load_checkpoint(folder / CHECKPOINT_NAME, device))
                reporter.say(f"resuming {plan.name} at step {trainer.step_count} of {plan.total_steps}")
            manifest = trainer.run(folder, workspace, reporter, tensorboard=tensorboard)
    return TrainingResult(state, plan.name, folder, plan.config, manifest)


def estimate_seconds(plan: TrainingPlan, *, measured_steps: int = 3) -> float:
    """Seconds the whole run would take, from a few real steps after one to warm up; writes nothing."""
    trainer = Trainer(plan)
    preparation = trainer.prepare()
    trainer.advance()
    synchronise(plan.device)
    started = time.monotonic()
    for _ in range(measured_steps):
        trainer.advance()
    synchronise(plan.device)
    return preparation + (time.monotonic() - started) / measured_steps * plan.total_steps


class Trainer:
    """The loop and its state. Everything that a step draws is a function of (seed, step), so it can start anywhere."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        config, split, device = plan.config, plan.split, plan.device
        self.method = plan.method
        self.mixture = build_mixture(split, plan.cache, device)
        self.order = self._order(class_balanced=self.method.class_balanced)
        self._last_order: BatchOrder | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "initialisation"))
            network = plan.card.build_network()
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.network.compile_backbone()
        self.precision = Precision(config.amp, device.type)
        self.views = Views(
            mean=torch.tensor(split.mean, device=device),
            std=torch.tensor(split.std, device=device),
            side=min(split.image_size),
            flip=config.flip,
        )
        self.stepper = Stepper(
            self.network,
            self.method,
            self.views,
            self.precision,
            logit_offsets=logit_offsets(
                config.method,
                config.prior_correction,
                real_counts=self.mixture.real_class_counts,
                mixed_counts=self.mixture.class_counts,
            ),
            class_counts=self.mixture.class_counts,
            synthetic_weight=config.synthetic_weight,
            noise=config.noise,
            temperature=config.temperature,
            weight_decay=config.weight_decay,
            cuda_graph=config.cuda_graph,
        )
        self._peak_flops = peak_flops(device, config.amp)
        self._image_flops: float | None = None
        self._is_prepared = not (config.compile or config.cuda_graph)
        self.prototypes: tuple[Tensor, Tensor] | None = None
        self.step_count = 0
        self.meters: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.best: tuple[float, int, dict[str, Tensor]] | None = None

    def prepare(self) -> float:
        """Compile and record what the configuration asks for; seconds it took, 0.0 if there is nothing to do.

        `advance` does this by itself; called before it, the time can be told apart from the training's.
        Raises: EnvironmentFault if there is nothing to compile with, SaukitError if the recorded step is wrong.
        """
        if self._is_prepared:
            return 0.0
        self._is_prepared = True
        started = time.monotonic()
        inputs = self._inputs(self.step_count)
        others = StepInputs(self.order.batch(self.step_count + 1), inputs.prototypes, inputs.seed + 1)
        with _compiler_faults():
            self.stepper.warm_up(inputs, others, self.plan.config.lr)
        synchronise(self.plan.device)
        return time.monotonic() - started

    def advance(self) -> None:
        """One optimiser step. Reads nothing back from the device."""
        self.prepare()
        step_index = self.step_count
        if step_index == self.plan.first_stage_steps:
            self._begin_second_stage()
        metrics = self.stepper(self._inputs(step_index), learning_rate(step_index, self.plan))
        self.step_count += 1
        for name, value in {**metrics, "steps": torch.ones((), device=self.plan.device)}.items():
            self.meters[name] = self.meters.get(name, 0) + value.double()

    def run(self, folder: Path, workspace: Workspace, reporter: Reporter, *, tensorboard: bool = False) -> Manifest:
        """Train to the end, with log, checkpoints and validation, and complete the run's folder."""
        plan, config, total = self.plan, self.plan.config, self.plan.total_steps
        log = MetricsLog(folder / METRICS_NAME, keep_steps=self.step_count, tensorboard=tensorboard)
        validate_every = max(1, min(self.order.steps_per_epoch, total // 10))
        preparation = self.prepare()
        if preparation:
            reporter.say(f"compiled in {format_duration(preparation)}, which the times below do not count")
        first_step, started, seconds_before = self.step_count, time.monotonic(), self.seconds
        saved = started
        warned = False
        with StopRequest() as stop, reporter.progress(f"train {plan.name}", total, done=self.step_count) as progress:
            note = ""
            while self.step_count < total:
                self.advance()
                done = self.step_count
                last = done == total
                validation = None
                if plan.split.val is not None and (done % validate_every == 0 or last):
                    validation = self._validate(plan.split.val)
                if done % LOG_EVERY_STEPS == 0 or last or validation is not None:
                    line = self._log_line(validation)
                    now = time.monotonic()
                    self.seconds = seconds_before + now - started
                    rate = (plan.images_of(done) - plan.images_of(first_step)) / (now - started)
                    log.append({**line, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)})
                    note = f"{describe_line(line)}  {rate:,.0f} images/s"
                    if (share := self._share_of_peak(rate)) is not None:
                        note += f"  {100 * share:.0f}% of peak"
                progress.update(done, note)
                if not warned and done - first_step >= 10 and (progress.eta_seconds or 0.0) > LONG_RUN_SECONDS:
                    warned = True
                    reporter.warn(long_run_warning(config, plan.device, progress.eta_seconds or 0.0))
                if not last and (stop.requested or time.monotonic() - saved > CHECKPOINT_SECONDS):
                    self.seconds = seconds_before + time.monotonic() - started
                    log.sync()
                    save_checkpoint(folder / CHECKPOINT_NAME, self.state())
                    saved = time.monotonic()
                    if stop.requested:
                        log.close()
                        raise stop.interrupted(resume_command(plan, workspace))
        log.close()
        return self._complete(folder, preparation)

    def state(self) -> TrainingState:
        """All that `restore` needs."""
        accuracy, step, network = self.best or (None, None, {})
        return TrainingState(
            step=self.step_count,
            network=self.network.state_dict(),
            optimizer=self.stepper.optimizer.state_dict(),
            scaler=self.stepper.scaler.state_dict(),
            prototypes=self.prototypes,
            meters=self.meters,
            seconds=self.seconds,
            best_accuracy=accuracy,
            best_step=step,
            best_network=network,
        )

    def restore(self, state: TrainingState) -> None:
        """Continue from a saved state."""
        self.network.load_state_dict(state.network)
        self.stepper.restore(state.optimizer, state.scaler)
        self.step_count, self.prototypes = state.step, state.prototypes
        self.meters, self.seconds = state.meters, state.seconds
        if state.best_accuracy is not None and state.best_step is not None:
            self.best = (state.best_accuracy, state.best_step, state.best_network)

    def announce(self, reporter: Reporter) -> None:
        """Say what is about to be trained, on what and with what."""
        plan, config = self.plan, self.plan.config
        synthetic = 0 if plan.cache is None else len(plan.cache.labels)
        reporter.say(
            f"training {plan.name}: {describe_loss(config)}, preset {config.preset}, {config.backbone} "
            f"({count_parameters(self.network) / 1e6:.2f} M parameters), {self.mixture.real_count:,} real + "
            f"{synthetic:,} synthetic images, {plan.total_steps:,} steps of {plan.batch_size} "
            f"({plan.total_steps / plan.steps_per_epoch:.1f} epochs, {self.method.views_per_step} views an image), "
            f"{config.amp if config.amp != 'off' else 'float32'} on {describe_device(plan.device)}, "
            f"{self.mixture.where}"
        )

    def _inputs(self, step: int) -> StepInputs:
        """What a step reads; the prototypes are computed anew at each epoch's start."""
        epoch, position = divmod(step, self.order.steps_per_epoch)
        if self.method.prototypes and (self.prototypes is None or position == 0):
            self.prototypes = self._prototypes(epoch)
        seed = derive_seed(self.plan.config.seed, "augmentation", step)
        stage, order = self.method.second_stage, self.order
        in_second = stage is not None and step >= self.plan.first_stage_steps
        if stage is not None and in_second and stage.class_balanced:
            self._last_order = order = self._last_order or self._order(class_balanced=True)
        elif self.plan.config.real_finish and step >= self.plan.mixed_steps:
            balanced = self.method.class_balanced
            self._last_order = order = self._last_order or self._order(class_balanced=balanced, real_only=True)
        return StepInputs(order.batch(step), self.prototypes, seed, second_stage=in_second)

    def _order(self, *, class_balanced: bool = False, real_only: bool = False) -> BatchOrder:
        config = self.plan.config
        return BatchOrder(
            self.mixture,
            config.batch_size,
            config.seed,
            class_balanced=class_balanced,
            real_only=real_only,
            drop_last=config.drop_last,
        )

    def _begin_second_stage(self) -> None:
        """A new classifier and no momentum, if the method asks for it; a resumed run comes here once as well."""
        stage = self.method.second_stage
        if stage is None or not stage.anew:
            return
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(derive_seed(self.plan.config.seed, "second stage"))
            fresh = self.plan.card.build_network().classifier
            for parameter, value in zip(self.network.classifier.parameters(), fresh.parameters(), strict=True):
                parameter.copy_(value)
        self.stepper.forget_momentum()

    def _prototypes(self, epoch: int) -> tuple[Tensor, Tensor]:
        real = slice(0, self.mixture.real_count)
        return class_prototypes(
            self.mixture.images[real],
            self.mixture.labels[real],
            num_classes=self.plan.split.num_classes,
            network=self.network,
            views=self.views,
            precision=self.precision,
            generator=torch_generator(self.plan.config.seed, "prototypes", epoch, device=self.plan.device),
        )

    def _post_hoc_adjustment(self) -> Tensor:
        """What post-hoc logit adjustment adds to a trained classifier's logits: -log n_k, and else zeros; [K]."""
        return -prior_offsets(self.mixture.class_counts, 1.0 if self.method.post_hoc else 0.0)

    def _validate(self, part: Part) -> float:
        """Balanced accuracy on the split's validation part: the mean over its classes of their accuracy."""
        plan = self.plan
        found = predict(self.network, plan.card, part.images, device=plan.device, precision=self.precision)
        correct = (found.logits + self._post_hoc_adjustment().cpu().numpy()).argmax(1) == part.labels
        accuracy = float(np.mean([correct[part.labels == label].mean() for label in np.unique(part.labels)]))
        if self.plan.config.select == "val" and (self.best is None or accuracy > self.best[0]):
            state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self.best = (accuracy, self.step_count, state)
        return accuracy

    def _log_line(self, validation: float | None) -> dict[str, Any]:
        """The means since the last line; this is where the host waits for the device."""
        sums = dict(zip(self.meters, torch.stack(list(self.meters.values())).tolist(), strict=True))
        self.meters = {}
        steps = sums.pop("steps")
        synthetic, trusted = sums.pop("synthetic_images", 0.0), sums.pop("trusted_images", 0.0)
        losses = {name: value / steps for name, value in sums.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise SaukitError(
                f"the loss is not finite at step {self.step_count} ({losses}): "
                "start over with --force and a smaller --lr, or with --amp off"
            )
        done = self.step_count
        line: dict[str, Any] = {
            "step": done,
            "epoch": round(done / self.order.steps_per_epoch, 4),
            "lr": learning_rate(done - 1, self.plan),
            "losses": losses,
        }
        if self.method.prototypes:
            line["trusted_share"] = trusted / synthetic if synthetic else None
        if validation is not None:
            line["val_balanced_accuracy"] = validation
        return line

    def _share_of_peak(self, images_per_second: float) -> float | None:
        """The network's arithmetic as a share of the GPU's bf16 or fp16 peak; None where that is not known."""
        if self._peak_flops is None:
            return None
        if self._image_flops is None:
            step = step_flops(
                self.plan.config.backbone,
                self.plan.split.num_classes,
                self.plan.split.image_size,
                self.order.batch_size,
                classifier_passes=self.method.classifier_passes,
                projection_passes=self.method.projection_passes,
            )
            self._image_flops = step / self.order.batch_size
        return images_per_second * self._image_flops / self._peak_flops

    def _complete(self, folder: Path, preparation: float) -> Manifest:
        plan = self.plan
        rate = plan.images_of(self.step_count) / max(self.seconds, 1e-9)
        chosen = dict(self.network.state_dict() if self.best is None else self.best[2])
        if self.method.post_hoc:  # so that the model predicts by itself what the method predicts
            chosen["classifier.bias"] = chosen["classifier.bias"] + self._post_hoc_adjustment().to(
                chosen["classifier.bias"]
            )
        save_model(folder / MODEL_NAME, chosen, plan.card)
        manifest = write_manifest(
            folder,
            kind="run",
            files=[CONFIG_NAME, METRICS_NAME, MODEL_NAME],
            inputs=plan.inputs,
            summary={
                "parameters": count_parameters(self.network),
                "real_images": self.mixture.real_count,
                "synthetic_images": len(self.mixture) - self.mixture.real_count,
                "steps": self.step_count,
                "epochs": round(self.step_count / self.order.steps_per_epoch, 4),
                "batch_size": self.order.batch_size,
                "views_per_step": self.method.views_per_step,
                "chosen_step": self.step_count if self.best is None else self.best[1],
                "chosen_by": "last step" if self.best is None else "validation part of the real training images",
                "seconds": round(self.seconds, 1),
                "compile_seconds": round(preparation, 1) if preparation else None,
                "images_per_second": round(rate, 1),
                "share_of_peak": self._share_of_peak(rate),
                "peak_memory_bytes": peak_memory(plan.device),
            },
            device=describe_device(plan.device),
        )
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
        return manifest


def read_complete(folder: Path) -> Manifest:
    """The verified manifest of a complete run."""
    return require(folder, kind="run", command="saukit train")


def resume_command(plan: TrainingPlan, workspace: Workspace) -> str:
    """The command that continues an interrupted run."""
    config = workspace.run(plan.name) / CONFIG_NAME
    command = ["saukit", "train", "-w", str(workspace.root), "--config", str(config), "--name", plan.name, "--resume"]
    return shlex.join(command)


@contextlib.contextmanager
def _compiler_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # By name: importing the compiler to ask for its exceptions takes seconds, and most runs do not compile.
        if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
            raise
        reason = str(error).strip().splitlines()[0]
        raise EnvironmentFault(f"torch.compile failed ({reason}): train with --no-compile") from error
