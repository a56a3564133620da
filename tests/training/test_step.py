"""The step as something recorded once and replayed: on a CPU, with a recorder that works as a CUDA graph does."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import resolved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.models.dual_branch import DualBranchNet
from saukit.training import pixel_operations
from saukit.training import step as room
from saukit.training.context import StepContext
from saukit.training.losses import NOISE_STRATEGIES, synthetic_aware_loss
from saukit.training.methods import METHODS, MethodEntry
from saukit.training.step import StepBatch, TrainingStep
from saukit.training.training_set import Batch
from saukit.training.views import Views

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
    monkeypatch.setattr(pixel_operations, "_shapes_may_depend_on_data", lambda device: False)
    monkeypatch.setattr(room, "record", record)
    yield


def step_batch(seed: int, *, projection: bool = True) -> StepBatch:
    draw = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        return torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)

    def labels() -> Tensor:
        return torch.randint(CLASSES, (BATCH,), generator=draw)

    def synthetic() -> Tensor:
        return torch.rand(BATCH, generator=draw) < 0.6

    samples = Batch(images(), labels(), synthetic(), images(), labels(), synthetic())
    rows = F.normalize(torch.randn(2, CLASSES, 16, generator=draw), dim=2)
    return StepBatch(samples, (rows[0], rows[1]) if projection else None, seed, done=seed / 8)


def training_step(method: MethodEntry, *, amp: Any = "off", tau: float = 1.0, **fields: Any) -> TrainingStep:
    torch.manual_seed(0)
    network = DualBranchNet(
        "convnet-small",
        CLASSES,
        projection=method.projection,
        class_projection=method.class_projection,
        consistency=method.consistency,
        classifier=method.classifier,
    )
    counts = torch.tensor([50.0, 20.0, 9.0, 3.0])
    context = StepContext(
        network=network,
        views=Views(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]), flip=True),
        precision=Precision(amp, "cpu"),
        config=resolved(**{"cuda_graph": True, **fields}),
        class_counts=counts,
        logit_offsets=tau * counts.log(),
        generator=torch.Generator(),
    )
    return TrainingStep(method, context)


def everything(step: TrainingStep) -> dict[str, Tensor]:
    momentum = {
        f"momentum of {name}": step.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in step.network.named_parameters()
        if "momentum_buffer" in step.optimizer.state.get(parameter, {})
    }
    return {**step.network.state_dict(), **momentum}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in ("ce", "balanced-softmax", "mixup-cutmix")),
    *(("sau", {"noise": noise}) for noise in NOISE_STRATEGIES),
    *((method, {"tau": 0.75, "synthetic_weight": 0.25}) for method in METHODS if METHODS[method].second_stage is None),
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_recorded_step_has_the_bits_of_the_eager_one(
    recording: None, method: Any, options: dict[str, Any], amp: str
) -> None:
    entry = METHODS[method]
    eager = training_step(entry, cuda_graph=False, amp=amp, **options)
    recorded = training_step(entry, amp=amp, **options)
    first, second = (step_batch(seed, projection=entry.projection) for seed in (1, 2))
    recorded.warm_up(first, second, 0.1)
    assert recorded._recorded is not None
    for seed, rate in ((1, 0.02), (5, 0.1), (6, 0.05), (2, 0.01)):
        given = step_batch(seed, projection=entry.projection)
        expected, found = eager(given, rate), recorded(given, rate)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name], found[name]), (seed, name)
    for name, value in everything(eager).items():
        assert torch.equal(value, everything(recorded)[name]), name


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_sgd_with_momentum_weight_decay_and_a_view_by_the_seed(weight_decay: float) -> None:
    """Two steps computed again: w -= rate v, v = 0.9 v + g, g = gradient + decay w."""
    step = training_step(METHODS["ce"], cuda_graph=False, weight_decay=weight_decay)
    network, views = copy.deepcopy(step.network).train(), step.context.views
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for seed, rate in ((1, 0.1), (2, 0.05)):
        batch = step_batch(seed, projection=False)
        seen = views.crop_flip(batch.samples.images, torch.Generator().manual_seed(seed))
        loss = F.cross_entropy(network(seen) + step.context.logit_offsets, batch.samples.labels)
        for i, gradient in enumerate(torch.autograd.grad(loss, parameters)):
            velocity[i] = 0.9 * velocity[i] + gradient + weight_decay * parameters[i].detach()
            parameters[i].data -= rate * velocity[i]
        assert float(step(batch, rate)["ce"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for own, expected in zip(step.network.parameters(), parameters, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("noise", NOISE_STRATEGIES)
def test_a_whole_step_of_sau_contrasts_at_the_temperature_asked_for(noise: Any, temperature: float) -> None:
    step = training_step(METHODS["sau-aware"], cuda_graph=False, noise=noise, temperature=temperature)
    network, views, batch = copy.deepcopy(step.network).train(), step.context.views, step_batch(3)
    generator, samples = torch.Generator().manual_seed(3), batch.samples
    assert batch.prototypes is not None
    views.crop_flip(samples.images, generator)
    v2, v3 = views.autoaugment(samples.images, generator), views.simclr(samples.images, generator)
    expected, trusted = synthetic_aware_loss(
        network.project(v2),
        network.project(v3),
        samples.labels,
        samples.synthetic,
        *batch.prototypes,
        temperature=temperature,
        strategy=noise,
    )
    found = step(batch, 0.0)
    assert float(found["contrastive"]) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert int(found["trusted_images"]) == int((trusted & samples.synthetic).sum())


def test_warming_up_moves_nothing(recording: None) -> None:
    step = training_step(METHODS["sau"])
    before = {name: value.clone() for name, value in everything(step).items()}
    step.warm_up(step_batch(1), step_batch(2), 0.1)
    after = everything(step)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert all(not value.any() for name, value in after.items() if name.startswith("momentum"))


def test_warming_up_in_the_middle_of_a_run_moves_nothing(recording: None) -> None:
    step = training_step(METHODS["sau"])
    for seed in (3, 4):
        step(step_batch(seed), 0.1)
    before = {name: value.clone() for name, value in everything(step).items()}
    assert any(value.any() for name, value in before.items() if name.startswith("momentum"))
    step.warm_up(step_batch(1), step_batch(2), 0.1)
    for name, value in everything(step).items():
        assert torch.equal(value, before[name]), name


def test_a_step_that_cannot_be_recorded_is_found_out(recording: None) -> None:
    def depends_on_python(batch: Batch, context: StepContext) -> Any:
        logits = context.logits(context.views.crop_flip(batch.images, context.generator))
        share = float(batch.labels.float().mean())  # baked into the recording
        yield "ce", F.cross_entropy(logits, batch.labels) * share

    step = training_step(MethodEntry(depends_on_python, classifier_passes=1))
    with pytest.raises(SaukitError, match=r"does not compute the training step \(ce is .* --no-cuda-graph"):
        step.warm_up(step_batch(1, projection=False), step_batch(2, projection=False), 0.1)


def test_a_restored_step_goes_on_with_the_same_bits() -> None:
    one = training_step(METHODS["sau"], cuda_graph=False)
    one(step_batch(1), 0.1)
    other = training_step(METHODS["sau"], cuda_graph=False)
    other.network.load_state_dict(one.network.state_dict())
    other.restore(copy.deepcopy(one.optimizer.state_dict()), one.scaler.state_dict())
    for seed, rate in ((2, 0.05), (3, 0.01)):
        one(step_batch(seed), rate)
        other(step_batch(seed), rate)
    for name, value in everything(one).items():
        assert torch.equal(value, everything(other)[name]), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a processor needs a C++ compiler")
def test_a_compiled_network_computes_the_same_step() -> None:
    eager, compiled = (training_step(METHODS["sau"], cuda_graph=False) for _ in range(2))
    compiled.network.compile_backbone()
    before = {name: value.clone() for name, value in everything(compiled).items()}
    compiled.warm_up(step_batch(1), step_batch(2), 0.1)
    assert all(torch.equal(everything(compiled)[name], value) for name, value in before.items())
    for seed in (3, 4):
        expected, found = eager(step_batch(seed), 0.02), compiled(step_batch(seed), 0.02)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
    pixels = torch.rand(5, 3, SIDE, SIDE)
    with compiled.network.inference():
        seen = compiled.network(pixels)
        eager.network.load_state_dict(compiled.network.state_dict())
    with eager.network.inference():
        assert torch.equal(eager.network(pixels), seen)  # the uncompiled network on both sides


def test_a_step_knows_how_far_the_run_is() -> None:
    """GLMC's loss is linear in the square of the share of the steps that is done."""
    step = training_step(METHODS["glmc"], cuda_graph=False)
    given = step_batch(1, projection=False)
    start, half, end = (float(step(replace(given, done=done), 0.0)["glmc"]) for done in (0.0, 0.5, 1.0))
    assert start != end
    assert half == pytest.approx(0.75 * start + 0.25 * end, rel=1e-4)
