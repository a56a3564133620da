"""The stage `synth`: get a generator, sample the candidates, keep the good ones, audit what is kept.

    synth/  config.yaml  manifest.json  plan.json  shard-00000.safetensors ...  selection.safetensors
            source.json  samples.png  preflight.json  audit.json  closest.png
            generator/unet  generator/scheduler      of the split's own diffusion model; diffusers loads them
            generator/checkpoint.pt                  only while the work is unfinished

`synthesize` reads in the order of events, which makes every kill harmless: what may be missing is opened before
anything is written or removed; then come the generator's training, plan, preflight, shards round by round, selection,
audit and pictures, manifest.

Several jobs (`--shard i/n`) prepare under one lock, so that the first of them trains the generator and the others wait
for it; then each samples every n-th shard of the first round by itself. Resuming without `--shard` does what comes
after. One process that does all of it goes through the same steps, and so to the same bytes.

Under torchrun the processes are one job: the first one writes what there is one of, and each samples its shards.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import (
    CONFIG_NAME,
    Manifest,
    check_disk_space,
    format_bytes,
    read_manifest,
    write_json,
)
from saukit.core.config import differences, load_saved
from saukit.core.console import Reporter
from saukit.core.device import COPIES_ASIDE, describe_device
from saukit.core.errors import DataError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.options import options_of
from saukit.core.ranks import restarts
from saukit.core.state import remove_states
from saukit.core.words import format_duration
from saukit.core.workspace import State, Workspace, prepare, reopened, require_made_from
from saukit.core.writing import sweep
from saukit.data.split import Split, load_split
from saukit.data.synthetic import COMMAND, KIND, shard_path
from saukit.synthesis.audit.preflight import PREFLIGHT_NAME, preflight, warning
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.estimate import TimeEstimate, estimate
from saukit.synthesis.generators.protocol import CHECKPOINT, Grey, ImageGenerator, Trainable, is_grey
from saukit.synthesis.generators.table import find_generator
from saukit.synthesis.jobs import Job, cache_lock
from saukit.synthesis.judging.judges import Judges, open_judges
from saukit.synthesis.judging.selection import Selection
from saukit.synthesis.outcome import AUDIT, GRID, complete, note_source, read_audit, read_source
from saukit.synthesis.plan import PLAN_NAME, SynthesisPlan, begin, load_plan, outline, resolve
from saukit.synthesis.sampling import Rate, choose, find_batch_size, sample_rounds, sample_shards, score_shards
from saukit.training.distributed import first_before_others, from_first, held_by_first, require_same, size

DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class SynthesisResult:
    """What `synthesize` found ("new", "partial", "complete") and what is there now.

    `manifest` is None after a job, until `saukit synth --resume` completes the cache.
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
        """The manifest's summary, once there is one."""
        assert self.manifest is not None
        return self.manifest.summary

    @property
    def samples(self) -> Path:
        """The sample grid."""
        return self.folder / GRID

    @property
    def audit(self) -> dict[str, Any] | None:
        """The audit's document; None where none was asked for."""
        return read_audit(self.folder) if (self.folder / AUDIT).exists() else None


@dataclass(frozen=True)
class _Work:
    """Where a process works on a cache, what it is made for, and who hears of it."""

    workspace: Workspace
    split: Split
    device: torch.device
    reporter: Reporter
    stop: StopRequest

    @property
    def folder(self) -> Path:
        return self.workspace.synth

    @property
    def inputs(self) -> dict[str, str]:
        return {"split": self.split.manifest.digest}

    def prepare(self, plan: SynthesisPlan, *, force: bool, resume: bool) -> State:
        return prepare(
            self.folder,
            plan.config,
            kind=KIND,
            force=force,
            resume=resume,
            another="another --workspace",
            inputs=self.inputs,
            keep=(PLAN_NAME,),
        )


def synthesize(
    config: SynthConfig,
    workspace: Workspace,
    *,
    device: torch.device,
    force: bool,
    resume: bool,
    reporter: Reporter,
    job: Job | None = None,
) -> SynthesisResult:
    """Make the cache of synthetic images of `workspace`, or continue it, or find it complete; or one job's part of it.

    Of several processes (`training.distributed.joined`) the first one writes all but shards; a job that torchrun has
    restarted continues by itself.
    Raises: DataError without a split, or for a cache of another split; UsageError for a bad value, a target that needs
    no image or another configuration; Interrupted after a signal, with all saved; EnvironmentFault on a full disk.
    """
    folder = workspace.synth
    if job is not None and force:
        raise UsageError(
            f"--force with --shard would remove what other jobs sampled: remove {folder} yourself, then start all jobs"
        )
    if job is not None and size() > 1:
        raise UsageError("--shard is for jobs that know nothing of each other, and torchrun's do: leave it out")
    resume, force = resume or restarts() > 0, force and not restarts()
    split = load_split(workspace)
    with StopRequest() as stop:
        work = _Work(workspace, split, device, reporter, stop)
        with held_by_first(cache_lock(workspace, job, stop=stop, reporter=reporter)):
            begun, planned = from_first(
                lambda: (not force and (folder / CONFIG_NAME).exists(), (folder / PLAN_NAME).exists())
            )
            planned = begun and planned
            find_batch = not begun and config.sample_batch_size is None
            if begun and config.sample_batch_size is None:  # what was found by trying stays
                saved = load_saved(SynthConfig, folder / CONFIG_NAME)
                config = dataclasses.replace(config, sample_batch_size=saved.sample_batch_size)
            plan = outline(resolve(config, split, device), split)
            require_same("configurations or inputs", (repr(plan.config), work.inputs))
            state: State = "new"
            if begun:
                state = from_first(lambda: work.prepare(plan, force=False, resume=resume or job is not None))
            if state == "complete":
                from_first(lambda: remove_states(folder / CHECKPOINT))  # a kill may have come just after the manifest
                manifest = read_manifest(folder, kind=KIND, verify=False)
                return SynthesisResult(state, load_plan(folder, plan), manifest, folder)
            if planned:
                plan = load_plan(folder, plan)
            if plan.closed:  # a choice without sampling that was interrupted

                def chosen() -> Manifest:
                    judges = open_judges(plan.config, workspace, split, device, reporter)
                    return _complete_closed(work, plan, judges)

                return SynthesisResult(state, plan, from_first(chosen), folder)

            # Open all that may be missing: before hours of training, and before --force removes an earlier cache.
            entry = find_generator(config.generator)
            opened = first_before_others(lambda: entry.open(plan.config, split, device, reporter))
            if find_batch:
                plan = from_first(lambda: _with_batch_size(plan, opened, work))
            if not planned:
                plan = begin(plan, capacity=opened.capacity)
            from_first(lambda: _announce(plan, opened, work))
            judges = first_before_others(lambda: open_judges(plan.config, workspace, split, device, reporter))
            if not begun:
                state = from_first(lambda: work.prepare(plan, force=force, resume=resume))

            generator = _trained(plan, opened, work)
            require_same("generators", generator.digest)

            def prepared() -> None:
                note_source(folder, generator)
                if not planned:
                    plan.save(folder)
                _preflight(plan, generator, judges, work)

            from_first(prepared)
            rate = Rate()
            if job is None:
                plan, selection = sample_rounds(
                    folder, plan, generator, judges, rate=rate, stop=stop, reporter=reporter
                )
                rate = rate.of_all()

                def completed() -> Manifest:
                    note_source(folder, generator, rate, images=plan.total)
                    return _complete(work, plan, selection, judges)

                return SynthesisResult(state, plan, from_first(completed), folder)
        with workspace.lock(folder / job.name, tidy=False):
            first, shards = plan.rounds[0], job.shards(plan.rounds[0])
            sample_shards(folder, plan, first, shards, generator, judges.scores, rate, stop=stop, reporter=reporter)
    return SynthesisResult(state, plan, None, folder)


def refilter(config: SynthConfig, workspace: Workspace, *, device: torch.device, reporter: Reporter) -> SynthesisResult:
    """Choose again from the candidates of a cache, with other filters, and sample nothing.

    `config` may differ from the cache's own in options of selection and audit. A class may keep fewer images than it
    wants.
    Raises: DataError without a cache, UsageError if other fields differ.
    """
    split, folder = load_split(workspace), workspace.synth
    if not (folder / PLAN_NAME).exists() or not (folder / CONFIG_NAME).exists():
        raise DataError(f"no candidates in {folder} to choose from: run `{workspace.command(COMMAND)}` first")
    with StopRequest() as stop:
        work = _Work(workspace, split, device, reporter, stop)
        with cache_lock(workspace, None, stop=stop, reporter=reporter):
            plan = load_plan(folder, outline(resolve(config, split, device), split))
            old = load_saved(type(plan.config), folder / CONFIG_NAME)
            free = [name for name, entry in options_of(SynthConfig).items() if entry.reselects]
            # Nothing more is sampled for rejected candidates, so max_tries goes with the last rule that rejects.
            chosen = {name: getattr(plan.config, name) for name in free + ["max_tries"] * (not plan.config.rejects)}
            if others := differences(dataclasses.replace(old, **chosen), plan.config):
                raise UsageError(
                    f"--refilter samples nothing, so it cannot change {'; '.join(others)}: "
                    f"start over with --force (--refilter changes {', '.join(free)})"
                )
            manifest = read_manifest(folder, kind=KIND)
            if manifest is not None:
                require_made_from(manifest, folder, split=split.manifest, command=COMMAND)
                if not differences(old, plan.config):
                    return SynthesisResult("complete", plan, manifest, folder)
            if manifest is None:
                sweep(folder, kind=KIND, keep=(CONFIG_NAME, PLAN_NAME))
            missing = [i for i in range(plan.shard_count) if not shard_path(folder, i).is_file()]
            if missing:
                command = workspace.command(f"{COMMAND} --resume")
                raise DataError(f"{folder} lacks shards {missing} of {plan.shard_count}: run `{command}` first")
            judges = open_judges(plan.config, workspace, split, device, reporter)
            plan = dataclasses.replace(plan, closed=True)
            read_source(folder)  # one that is damaged leaves the cache as it is
            with reopened(folder, plan.config, kind=KIND, inputs=work.inputs):
                plan.save(folder)  # no more rounds: a kill after it leaves a cache that `--resume` finishes as it is
            return SynthesisResult("partial", plan, _complete_closed(work, plan, judges), folder)


def preview(
    config: SynthConfig, workspace: Workspace, *, device: torch.device, reporter: Reporter
) -> tuple[SynthesisPlan, TimeEstimate]:
    """The plan of a cache with its first round, and how long the cache would take; writes nothing."""
    split = load_split(workspace)
    plan = outline(resolve(config, split, device), split)
    generator = find_generator(config.generator).open(plan.config, split, device, reporter)
    plan = begin(plan, capacity=generator.capacity)
    return plan, estimate(plan, generator, workspace, device)


def _with_batch_size(plan: SynthesisPlan, generator: ImageGenerator | Trainable, work: _Work) -> SynthesisPlan:
    """The outline with the batch size that suits a GPU, found by trying, where that limits it."""
    if work.device.type not in COPIES_ASIDE or not find_generator(plan.config.generator).tries_batch_sizes:
        return plan

    def seconds(count: int) -> float:
        ordinals = np.arange(count, dtype=np.int64)
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            generator.sample(ordinals % len(plan.classes), ordinals, ordinals)
        return time.monotonic() - began

    found = find_batch_size(seconds)
    work.reporter.say(f"sampling {found} images per batch")
    return outline(dataclasses.replace(plan.config, sample_batch_size=found), work.split)


def _announce(plan: SynthesisPlan, generator: ImageGenerator | Trainable, work: _Work) -> None:
    """Say what is going to be made. Raises: EnvironmentFault if the disk is too small for it."""
    filled = plan.wanted > 0
    counts = plan.wanted[filled]
    each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
    work.reporter.say(
        f"{plan.wanted.sum():,} images to make ({each} for each of {filled.sum()} of {len(plan.classes)} classes, "
        f"up to {plan.config.per_class_target:,} real + synthetic): {plan.total:,} candidates at first, "
        f"{format_bytes(plan.bytes)} in {plan.shard_count} shards"
    )
    done = sum(path.stat().st_size for path in work.folder.glob("shard-*.safetensors"))
    training = generator.disk_bytes if isinstance(generator, Trainable) else 0
    check_disk_space(work.folder, max(0, plan.bytes - done) + training)


def _trained(plan: SynthesisPlan, generator: ImageGenerator | Trainable, work: _Work) -> ImageGenerator:
    """The generator once it can sample."""
    if isinstance(generator, Trainable):
        untrained = generator

        def announce() -> None:
            expected = estimate(plan, untrained, work.workspace, work.device)
            work.reporter.say(f"the whole takes about {format_duration(expected.total_seconds)} ({expected})")
            if expected.total_seconds > DAY_SECONDS:
                work.reporter.warn(
                    f"that is {format_duration(expected.total_seconds)} on {describe_device(work.device)}: a smaller "
                    "--preset or --per-class-target is quicker"
                )

        return untrained.train(work.folder, stop=work.stop, reporter=work.reporter, announce=announce)
    return Grey(generator) if is_grey(work.split.train.images) else generator


def _preflight(plan: SynthesisPlan, generator: ImageGenerator, judges: Judges, work: _Work) -> None:
    """Have a few images of each class judged before the long run, unless that was done."""
    path, train = work.folder / PREFLIGHT_NAME, work.split.train
    if not plan.config.preflight or path.exists():
        return
    document = preflight(plan, generator, judges.probabilities, real_images=train.images, real_labels=train.labels)
    if (text := warning(document)) is not None:
        work.reporter.warn(text)
    write_json(path, document)


def _complete_closed(work: _Work, plan: SynthesisPlan, judges: Judges) -> Manifest:
    """Choose from the candidates that there are, and complete the cache."""
    missing = score_shards(work.folder, plan, judges.scores)
    if missing:
        raise DataError(f"{work.folder} has lost shards {missing} of {plan.shard_count}: start over with --force")
    return _complete(work, plan, choose(work.folder, plan, judges), judges)


def _complete(work: _Work, plan: SynthesisPlan, selection: Selection, judges: Judges) -> Manifest:
    return complete(
        work.workspace, plan, selection, judges, split=work.split, device=work.device, reporter=work.reporter
    )
