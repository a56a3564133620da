"""The work of `synth` in one process, step by step; `saukit.synthesis.stage` says in which order and when."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import (
    CONFIG_NAME,
    Manifest,
    atomic_path,
    check_disk_space,
    sha256_file,
    sync_folder,
    write_json,
    write_manifest,
)
from saukit.core.console import Reporter
from saukit.core.device import Precision, describe_device
from saukit.core.errors import DataError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.words import format_bytes, format_duration
from saukit.core.workspace import Workspace
from saukit.data.split import Split
from saukit.data.synthetic import COMMAND, KIND, SELECTION_NAME, shard_path
from saukit.synthesis.audit.preflight import PREFLIGHT_NAME, preflight, warning
from saukit.synthesis.cache import save_selection
from saukit.synthesis.candidates import AUDIT, CLOSEST, GRID, Candidates
from saukit.synthesis.config import Preset, preset_values, smaller_preset
from saukit.synthesis.estimate import TimeEstimate, measure
from saukit.synthesis.filling import Filler
from saukit.synthesis.generators.diffusion_model import build_scheduler, build_unet
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer, build_trainer, is_grey, read_checkpoint
from saukit.synthesis.generators.table import DiffusionGenerator, Grey, ImageGenerator, open_folder, open_pipeline
from saukit.synthesis.judging.judges import Judges, TrainClassifier, open_judges
from saukit.synthesis.judging.selection import Selection, more_candidates
from saukit.synthesis.plan import PLAN_NAME, SynthesisPlan, begin, load_plan

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DAY_SECONDS = 24 * 3600.0
WEIGHTS = "generator/unet/diffusion_pytorch_model.safetensors"
GENERATOR_FILES = ("generator/unet/config.json", WEIGHTS, "generator/scheduler/scheduler_config.json")
CHECKPOINT = "generator/checkpoint.pt"  # only while the work is unfinished
TIMES = "generator/times*.json"  # likewise: seconds of sampling, a file a job
SOURCE = "source.json"


@dataclass(frozen=True)
class Job:
    """One of several processes that draw the same plan: number `index` of `count`, counted from 0."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Job:
        """`text` such as "0/3". Raises: UsageError if it is none."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise UsageError(f"shard must be i/n with i from 0 to n - 1, such as 0/3, got {text!r}")
        return Job(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """For files and locks."""
        return f"job-{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass
class Worker:
    """One process's part of making a cache; `job` None makes all of it."""

    workspace: Workspace
    plan: SynthesisPlan
    split: Split
    folder: Path
    device: torch.device
    reporter: Reporter
    stop: StopRequest
    train_classifier: TrainClassifier | None
    job: Job | None

    def __post_init__(self) -> None:
        self.generator: ImageGenerator | None = None
        self._trainer: GeneratorTrainer | None = None  # of the generator, where that is the split's own
        self._capacity: npt.NDArray[np.int64] | None = None  # images of each class that there are to be had
        self._judges: Judges | None = None
        self._is_open = False

    @property
    def resume_command(self) -> str:
        """What continues after a stop."""
        way = ["--resume"] if self.job is None else ["--shard", str(self.job)]
        config = str(self.folder / CONFIG_NAME)
        return shlex.join([*COMMAND.split(), *way, "--config", config, "-w", str(self.workspace.root)])

    @property
    def judges(self) -> Judges:
        """What looks at the candidates; opened once."""
        if self._judges is None:
            self._judges = open_judges(self.plan.config, self.workspace, self.split, self.device, self.train_classifier)
        return self._judges

    def open(self) -> None:
        """Begin the plan if that is still to do, and open what draws and what judges; writes nothing to the folder.

        What is missing is told here: before the hours of a training, before there is anything to clear away, and
        before --force removes an earlier cache.
        Raises: EnvironmentFault if the disk will not do; as `open_folder`, `open_pipeline` and `open_judges`.
        """
        config = self.plan.config
        if config.generator == "folder":
            source = open_folder(config, self.split, self.reporter)
            self.generator, self._capacity = source, source.capacity
        if not self.plan.rounds:
            self.plan = begin(self.plan, capacity=self._capacity)
        self._announce()
        _ = self.judges
        if config.generator == "pipeline":
            self.generator = open_pipeline(config, self.split, self.device, self.reporter)
        elif config.generator == "diffusion":
            self._trainer = new_trainer(self.plan, self.split, self.device)
            if config.model is not None:
                self._trainer.adopt(Path(config.model))
        if self.generator is not None and is_grey(self.split.train.images):
            self.generator = Grey(self.generator)
        self._is_open = True

    def prepare(self) -> None:
        """Get the generator and the judges, freeze the plan, and look at a few images of each class."""
        folder = self.folder
        found = load_plan(folder, self.plan)
        if found is not None:
            self.plan = found
            if found.closed:
                return
        if not self._is_open:
            self.open()
        if self._trainer is not None:
            self.generator = self._trained(self._trainer)
        self._note_source()
        if found is None:
            self.plan.save(folder)
        if self.plan.config.preflight and not (folder / PREFLIGHT_NAME).exists():
            self._preflight()

    def _note_source(self) -> None:
        """Keep what draws the images, which a later choice among them has to tell too.

        Raises: UsageError if it is no longer what it was when the work began.
        """
        assert self.generator is not None
        path, source = self.folder / SOURCE, self.generator
        if path.exists() and (before := json.loads(path.read_text("utf-8")))["digest"] != source.digest:
            raise UsageError(
                f"the generator is not the one that {self.folder} was begun with ({before['digest'][:12]} then, "
                f"{source.digest[:12]} now): bring that back, or start over with --force"
            )
        write_json(path, {"digest": source.digest, "description": source.description})

    def draw_shards(self) -> None:
        """Draw this job's shards of the first round."""
        assert self.job is not None
        first = self.plan.rounds[0]
        self._filler().fill(first, [index for index in first.shards if index % self.job.count == self.job.index])

    def check_shards(self) -> None:
        """Raises: DataError that names the shards of the plan that are not there."""
        missing = [str(i) for i in range(self.plan.shard_count) if not shard_path(self.folder, i).is_file()]
        if missing:
            raise DataError(
                f"{self.folder} lacks shards {', '.join(missing)} of {self.plan.shard_count}: "
                f"sample them with `{COMMAND} --resume` first"
            )

    def complete(self) -> Manifest:
        """Draw what is not there yet, choose, look at what is kept, and vouch for it."""
        folder = self.folder
        candidates, selection = self._select()
        save_selection(folder, selection.reasons)
        candidates.save_grid(selection)
        summary = candidates.summary(selection, self._source())
        extra = []
        if self.plan.config.audit:
            self.reporter.say("auditing what is kept")
            candidates.audit(selection)
            extra += [AUDIT, CLOSEST]
        else:
            for name in (AUDIT, CLOSEST):
                (folder / name).unlink(missing_ok=True)
        extra += [PREFLIGHT_NAME] if (folder / PREFLIGHT_NAME).exists() else []
        if self.plan.config.generator == "diffusion":
            extra += GENERATOR_FILES
        shards = [shard_path(folder, index).name for index in range(self.plan.shard_count)]
        manifest = write_manifest(
            folder,
            kind=KIND,
            files=[CONFIG_NAME, PLAN_NAME, SOURCE, SELECTION_NAME, GRID, *extra, *shards],
            inputs={"split": self.split.manifest.digest},
            summary=summary,
            device=describe_device(self.device),
        )
        for path in unfinished(folder):
            path.unlink()
        return manifest

    def _select(self) -> tuple[Candidates, Selection]:
        """Every round: its shards, then the choice; until the target is met, the cap reached or the plan closed."""
        while True:
            plan = self.plan
            filler = self._filler()
            for part in plan.rounds:
                filler.fill(part, part.shards)
            candidates = Candidates(self.workspace, self.folder, plan, self.split, self.judges, self.device)
            selection = candidates.choose()
            kept = candidates.kept_counts(selection)
            further = more_candidates(
                plan.wanted,
                plan.generated,
                kept,
                max_tries=plan.config.max_tries,
                capacity=self._capacity,
            )
            if plan.closed or not further.any():
                break
            self.plan = plan.with_round(further)
            self.plan.save(self.folder)
            self.reporter.say(
                f"{plan.total - int(kept.sum()):,} of {plan.total:,} images rejected; drawing {further.sum():,} more"
            )
        if (text := candidates.shortage(selection)) is not None:
            self.reporter.warn(text)
        return candidates, selection

    def _source(self) -> dict[str, Any]:
        """What source.json keeps of what drew the images, brought up to date."""
        path = self.folder / SOURCE
        source: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if self.generator is not None:  # once more: some of it shows only when images have been drawn
            source["description"] = self.generator.description
        seconds = sum(float(json.loads(times.read_text("utf-8"))["seconds"]) for times in self.folder.glob(TIMES))
        if seconds:  # not for a choice among images that were drawn earlier
            rate = round(self.plan.total / seconds, 2)
            source |= {"sample_seconds": round(seconds, 1), "images_per_second": rate}
        write_json(path, source)
        return source

    def _filler(self) -> Filler:
        times = "times.json" if self.job is None else f"times-{self.job.name}.json"
        return Filler(
            self.folder,
            self.plan,
            self.generator,
            self.judges.scores,
            self.stop,
            self.reporter,
            self.resume_command,
            self.folder / "generator" / times,
        )

    def _announce(self) -> None:
        plan, config = self.plan, self.plan.config
        filled = plan.wanted > 0
        counts = plan.wanted[filled]
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        self.reporter.say(
            f"{plan.wanted.sum():,} images to make ({each} for each of {filled.sum()} of {len(plan.classes)} classes, "
            f"up to {config.per_class_target:,} real + synthetic): {plan.total:,} candidates at first, "
            f"{format_bytes(plan.bytes)} in {plan.shard_count} shards"
        )
        done = sum(path.stat().st_size for path in self.folder.glob("shard-*.safetensors"))
        check_disk_space(self.folder, max(0, plan.bytes - done) + self._generator_bytes())

    def _generator_bytes(self) -> int:
        """Weights on disk: up to ten times, as model, average and two moments while a new checkpoint is written."""
        plan = self.plan
        if plan.config.generator != "diffusion":
            return 0
        with torch.device("meta"):
            unet = build_unet(_preset(plan), plan.image_size, len(plan.classes), plan.config.seed)
        return int(10 * 4 * sum(weight.numel() for weight in unet.parameters()))

    def _trained(self, trainer: GeneratorTrainer) -> DiffusionGenerator:
        """The split's own diffusion model after its training, which is done now, continued, or done already."""
        plan, folder = self.plan, self.folder
        state = read_checkpoint(folder / CHECKPOINT, self.device)
        if state is not None:
            trainer.load(state)
            self.reporter.say(f"continuing at step {trainer.step:,} of {trainer.total_steps:,}")
        if not trainer.done:
            estimate = measure(plan, new_trainer(plan, self.split, self.device))
            left = estimate.train_seconds * (1 - trainer.step / trainer.total_steps) + estimate.sample_seconds
            self._tell_time(estimate, left)
            trainer.run(folder / CHECKPOINT, stop=self.stop, reporter=self.reporter, resume_command=self.resume_command)
            save_generator(folder / "generator", trainer.average)
        elif not all((folder / name).is_file() for name in GENERATOR_FILES):
            save_generator(folder / "generator", trainer.average)
        return DiffusionGenerator(trainer, sha256_file(folder / WEIGHTS))

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

    def _preflight(self) -> None:
        assert self.generator is not None
        train = self.split.train
        document = preflight(
            self.plan,
            self.generator,
            self.judges.probabilities,
            real_images=train.images,
            real_labels=train.labels,
            capacity=self._capacity,
        )
        if (text := warning(document)) is not None:
            self.reporter.warn(text)
        write_json(self.folder / PREFLIGHT_NAME, document)


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


def unfinished(folder: Path) -> list[Path]:
    """What only unfinished work needs, and what goes once the manifest is there."""
    return [path for path in (folder / CHECKPOINT, *folder.glob(TIMES)) if path.exists()]


def new_trainer(plan: SynthesisPlan, split: Split, device: torch.device) -> GeneratorTrainer:
    """An untrained diffusion model of the plan's own."""
    assert plan.config.amp != "auto"
    return build_trainer(
        plan.config, _preset(plan), split, precision=Precision(plan.config.amp, device.type), device=device
    )


def _preset(plan: SynthesisPlan) -> Preset:
    assert plan.config.preset != "auto"
    return preset_values(plan.config.preset, plan.image_size)
