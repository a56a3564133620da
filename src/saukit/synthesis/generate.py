"""The stage `synth`: train the generator on the split's real images, then fill the planned shards.

    synth/  config.yaml  manifest.json  shard-00000.safetensors ...  samples.png
            generator/unet  generator/scheduler      both load with diffusers' from_pretrained
            generator/checkpoint.pt, times.json      only while the work is unfinished

Order of events, which makes every kill harmless: checkpoints, the last one at the end of the training; generator/;
shards; grid; manifest; checkpoint removed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saukit.core.artifacts import (
    CONFIG_NAME,
    Manifest,
    atomic_path,
    check_disk_space,
    format_bytes,
    read_manifest,
    sha256_file,
    sync_folder,
    write_json,
    write_manifest,
)
from saukit.core.console import Reporter, format_duration
from saukit.core.device import Precision, describe_device
from saukit.core.interrupts import StopRequest
from saukit.core.workspace import State, Workspace, prepare
from saukit.data.split import Split, load_split
from saukit.synthesis.cache import COMMAND, KIND, load_shard_images, shard_is_done, shard_path, write_shard
from saukit.synthesis.config import Preset, SynthConfig, preset_values, smaller_preset
from saukit.synthesis.diffusion import build_scheduler, build_unet
from saukit.synthesis.estimate import TimeEstimate, measure
from saukit.synthesis.grid import COLUMNS, save_grid, shown_classes
from saukit.synthesis.plan import SynthesisPlan, plan_synthesis
from saukit.synthesis.trainer import GeneratorTrainer, build_trainer, draw_batch, read_checkpoint

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DAY_SECONDS = 24 * 3600.0
WEIGHTS = "generator/unet/diffusion_pytorch_model.safetensors"
GENERATOR_FILES = ("generator/unet/config.json", WEIGHTS, "generator/scheduler/scheduler_config.json")
CHECKPOINT = "generator/checkpoint.pt"  # only while the work is unfinished
TIMES = "generator/times.json"  # likewise
GRID = "samples.png"


@dataclass(frozen=True)
class SynthesisResult:
    """What `synthesize` found ("new", "partial", "complete") and what is there now."""

    state: State
    plan: SynthesisPlan
    manifest: Manifest
    folder: Path

    @property
    def config(self) -> SynthConfig:
        """The resolved configuration."""
        return self.plan.config

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's summary."""
        return self.manifest.summary

    @property
    def samples(self) -> Path:
        """The sample grid."""
        return self.folder / GRID


def synthesize(
    config: SynthConfig, workspace: Workspace, *, device: torch.device, force: bool, resume: bool, reporter: Reporter
) -> SynthesisResult:
    """Make the cache of synthetic images of `workspace`, or continue it, or find it complete.

    Raises: DataError without a split, or for a cache of another split; UsageError for a bad value, a target that needs
    no image or another configuration; Interrupted after a signal, with all saved; EnvironmentFault on a full disk.
    """
    split = load_split(workspace)
    plan = plan_synthesis(config, split, device)
    folder = workspace.synth
    with workspace.lock(folder), StopRequest() as stop:
        state = prepare(
            folder,
            plan.config,
            kind=KIND,
            force=force,
            resume=resume,
            another="another --workspace",
            inputs={"split": split.manifest.digest},
        )
        if state == "complete":
            _remove_unfinished(folder)
            manifest = read_manifest(folder, kind=KIND, verify=False)
            assert manifest is not None
            return SynthesisResult(state, plan, manifest, folder)
        work = _Work(plan, split, folder, device, reporter, stop, f"{COMMAND} --resume -w {workspace.root}")
        return SynthesisResult(state, plan, work.run(), folder)


def estimate_seconds(plan: SynthesisPlan, split: Split, device: torch.device) -> float:
    """Seconds that `synth` would take, from a few measured steps; writes nothing."""
    return measure(plan, _new_trainer(plan, split, device)).total_seconds


@dataclass
class _Work:
    """One process's part of making a cache."""

    plan: SynthesisPlan
    split: Split
    folder: Path
    device: torch.device
    reporter: Reporter
    stop: StopRequest
    resume_command: str

    def run(self) -> Manifest:
        folder = self.folder
        self._announce()
        trainer = self._trained(read_checkpoint(folder / CHECKPOINT, self.device))
        self._draw_all(trainer)
        self._save_grid()
        shards = [shard_path(folder, index).name for index in self._shard_indices()]
        manifest = write_manifest(
            folder,
            kind=KIND,
            files=[CONFIG_NAME, *GENERATOR_FILES, GRID, *shards],
            inputs={"split": self.split.manifest.digest},
            summary=self._summary(trainer),
            device=describe_device(self.device),
        )
        _remove_unfinished(folder)
        return manifest

    def _announce(self) -> None:
        plan, config = self.plan, self.plan.config
        filled = plan.synthetic_counts > 0
        counts = plan.synthetic_counts[filled]
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        self.reporter.say(
            f"{plan.total:,} images to make ({each} for each of {filled.sum()} of {len(plan.classes)} classes, up to "
            f"{config.per_class_target:,} real + synthetic), {format_bytes(plan.bytes)} in {len(plan.shards)} shards"
        )
        weights = 4 * self._parameters()
        done = sum(shard_path(self.folder, i).stat().st_size for i in self._shard_indices() if self._exists(i))
        # The weights are on disk up to eight times: model, average and two moments, while a new checkpoint is written.
        check_disk_space(self.folder, max(0, plan.bytes - done) + 10 * weights)

    def _trained(self, state: dict[str, Any] | None) -> GeneratorTrainer:
        """The generator after its training, which is continued from `state`, or done now."""
        plan = self.plan
        trainer = _new_trainer(plan, self.split, self.device)
        if state is not None:
            trainer.load(state)
            self.reporter.say(f"continuing at step {trainer.step:,} of {trainer.total_steps:,}")
        if not trainer.done:
            estimate = measure(plan, _new_trainer(plan, self.split, self.device))
            left = estimate.train_seconds * (1 - trainer.step / trainer.total_steps) + estimate.sample_seconds
            self._tell_time(estimate, left)
            trainer.run(
                self.folder / CHECKPOINT,
                stop=self.stop,
                reporter=self.reporter,
                resume_command=self.resume_command,
            )
        save_generator(self.folder / "generator", trainer.average)
        return trainer

    def _tell_time(self, estimate: TimeEstimate, left: float) -> None:
        self.reporter.say(
            f"about {format_duration(left)} to go (whole training {format_duration(estimate.train_seconds)}, "
            f"whole sampling {format_duration(estimate.sample_seconds)})"
        )
        preset = self.plan.config.preset
        assert preset != "auto"
        smaller = smaller_preset(preset)
        if left > DAY_SECONDS:
            way = f"--preset {smaller} is quicker" if smaller else "a smaller --per-class-target is quicker"
            self.reporter.warn(f"that is {format_duration(left)} on {describe_device(self.device)}; {way}")

    def _draw_all(self, trainer: GeneratorTrainer) -> None:
        """Write every shard that is not there yet, finishing the batch at a signal."""
        plan, folder = self.plan, self.folder
        generator = sha256_file(folder / WEIGHTS)
        ready = {i for i in self._shard_indices() if shard_is_done(folder, i, plan, generator=generator)}
        done = sum(plan.shards[i].stop - plan.shards[i].start for i in ready)
        first, began = done, time.monotonic()
        with self.reporter.progress("drawing images", plan.total, done=done) as progress:
            for index in (i for i in self._shard_indices() if i not in ready):
                images, shard_began = [], time.monotonic()
                for batch in plan.batches(plan.shards[index]):
                    if self.stop.requested:
                        raise self.stop.interrupted(self.resume_command)
                    images.append(draw_batch(trainer, plan, batch))
                    done += len(images[-1])
                    progress.update(done, f"{(done - first) / (time.monotonic() - began):.1f} images/s")
                self._add_sample_seconds(time.monotonic() - shard_began)
                write_shard(folder, index, np.concatenate(images), plan, generator=generator)

    def _add_sample_seconds(self, seconds: float) -> None:
        """Keep the time of the sampling over several processes; no part of a shard, whose bytes must not vary."""
        write_json(self.folder / TIMES, {"sample_seconds": self._sample_seconds() + seconds})

    def _sample_seconds(self) -> float:
        path = self.folder / TIMES
        return float(json.loads(path.read_text("utf-8"))["sample_seconds"]) if path.exists() else 0.0

    def _save_grid(self) -> None:
        plan, train = self.plan, self.split.train
        starts = np.cumsum(plan.synthetic_counts) - plan.synthetic_counts
        rows = shown_classes(len(plan.classes))
        wanted = {c: starts[c] + np.arange(min(COLUMNS, plan.synthetic_counts[c])) for c in rows}
        shown = load_shard_images(self.folder, plan, np.concatenate([wanted[c] for c in rows]))
        ends = np.cumsum([len(wanted[c]) for c in rows])
        synthetic = {c: shown[end - len(wanted[c]) : end] for c, end in zip(rows, ends.tolist(), strict=True)}
        save_grid(
            self.folder / GRID,
            plan.classes,
            plan.real_counts,
            plan.synthetic_counts,
            lambda c: train.images[np.flatnonzero(train.labels == c)[:COLUMNS]],
            lambda c: synthetic[c],
        )

    def _summary(self, trainer: GeneratorTrainer) -> dict[str, Any]:
        plan, seconds = self.plan, self._sample_seconds()
        return {
            "images": plan.total,
            "images_per_class": dict(zip(plan.classes, plan.synthetic_counts.tolist(), strict=True)),
            "real_per_class": dict(zip(plan.classes, plan.real_counts.tolist(), strict=True)),
            "per_class_target": plan.config.per_class_target,
            "preset": plan.config.preset,
            "amp": plan.config.amp,
            "parameters": self._parameters(),
            "patch": trainer.preset.patch,
            "shards": len(plan.shards),
            "train_steps": trainer.total_steps,
            "train_seconds": round(trainer.seconds, 1),
            "train_steps_per_second": round(trainer.total_steps / trainer.seconds, 2),
            "sample_seconds": round(seconds, 1),
            "images_per_second": round(plan.total / seconds, 2),
        }

    def _parameters(self) -> int:
        with torch.device("meta"):
            unet = build_unet(_preset(self.plan), self.plan.image_size, len(self.plan.classes), self.plan.config.seed)
        return sum(weight.numel() for weight in unet.parameters())

    def _shard_indices(self) -> range:
        return range(len(self.plan.shards))

    def _exists(self, index: int) -> bool:
        return shard_path(self.folder, index).is_file()


def save_generator(folder: Path, unet: UNet2DModel) -> None:
    """Write `unet` and the scheduler so that diffusers loads them, flushed to disk."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
    with atomic_path(folder / "unet" / "diffusion_pytorch_model.safetensors") as temporary:
        temporary.write_bytes(save(weights, metadata={"format": "pt"}))
    with atomic_path(folder / "unet" / "config.json") as temporary:
        unet.to_json_file(temporary)
    with atomic_path(folder / "scheduler" / "scheduler_config.json") as temporary:
        build_scheduler().to_json_file(temporary)
    sync_folder(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what only unfinished work needs; called once the manifest is there."""
    for name in (CHECKPOINT, TIMES):
        (folder / name).unlink(missing_ok=True)


def _new_trainer(plan: SynthesisPlan, split: Split, device: torch.device) -> GeneratorTrainer:
    assert plan.config.amp != "auto"
    return build_trainer(
        plan.config, _preset(plan), split, precision=Precision(plan.config.amp, device.type), device=device
    )


def _preset(plan: SynthesisPlan) -> Preset:
    assert plan.config.preset != "auto"
    return preset_values(plan.config.preset, plan.image_size)
