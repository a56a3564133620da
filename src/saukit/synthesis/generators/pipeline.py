"""Images from a pipeline that somebody else trained: text-to-image, or class-conditional DiT.

Any pipeline that diffusers' `AutoPipelineForText2Image` loads samples from prompts (`PromptBook`). A `DiTPipeline`
(Peebles, Xie 2023, arXiv 2212.09748) samples from its own class numbers, found by the names it has for them or given.

Each image has a CPU generator of its own, so in one dtype its starting noise is the same on every device and in every
batch. The rest of its arithmetic is not: images of another batch size agree to rounding, not to the bit, and some
pipelines pad every prompt to the longest of its batch.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.device import resolve_amp
from saukit.core.errors import DataError, SaukitError, UsageError
from saukit.core.extras import require_extra
from saukit.core.files import reading
from saukit.core.words import shown
from saukit.core.writing import sha256_file
from saukit.data.split import Split
from saukit.data.types import Images, Integers
from saukit.synthesis.config import ResolvedSynthConfig, SynthConfig
from saukit.synthesis.generators.pipeline_files import (
    CLASS_CONDITIONAL,
    add_lora,
    decoding_in_float32,
    find_lora,
    find_model,
    load_pipeline,
)
from saukit.synthesis.generators.prompts import TEMPLATES, PromptBook, describe_class_name, read_texts
from saukit.synthesis.generators.protocol import GeneratorEntry

CPU_BATCH = 4  # larger batches are not quicker on a CPU
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
# What a user may set, and the argument of a pipeline's call that it becomes.
_NUMBER = re.compile(r"[0-9]{1,9}")
_ARGUMENTS = {
    "negative_prompt": "negative_prompt",
    "guidance": "guidance_scale",
    "sampler_steps": "num_inference_steps",
    "pipeline_size": "height",
}


class PipelineGenerator:
    """A loaded pipeline that samples images of the classes of a split."""

    capacity = None

    def __init__(
        self,
        config: SynthConfig,
        *,
        classes: Sequence[str],
        image_size: tuple[int, int],
        prompts: PromptBook,
        class_ids: Mapping[str, int] | None,
        device: torch.device,
    ) -> None:
        """Load the model of `config` onto `device`; what the options leave open is the pipeline's own.

        image_size: height and width of the images that `sample` returns. class_ids: class name to a DiT model's number.

        Raises: UsageError for options that the pipeline does not take and for classes that it does not know, DataError
        for a model that is not whole or not in safetensors, EnvironmentFault for a missing extra or a model that
        cannot be fetched; torch.OutOfMemoryError passes.
        """
        self.model = find_model(config.model or "")
        self._drawn_size: tuple[int, int] | None = None
        self._image_size, self._prompts, self._device = image_size, prompts, device
        self._dtype = resolve_dtype(config.dtype, device)
        self._dtype_name = str(self._dtype).removeprefix("torch.")
        self._class_ids: tuple[int, ...] | None = None
        if self.model.pipeline == CLASS_CONDITIONAL:
            self._class_ids = match_classes(self.model.names, classes, class_ids or {})
        else:
            if class_ids:
                raise UsageError(
                    f"class_ids are for {CLASS_CONDITIONAL}; {self.model.pipeline} samples from prompts: leave them out"
                )
            require_extra("text2image", purpose=f"the pipeline {self.model.pipeline}")
        self._lora = None if config.lora is None else find_lora(config.lora)
        self._lora_scale = config.lora_scale
        self._pipe = load_pipeline(self.model, self._dtype)
        self._name = type(self._pipe).__name__
        self._parameters = inspect.signature(self._pipe.__call__).parameters
        self._options: dict[str, Any] = {name: getattr(config, name) for name in _ARGUMENTS}
        self._check_options()
        self._check_class_ids()
        if self._lora is not None:
            add_lora(self._pipe, self._lora, config.lora_scale)
        self._pipe.set_progress_bar_config(disable=True)
        self._pipe.to(device)

    def sample(self, labels: Integers, seeds: Integers, ordinals: Integers) -> Images:
        """One batch of images uint8 [n, 3, H, W]; image i of its class (`ordinals`) has prompt i of the class.

        Shapes: labels, seeds and ordinals int64 [n].
        A batch that is not finite in half precision is sampled once more and decoded in float32.
        Raises: SaukitError if an image is not finite then, UsageError if the pipeline refuses an option's value.
        """
        arguments = {**self._condition(labels, ordinals), **self._call_options(len(labels))}
        images = self._called(arguments, seeds)
        vae = getattr(self._pipe, "vae", None)
        if not np.isfinite(images).all() and vae is not None and self._dtype != torch.float32:
            with decoding_in_float32(vae):
                images = self._called(arguments, seeds)
        if not np.isfinite(images).all():
            what = f"{self._name} sampled an image that is not finite in {self._dtype_name}"
            if self._dtype == torch.float32:
                raise DataError(f"{what}: the weights of {self.model.name} are damaged, fetch the model again")
            raise SaukitError(f"{what}: use float32")
        self._drawn_size = (images.shape[1], images.shape[2])
        pixels = (images * 255).round().clip(0, 255).astype(np.uint8)
        return np.stack([fit_image(image, self._image_size) for image in pixels])

    def _called(self, arguments: dict[str, Any], seeds: Integers) -> npt.NDArray[np.floating[Any]]:
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        remedy = "fetch the model again, and see that it samples with diffusers"
        with reading(f"model {self.model.name}", remedy=remedy), torch.inference_mode():
            try:
                output = self._pipe(**arguments, generator=generators, output_type="np")
            except ValueError as error:  # the pipelines' check of their arguments
                raise UsageError(
                    f"{self._name} refuses its options: {error}; change --pipeline-size, --guidance or --sampler-steps"
                ) from error
        return np.asarray(output.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes an image from its label, seed and ordinal, but for the versions of packages.

        That is the model and the LoRA weights (`Model.digest`), the prompts or class numbers, and every option in
        force. Where a folder lies does not count. The first use reads every byte of a model in a folder.
        """
        beside = ("model", "lora", "drawn_size")
        identity = {key: value for key, value in self.description.items() if key not in beside}
        return hashlib.sha256(json.dumps([identity, self._image_size], sort_keys=True).encode()).hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """What samples the images, for the manifest; `drawn_size` is known after the first batch, else None."""
        return {
            "pipeline": self._name,
            "model": self.model.name,
            "revision": self.model.revision,
            "weights": self.model.digest,
            "scheduler": type(self._pipe.scheduler).__name__ if hasattr(self._pipe, "scheduler") else None,
            "guidance": self._in_force("guidance"),
            "steps": self._in_force("sampler_steps"),
            "size": self._options["pipeline_size"] and (self._options["pipeline_size"],) * 2,
            "drawn_size": self._drawn_size,
            "dtype": self._dtype_name,
            "prompts": self._prompts.digest if self._class_ids is None else None,
            "negative_prompt": self._options["negative_prompt"],
            "class_ids": self._class_ids,
            "lora": None if self._lora is None else str(self._lora),
            "lora_weights": self._lora_weights,
            "lora_scale": None if self._lora is None else self._lora_scale,
        }

    @property
    def takes_prompts(self) -> bool:
        """Whether it samples from prompts, and not from a class-conditional model's own numbers."""
        return self._class_ids is None

    @cached_property
    def _lora_weights(self) -> str | None:
        return None if self._lora is None else sha256_file(self._lora)

    def _in_force(self, option: str) -> Any:
        """The value of an option, or the pipeline's default for it; None if it has neither."""
        if self._options[option] is not None:
            return self._options[option]
        parameter = self._parameters.get(_ARGUMENTS[option])
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def _condition(self, labels: Integers, ordinals: Integers) -> dict[str, Any]:
        if self._class_ids is not None:
            return {"class_labels": [self._class_ids[label] for label in labels]}
        return {"prompt": [self._prompts.prompt(int(c), int(i)) for c, i in zip(labels, ordinals, strict=True)]}

    def _call_options(self, count: int) -> dict[str, Any]:
        """The arguments that were given; what is None is left to the pipeline."""
        given: dict[str, Any] = {_ARGUMENTS[name]: value for name, value in self._options.items() if value is not None}
        if "height" in given:
            given["width"] = given["height"]
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * count
        return given

    def _check_options(self) -> None:
        problems = [
            f"{self._name} takes no {option}: leave it out"
            for option, argument in _ARGUMENTS.items()
            if self._options[option] is not None and argument not in self._parameters
        ]
        if self._options["negative_prompt"] is not None and not problems:
            # diffusers accepts both, and samples as if there were no negative prompt.
            guidance, true_guidance = self._in_force("guidance"), self._parameters.get("true_cfg_scale")
            if true_guidance is not None and true_guidance.default <= 1:
                problems.append(f"{self._name} ignores negative_prompt, as its true_cfg_scale is off: leave it out")
            elif true_guidance is None and guidance is not None and guidance <= 1:
                problems.append(f"with guidance {guidance:g} a negative_prompt does nothing: leave one of them out")
        if self._lora is not None and not hasattr(self._pipe, "load_lora_weights"):
            problems.append(f"{self._name} takes no lora: leave it out")
        if problems:
            raise UsageError("; ".join(problems))

    def _check_class_ids(self) -> None:
        if self._class_ids is None:
            return
        count = int(self._pipe.transformer.config.num_embeds_ada_norm)
        if wrong := sorted({number for number in self._class_ids if not 0 <= number < count}):
            raise UsageError(f"class_ids must be from 0 to {count - 1}, got {', '.join(map(str, wrong))}")


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that computes it natively, else float32.

    Raises: UsageError for float16 on a CPU, where it is emulated and overflows.
    """
    if dtype == "auto":
        native = device.type != "cpu" and resolve_amp("auto", device) == "bf16"
        return torch.bfloat16 if native else torch.float32
    if dtype == "float16" and device.type == "cpu":
        raise UsageError("dtype float16 needs a GPU: use float32, bfloat16 or auto")
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]


def match_classes(names: Mapping[str, Any], classes: Sequence[str], class_ids: Mapping[str, int]) -> tuple[int, ...]:
    """The number of each of `classes` in a model whose classes have `names` (number: names, comma-separated).

    A name fits if it is the whole of the model's, or one of several, letter case and underscores aside. `class_ids`
    goes first.

    Raises: UsageError that lists every class the model has no name for, or two numbers (ImageNet's two cranes), and
    every entry of `class_ids` that is not a class, or not a number of the model.
    """
    numbers: dict[str, set[int]] = {}
    for number, text in names.items():
        for name in {str(text), *str(text).split(",")}:
            if _NUMBER.fullmatch(number):
                numbers.setdefault(_normal(name), set()).add(int(number))
    problems = [f"class_ids names {name!r}, which is not a class" for name in class_ids if name not in classes]
    matched = []
    for name in classes:
        found = {class_ids[name]} if name in class_ids else numbers.get(_normal(name), set())
        if not found:
            problems.append(f"the model has no class {name!r}")
        elif len(found) > 1:
            problems.append(f"the model has {len(found)} classes {name!r} ({', '.join(map(str, sorted(found)))})")
        matched.append(min(found, default=-1))
    if problems:
        why = "" if names else f" (it names none at all: {CLASS_CONDITIONAL}.save_pretrained drops id2label)"
        raise UsageError("; ".join(problems) + f"{why}: give the model's own numbers as class_ids")
    return tuple(matched)


def fit_image(image: Images, size: tuple[int, int]) -> Images:
    """A picture at another size: its middle, of the wanted proportions, resized bicubic with antialiasing.

    That is how real images become those of a split. Shapes: image [h, w, 3]; size (H, W); returns [3, H, W].
    """
    (height, width), (to_height, to_width) = image.shape[:2], size
    keep_height = min(height, round(width * to_height / to_width))
    keep_width = min(width, round(height * to_width / to_height))
    top, left = (height - keep_height) // 2, (width - keep_width) // 2
    middle = Image.fromarray(image[top : top + keep_height, left : left + keep_width])
    if middle.size != (to_width, to_height):
        middle = middle.resize((to_width, to_height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(middle, np.uint8).transpose(2, 0, 1))


def _normal(name: str) -> str:
    return describe_class_name(name.strip()).casefold()


def _open(config: ResolvedSynthConfig, split: Split, device: torch.device, reporter: Reporter) -> PipelineGenerator:
    book = PromptBook.of(
        split.classes,
        templates=config.templates or TEMPLATES,
        descriptions=None if config.descriptions is None else read_texts(Path(config.descriptions)),
        prompts=None if config.prompts is None else Path(config.prompts),
    )
    if book.templated:
        reporter.say(f"{config.prompts} has no prompts for {', '.join(book.templated)}: these get the templates")
    generator = PipelineGenerator(
        config,
        classes=split.classes,
        image_size=split.image_size,
        prompts=book,
        class_ids=None if config.class_ids is None else _numbers(Path(config.class_ids)),
        device=device,
    )
    if idle := _idle_texts(config, book, generator.takes_prompts):
        raise UsageError("; ".join(idle))
    if generator.takes_prompts and book.unclear:
        reporter.warn(
            f"the names of {', '.join(book.unclear)} do not say what these classes are: "
            "give --descriptions or --prompts for them"
        )
    return generator


def _idle_texts(config: SynthConfig, book: PromptBook, takes_prompts: bool) -> list[str]:
    """Texts that were given and not used for any prompt, with the fix."""
    if not takes_prompts:
        given = [name for name in ("prompts", "descriptions", "templates") if getattr(config, name) is not None]
        why = f"is for pipelines that sample from text, and {config.model} samples from class numbers: leave it out"
        return [f"{name} {why}" for name in given]
    if config.templates is not None and config.prompts is not None and not book.templated:
        return [f"templates are for classes without prompts, and {config.prompts} has some for all: leave them out"]
    return []


def _numbers(path: Path) -> dict[str, int]:
    """A file of class: number. Raises: UsageError that lists what is not a whole number."""
    texts = read_texts(path)
    bad = [f"{name}: {shown(text, quotes=False)}" for name, text in texts.items() if not _NUMBER.fullmatch(text)]
    if bad:
        raise UsageError(f"{path}: a class's number is a whole number, got {', '.join(bad)}")
    return {name: int(text) for name, text in texts.items()}


def _problems(config: SynthConfig) -> Iterator[str]:
    if config.model is None:
        yield "--generator pipeline needs a --model: a folder, or the name of a model on the Hub"


ENTRY = GeneratorEntry(
    open=_open,
    settle=lambda config, split, device: {"sample_batch_size": CPU_BATCH},
    problems=_problems,
)
