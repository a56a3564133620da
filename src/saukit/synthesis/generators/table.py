"""The sources of synthetic images behind one face, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from saukit.core.errors import UsageError
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer, without_colour

if TYPE_CHECKING:
    import torch

    from saukit.core.console import Reporter
    from saukit.data.split import Split
    from saukit.synthesis.generators.folder import FolderGenerator
    from saukit.synthesis.generators.prompts import PromptBook

Integers = npt.NDArray[np.int64]


class ImageGenerator(Protocol):
    """Something that draws images of given classes."""

    @property
    def digest(self) -> str:
        """What identifies the images it draws: equal digests draw equal images."""

    @property
    def description(self) -> dict[str, Any]:
        """What it is, for the manifest."""

    def draw(self, labels: Integers, seeds: Integers, ordinals: Integers) -> npt.NDArray[np.uint8]:
        """One batch uint8 [n, 3, H, W]; labels, seeds and numbers within the class int64 [n]."""


class Grey:
    """A generator whose images are stripped of colour, for a split that has none."""

    def __init__(self, generator: ImageGenerator) -> None:
        self._generator, self.digest = generator, generator.digest

    @property
    def description(self) -> dict[str, Any]:
        """That of the generator within."""
        return self._generator.description

    def draw(self, labels: Integers, seeds: Integers, ordinals: Integers) -> npt.NDArray[np.uint8]:
        """Its images without colour."""
        return without_colour(self._generator.draw(labels, seeds, ordinals))


class DiffusionGenerator:
    """The diffusion model that was trained on the split itself; `digest` is that of its weights."""

    def __init__(self, trainer: GeneratorTrainer, digest: str) -> None:
        self.trainer, self.digest = trainer, digest

    @property
    def description(self) -> dict[str, Any]:
        """The network, and how long it was trained."""
        trainer = self.trainer
        steps = trainer.total_steps if trainer.seconds else None
        return {
            "generator": "diffusion",
            "preset": trainer.config.preset,
            "amp": trainer.config.amp,
            "parameters": sum(weight.numel() for weight in trainer.average.parameters()),
            "patch": trainer.preset.patch,
            "train_steps": steps,
            "train_seconds": round(trainer.seconds, 1),
            "train_steps_per_second": None if steps is None else round(steps / trainer.seconds, 2),
        }

    def draw(self, labels: Integers, seeds: Integers, ordinals: Integers) -> npt.NDArray[np.uint8]:
        """Images for `labels` and `seeds`."""
        return self.trainer.draw(labels, seeds)


def open_pipeline(config: SynthConfig, split: Split, device: torch.device, reporter: Reporter) -> ImageGenerator:
    """The pretrained pipeline that `config` names. Raises: as `PipelineGenerator`."""
    from saukit.synthesis.generators.pipeline import PipelineGenerator
    from saukit.synthesis.generators.prompts import TEMPLATES, PromptBook, read_texts

    assert config.model is not None
    book = PromptBook.of(
        split.classes,
        templates=config.templates or TEMPLATES,
        descriptions=None if config.descriptions is None else read_texts(Path(config.descriptions)),
        prompts=None if config.prompts is None else Path(config.prompts),
    )
    if book.templated:
        reporter.say(f"{config.prompts} says nothing of {', '.join(book.templated)}: those get the templates")
    generator = PipelineGenerator(
        model=config.model,
        classes=split.classes,
        image_size=split.image_size,
        prompts=book,
        negative_prompt=config.negative_prompt,
        guidance=config.guidance,
        steps=config.sampler_steps,
        size=None if config.draw_size is None else (config.draw_size, config.draw_size),
        lora=config.lora,
        lora_scale=config.lora_scale,
        dtype=config.dtype,
        class_ids=None if config.class_ids is None else _numbers(Path(config.class_ids)),
        device=device,
    )
    if idle := _idle_texts(config, book, generator.draws_from_prompts):
        raise UsageError("; ".join(idle))
    if generator.draws_from_prompts and book.unclear:
        reporter.warn(
            f"the names of {', '.join(book.unclear)} do not say what these classes are: "
            "give --descriptions or --prompts for them"
        )
    return generator


def _idle_texts(config: SynthConfig, book: PromptBook, draws_from_prompts: bool) -> list[str]:
    """What was given and no prompt is made of, with the remedy."""
    if not draws_from_prompts:
        given = [name for name in ("prompts", "descriptions", "templates") if getattr(config, name) is not None]
        why = f"is for pipelines that draw from text, and {config.model} draws from class numbers: leave it out"
        return [f"{name} {why}" for name in given]
    if config.templates is not None and config.prompts is not None and not book.templated:
        return [
            f"templates are for classes without prompts, and {config.prompts} has some for all: leave the templates out"
        ]
    return []


def _numbers(path: Path) -> dict[str, int]:
    """A file of class: number. Raises: UsageError that lists what is no whole number."""
    from saukit.synthesis.generators.prompts import read_texts

    texts = read_texts(path)
    bad = [f"{name}: {text}" for name, text in texts.items() if not text.isdecimal()]
    if bad:
        raise UsageError(f"{path}: a class's number is a whole number, got {', '.join(bad)}")
    return {name: int(text) for name, text in texts.items()}


def open_folder(config: SynthConfig, split: Split, reporter: Reporter) -> FolderGenerator:
    """The folder of images that `config` names. Raises: as `FolderGenerator`."""
    from saukit.synthesis.generators.folder import FolderGenerator

    assert config.from_folder is not None
    return FolderGenerator(
        Path(config.from_folder), split.classes, split.image_size, reporter=reporter, skip_bad=config.skip_bad
    )
