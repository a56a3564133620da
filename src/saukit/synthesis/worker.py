"""The work of `synth` in one process, step by step; `saukit.synthesis.generate` says in which order and when."""

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
    format_bytes,
    sha256_file,
    sync_folder,
    write_json,
    write_manifest,
)
from saukit.core.console import Reporter, format_duration
from saukit.core.device import Precision, describe_device
from saukit.core.errors import DataError, SaukitError, UsageError
from saukit.core.interrupts import StopRequest
from saukit.core.workspace import Workspace
from saukit.data.split import Split, load_test
from saukit.synthesis.audit import FeatureExtractor, audit_document, closest_pairs, save_closest_pairs
from saukit.synthesis.cache import COMMAND, KIND, SELECTION_NAME, load_images, load_scores, save_selection, shard_path
from saukit.synthesis.config import Preset, preset_values, smaller_preset
from saukit.synthesis.diffusion import build_scheduler, build_unet
from saukit.synthesis.duplicates import repeats
from saukit.synthesis.estimate import TimeEstimate, measure
from saukit.synthesis.filling import Filler
from saukit.synthesis.generators import DiffusionGenerator, Grey, ImageGenerator, open_folder, open_pipeline
from saukit.synthesis.grid import COLUMNS, save_grid, shown_classes
from saukit.synthesis.plan import PLAN_NAME, SynthesisPlan, begin, load_plan
from saukit.synthesis.preflight import PREFLIGHT_NAME, preflight, warning
from saukit.synthesis.scorers import inception_features
from saukit.synthesis.scoring import COPY_DISTANCE, Judges, TrainClassifier, open_judges, rules_of
from saukit.synthesis.selection import Selection, more_candidates, select
from saukit.synthesis.trainer import GeneratorTrainer, build_trainer, is_grey, read_checkpoint

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DAY_SECONDS = 24 * 3600.0
WEIGHTS = "generator/unet/diffusion_pytorch_model.safetensors"
GENERATOR_FILES = ("generator/unet/config.json", WEIGHTS, "generator/scheduler/scheduler_config.json")
CHECKPOINT = "generator/checkpoint.pt"  # only while the work is unfinished
TIMES = "generator/times*.json"  # likewise: seconds of sampling, a file a job
GRID, AUDIT, CLOSEST, SOURCE = "samples.png", "audit.json", "closest.png", "source.json"


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
        self._capacity: npt.NDArray[np.int64] | None = None  # images of each class that there are to be had
        self._judges: Judges | None = None

    @property
    def resume_command(self) -> str:
        """What continues after a stop."""
        way = "--resume" if self.job is None else f"--shard {self.job}"
        config, root = shlex.quote(str(self.folder / CONFIG_NAME)), shlex.quote(str(self.workspace.root))
        return f"{COMMAND} {way} --config {config} -w {root}"

    @property
    def judges(self) -> Judges:
        """What looks at the candidates; opened once."""
        if self._judges is None:
            self._judges = open_judges(self.plan.config, self.workspace, self.split, self.device, self.train_classifier)
        return self._judges

    def prepare(self) -> None:
        """Get the generator and the judges, freeze the plan, and look at a few images of each class."""
        plan, folder = self.plan, self.folder
        found = load_plan(folder, plan)
        if found is not None and found.closed:
            self.plan = found
            return
        if plan.config.generator == "folder":
            source = open_folder(plan.config, self.split, self.reporter)
            self.generator, self._capacity = source, source.capacity
        self.plan = begin(plan, capacity=self._capacity) if found is None else found
        self._announce()
        _ = self.judges  # before the hours of a training: what is missing is told now
        if plan.config.generator == "pipeline":
            self.generator = open_pipeline(plan.config, self.split, self.device, self.reporter)
        elif plan.config.generator == "diffusion":
            self.generator = self._trained()
        if plan.config.generator != "diffusion" and self.generator is not None and is_grey(self.split.train.images):
            self.generator = Grey(self.generator)
        self._note_source()
        if found is None:
            self.plan.save(folder)
        if plan.config.preflight and not (folder / PREFLIGHT_NAME).exists():
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
                "run the `saukit synth --shard i/n` that draws them (shard s is drawn by job s modulo n) to its end"
            )

    def complete(self) -> Manifest:
        """Draw what is not there yet, choose, look at what is kept, and vouch for it."""
        folder = self.folder
        selection = self._select()
        save_selection(folder, selection.reasons)
        self._save_grid(selection)
        summary = self._summary(selection)
        extra = []
        if self.plan.config.audit:
            self._audit(selection)
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

    def _select(self) -> Selection:
        """Every round: its shards, then the choice; until the target is met, the cap reached or the plan closed."""
        while True:
            plan = self.plan
            filler = self._filler()
            for part in plan.rounds:
                filler.fill(part, part.shards)
            selection = self._chosen()
            kept = _counts(plan.labels[selection.kept], plan)
            further = more_candidates(
                plan.wanted,
                plan.generated,
                kept,
                keep=plan.config.keep,
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
        self._tell_rejected(selection, kept)
        return selection

    def _chosen(self) -> Selection:
        plan, config, folder = self.plan, self.plan.config, self.folder
        rules = rules_of(config)
        names = [*rules.needed_scores, *([COPY_DISTANCE] if config.reject_copies else [])]
        scores = load_scores(folder, plan, names)
        is_copy = None
        if config.reject_copies:
            assert self.judges.detector is not None
            is_copy = scores.pop(COPY_DISTANCE) < self.judges.detector.threshold
        detector = self.judges.detector

        def repeated(eligible: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
            assert detector is not None
            found = np.zeros(len(eligible), dtype=np.bool_)
            rows = np.flatnonzero(eligible)
            images = load_images(folder, plan, rows)
            found[rows] = repeats(images, plan.labels[rows], threshold=detector.threshold, device=self.device)
            return found

        return select(
            plan.labels,
            plan.wanted,
            scores,
            rules,
            is_copy=is_copy,
            repeats=repeated if config.reject_repeats else None,
        )

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

    def _trained(self) -> DiffusionGenerator:
        """The split's own diffusion model after its training, which is done now, continued, or done already."""
        plan, folder = self.plan, self.folder
        trainer = new_trainer(plan, self.split, self.device)
        state = read_checkpoint(folder / CHECKPOINT, self.device)
        if plan.config.model is not None:
            trainer.adopt(Path(plan.config.model))
        elif state is not None:
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

    def _tell_rejected(self, selection: Selection, kept: npt.NDArray[np.int64]) -> None:
        plan = self.plan
        if not kept.any():
            raise SaukitError(
                f"the filters rejected all {plan.total:,} candidates: choose again from the same candidates with "
                "`saukit synth --refilter` and looser rules (--min-confidence, --min-clip, --no-reject-copies)"
            )
        short = [
            f"{name} {have:,} of {want:,}"
            for name, have, want in zip(plan.classes, kept.tolist(), plan.wanted.tolist(), strict=True)
            if have < want
        ]
        if short:
            self.reporter.warn(
                f"not all that was wanted is there ({', '.join(short)}): loosen the filters, or allow more candidates "
                "an image with --max-tries"
            )

    def _save_grid(self, selection: Selection) -> None:
        plan, train = self.plan, self.split.train
        rows = shown_classes(len(plan.classes))
        wanted = {c: np.flatnonzero(selection.kept & (plan.labels == c))[:COLUMNS] for c in rows}
        shown = load_images(self.folder, plan, np.concatenate([wanted[c] for c in rows]))
        ends = np.cumsum([len(wanted[c]) for c in rows])
        synthetic = {c: shown[end - len(wanted[c]) : end] for c, end in zip(rows, ends.tolist(), strict=True)}
        save_grid(
            self.folder / GRID,
            plan.classes,
            plan.real_counts,
            _counts(plan.labels[selection.kept], plan),
            lambda c: train.images[np.flatnonzero(train.labels == c)[:COLUMNS]],
            lambda c: synthetic[c],
        )

    def _audit(self, selection: Selection) -> None:
        """Look at what is kept; the test images are read here, when nothing can be chosen any more."""
        plan, train, test = self.plan, self.split.train, load_test(self.workspace)
        judges = self.judges
        assert judges.classifier is not None and judges.detector is not None
        rows = np.flatnonzero(selection.kept)
        images = load_images(self.folder, plan, rows)
        nearest = judges.detector.nearest(images)
        extractors: list[FeatureExtractor] = [judges.classifier]
        if plan.config.inception is not None:
            extractors.append(inception_features(Path(plan.config.inception), self.device))
        self.reporter.say("auditing what is kept")
        document = audit_document(
            classes=plan.classes,
            real_images=train.images,
            real_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
            images=images,
            labels=plan.labels[rows],
            generated_counts=plan.generated,
            wanted_counts=plan.wanted,
            rejected=selection.rejected_counts(plan.labels, len(plan.classes)),
            extractors=extractors,
            detector=judges.detector,
            nearest=nearest,
            device=self.device,
        )
        document["classifier_run"] = judges.classifier_run
        document["classifier_also_filters"] = "classifier" in plan.config.filters
        write_json(self.folder / AUDIT, document)
        save_closest_pairs(
            self.folder / CLOSEST,
            closest_pairs(nearest, judges.detector),
            images=images,
            labels=plan.labels[rows],
            real_images=train.images,
            real_labels=train.labels,
            classes=plan.classes,
            threshold=judges.detector.threshold,
        )

    def _summary(self, selection: Selection) -> dict[str, Any]:
        plan = self.plan
        seconds = sum(float(json.loads(path.read_text("utf-8"))["seconds"]) for path in self.folder.glob(TIMES))
        kept = _counts(plan.labels[selection.kept], plan)
        rejected = selection.rejected_counts(plan.labels, len(plan.classes))
        source = json.loads((self.folder / SOURCE).read_text("utf-8"))
        if self.generator is not None:  # once more: some of it shows only when images have been drawn
            source["description"] = self.generator.description
        if seconds:  # not for a choice among images that were drawn earlier
            source |= {"sample_seconds": round(seconds, 1), "images_per_second": round(plan.total / seconds, 2)}
        write_json(self.folder / SOURCE, source)
        return {
            "images": int(kept.sum()),
            "images_per_class": dict(zip(plan.classes, kept.tolist(), strict=True)),
            "real_per_class": dict(zip(plan.classes, plan.real_counts.tolist(), strict=True)),
            "per_class_target": plan.config.per_class_target,
            "candidates": plan.total,
            "rejected": {reason: int(counts.sum()) for reason, counts in rejected.items()},
            "rounds": len(plan.rounds),
            "shards": plan.shard_count,
            "classifier": self.judges.classifier_run,
            "sample_seconds": source.get("sample_seconds"),
            "images_per_second": source.get("images_per_second"),
            "generator": source["description"],
        }


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


def _counts(labels: npt.NDArray[np.int64], plan: SynthesisPlan) -> npt.NDArray[np.int64]:
    return np.bincount(labels, minlength=len(plan.classes)).astype(np.int64)
