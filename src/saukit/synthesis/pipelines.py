"""Images from a pipeline that somebody else trained: text-to-image, or class-conditional DiT.

Any pipeline that diffusers' `AutoPipelineForText2Image` loads draws from prompts (`PromptBook`). A `DiTPipeline`
(Peebles, Xie 2023, arXiv 2212.09748) draws from its own class numbers, found by the names it has for them or given.

A model is a folder as diffusers saves it (`model_index.json` and a folder a component), or the id of one on the Hub.
Only safetensors are read and no code that comes with a model is run: a pickle, too, is code.

Each image has a CPU generator of its own, so in one dtype its starting noise is the same on every device and in every
batch. The rest of its arithmetic is not: images of another batch size agree to rounding, not to the bit, and some
pipelines pad every prompt to the longest of its batch.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import sha256_file
from saukit.core.errors import DataError, EnvironmentFault, SaukitError, UsageError
from saukit.core.extras import require_extra
from saukit.synthesis.prompts import PromptBook, describe_class_name

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
INDEX = "model_index.json"
CLASS_CONDITIONAL = "DiTPipeline"
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LOADED = (".json", ".txt", ".model", ".safetensors", ".jinja")  # of these a model is made
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
# What a user may set, and the argument of a pipeline's call that it becomes.
_ARGUMENTS = {
    "negative_prompt": "negative_prompt",
    "guidance": "guidance_scale",
    "steps": "num_inference_steps",
    "size": "height",
}


class PipelineGenerator:
    """A loaded pipeline that draws images of the classes of a split.

    `flagged` counts the images so far that the model's own safety checker replaced by black ones.
    """

    def __init__(
        self,
        *,
        model: str,
        classes: Sequence[str],
        image_size: tuple[int, int],
        prompts: PromptBook,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        lora: str | None = None,
        lora_scale: float = 1.0,
        dtype: Dtype = "auto",
        class_ids: Mapping[str, int] | None = None,
        device: torch.device,
    ) -> None:
        """Load `model`, a folder or a Hub id, onto `device`.

        image_size: height and width of the images that `draw` returns.
        negative_prompt, guidance, steps, size (height and width the pipeline draws at): None is the pipeline's own.
        lora: a safetensors file, or a folder with one. class_ids: class name to a DiT model's own number.

        Raises: UsageError for options that the pipeline does not take and for classes that it does not know, DataError
        for a model that is not whole or not in safetensors, EnvironmentFault for a missing extra or a model that
        cannot be fetched; torch.OutOfMemoryError passes.
        """
        self.model = find_model(model)
        self.flagged = 0
        self._drawn_size: tuple[int, int] | None = None
        self._image_size, self._prompts, self._device = image_size, prompts, device
        self._dtype = resolve_dtype(dtype, device)
        self._class_ids: tuple[int, ...] | None = None
        if self.model.pipeline == CLASS_CONDITIONAL:
            self._class_ids = match_classes(self.model.names, classes, class_ids or {})
        else:
            if class_ids:
                raise UsageError(
                    f"class_ids are for {CLASS_CONDITIONAL}; {self.model.pipeline} draws from prompts: leave them out"
                )
            require_extra("text2image", purpose=f"the pipeline {self.model.pipeline}")
        self._lora = None if lora is None else find_lora(lora)
        self._lora_scale = lora_scale
        self._pipe = _load(self.model, self._dtype)
        self._parameters = inspect.signature(self._pipe.__call__).parameters
        self._options: dict[str, Any] = {
            "negative_prompt": negative_prompt,
            "guidance": guidance,
            "steps": steps,
            "size": size,
        }
        self._check_options()
        self._check_class_ids()
        if self._lora is not None:
            _add_lora(self._pipe, self._lora, lora_scale)
        self._pipe.set_progress_bar_config(disable=True)
        self._pipe.to(device)

    def draw(
        self, labels: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64], ordinals: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """One batch of images uint8 [n, 3, H, W]; image i of its class (`ordinals`) has prompt i of the class.

        Shapes: labels, seeds and ordinals int64 [n].
        Raises: SaukitError if an image is not finite, UsageError if the pipeline refuses an option's value.
        """
        arguments = {**self._condition(labels, ordinals), **self._call_options(len(labels))}
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        try:
            with torch.inference_mode():
                output = self._pipe(**arguments, generator=generators, output_type="np")
        except ValueError as error:  # the pipelines' check of their arguments
            raise UsageError(f"{self._name} refuses its options: {error}; change size, guidance or steps") from error
        images: npt.NDArray[np.floating[Any]] = np.asarray(output.images)
        if not np.isfinite(images).all():
            raise SaukitError(f"{self._name} drew an image that is not finite in {self._dtype_name}: use float32")
        self.flagged += sum(map(bool, getattr(output, "nsfw_content_detected", None) or []))
        self._drawn_size = (images.shape[1], images.shape[2])
        pixels = (images * 255).round().clip(0, 255).astype(np.uint8)
        return np.stack([fit_image(image, self._image_size) for image in pixels])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes an image from its label, seed and ordinal, but for the versions of packages.

        That is the model and the LoRA weights (`Model.digest`), the prompts or class numbers, and every option in
        force. Where a folder lies does not count. The first use reads every byte of a model in a folder.
        """
        beside = ("model", "lora", "drawn_size", "flagged")
        identity = {key: value for key, value in self.description.items() if key not in beside}
        return hashlib.sha256(json.dumps([identity, self._image_size], sort_keys=True).encode()).hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """What draws the images, for a manifest; `drawn_size` is known after the first batch, else None."""
        return {
            "pipeline": self._name,
            "model": self.model.name,
            "revision": self.model.revision,
            "weights": self._weights,
            "scheduler": type(self._pipe.scheduler).__name__ if hasattr(self._pipe, "scheduler") else None,
            "guidance": self._in_force("guidance"),
            "steps": self._in_force("steps"),
            "size": self._options["size"],
            "drawn_size": self._drawn_size,
            "dtype": self._dtype_name,
            "prompts": self._prompts.digest if self._class_ids is None else None,
            "negative_prompt": self._options["negative_prompt"],
            "class_ids": self._class_ids,
            "lora": None if self._lora is None else str(self._lora),
            "lora_weights": self._lora_weights,
            "lora_scale": None if self._lora is None else self._lora_scale,
            "flagged": self.flagged,
        }

    @property
    def draws_from_prompts(self) -> bool:
        """Whether it draws from prompts, and not from a class-conditional model's own numbers."""
        return self._class_ids is None

    @property
    def _name(self) -> str:
        return type(self._pipe).__name__

    @property
    def _dtype_name(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    @cached_property
    def _weights(self) -> str:
        return self.model.digest

    @cached_property
    def _lora_weights(self) -> str | None:
        return None if self._lora is None else sha256_file(self._lora)

    def _in_force(self, option: str) -> Any:
        """The value of an option, or the pipeline's default for it; None if it has neither."""
        if self._options[option] is not None:
            return self._options[option]
        parameter = self._parameters.get(_ARGUMENTS[option])
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def _condition(self, labels: npt.NDArray[np.int64], ordinals: npt.NDArray[np.int64]) -> dict[str, Any]:
        if self._class_ids is not None:
            return {"class_labels": [self._class_ids[label] for label in labels]}
        return {"prompt": [self._prompts.prompt(int(c), int(i)) for c, i in zip(labels, ordinals, strict=True)]}

    def _call_options(self, count: int) -> dict[str, Any]:
        """The arguments that were given; what is None is left to the pipeline."""
        given: dict[str, Any] = {_ARGUMENTS[name]: value for name, value in self._options.items() if value is not None}
        if "height" in given:
            given["height"], given["width"] = given["height"]
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
            # diffusers accepts both, and draws as if there were no negative prompt.
            guidance, true_guidance = self._in_force("guidance"), self._parameters.get("true_cfg_scale")
            if true_guidance is not None and true_guidance.default <= 1:
                problems.append(f"{self._name} heeds no negative_prompt, as its true_cfg_scale is off: leave it out")
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


@dataclass(frozen=True)
class Model:
    """A pipeline's files. `name` is what the user gave; `revision` is the commit of a Hub model, else None."""

    name: str
    folder: Path
    revision: str | None
    index: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """The name of the class that diffusers saved it from."""
        return str(self.index["_class_name"])

    @property
    def components(self) -> dict[str, str]:
        """Each component that is there, and the library of its class."""
        pairs = {name: pair for name, pair in self.index.items() if isinstance(pair, list) and len(pair) == 2}
        return {name: library for name, (library, _) in pairs.items() if isinstance(library, str) and name[0] != "_"}

    @property
    def names(self) -> Mapping[str, Any]:
        """A class-conditional model's own classes: number (as text) to names with commas between."""
        names = self.index.get("id2label")
        return names if isinstance(names, dict) else {}

    @property
    def digest(self) -> str:
        """Identifies the weights and configuration.

        A Hub model: SHA-256 of its id and commit, which vouch for its files. A folder: SHA-256 over the names and
        hashes of every file in it that loading may read, each byte of it. So a Hub model and a copy of it in a folder
        have different digests, and a folder's does not depend on where it lies.
        """
        if self.revision is not None:
            return hashlib.sha256(f"{self.name}@{self.revision}".encode()).hexdigest()
        files = {path.relative_to(self.folder).as_posix(): path for path in self.files(_LOADED)}
        lines = [f"{sha256_file(files[name])}  {name}\n" for name in sorted(files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def files(self, suffixes: Sequence[str]) -> Iterator[Path]:
        """The index and the files with these suffixes in the components' folders; a component without one lies in the
        model's folder itself."""
        yield self.folder / INDEX
        folders = [self.folder / name for name in self.components]
        if not all(map(Path.is_dir, folders)):
            yield from (path for path in self.folder.iterdir() if path.suffix in suffixes and path.name != INDEX)
        for folder in folders:
            yield from (path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())

    @property
    def variant(self) -> str | None:
        """The variant, such as fp16, that a folder holds in place of plain weights; None if it has plain ones."""
        variants: set[str] = set()
        for name in self.components:
            found = {match["variant"] for path in self._component(name) if (match := _WEIGHTS.fullmatch(path.name))}
            if None not in found:
                variants |= found
        return variants.pop() if len(variants) == 1 else None

    def check(self) -> None:
        """Raises: DataError if a component has pickled weights alone, or code of its own."""
        pickled, code = [], []
        for name, library in self.components.items():
            files = self._component(name)
            suffixes = {path.suffix for path in files}
            if suffixes.intersection(_PICKLED) and ".safetensors" not in suffixes:
                pickled += [f"{name}/{path.name}" for path in files if path.suffix in _PICKLED]
            if (self.folder / name / f"{library}.py").exists():
                code.append(f"{name}/{library}.py")
        if pickled:
            raise DataError(
                f"{self.name} has weights that are pickled alone ({', '.join(pickled)}), and a pickle can run code; "
                "load it with diffusers where you trust it, and save it with save_pretrained, which writes safetensors"
            )
        if code:
            raise DataError(f"{self.name} brings code of its own ({', '.join(code)}), which saukit does not run")

    def _component(self, name: str) -> list[Path]:
        folder = self.folder / name
        return sorted(folder.iterdir()) if folder.is_dir() else []


def find_model(model: str) -> Model:
    """The model in a folder, or on the Hub, from where it is fetched if it is not in the cache.

    Raises: UsageError for what is neither a folder nor like an id, DataError for a folder that is no pipeline,
    EnvironmentFault if it cannot be fetched.
    """
    folder, revision = Path(model).expanduser(), None
    if folder.is_file():
        raise UsageError(
            f"model {model} is a file: give a folder with {INDEX}; diffusers makes one of a single checkpoint with "
            "from_single_file and save_pretrained"
        )
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(model):
            raise UsageError(f"no folder {model}: give a folder with {INDEX}, or a model's id such as owner/name")
        folder = _fetch(model)
        revision = folder.name  # the cache's snapshots/COMMIT
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if not isinstance(index["_class_name"], str):
            raise ValueError("its pipeline is code of its own, which saukit does not run")
    except FileNotFoundError:
        raise DataError(
            f"{model} holds no {INDEX}, so it is no pipeline; give a folder as diffusers' save_pretrained writes it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX} describes no pipeline: {error}; fetch the model again") from None
    found = Model(model, folder, revision, index)
    found.check()
    return found


def find_lora(lora: str) -> Path:
    """The safetensors file that `lora` is, or the one in the folder that it is.

    Raises: UsageError if there is none, or more than one.
    """
    path = Path(lora).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if path / LORA_FILE in found:
            return path / LORA_FILE
        if len(found) != 1:
            names = ", ".join(file.name for file in found)
            raise UsageError(f"lora {lora} holds {len(found)} safetensors files ({names or 'none'}): name the file")
        return found[0]
    if not path.is_file():
        raise UsageError(f"no LoRA weights {lora}: give a safetensors file, or a folder with one (download it first)")
    if path.suffix != ".safetensors":
        raise UsageError(f"lora {lora} is no safetensors file: saukit reads nothing else, since a pickle can run code")
    return path


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that computes it natively, else float32.

    Raises: UsageError for float16 on a CPU, where it is emulated and overflows.
    """
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float32
    if dtype == "float16" and device.type == "cpu":
        raise UsageError("dtype float16 needs a GPU: use float32, bfloat16 or auto")
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]


def match_classes(names: Mapping[str, Any], classes: Sequence[str], class_ids: Mapping[str, int]) -> tuple[int, ...]:
    """The number of each of `classes` in a model whose classes have `names` (number: names with commas between).

    A name fits if it is the whole of the model's, or one of several, letter case and underscores aside. `class_ids`
    goes first.

    Raises: UsageError that lists every class the model has no name for, or two numbers (ImageNet's two cranes), and
    every entry of `class_ids` that is of no class or no number of the model.
    """
    numbers: dict[str, set[int]] = {}
    for number, text in names.items():
        for name in {str(text), *str(text).split(",")}:
            numbers.setdefault(_normal(name), set()).add(int(number))
    problems = [f"class_ids names {name!r}, which is no class" for name in class_ids if name not in classes]
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


def fit_image(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture at another size: its middle, of the wanted proportions, resized bicubic with antialiasing.

    That is how real images become those of a split. Shapes: image [h, w, 3]; size (H, W); returns [3, H, W].
    """
    from PIL import Image

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


def _fetch(model: str) -> Path:
    """The folder of a Hub model in the cache."""
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:  # of diffusers, huggingface_hub, and its HTTP library, whichever that is
        if "necessary `safetensors` weights" in str(error):
            raise DataError(
                f"{model} has no safetensors on the Hub, and saukit reads nothing else, since a pickle can run code; "
                "load it with diffusers where you trust it, and save it with save_pretrained"
            ) from error
        raise EnvironmentFault(
            f"model {model} is no folder here and cannot be fetched from the Hub ({_first_line(error)}); "
            "give a local folder, or check its id, the network, HF_HUB_OFFLINE and, for a gated one, `hf auth login`"
        ) from error


def _load(model: Model, dtype: torch.dtype) -> Any:
    """The pipeline on the CPU."""
    import diffusers
    from safetensors import SafetensorError

    is_text = model.pipeline != CLASS_CONDITIONAL
    diffusers.utils.logging.disable_progress_bar()  # of the components; a download's bar stays
    if is_text:
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    loader = diffusers.AutoPipelineForText2Image if is_text else diffusers.DiTPipeline
    # By its id: pipelines in two parts look for the other one on the Hub.
    source = str(model.folder) if model.revision is None else model.name
    version = tuple(int(part) for part in re.findall(r"\d+", diffusers.__version__)[:2])
    dtype_argument = "dtype" if version >= (0, 41) else "torch_dtype"  # the new name is ignored by the older ones
    options: dict[str, Any] = {dtype_argument: dtype, "revision": model.revision, "variant": model.variant}
    try:
        return loader.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        if "AutoPipeline can't find a pipeline" in str(error):
            raise UsageError(
                f"model {model.name} is a {model.pipeline}, which draws no images from text: give a text-to-image "
                f"pipeline, or a {CLASS_CONDITIONAL}"
            ) from error
        raise DataError(
            f"model {model.name} does not load: {_first_line(error)}; save or fetch it again, and see that it loads "
            "with diffusers"
        ) from error


def _add_lora(pipe: Any, path: Path, scale: float) -> None:
    name = "saukit"
    try:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        added = bool(pipe.get_list_adapters())
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # RuntimeError: other shapes than the model's
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DataError(f"LoRA weights {path} do not fit {type(pipe).__name__}: {_first_line(error)}") from error
    if not added:  # weights for other layers: diffusers says so in its log, and draws on without them
        raise DataError(f"LoRA weights {path} fit no layer of {type(pipe).__name__}: give weights made for this model")
    pipe.set_adapters([name], [scale])


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
