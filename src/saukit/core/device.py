"""Which device and which arithmetic a command runs with."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from saukit.core.config import Amp
from saukit.core.errors import EnvironmentFault, UsageError


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; otherwise `cpu`, `cuda` or `cuda:1`.

    Raises: UsageError for another name, EnvironmentFault for a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (index.isdigit() or name == "cuda")):
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise EnvironmentFault(f"device {name} asked for, but {count} CUDA devices are here: use --device cpu")
        return torch.device("cuda", int(index or 0))
    return torch.device("cpu")


@dataclass(frozen=True)
class Precision:
    """The arithmetic of forward passes: bf16 and fp16 run in autocast; fp16 also scales the loss."""

    amp: Literal["bf16", "fp16", "off"]
    device_type: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.amp == "off":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.amp == "bf16" else torch.float16
        return torch.autocast(self.device_type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; it passes everything through unless the arithmetic is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.amp == "fp16")


def resolve_amp(amp: Amp, device: torch.device) -> Literal["bf16", "fp16", "off"]:
    """`auto` is bf16 where the device computes it natively, fp16 on older GPUs, else off.

    Raises: EnvironmentFault for fp16 on a CPU, where it is emulated and overflows.
    """
    if amp == "fp16" and device.type == "cpu":
        raise EnvironmentFault("fp16 needs a GPU: use --amp bf16, --amp off or --amp auto")
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if cpu_has_bf16() else "off"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def describe_device(device: torch.device) -> str:
    """A device in words, for messages and manifests."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
