import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from saukit.core.config import Amp
from saukit.core.device import (
    Precision,
    cpu_has_bf16,
    describe_device,
    free_memory,
    limit_threads,
    limits,
    peak_flops,
    peak_memory,
    resolve_amp,
    resolve_device,
    suited_threads,
    using_threads,
    widest,
)
from saukit.core.errors import EnvironmentFault, UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def pretend_others(monkeypatch: pytest.MonkeyPatch, *, xpus: int = 0, has_mps: bool = False, macos: int = 14) -> None:
    """As many Intel GPUs, with bf16 and without float64, and perhaps Apple's."""
    monkeypatch.setattr(torch.xpu, "device_count", lambda: xpus)
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"Arc of {device}")
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(has_fp64=device.index > 0))
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda device: (3 << 30, 8 << 30))
    monkeypatch.setattr(torch.mps, "device_count", lambda: int(has_mps))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 30)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_names(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, expected: str) -> None:
    pretend_gpus(monkeypatch, gpus)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:x", "", "CPU", "cuda:0:0", "cudax"]
)
def test_an_unknown_name_tells_the_known_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend_gpus(monkeypatch, 8)
    with pytest.raises(
        UsageError, match=rf"^unknown device {re.escape(repr(name))}: use auto, cpu, cuda, cuda:0, mps, xpu or xpu:0$"
    ):
        resolve_device(name)


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
    pretend_gpus(monkeypatch, gpus)
    message = rf"^device {name} asked for, but {gpus} CUDA devices are here: use --device cpu$"
    with pytest.raises(EnvironmentFault, match=message) as caught:
        resolve_device(name)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("name", "xpus", "has_mps", "expected"),
    [
        ("auto", 2, True, "xpu:0"),
        ("auto", 0, True, "mps:0"),
        ("auto", 0, False, "cpu"),
        ("xpu:1", 2, False, "xpu:1"),
        ("xpu", 1, False, "xpu:0"),
        ("mps", 0, True, "mps:0"),
    ],
)
def test_names_of_other_gpus(
    monkeypatch: pytest.MonkeyPatch, name: str, xpus: int, has_mps: bool, expected: str
) -> None:
    pretend_gpus(monkeypatch, 0)
    pretend_others(monkeypatch, xpus=xpus, has_mps=has_mps)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "count"), [("mps", 0), ("xpu", 0), ("xpu:2", 2), ("mps:1", 1)])
def test_other_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    pretend_others(monkeypatch, xpus=count, has_mps=count > 0)
    kind = name[:3].upper()
    with pytest.raises(EnvironmentFault, match=f"^device {name} asked for, but {count} {kind} devices are here"):
        resolve_device(name)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_others(monkeypatch, xpus=2, has_mps=True)
    for name, value in {"WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert resolve_device("xpu") == torch.device("xpu", 1)
    with pytest.raises(EnvironmentFault, match="process 1 has no GPU of its own, this machine has 1"):
        resolve_device("mps")


def test_what_other_gpus_compute_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_others(monkeypatch, xpus=2, has_mps=True)
    arc, max_, mps = torch.device("xpu", 0), torch.device("xpu", 1), torch.device("mps", 0)
    assert [resolve_amp("auto", device) for device in (arc, max_, mps)] == ["bf16"] * 3
    assert [widest(device) for device in (arc, max_, mps, CPU)] == [torch.float32, torch.float64] * 2
    assert [free_memory(device) >> 30 for device in (arc, mps)] == [3, 10]
    assert (describe_device(max_), describe_device(mps)) == ("xpu:1 (Arc of xpu:1)", f"mps:0 ({platform.machine()})")
    assert limits(max_) == ["without CUDA graphs"] and limits(CPU) == []
    assert limits(mps)[:2] == ["without float64, so a pixel of AutoAugment may differ by one", "for one process"]
    assert peak_memory(mps) == peak_memory(CPU) is not None  # it shares the host's memory
    pretend_others(monkeypatch, has_mps=True, macos=13)
    assert resolve_amp("auto", mps) == "off"
    with Precision("bf16", "mps").autocast() as context:
        assert context is None or torch.is_autocast_enabled("mps")


@pytest.mark.parametrize(
    ("amp", "where", "capability", "expected"),
    [
        ("auto", CUDA, (9, 0), "bf16"),
        ("auto", CUDA, (8, 0), "bf16"),
        ("auto", CUDA, (7, 5), "fp16"),
        ("fp16", CUDA, (9, 0), "fp16"),
        ("bf16", CUDA, (7, 5), "bf16"),
        ("off", CUDA, (9, 0), "off"),
        ("bf16", CPU, (9, 0), "bf16"),
        ("off", CPU, (9, 0), "off"),
    ],
)
def test_arithmetic(
    monkeypatch: pytest.MonkeyPatch, amp: Amp, where: torch.device, capability: tuple[int, int], expected: str
) -> None:
    pretend_gpus(monkeypatch, 1, capability)
    assert resolve_amp(amp, where) == expected


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "off")]
)
def test_auto_on_a_processor_asks_it(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_has_bf16() is (expected == "bf16")
    assert resolve_amp("auto", CPU) == expected


def test_fp16_on_a_processor_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match=r"^fp16 needs a GPU: use --amp bf16, --amp off or --amp auto$"):
        resolve_amp("fp16", CPU)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("off", torch.float32)])
def test_a_forward_pass_computes_in_the_precision_asked_for(amp: Amp, dtype: torch.dtype) -> None:
    assert amp != "auto"
    with Precision(amp, "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_only_fp16_scales_the_loss() -> None:
    scale = {amp: Precision(amp, "cpu").scaler().scale(torch.ones(())).item() for amp in ("bf16", "off", "fp16")}
    assert scale["bf16"] == scale["off"] == 1
    assert scale["fp16"] > 1


def test_a_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 1)
    assert describe_device(CUDA) == "cuda:0 (GPU of cuda:0)"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert describe_device(CPU) == "cpu (3 threads)"


# --- peak ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bf16", "fp16"),
    [
        ("NVIDIA H200", 989.4e12, 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 989.4e12),
        ("NVIDIA H100 PCIe", 756e12, 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 312e12),
        ("A100-SXM4-80GB", 312e12, 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 312e12),
        ("NVIDIA A10", 125e12, 125e12),
        ("NVIDIA L4", 121e12, 121e12),
        ("NVIDIA L40S", 362.05e12, 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 165.2e12),
        ("NVIDIA RTX A6000", 154.8e12, 154.8e12),
        ("Tesla V100-SXM2-16GB", None, 125e12),
        ("Tesla T4", None, 65e12),
        ("NVIDIA A10G", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None, None),
        ("GPU of tomorrow", None, None),
    ],
)
def test_peak_of_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str, bf16: float | None, fp16: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert (peak_flops(CUDA, "bf16"), peak_flops(CUDA, "fp16"), peak_flops(CUDA, "off")) == (bf16, fp16, None)
    assert peak_flops(CPU, "bf16") is None


# --- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "cores", "variable", "expected"),
    [(64, 2, None, 2), (2, 64, None, 2), (4, 4, None, 4), (64, 2, "8", 64)],
)
def test_threads_are_lowered_to_the_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, variable: str | None, expected: int
) -> None:
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    now = [threads]
    monkeypatch.setattr("saukit.core.device.usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    limit_threads()
    assert now[-1] == expected


@pytest.mark.parametrize(
    ("size", "device", "variable", "expected"),
    [
        ((8, 8), CPU, None, 1),
        ((64, 64), CPU, None, 1),
        ((65, 64), CPU, None, 7),
        ((224, 224), CPU, None, 7),
        ((32, 32), CPU, "7", 7),
        ((32, 32), CUDA, None, 7),
    ],
)
def test_small_images_on_a_cpu_suit_one_thread(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], device: torch.device, variable: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert suited_threads(size, device) == expected


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="broken"), using_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise ValueError("broken")
    assert torch.get_num_threads() == before


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library than GNU's")
def test_freed_memory_is_kept_and_not_mapped_again() -> None:
    """Page faults of tensors of 8 MiB, made, freed and made again, before and after, in a process of its own.

    Its C library is told to hand all of them back, which by default depends on what else lies in the heap.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    code = (
        "import resource, torch\n"
        "torch.set_num_threads(1)\n"
        "from saukit.core.device import keep_freed_memory\n"
        "def work():\n"
        "    for _ in range(20): tensors = [torch.ones(2**21) for _ in range(6)]; del tensors\n"
        "def faults():\n"
        "    work(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    work(); print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "faults(); keep_freed_memory(); faults()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    given_back, kept = map(int, done.stdout.split())
    assert given_back >= 120  # a page of each tensor, however large pages are
    assert kept < 0.1 * given_back
