"""The loop of a training run, its state, its log and what it leaves."""

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from saukit.core.artifacts import CONFIG_NAME, Manifest, write_manifest
from saukit.core.console import Reporter
from saukit.core.device import describe_device, peak_memory, synchronise, widest
from saukit.core.interrupts import StopRequest
from saukit.core.seeding import derive_seed, torch_generator
from saukit.core.state import is_finite, remove_states
from saukit.core.words import format_duration
from saukit.data.images import RowsOf
from saukit.data.split import Part
from saukit.models import dual_branch
from saukit.models.backbones import count_parameters
from saukit.models.dual_branch import CosineClassifier, DualBranchNet, Standardize
from saukit.models.inference import predict
from saukit.models.lora import merged_state
from saukit.models.model_file import MODEL_NAME, save_model
from saukit.training.checkpoint import CHECKPOINT_NAME, TrainingState, made_from, not_finite, save_checkpoint
from saukit.training.context import class_prototypes
from saukit.training.costs import share_of_peak
from saukit.training.distributed import Share, any_stops, from_first, is_first, seconds_waited, size, wait_for_all
from saukit.training.features import FrozenFeatures
from saukit.training.losses import prior_offsets
from saukit.training.metrics_log import MetricsLog, describe_line
from saukit.training.plan import TrainingPlan, learning_rate
from saukit.training.step import StepBatch, TrainingStep, build_context, compiler_faults
from saukit.training.trackers import TrackerName
from saukit.training.training_set import BatchOrder, build_training_set

METRICS_NAME = "metrics.jsonl"
LOG_EVERY_STEPS = 20
CHECKPOINT_SECONDS = 30.0
LITTLE_TRUST = 0.1
LONG_RUN_SECONDS = 24 * 3600.0


class Trainer:
    """The loop and its state. What a step samples is a function of (seed, step), so it can start anywhere."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan, self.method = plan, plan.method
        self.features: FrozenFeatures | None = None
        self.training_set = build_training_set(plan.split, plan.cache, plan.device)
        self.step = TrainingStep(plan.method, build_context(plan))
        self.network = self.step.network
        self.average: AveragedModel | None = None
        if plan.config.average is not None:
            average = get_ema_multi_avg_fn(plan.config.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.prototypes: tuple[Tensor, Tensor] | None = None
        self.step_count = 0
        self.meters: dict[str, Tensor] = {}
        self.trusted_share: float | None = None
        self.seconds = 0.0
        self.saved_step: int | None = None  # of the checkpoint on the disk
        self.log_digest: str | None = None  # of the log up to there
        self.lowered: list[list[float]] = []  # learning rates, as in `TrainingState`
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self._orders: dict[tuple[bool, bool], BatchOrder] = {}
        self._widest = widest(plan.device)
        self._is_prepared = not (plan.config.compile or plan.config.cuda_graph)

    def use_features(self, features: FrozenFeatures) -> None:
        """Train on what the frozen backbone made of the images, standardised over the real ones."""
        self.features = features
        images = torch.from_numpy(features.train).to(self.plan.device)
        self.training_set = replace(self.training_set, images=images, residence="device")
        assert isinstance(self.network.standardize, Standardize)
        self.network.standardize.fit(images[: self.training_set.real_count])
        self._orders = {}

    def prepare(self) -> float:
        """Compile and record what the configuration asks for; seconds it took, 0.0 if there is nothing to do.

        `advance` does this by itself; called before it, its time is measured apart from the training's.
        Raises: EnvironmentFault if there is nothing to compile with, SaukitError if the recorded step is wrong.
        """
        if self._is_prepared:
            return 0.0
        self._is_prepared = True
        started = time.monotonic()
        batch = self._batch(self.step_count)
        other = StepBatch(self._batch(self.step_count + 1).samples, batch.prototypes, batch.seed + 1)
        with compiler_faults():
            self.step.warm_up(batch, other, self.plan.config.lr)
        synchronise(self.plan.device)
        return time.monotonic() - started

    def advance(self) -> None:
        """One optimizer step. Reads nothing back from the device."""
        self.prepare()
        stage, index = self.method.second_stage, self.step_count
        if stage is not None and stage.restarts and index == self.plan.first_part_steps:
            self._restart_classifier()
        elif index == 0 and self.plan.config.head == "class-means":
            self._start_from_means()
        if index == self.plan.head_steps > 0:
            self.step.forget_momentum()  # the backbone has none yet, and fused SGD takes all or nothing
        metrics = self.step(self._batch(index), learning_rate(index, self.plan))
        self.step_count += 1
        if self.average is not None:
            self.average.update_parameters(self.network)
        for name, value in {**metrics, "steps": torch.ones((), device=self.plan.device)}.items():
            self.meters[name] = self.meters.get(name, 0) + value.to(self._widest)

    def run(self, folder: Path, reporter: Reporter, *, tracker: TrackerName | None = None) -> Manifest:
        """Train to the end, with log, checkpoints and validation, and complete the run's folder.

        Of several processes the first one writes.
        """
        plan, total = self.plan, self.plan.total_steps
        log = None
        if is_first():
            log = MetricsLog(
                folder / METRICS_NAME,
                keep_steps=self.step_count,
                digest=self.log_digest,
                tracker=tracker,
                config=asdict(plan.config),
            )
        validate_every = plan.validate_every
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
                    if not last and self.best is not None and self._patience_is_spent(self.best[1], validate_every):
                        total, last = done, True
                        reporter.say(f"stopping early: no validation since step {self.best[1]} was better")
                if done % LOG_EVERY_STEPS == 0 or last or validation is not None:
                    line = self._log_line(validation)
                    now = time.monotonic()
                    self.seconds = seconds_before + now - started
                    rate = (plan.images_of(done) - plan.images_of(first_step)) / (now - started)
                    if log is not None:
                        log.append({**line, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)})
                    note = f"{describe_line(line)}  {rate:,.0f} images/s"
                    if (share := share_of_peak(plan, rate)) is not None:
                        note += f"  {100 * share:.0f}% of peak"
                progress.update(done, note)
                if not warned and done - first_step >= 10 and (progress.eta_seconds or 0.0) > LONG_RUN_SECONDS:
                    warned = True
                    reporter.warn(self._long_run_warning(progress.eta_seconds or 0.0))
                # On a GPU they ask each other where they wait anyway.
                may_wait = plan.device.type == "cpu" or done % LOG_EVERY_STEPS == 0
                stopping = not last and any_stops(stop, may_wait=may_wait)
                if not last and log is not None and (stopping or time.monotonic() - saved > CHECKPOINT_SECONDS):
                    self.seconds = seconds_before + time.monotonic() - started
                    log.sync()
                    state = replace(self.state(), log_digest=log.digest)
                    self._require_finite(state.is_finite, "its weights or losses")
                    save_checkpoint(folder / CHECKPOINT_NAME, state, made_from=made_from(plan.config, plan.inputs))
                    self.saved_step = done
                    saved = time.monotonic()
                if stopping:
                    wait_for_all()  # until the state is saved
                    if log is not None:
                        log.close()
                    raise stop.interrupted()
        if log is not None:
            log.close()
        if self.trusted_share is not None and self.trusted_share < LITTLE_TRUST:
            reporter.warn(
                f"the label check trusts {100 * self.trusted_share:.1f} % of the synthetic images at the end, and "
                "takes the others for noise: train for more steps, or with `--method mixup-cutmix`, which has none"
            )
        processes = size()
        return from_first(lambda: self._complete(folder, preparation, processes))

    def state(self) -> TrainingState:
        """All that `restore` needs."""
        accuracy, step, network = self.best or (None, None, {})
        return TrainingState(
            step=self.step_count,
            network=self.network.state_dict(),
            optimizer=self.step.optimizer.state_dict(),
            scaler=self.step.scaler.state_dict(),
            prototypes=self.prototypes,
            meters=self.meters,
            seconds=self.seconds,
            average={} if self.average is None else self.average.state_dict(),
            best_accuracy=accuracy,
            best_step=step,
            best_network=network,
            lr=self.plan.config.lr,
            lowered=self.lowered,
        )

    def restore(self, state: TrainingState) -> None:
        """Continue from a saved state."""
        self.network.load_state_dict(state.network)
        self.step.restore(state.optimizer, state.scaler)
        self.step_count, self.prototypes = state.step, state.prototypes
        self.meters, self.seconds = state.meters, state.seconds
        self.saved_step, self.log_digest, self.lowered = state.step, state.log_digest, state.lowered
        if state.lr is not None and state.lr != self.plan.config.lr:
            self.lowered = [*state.lowered, [state.step, state.lr, self.plan.config.lr]]
        if self.average is not None:
            self.average.load_state_dict(state.average)
        if state.best_accuracy is not None and state.best_step is not None:
            self.best = (state.best_accuracy, state.best_step, state.best_network)

    def _batch(self, step: int) -> StepBatch:
        """What a step reads; the prototypes are computed when the label check begins and at each epoch's start."""
        plan, stage = self.plan, self.method.second_stage
        epoch, position = divmod(step, plan.steps_per_epoch)
        if self.method.prototypes and (self.prototypes is None or position == 0 or step == plan.check_from):
            self.prototypes = self._prototypes(epoch, begun=step >= plan.check_from)
        second_stage, in_last_part = plan.in_second_stage(step), step >= plan.first_part_steps
        order = self._order(
            class_balanced=stage.class_balanced if stage and second_stage else self.method.class_balanced,
            real_only=in_last_part and (stage is None or stage.real_only),
        )
        seed = derive_seed(plan.config.seed, "augmentation", step)
        samples, head_only = order.batch(step), step < plan.head_steps
        return StepBatch(samples, self.prototypes, seed, second_stage, head_only, done=step / plan.total_steps)

    def _order(self, *, class_balanced: bool, real_only: bool) -> BatchOrder:
        kind = class_balanced, real_only
        if kind not in self._orders:
            config = self.plan.config
            self._orders[kind] = BatchOrder(
                self.training_set,
                config.batch_size,
                config.seed,
                class_balanced=class_balanced,
                balanced_partners=self.method.balanced_partners,
                real_only=real_only,
                drop_last=config.drop_last,
                partners=self.method.partners,
            )
        return self._orders[kind]

    def _restart_classifier(self) -> None:
        """A new classifier and no momentum; a resumed run comes here once as well."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(derive_seed(self.plan.config.seed, "second stage"))
            fresh = self.plan.model_spec.build_network().classifier
            for parameter, value in zip(self.network.classifier.parameters(), fresh.parameters(), strict=True):
                parameter.copy_(value)
        if self.plan.config.head == "class-means":
            self._start_from_means()
        self.step.forget_momentum()

    def _start_from_means(self) -> None:
        """The classifier of the nearest class mean of the real images, in the features that the network has now."""
        plan, classifier = self.plan, self.network.classifier
        part = plan.split.train
        images = part.images if self.features is None else self.features.train[: len(part.labels)]
        found = predict(
            self.network, plan.model_spec, images, device=plan.device, precision=self.step.context.precision
        )
        assert isinstance(classifier, CosineClassifier)
        features, labels = (torch.from_numpy(array).to(plan.device) for array in (found.features, part.labels))
        classifier.start_from_means(features, labels)

    def _prototypes(self, epoch: int, *, begun: bool) -> tuple[Tensor, Tensor]:
        data = self.training_set
        if not begun:
            none = torch.zeros(self.plan.split.num_classes, dual_branch.PROJECTION_DIM, device=self.plan.device)
            return none, none
        generator = torch_generator(self.plan.config.seed, "prototypes", epoch, device=self.plan.device)
        return class_prototypes(data.images, data.labels[: data.real_count], self.step.context, generator)

    @property
    def _learned(self) -> DualBranchNet:
        """The network that predicts: of averaged weights, where there are some."""
        if self.average is None:
            return self.network
        assert isinstance(self.average.module, DualBranchNet)
        return self.average.module

    def _post_hoc_adjustment(self) -> Tensor:
        """What post-hoc logit adjustment adds to a trained classifier's logits: -log n_k, and else zeros; [K]."""
        return -prior_offsets(self.step.context.class_counts, 1.0 if self.method.post_hoc else 0.0)

    def _validate(self, part: Part) -> float:
        """Balanced accuracy on the split's validation part: the mean over its classes of their accuracy."""
        plan = self.plan
        images = part.images if self.features is None or self.features.val is None else self.features.val
        share = Share.of(len(images))
        found = predict(
            self._learned,
            plan.model_spec,
            images if share is None else RowsOf(images, share.rows),
            device=plan.device,
            precision=self.step.context.precision,
        )
        logits = found.logits if share is None else share.exchange(torch.from_numpy(found.logits)).numpy()
        correct = (logits + self._post_hoc_adjustment().cpu().numpy()).argmax(1) == part.labels
        accuracy = float(np.mean([correct[part.labels == label].mean() for label in np.unique(part.labels)]))
        if self.plan.config.select == "val" and (self.best is None or accuracy > self.best[0]):
            state = {name: value.detach().cpu().clone() for name, value in self._learned.state_dict().items()}
            self.best = (accuracy, self.step_count, state)
        return accuracy

    def _patience_is_spent(self, best_step: int, validate_every: int) -> bool:
        """Whether so many validations since the best, and in a run's last part if it has one, were no better."""
        plan = self.plan
        last_part = plan.first_part_steps if plan.first_part_steps < plan.total_steps else plan.head_steps
        waited = self.step_count - max(best_step, last_part)
        return plan.config.patience is not None and waited >= plan.config.patience * validate_every

    def _log_line(self, validation: float | None) -> dict[str, Any]:
        """The means since the last line; this is where the host waits for the device."""
        sums = dict(zip(self.meters, torch.stack(list(self.meters.values())).tolist(), strict=True))
        self.meters = {}
        steps = sums.pop("steps")
        synthetic, trusted = sums.pop("synthetic_images", 0.0), sums.pop("trusted_images", 0.0)
        losses = {name: value / steps for name, value in sums.items()}
        self._require_finite(all(map(math.isfinite, losses.values())), "the loss", f" ({losses})")
        line: dict[str, Any] = {
            "step": self.step_count,
            "epoch": round(self.step_count / self.plan.steps_per_epoch, 4),
            "lr": learning_rate(self.step_count - 1, self.plan),
            "losses": losses,
        }
        if self.method.prototypes:
            line["trusted_share"] = self.trusted_share = trusted / synthetic if synthetic else None
        if validation is not None:
            line["val_balanced_accuracy"] = validation
        return line

    def _require_finite(self, finite: bool, what: str, figures: str = "") -> None:
        if not finite:
            raise not_finite(what, f"{self.step_count}{figures}", saved_step=self.saved_step, lr=self.plan.config.lr)

    def _long_run_warning(self, seconds: float) -> str:
        smaller = "photo-small" if self.plan.config.preset.startswith("photo") else "small"
        advice = f"`--preset {smaller}` trains a smaller network for a fixed number of steps"
        if self.plan.config.preset == smaller:
            advice = "give fewer --steps, or a GPU"
        return f"this run would take {format_duration(seconds)} on {describe_device(self.plan.device)}: {advice}"

    def _complete(self, folder: Path, preparation: float, processes: int) -> Manifest:
        plan = self.plan
        rate = plan.images_of(self.step_count) / max(self.seconds, 1e-9)
        chosen = merged_state(self.network, self._learned.state_dict() if self.best is None else self.best[2])
        if self.method.post_hoc:  # so that the model predicts by itself what the method predicts
            bias = chosen["classifier.bias"]
            chosen["classifier.bias"] = bias + self._post_hoc_adjustment().to(bias)
        self._require_finite(is_finite(chosen), "a weight")
        save_model(folder / MODEL_NAME, chosen, plan.model_spec)
        manifest = write_manifest(
            folder,
            kind="run",
            files=[CONFIG_NAME, METRICS_NAME, MODEL_NAME],
            inputs=plan.inputs,
            summary={
                "parameters": count_parameters(self.network),
                "real_images": self.training_set.real_count,
                "synthetic_images": len(self.training_set) - self.training_set.real_count,
                "steps": self.step_count,
                "epochs": round(self.step_count / plan.steps_per_epoch, 4),
                "batch_size": plan.batch_size,
                "views_per_step": self.method.views_per_step,
                **({"counts_nothing": True} if plan.counts_nothing else {}),
                **({} if self.trusted_share is None else {"trusted_share": round(self.trusted_share, 4)}),
                "chosen_step": self.step_count if self.best is None else self.best[1],
                "chosen_by": "last step" if self.best is None else "validation part of the real training images",
                "seconds": round(self.seconds, 1),
                "compile_seconds": round(preparation, 1) if preparation else None,
                "images_per_second": round(rate, 1),
                "share_of_peak": share_of_peak(plan, rate),
                "peak_memory_bytes": peak_memory(plan.device),
                **({"lowered_lr": self.lowered} if self.lowered else {}),
                **({"processes": processes, "exchange_seconds": round(seconds_waited(), 1)} if processes > 1 else {}),
            },
            device=describe_device(plan.device),
        )
        remove_states(folder / CHECKPOINT_NAME)
        return manifest
