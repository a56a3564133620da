"""The stage `synth`: get a generator, draw the candidates, keep the good ones, look at what is kept.

    synth/  config.yaml  manifest.json  plan.json  shard-00000.safetensors ...  selection.safetensors
            source.json  samples.png  preflight.json  audit.json  closest.png
            generator/unet  generator/scheduler      of the own diffusion model; load with diffusers' from_pretrained
            generator/checkpoint.pt, times*.json     only while the work is unfinished

Order of events, which makes every kill harmless: checkpoints, the last one at the end of the training; generator/;
plan; preflight; shards, round by round; selection, audit and pictures; manifest; checkpoint removed.

Several jobs (`--shard i/n`) prepare under one lock, so that the first of them trains the generator and the others wait
for it; then each samples every n-th shard of the first round by itself. Resuming without `--shard` does what comes
after: later rounds, selection, audit, manifest. One process that does all of it goes through the same steps, and so to
the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import CONFIG_NAME, Manifest, read_manifest
from saukit.core.config import differences, load_config
from saukit.core.console import Reporter
from saukit.core.errors import DataError, LockHeldError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.workspace import State, Workspace, prepare, reopen, require_made_from
from saukit.data.split import Split, load_split
from saukit.data.synthetic import COMMAND, KIND
from saukit.synthesis.candidates import AUDIT, GRID
from saukit.synthesis.config import SELECTION_FIELDS, SynthConfig, as_options
from saukit.synthesis.estimate import measure
from saukit.synthesis.generators.batch_size import find_batch_size
from saukit.synthesis.generators.table import DiffusionGenerator, open_folder, open_pipeline
from saukit.synthesis.judging.judges import TrainClassifier
from saukit.synthesis.plan import PLAN_NAME, SynthesisPlan, begin, load_plan, outline
from saukit.synthesis.worker import Job, Worker, new_trainer, unfinished

WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class SynthesisResult:
    """What `synthesize` found ("new", "partial", "complete") and what is there now.

    `manifest` is None until `saukit synth --resume` completes the cache after the jobs.
    """

    state: State
    plan: SynthesisPlan
    manifest: Manifest | None
    folder: Path

    @property
    def config(self) -> SynthConfig:
        """The resolved configuration."""
        return self.plan.config

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's summary. Raises: RuntimeError if there is none yet."""
        if self.manifest is None:
            raise RuntimeError("the cache is not complete yet")
        return self.manifest.summary

    @property
    def samples(self) -> Path:
        """The sample grid."""
        return self.folder / GRID

    @property
    def audit(self) -> dict[str, Any] | None:
        """The audit's document; None where none was asked for."""
        path = self.folder / AUDIT
        return json.loads(path.read_text("utf-8")) if path.exists() else None


def synthesize(
    config: SynthConfig,
    workspace: Workspace,
    *,
    device: torch.device,
    force: bool,
    resume: bool,
    reporter: Reporter,
    train_classifier: TrainClassifier | None = None,
    job: Job | None = None,
) -> SynthesisResult:
    """Make the cache of synthetic images of `workspace`, or continue it, or find it complete; or one job's part of it.

    `train_classifier` makes sure that there is a run of a classifier on real images, and returns its name; it is called
    if the configuration needs one and names none.
    Raises: DataError without a split, or for a cache of another split; UsageError for a bad value, a target that needs
    no image or another configuration; Interrupted after a signal, with all saved; EnvironmentFault on a full disk.
    """
    split = load_split(workspace)
    folder = workspace.synth
    if job is not None and force:
        raise UsageError(
            f"--force with --shard would remove what other jobs drew: remove {folder} yourself, then start all jobs"
        )
    with StopRequest() as stop:
        lock = workspace.lock(folder) if job is None else _turn(workspace, folder, config, job, stop, reporter)
        with lock:
            if job is None:
                _refuse_beside_jobs(workspace)
            config = _with_batch_size(config, split, device, None if force else folder, reporter)
            plan = outline(config, split, device)
            work = Worker(workspace, plan, split, folder, device, reporter, stop, train_classifier, job)
            if force or not (folder / CONFIG_NAME).exists():
                work.open()
            state = prepare(
                folder,
                plan.config,
                kind=KIND,
                force=force,
                resume=resume or job is not None,
                another="another --workspace",
                inputs={"split": split.manifest.digest},
            )
            if state == "complete":
                for path in unfinished(folder):
                    path.unlink()
                manifest = read_manifest(folder, kind=KIND, verify=False)
                return SynthesisResult(state, load_plan(folder, plan) or plan, manifest, folder)
            work.prepare()
            if job is None:
                return SynthesisResult(state, work.plan, work.complete(), folder)
        with workspace.lock(folder / job.name, tidy=False):
            work.draw_shards()
    return SynthesisResult(state, work.plan, None, folder)


def refilter(
    config: SynthConfig,
    workspace: Workspace,
    *,
    device: torch.device,
    reporter: Reporter,
    train_classifier: TrainClassifier | None = None,
) -> SynthesisResult:
    """Choose anew from the candidates of a cache, with other filters, and draw nothing.

    `config` may differ from the cache's own in `SELECTION_FIELDS`. A class may keep fewer images than it wants.
    Raises: DataError without a cache, UsageError if other fields differ.
    """
    split, folder = load_split(workspace), workspace.synth
    if not (folder / PLAN_NAME).exists() or not (folder / CONFIG_NAME).exists():
        raise DataError(f"no candidates in {folder} to choose from: run `{COMMAND}` first")
    with StopRequest() as stop, workspace.lock(folder):
        _refuse_beside_jobs(workspace)
        plan = outline(config, split, device)
        old = load_config(SynthConfig, folder / CONFIG_NAME)
        # No more images are drawn for rejected ones, so that max_tries goes with the last rule that rejects.
        free = SELECTION_FIELDS if plan.config.rejects else (*SELECTION_FIELDS, "max_tries")
        chosen = {name: getattr(plan.config, name) for name in free}
        if others := differences(dataclasses.replace(old, **chosen), plan.config):
            raise UsageError(
                f"--refilter draws nothing, so it cannot change {'; '.join(others)}: "
                f"make those anew with --force (--refilter changes {', '.join(SELECTION_FIELDS)})"
            )
        manifest = read_manifest(folder, kind=KIND)
        if manifest is not None and not differences(old, plan.config):
            return SynthesisResult("complete", load_plan(folder, plan) or plan, manifest, folder)
        work = Worker(workspace, plan, split, folder, device, reporter, stop, train_classifier, None)
        found = load_plan(folder, plan)
        assert found is not None
        work.plan = dataclasses.replace(found, closed=True)
        work.check_shards()
        if manifest is not None:
            require_made_from(manifest, folder, split=split.manifest, command=COMMAND)
        work.plan.save(folder)  # no more rounds: a kill leaves a cache that `--resume` finishes without drawing
        reopen(folder, plan.config, inputs={"split": split.manifest.digest})
        return SynthesisResult("partial", work.plan, work.complete(), folder)


def estimate_seconds(plan: SynthesisPlan, split: Split, device: torch.device, reporter: Reporter) -> float:
    """Seconds that the outline `plan` would take, from a few measured steps or the first batch; writes nothing."""
    config = plan.config
    if config.generator == "diffusion" and config.model is None:
        return measure(begin(plan), new_trainer(plan, split, device)).total_seconds
    capacity = None
    if config.generator == "pipeline":
        draw = open_pipeline(config, split, device, reporter).draw
    elif config.generator == "folder":
        folder = open_folder(config, split, reporter)
        draw, capacity = folder.draw, folder.capacity
    else:
        trainer = new_trainer(plan, split, device)
        trainer.adopt(Path(str(config.model)))
        draw = DiffusionGenerator(trainer, "").draw
    part = begin(plan, capacity=capacity).rounds[0]
    first = next(part.batches(slice(0, part.total)))
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        draw(part.labels[first], part.seeds[first], part.ordinals[first])
        seconds = time.monotonic() - began
    return float(seconds * part.total / (first.stop - first.start))


def _with_batch_size(
    config: SynthConfig, split: Split, device: torch.device, folder: Path | None, reporter: Reporter
) -> SynthConfig:
    """`config` with the batch size that `folder` was begun with, or else, on a GPU, with the one found by trying."""
    if config.sample_batch_size is not None:
        return config
    if folder is not None and (folder / CONFIG_NAME).exists():
        begun = load_config(SynthConfig, folder / CONFIG_NAME)
        return dataclasses.replace(config, sample_batch_size=begun.sample_batch_size)
    if device.type != "cuda" or config.generator == "folder":
        return config
    size = find_batch_size(_trial(outline(config, split, device), split, device, reporter))
    reporter.say(f"drawing {size} images at once")
    return dataclasses.replace(config, sample_batch_size=size)


def _trial(plan: SynthesisPlan, split: Split, device: torch.device, reporter: Reporter) -> Callable[[int], float]:
    """A function that draws n images with an untrained model, or with the pipeline, and tells the seconds it took."""
    pipeline = open_pipeline(plan.config, split, device, reporter) if plan.config.generator == "pipeline" else None
    trainer = new_trainer(plan, split, device) if pipeline is None else None

    def seconds(count: int) -> float:
        labels = np.arange(count, dtype=np.int64) % len(plan.classes)
        ordinals = np.arange(count, dtype=np.int64)
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            if pipeline is not None:
                pipeline.draw(labels, ordinals, ordinals)
            elif trainer is not None:
                trainer.draw(labels, ordinals)
        return time.monotonic() - began

    return seconds


@contextlib.contextmanager
def _turn(
    workspace: Workspace, folder: Path, config: SynthConfig, job: Job, stop: StopRequest, reporter: Reporter
) -> Iterator[None]:
    """The lock of `folder` when it is this job's turn: others may be training the generator that all of them use."""
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(workspace.lock(folder, tidy=False))
            except LockHeldError as error:
                if not told:
                    reporter.say(f"waiting for another job to prepare: {error}")
                told = True
            else:
                yield
                return
        if stop.requested:
            # By its options: config.yaml may not be there yet, or may be another's.
            options = [*as_options(config), "--shard", str(job), "-w", str(workspace.root)]
            raise stop.interrupted(shlex.join([*COMMAND.split(), *options]))
        time.sleep(WAIT_SECONDS)


def _refuse_beside_jobs(workspace: Workspace) -> None:
    """Raises: LockHeldError if a job of `--shard` is drawing right now."""
    for path in workspace.root.glob(f".{workspace.synth.name}-job-*.lock"):
        name = path.name.removeprefix(f".{workspace.synth.name}-").removesuffix(".lock")
        with workspace.lock(workspace.synth / name, tidy=False):
            pass
