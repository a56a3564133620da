import re

import pytest
import torch

from saukit.core.config import Amp
from saukit.core.device import Precision, cpu_has_bf16, describe_device, resolve_amp, resolve_device
from saukit.core.errors import EnvironmentFault, UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


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


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps", "", "CPU", "cuda:0:0", "cudax"])
def test_an_unknown_name_tells_the_known_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend_gpus(monkeypatch, 8)
    with pytest.raises(UsageError, match=rf"^unknown device {re.escape(repr(name))}: use auto, cpu, cuda or cuda:0$"):
        resolve_device(name)


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
    pretend_gpus(monkeypatch, gpus)
    message = rf"^device {name} asked for, but {gpus} CUDA devices are here: use --device cpu$"
    with pytest.raises(EnvironmentFault, match=message) as caught:
        resolve_device(name)
    assert caught.value.exit_code == 5


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
