"""Pipelines of diffusers, loaded whole or refused."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from saukit.core.errors import DataError, UsageError
from saukit.core.files import reading
from saukit.synthesis.generators.pipeline_files import CLASS_CONDITIONAL, Model


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
