"""The step as something recorded once and replayed: on a CPU, with a recorder that works as a CUDA graph does."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.models.dual_branch import DualBranchNet
from saukit.training import autoaugment
from saukit.training import step as room
from saukit.training.losses import NOISE_STRATEGIES
from saukit.training.methods import METHODS, MethodEntry, Step, Views
from saukit.training.step import StepInputs, Stepper
from saukit.training.training_set import Batch

CLASSES, SIDE, BATCH = 4, 8, 12
pytestmark = pytest.mark.usefixtures("narrow_projection")


class Recorder(TorchDispatchMode):
    """Every operation with the tensors it read and wrote; replaying repeats them on the same memory.

    As a CUDA graph it bakes in whatever Python computed while it was recorded, and knows nothing of it afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "profiler":
            is_view = any(returned.alias_info is not None for returned in func._schema.returns)
            self.tape.append((func, args, kwargs, [] if is_view else tensors_of(result)))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, written in self.tape:
                result = func(*args, **kwargs)
                for old, new in zip(written, tensors_of(result) if written else [], strict=True):
                    old.copy_(new)


def tensors_of(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def record(work: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
    work()
    recorder = Recorder()
    with recorder:
        work()
    return recorder.replay


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The accelerator's way on the CPU: masks instead of chosen rows, and steps that are recorded."""
    monkeypatch.setattr(autoaugment, "_shapes_may_depend_on_data", lambda device: False)
    monkeypatch.setattr(room, "record", record)
    yield


def inputs(seed: int, *, projection: bool = True) -> StepInputs:
    draw = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        return torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)

    def labels() -> Tensor:
        return torch.randint(CLASSES, (BATCH,), generator=draw)

    def synthetic() -> Tensor:
        return torch.rand(BATCH, generator=draw) < 0.6

    batch = Batch(images(), labels(), synthetic(), images(), labels(), synthetic())
    rows = F.normalize(torch.randn(2, CLASSES, 16, generator=draw), dim=2)
    return StepInputs(batch, (rows[0], rows[1]) if projection else None, seed)


def stepper(
    method: MethodEntry,
    *,
    noise: Any = "pos_neg",
    cuda_graph: bool = True,
    amp: Any = "off",
    tau: float = 1.0,
    weight: float = 1.0,
) -> Stepper:
    torch.manual_seed(0)
    return Stepper(
        DualBranchNet(
            "convnet-small",
            CLASSES,
            projection=method.projection,
            class_projection=method.class_projection,
            classifier=method.classifier,
        ),
        method,
        Views(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]), side=SIDE, flip=True),
        Precision(amp, "cpu"),
        logit_offsets=tau * torch.tensor([50.0, 20.0, 9.0, 3.0]).log(),
        class_counts=torch.tensor([50.0, 20.0, 9.0, 3.0]),
        synthetic_weight=weight,
        noise=noise,
        temperature=0.1,
        weight_decay=1e-3,
        cuda_graph=cuda_graph,
    )


def everything(step: Stepper) -> dict[str, Tensor]:
    momentum = {
        f"momentum of {name}": step.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in step.network.named_parameters()
        if "momentum_buffer" in step.optimizer.state.get(parameter, {})
    }
    return {**step.network.state_dict(), **momentum}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in ("ce", "balanced-softmax", "mixup-cutmix")),
    *(("sau", {"noise": noise}) for noise in NOISE_STRATEGIES),
    *((method, {"tau": 0.75, "weight": 0.25}) for method in METHODS if METHODS[method].second_stage is None),
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_recorded_step_has_the_bits_of_the_eager_one(
    recording: None, method: Any, options: dict[str, Any], amp: str
) -> None:
    entry = METHODS[method]
    eager = stepper(entry, cuda_graph=False, amp=amp, **options)
    recorded = stepper(entry, amp=amp, **options)
    first, second = (inputs(seed, projection=entry.projection) for seed in (1, 2))
    recorded.warm_up(first, second, 0.1)
    assert recorded._recorded is not None
    for seed, rate in ((1, 0.02), (5, 0.1), (6, 0.05), (2, 0.01)):
        given = inputs(seed, projection=entry.projection)
        expected, found = eager(given, rate), recorded(given, rate)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name], found[name]), (seed, name)
    for name, value in everything(eager).items():
        assert torch.equal(value, everything(recorded)[name]), name


def test_warming_up_moves_nothing(recording: None) -> None:
    step = stepper(METHODS["sau"])
    before = {name: value.clone() for name, value in everything(step).items()}
    step.warm_up(inputs(1), inputs(2), 0.1)
    after = everything(step)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert all(not value.any() for name, value in after.items() if name.startswith("momentum"))


def test_warming_up_in_the_middle_of_a_run_moves_nothing(recording: None) -> None:
    step = stepper(METHODS["sau"])
    for seed in (3, 4):
        step(inputs(seed), 0.1)
    before = {name: value.clone() for name, value in everything(step).items()}
    assert any(value.any() for name, value in before.items() if name.startswith("momentum"))
    step.warm_up(inputs(1), inputs(2), 0.1)
    for name, value in everything(step).items():
        assert torch.equal(value, before[name]), name


def test_a_step_that_cannot_be_recorded_is_found_out(recording: None) -> None:
    def depends_on_python(batch: Batch, step: Step) -> Any:
        logits = step.logits(step.views.crop_flip(batch.images, step.generator))
        share = float(batch.labels.float().mean())  # baked into the recording
        yield "ce", F.cross_entropy(logits, batch.labels) * share

    step = stepper(MethodEntry(depends_on_python, classifier_passes=1))
    with pytest.raises(SaukitError, match=r"does not compute the training step \(ce is .* --no-cuda-graph"):
        step.warm_up(inputs(1, projection=False), inputs(2, projection=False), 0.1)


def test_a_restored_stepper_goes_on_with_the_same_bits() -> None:
    one = stepper(METHODS["sau"], cuda_graph=False)
    one(inputs(1), 0.1)
    other = stepper(METHODS["sau"], cuda_graph=False)
    other.network.load_state_dict(one.network.state_dict())
    other.restore(copy.deepcopy(one.optimizer.state_dict()), one.scaler.state_dict())
    for seed, rate in ((2, 0.05), (3, 0.01)):
        one(inputs(seed), rate)
        other(inputs(seed), rate)
    for name, value in everything(one).items():
        assert torch.equal(value, everything(other)[name]), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a processor needs a C++ compiler")
def test_a_compiled_network_computes_the_same_step() -> None:
    eager, compiled = (stepper(METHODS["sau"], cuda_graph=False) for _ in range(2))
    compiled.network.compile_backbone()
    before = {name: value.clone() for name, value in everything(compiled).items()}
    compiled.warm_up(inputs(1), inputs(2), 0.1)
    assert all(torch.equal(everything(compiled)[name], value) for name, value in before.items())
    for seed in (3, 4):
        expected, found = eager(inputs(seed), 0.02), compiled(inputs(seed), 0.02)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
    pixels = torch.rand(5, 3, SIDE, SIDE)
    with compiled.network.inference():
        seen = compiled.network(pixels)
        eager.network.load_state_dict(compiled.network.state_dict())
    with eager.network.inference():
        assert torch.equal(eager.network(pixels), seen)  # the uncompiled network on both sides
