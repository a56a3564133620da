"""The files of a pretrained pipeline: where they are, whether saukit reads them, and the pipeline, loaded or refused.

A model is a folder as diffusers saves it (`model_index.json` and a folder a component), or the id of one on the Hub.
Only safetensors are read and no code that comes with a model is run: a pickle, too, is code.
"""

import contextlib
import functools
import hashlib
import importlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from saukit.core.documents import read_json
from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.core.extras import fetching
from saukit.core.files import check_tree, reading
from saukit.core.words import first_line
from saukit.core.writing import sha256_file

INDEX = "model_index.json"
CLASS_CONDITIONAL = "DiTPipeline"
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LOADED = (".json", ".txt", ".model", ".safetensors", ".jinja")  # of these a model is made
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")


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

    @functools.cached_property
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

    def weights(self, name: str) -> int | None:
        """How many numbers the weights of a component hold; None if it has none that this tells from others."""
        variant = self.variant
        files = [
            path for path in self._component(name) if (match := _WEIGHTS.fullmatch(path.name)) and match[1] == variant
        ]
        if not files:
            return None
        total = 0
        for path in files:
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        return total

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

    Raises: UsageError for what is neither a folder nor like an id, DataError for a folder that is not a pipeline,
    EnvironmentFault if it cannot be fetched.
    """
    folder, revision = Path(model), None
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
    index = read_json(
        folder / INDEX,
        fault=DataError,
        remedy="fetch the model again",
        missing=f"{model} has no {INDEX}, so it is not a pipeline: "
        "give a folder as diffusers' save_pretrained writes it",
    )
    if not isinstance(index.get("_class_name"), str):
        own = "names no class" if "_class_name" not in index else "is code of its own, which saukit does not run"
        raise DataError(f"{folder / INDEX} does not describe a pipeline: it {own}; fetch the model again")
    found = Model(model, folder, revision, index)
    with reading(f"model {model}", remedy="fetch the model again"):
        check_tree(folder)
    found.check()
    return found


def find_lora(lora: str) -> Path:
    """The safetensors file that `lora` is, or the one in the folder that it is.

    Raises: UsageError if there is none, or more than one.
    """
    path = Path(lora)
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
        raise UsageError(f"lora {lora} is not a safetensors file: saukit reads no other, since a pickle can run code")
    return path


@contextlib.contextmanager
def decoding_in_float32(vae: Any) -> Iterator[None]:
    """A VAE that decodes in float32, whose activations may be beyond float16's 65,504; afterwards it is as it was."""
    decode, dtype = vae.decode, vae.dtype
    vae.to(torch.float32)
    vae.decode = lambda latents, *args, **options: decode(latents.float(), *args, **options)
    try:
        yield
    finally:
        del vae.decode
        vae.to(dtype)


def load_pipeline(model: Model, dtype: torch.dtype) -> Any:
    """A model's pipeline, on the CPU.

    Raises: DataError where it does not load or lacks weights, UsageError for a pipeline that does not sample from text.
    """
    import diffusers

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
    with reading(f"model {model.name}", remedy="save or fetch it again, and see that it loads with diffusers"):
        try:
            with fetching() if model.revision is not None else contextlib.nullcontext():
                pipe = loader.from_pretrained(source, use_safetensors=True, **options)
        except ValueError as error:
            if "AutoPipeline can't find a pipeline" not in str(error):
                raise
            raise UsageError(
                f"model {model.name} is a {model.pipeline}, which does not sample from text: give a text-to-image "
                f"pipeline, or a {CLASS_CONDITIONAL}"
            ) from error
        for name, module in pipe.components.items():
            # What a file lacks, transformers and diffusers make at random, and say so in their logs alone.
            there = model.weights(name) if isinstance(module, torch.nn.Module) else None
            if there is not None and there < (needed := sum(weight.numel() for weight in module.parameters())):
                raise ValueError(f"{name} needs {needed:,} weights, and its files hold {there:,}")
    return pipe


def add_lora(pipe: Any, path: Path, scale: float) -> None:
    """Load LoRA weights into a pipeline, at a scale. Raises: DataError for weights of another model."""
    name = "saukit"
    with reading(f"LoRA weights {path} for {type(pipe).__name__}", remedy="give weights made for this model"):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        added = bool(pipe.get_list_adapters())
    if not added:  # weights for other layers: diffusers says so in its log, and samples without them
        raise DataError(f"LoRA weights {path} fit no layer of {type(pipe).__name__}: give weights made for this model")
    pipe.set_adapters([name], [scale])


def _fetch(model: str) -> Path:
    """The folder of a Hub model in the cache."""
    from diffusers import DiffusionPipeline

    try:
        with fetching():
            return Path(DiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:  # of diffusers, huggingface_hub, and its HTTP library, whichever that is
        if "necessary `safetensors` weights" in str(error):
            raise DataError(
                f"{model} has no safetensors on the Hub, and saukit reads nothing else, since a pickle can run code; "
                "load it with diffusers where you trust it, and save it with save_pretrained"
            ) from error
        raise EnvironmentFault(
            f"model {model} is not a local folder and cannot be fetched from the Hub ({first_line(error)}); "
            "give a local folder, or check its id, the network, HF_HUB_OFFLINE and, for a gated one, `hf auth login`"
        ) from error
