"""Whole steps on fake CUDA tensors: a tensor on the wrong device, or a host that waits, fails here and not on a GPU.

`FakeTensorMode` has tensors without numbers that know their device. It needs no GPU, and no driver; autograd's engine
does, so gradients are zeros where there is none, and everything around the backward passes runs as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support import MICRO, resolved
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from saukit.core.device import Precision
from saukit.core.workspace import Workspace
from saukit.data.split import Split, load_split
from saukit.models.dual_branch import DualBranchNet
from saukit.synthesis.config import Sampler
from saukit.synthesis.generators import diffusion_model, diffusion_training, training_images
from saukit.synthesis.generators.diffusion_model import guided_velocity, solve
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.generators.presets import PRESETS, DiffusionConfig
from saukit.synthesis.plan import resolve
from saukit.training import autoaugment, crops, losses, pixel_operations
from saukit.training.context import StepContext, class_prototypes
from saukit.training.losses import NOISE_STRATEGIES
from saukit.training.methods import METHODS, MethodEntry
from saukit.training.step import StepBatch, TrainingStep
from saukit.training.training_set import Batch
from saukit.training.views import PhotoViews, Views

CUDA = torch.device("cuda", 0)
HAS_GPU = torch.cuda.is_available()
CLASSES, SIDE, BATCH = 4, 8, 12
TRAINED: list[Tensor] = []  # what `backward` gives gradients to where the engine cannot run
pytestmark = pytest.mark.usefixtures("narrow_projection", "fake")


class CudaGenerator(torch.Generator):
    """A generator that says it is a GPU's; a fake tensor asks it for no number."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


class NothingOnTheHost(TorchDispatchMode):
    """Every tensor that an operation reads or makes is on the device, but for numbers (0-d), which kernels take along.

    `FakeTensorMode` finds operations that mix devices, `.item()` and shapes that depend on data. This finds copies
    between host and device too, for which the host waits, and which no CUDA graph can record.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device != CUDA and leaf.dim() > 0:
                raise AssertionError(f"{func} has a tensor {list(leaf.shape)} on {leaf.device} within a step")
        return result


TABLES = {autoaugment: ("_policy_tables", "_magnitude_tables"), crops: ("_border_taps",)}


def on_the_host(make: Callable[..., Any]) -> Callable[..., Any]:
    """What is made of numbers, before a step."""

    def made(*arguments: Any) -> Any:
        with _disable_current_modes():
            return make(*arguments)

    return made


def on_device(make: Callable[..., Any]) -> Callable[..., Any]:
    """A table that is made once, on the host, and brought to the device."""
    return lambda *arguments: tree_map(as_fake, on_the_host(make)(*arguments[:-1], torch.device("cpu")))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake tensors, and an autocast that takes this machine for one with a GPU."""

    def backward(loss: Tensor, *_: Any, **__: Any) -> None:
        assert (loss.device, loss.dim()) == (CUDA, 0)
        for parameter in TRAINED:
            parameter.grad = torch.zeros_like(parameter)

    if not HAS_GPU:
        monkeypatch.setattr(Tensor, "backward", backward)

    def fused(*lists: list[Tensor], **options: Any) -> None:
        """There is no fake kernel of it."""
        assert all(tensor.device == CUDA for tensor in tree_leaves((lists, options)) if isinstance(tensor, Tensor))

    monkeypatch.setattr(torch, "_fused_sgd_", fused)
    monkeypatch.setattr(torch, "_fused_adamw_", fused)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for room, names in TABLES.items():
        for name in names:
            monkeypatch.setattr(room, name, on_device(getattr(room, name)))
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*[Dd]isabling")  # autocast without a GPU
        yield
    TRAINED.clear()


def on_cuda(build: Callable[[], Any]) -> Any:
    """A module whose weights are on the device; made for real, because fake ones cannot be initialised or moved."""
    built = on_the_host(build)()
    for module in built.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(as_fake(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = as_fake(buffer)
    TRAINED.extend(built.parameters())
    return built


def as_fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


def context_of(method: MethodEntry, amp: Any = "bf16", **fields: Any) -> StepContext:
    counts = torch.tensor([50.0, 20.0, 9.0, 3.0]).to(CUDA)
    return StepContext(
        network=on_cuda(
            lambda: DualBranchNet(
                "convnet-small",
                CLASSES,
                projection=method.projection,
                class_projection=method.class_projection,
                consistency=method.consistency,
                classifier=method.classifier,
            )
        ),
        views=views_on_cuda(),
        precision=Precision(amp, "cuda"),
        config=resolved(**fields),
        class_counts=counts,
        logit_offsets=0.5 * counts.log(),
        generator=CudaGenerator(),
        done=torch.zeros(()).to(CUDA),
    )


def views_on_cuda() -> Views:
    return Views(torch.tensor([0.4, 0.5, 0.6]).to(CUDA), torch.tensor([0.2, 0.3, 0.25]).to(CUDA), flip=True)


def images() -> Tensor:
    return torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device=CUDA)


def step_batch(*, second_stage: bool = False) -> StepBatch:
    labels = torch.zeros(BATCH, dtype=torch.int64, device=CUDA)
    synthetic = torch.zeros(BATCH, dtype=torch.bool, device=CUDA)
    samples = Batch(images(), labels, synthetic, images(), labels, synthetic)
    prototypes = torch.zeros(CLASSES, 16, device=CUDA)
    return StepBatch(samples, (prototypes, prototypes), seed=3, second_stage=second_stage)


def run(method: MethodEntry, *, second_stage: bool = False, **options: Any) -> None:
    """Two steps as the trainer makes them."""
    step = TrainingStep(method, context_of(method, **options))
    batch = step_batch(second_stage=second_stage)
    with NothingOnTheHost():
        step(batch, 0.1)
        metrics = step(batch, 0.05)
    assert all(value.device == CUDA for value in metrics.values())
    assert all(p.device == CUDA for p in step.network.parameters())


class NoDouble(TorchDispatchMode):
    """No operation makes a float64, which some GPUs have not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise AssertionError(f"{func} makes a float64")
        return result


@pytest.fixture
def without_double(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (pixel_operations, losses, training_images):
        monkeypatch.setattr(room, "widest", lambda device: torch.float32)


STAGES = [(name, stage) for name, row in METHODS.items() for stage in (False, True)[: 2 if row.second_stage else 1]]


@pytest.mark.parametrize(("name", "second_stage"), STAGES, ids=str)
def test_every_method(name: Any, second_stage: bool) -> None:
    run(METHODS[name], second_stage=second_stage, synthetic_weight=0.5)


@pytest.mark.usefixtures("without_double")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_without_float64(name: Any) -> None:
    with NoDouble():
        run(METHODS[name])


def test_float64_is_found() -> None:
    with NoDouble(), pytest.raises(AssertionError, match="makes a float64"):
        run(METHODS["sau"])


@pytest.mark.usefixtures("without_double")
def test_a_generator_learns_without_float64(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = generator_trainer(split, monkeypatch, tail="cbdm")
    with NoDouble():
        trainer.train_step()


@pytest.mark.parametrize(("amp", "noise"), list(zip(("off", "bf16", "fp16"), NOISE_STRATEGIES, strict=True)))
def test_sau_in_every_precision(amp: str, noise: str) -> None:
    run(METHODS["sau"], amp=amp, noise=noise)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer(optimizer: str) -> None:
    run(METHODS["ce"], optimizer=optimizer, clip_norm=1.0)


@pytest.mark.parametrize("view", [name for name, value in vars(Views).items() if name[0] != "_" and callable(value)])
@pytest.mark.parametrize("kind", [Views, PhotoViews])
@pytest.mark.parametrize("crop_scale", [None, 0.3])
def test_every_view(view: str, kind: type[Views], crop_scale: float | None) -> None:
    context, given = kind(**{**vars(views_on_cuda()), "crop_scale": crop_scale}), images()
    with NothingOnTheHost():
        seen = getattr(context, view)(given, CudaGenerator())
    assert (seen.device, list(seen.shape)) == (CUDA, [BATCH, 3, SIDE, SIDE])


def test_prototypes() -> None:
    context = context_of(METHODS["sau"])
    given, labels = images(), torch.zeros(BATCH, dtype=torch.int64, device=CUDA)
    with NothingOnTheHost():
        found = class_prototypes(given, labels, context, context.generator)
    assert all((rows.device, list(rows.shape)) == (CUDA, [CLASSES, 16]) for rows in found)


@pytest.fixture(scope="module")
def split(shared_val_work: Path) -> Split:
    return load_split(Workspace(shared_val_work))


def generator_trainer(split: Split, monkeypatch: pytest.MonkeyPatch, **options: Any) -> GeneratorTrainer:
    settled = resolve(replace(MICRO, amp="bf16", **options), split, torch.device("cpu"))
    assert isinstance(settled, DiffusionConfig)
    build = diffusion_training.build_unet
    monkeypatch.setattr(diffusion_training, "build_unet", lambda *a, **k: on_cuda(lambda: build(*a, **k)))
    monkeypatch.setattr(diffusion_training, "torch_generator", lambda *_, **__: CudaGenerator())
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    return GeneratorTrainer(settled, split, CUDA, preset=replace(PRESETS["tiny"][0], channels=(16, 32)))


@pytest.mark.parametrize("options", [{}, {"tail": "cbdm"}, {"balance": 0.0}], ids=str)
def test_a_generator_learns(options: dict[str, Any], split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = generator_trainer(split, monkeypatch, **options)
    with NothingOnTheHost():
        for _ in range(2):
            assert trainer.train_step().device == CUDA


@pytest.mark.parametrize("sampler", get_args(Sampler))
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_every_sampler(sampler: Any, strength: float, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """From noise to images, with and without guidance; the solver's times are numbers of the host."""
    trainer = generator_trainer(split, monkeypatch)
    monkeypatch.setattr(diffusion_model, "_solver", on_the_host(diffusion_model._solver))
    labels, start = torch.zeros(2, dtype=torch.int64, device=CUDA), torch.zeros(2, *trainer.geometry.shape, device=CUDA)

    def velocity(x: Tensor, t: float) -> Tensor:
        return guided_velocity(trainer.average, x, t, labels, null_class=trainer.num_classes, guidance=1.5)

    with torch.no_grad(), trainer.precision.autocast():
        found = trainer.geometry.unfold(solve(velocity, start, 4, sampler=sampler, strength=strength))
    assert (found.device, list(found.shape)) == (CUDA, [2, 3, 8, 8])


def faulty(fault: Callable[[Batch, StepContext], Tensor]) -> MethodEntry:
    def step(batch: Batch, context: StepContext) -> Any:
        yield "ce", context.logits(context.views.crop_flip(batch.images, context.generator)).mean()
        yield "fault", fault(batch, context)

    return MethodEntry(step)


FAULTS: dict[str, tuple[Callable[[Batch, StepContext], Any], str]] = {
    "a tensor on the host": (lambda b, c: (b.labels + torch.arange(BATCH)).sum(), r"a tensor \[12\] on cpu"),
    "item": (lambda b, c: c.logit_offsets.sum() * b.labels.sum().item(), "_local_scalar_dense"),
    "bool": (lambda b, c: c.logit_offsets.sum() if b.synthetic.any() else 0, "_local_scalar_dense"),
    "chosen rows": (lambda b, c: b.labels[b.synthetic].sum(), "nonzero"),
    "a copy to the device": (lambda b, c: torch.ones(BATCH).to(CUDA).sum(), r"a tensor \[12\] on cpu"),
    "a copy to the host": (lambda b, c: b.labels.cpu().sum(), r"a tensor \[12\] on cpu"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str) -> None:
    work, message = FAULTS[fault]
    with pytest.raises(Exception, match=message):
        run(faulty(work))
