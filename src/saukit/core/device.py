"""Which device and which arithmetic a command runs with."""

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from saukit.core.config import Amp
from saukit.core.errors import EnvironmentFault, UsageError
from saukit.core.machine import usable_cores
from saukit.core.ranks import local_rank

# Dense fp16 peaks of the tensor cores in TFLOP/s, accumulating in float32, from NVIDIA's data sheets and white papers
# (half of the sheet's figure where that is with sparsity); bf16 has the same, where there is bf16. By the name that
# the driver gives the GPU, without maker and memory size, and in full: the 4090 of a laptop, a "4090 D" and a MIG
# slice have other peaks.
_PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 HBM3": 989.4,  # SXM
    "H100 PCIe": 756,
    "A100-SXM4": 312,
    "A100-PCIE": 312,
    "A100 PCIe": 312,
    "A30": 165,
    "A40": 149.7,
    "A10": 125,
    "L40S": 362.05,
    "L40": 181.05,
    "L4": 121,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71,
    "V100-SXM2": 125,
    "V100-PCIE": 112,
    "T4": 65,
}
GPUS = ("cuda", "xpu", "mps")  # NVIDIA's and AMD's, Intel's, Apple's
COPIES_ASIDE = ("cuda", "xpu")  # have memory of their own, and copy to it beside computing
ONE_THREAD_SIDE = 64  # pixels; up to here a CPU works with one thread
_WITHOUT_BF16 = ("V100-SXM2", "V100-PCIE", "T4")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first kind of GPU that is there, else `cpu`; a kind is its first device, under torchrun each
    process's own.

    Raises: UsageError for another name, EnvironmentFault for a device that is not there.
    """
    if name == "auto":
        name = next(filter(device_count, GPUS), "cpu")
    if name == "cpu":
        return torch.device("cpu")
    found = re.fullmatch(r"(cuda|xpu|mps)(?::(\d+))?", name)
    if not found:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:0, mps, xpu or xpu:0")
    kind, index, count = found[1], found[2], device_count(found[1])
    own = int(index or local_rank())
    if own >= count and not index and count:
        raise EnvironmentFault(
            f"process {own} has no GPU of its own, this machine has {count}: use --nproc-per-node {count}"
        )
    if own >= count:
        raise EnvironmentFault(
            f"device {name} asked for, but {count} {kind.upper()} devices are here: use --device cpu"
        )
    return torch.device(kind, own)


def device_count(kind: str) -> int:
    """GPUs of a kind that this process can use."""
    return int(torch.get_device_module(kind).device_count())


def open_device(name: str) -> torch.device:
    """The device called `name`, and this process ready for it: threads, memory, cuDNN.

    No more threads than cores; a thread count that OMP_NUM_THREADS sets is kept.
    Raises: as `resolve_device`.
    """
    limit_threads()
    keep_freed_memory()
    device = resolve_device(name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes do not change from step to step: trying algorithms pays once
    return device


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
    if device.type == "xpu":
        return "bf16" if torch.xpu.is_bf16_supported() else "fp16"
    if device.type == "mps":
        return "bf16" if torch.backends.mps.is_macos_or_newer(14, 0) else "off"
    return "bf16" if cpu_has_bf16() else "off"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def describe_device(device: torch.device) -> str:
    """A device in words, for messages and manifests."""
    if device.type == "mps":
        return f"{device} ({platform.machine()})"
    if device.type != "cpu":
        return f"{device} ({torch.get_device_module(device.type).get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def peak_flops(device: torch.device, amp: Amp) -> float | None:
    """Floating-point operations a second that a GPU's tensor cores reach at most, without sparsity.

    None where that is not known: on CPUs, on GPUs that are not in the table, and for any arithmetic but bf16 and fp16.
    """
    if device.type != "cuda" or amp not in ("bf16", "fp16"):
        return None
    name = re.sub(r"\b(NVIDIA|Tesla|GeForce)\b|[ -]\d+GB\b", "", torch.cuda.get_device_name(device)).strip()
    if name not in _PEAK_TFLOPS or (amp == "bf16" and name in _WITHOUT_BF16):
        return None
    return _PEAK_TFLOPS[name] * 1e12


def limit_threads() -> None:
    """Lower torch's threads to the cores that this process may use, unless OMP_NUM_THREADS sets them.

    torch takes the machine's cores. In a container that may use two of them, dozens of threads wait for each other,
    and a small network becomes many times slower.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = usable_cores()
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)


def suited_threads(image_size: tuple[int, int], device: torch.device) -> int:
    """Threads for work on images of this height and width: one for small ones on a CPU, else those torch has.

    Each of a small network's many short operations waits for its slowest thread, so that on a busy processor a second
    thread makes it two to five times slower (docs/speed.md, examples/benchmarks/threads.py). One thread also computes
    the same bits on any number of cores. OMP_NUM_THREADS sets another number.
    """
    small = device.type == "cpu" and max(image_size) <= ONE_THREAD_SIDE and "OMP_NUM_THREADS" not in os.environ
    return 1 if small else torch.get_num_threads()


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """While entered, torch computes with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of up to 32 MiB for the next ones, where it is the GNU C library.

    A training step on a CPU frees and asks for the same large tensors again and again. Handed back to the system in
    between, every page of them has to be mapped and zeroed again.
    """
    if "glibc" not in platform.libc_ver():
        return
    library = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3)
    library.mallopt(mmap_threshold, 32 * 2**20)
    library.mallopt(trim_threshold, 2**31 - 1)


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device computes it; float32 on Apple's GPUs and some of Intel's."""
    if device.type == "mps" or (device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64):
        return torch.float32
    return torch.float64


def limits(device: torch.device) -> list[str]:
    """What does not work on a device, or differs there, in words."""
    found = []
    if widest(device) != torch.float64:
        found.append("without float64, so a pixel of AutoAugment may differ by one")
    if device.type == "mps":
        found.append("for one process")
        found.append("operations that it lacks are computed by the processor, and torch warns of each")
    if device.type in ("mps", "xpu"):
        found.append("without CUDA graphs")
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free; on Apple's, which share the host's memory, what is left of what they may use."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(torch.get_device_module(device.type).mem_get_info(device)[0])


def reset_peak_memory(device: torch.device) -> None:
    """Start `peak_memory` of a GPU over; a process's own cannot be."""
    if device.type in COPIES_ASIDE:
        torch.accelerator.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes: on a GPU of its own memory what torch allocated at most, else the process's largest resident size since
    it began.

    None on Windows, where Python does not know it.
    """
    if device.type in COPIES_ASIDE:
        return torch.accelerator.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
