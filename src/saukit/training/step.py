"""One optimiser step, computed eagerly or replayed as a CUDA graph.

The step reads a batch, prototypes, a learning rate and a seed, has static shapes and never makes the host wait for
the device. So on a GPU it can be recorded once and replayed: a thousand small kernels are then launched as one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from saukit.core.device import Precision
from saukit.core.errors import SaukitError
from saukit.models.dual_branch import DualBranchNet
from saukit.training.config import Noise
from saukit.training.methods import MethodEntry, Step, Views
from saukit.training.training_set import Batch

MOMENTUM = 0.9
WARM_UP_STEPS = 3
# How far a replayed step's losses may lie from the eager step's: bf16 kernels differ in the order of their sums.
REPLAY_TOLERANCE = 0.02

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class StepInputs:
    """What changes from step to step, besides the learning rate.

    Shapes: prototypes two of [K, d], or None for a method without; `seed` of the step's augmentation.
    """

    batch: Batch
    prototypes: tuple[Tensor, Tensor] | None
    seed: int
    second_stage: bool = False

    def tensors(self) -> list[Tensor]:
        """The tensors, in a fixed order."""
        return [*(getattr(self.batch, field.name) for field in fields(Batch)), *(self.prototypes or ())]


class Stepper:
    """Views, forward passes, losses, backward passes and SGD of one step.

    Forward passes run in autocast, losses in float32 (`training.methods`); each loss's backward pass comes before the
    next forward pass, so the activations of one pass are in memory at a time.
    """

    def __init__(
        self,
        network: DualBranchNet,
        method: MethodEntry,
        views: Views,
        precision: Precision,
        *,
        logit_offsets: Tensor,
        class_counts: Tensor,
        synthetic_weight: float,
        noise: Noise,
        temperature: float,
        weight_decay: float,
        cuda_graph: bool,
    ) -> None:
        device = logit_offsets.device
        self.network, self.method, self.views, self.precision = network, method, views, precision
        self.logit_offsets, self.class_counts = logit_offsets, class_counts
        self.synthetic_weight = synthetic_weight
        self.noise, self.temperature = noise, temperature
        # A tensor that stays where it is, because a recorded step reads the learning rate from its address.
        self.learning_rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=self.learning_rate, momentum=MOMENTUM, weight_decay=weight_decay, fused=True
        )
        self.scaler = precision.scaler()
        self.generator = torch.Generator(device)
        self._cuda_graph = cuda_graph
        self._recorded: _RecordedStep | None = None

    def __call__(self, inputs: StepInputs, learning_rate: float) -> Metrics:
        """One step in train mode: the network, the momentum and BatchNorm's statistics move on.

        Returns the method's losses and counts, 0-d tensors on the device; the next call may overwrite them.
        """
        self.learning_rate.fill_(learning_rate)
        self.generator.manual_seed(inputs.seed)
        if self._recorded is not None:
            return self._recorded(inputs)
        return self._compute(inputs)

    def warm_up(self, inputs: StepInputs, others: StepInputs, learning_rate: float) -> None:
        """Have everything compiled that is compiled, and record the step where a CUDA graph is asked for.

        Nothing moves on: the state is put back. `others` must differ from `inputs`; with them the recorded step has to
        compute what the eager step computes.
        Raises: SaukitError if it does not.
        """
        with self._rewound():
            for _ in range(WARM_UP_STEPS):
                self(inputs, learning_rate)
        if not self._cuda_graph:
            return
        with self._rewound():
            self._recorded = _RecordedStep(self._compute, inputs, self.generator)
        replayed, eager = (self._trial(others, learning_rate / 2, recorded) for recorded in (self._recorded, None))
        for name, value in eager.items():
            if not abs(replayed[name] - value) <= REPLAY_TOLERANCE * max(abs(value), 1.0):
                raise SaukitError(
                    f"the recorded CUDA graph does not compute the training step ({name} is {replayed[name]:.4g}, "
                    f"computed eagerly {value:.4g}): train with --no-cuda-graph, and please report it"
                )

    def restore(self, optimizer: dict[str, object], scaler: dict[str, object]) -> None:
        """Continue with a saved state of optimiser and scaler; call it before `warm_up`."""
        self.optimizer.load_state_dict(optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate  # loading put a copy in its place
        self.scaler.load_state_dict(scaler)

    def forget_momentum(self) -> None:
        """Let the next step be an optimiser's first."""
        self.optimizer.state.clear()

    def _compute(self, inputs: StepInputs) -> Metrics:
        metrics: Metrics = {}
        step = Step(
            network=self.network,
            views=self.views,
            precision=self.precision,
            logit_offsets=self.logit_offsets,
            class_counts=self.class_counts,
            synthetic_weight=self.synthetic_weight,
            second_stage=inputs.second_stage,
            prototypes=inputs.prototypes,
            noise=self.noise,
            temperature=self.temperature,
            generator=self.generator,
            metrics=metrics,
        )
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        for name, loss in self.method.step(inputs.batch, step):
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            metrics[name] = loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return metrics

    def _trial(self, inputs: StepInputs, learning_rate: float, recorded: _RecordedStep | None) -> dict[str, float]:
        """Two steps' metrics, summed, without a trace: the second one sees whether the first moved the weights."""
        self._recorded, kept = recorded, self._recorded
        with self._rewound():
            totals: dict[str, float] = {}
            for _ in range(2):
                for name, value in self(inputs, learning_rate).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        self._recorded = kept
        return totals

    @contextlib.contextmanager
    def _rewound(self) -> Iterator[None]:
        """Put weights, BatchNorm's statistics and momentum back afterwards, in place."""
        state = [*self.network.parameters(), *self.network.buffers()]
        before = [tensor.detach().clone() for tensor in state]
        momentum = [None if buffer is None else buffer.clone() for buffer in self._momentum()]
        scaler = self.scaler.state_dict()
        yield
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            for buffer, saved in zip(self._momentum(), momentum, strict=True):
                if buffer is not None:
                    # A momentum of zeros and no momentum yet are the same to SGD.
                    buffer.copy_(torch.zeros_like(buffer) if saved is None else saved)
        self.scaler.load_state_dict(scaler)
        self.optimizer.zero_grad(set_to_none=True)

    def _momentum(self) -> list[Tensor | None]:
        return [
            self.optimizer.state.get(parameter, {}).get("momentum_buffer") for parameter in self.network.parameters()
        ]


class _RecordedStep:
    """A step as a CUDA graph over inputs of its own, into which each call copies what it is given."""

    def __init__(
        self, compute: Callable[[StepInputs], Metrics], inputs: StepInputs, generator: torch.Generator
    ) -> None:
        self._inputs = StepInputs(
            Batch(*(getattr(inputs.batch, field.name).clone() for field in fields(Batch))),
            None if inputs.prototypes is None else (inputs.prototypes[0].clone(), inputs.prototypes[1].clone()),
            inputs.seed,
        )
        self._metrics: Metrics = {}

        def work() -> None:
            self._metrics = compute(self._inputs)

        self._replay = record(work, generator)

    def __call__(self, inputs: StepInputs) -> Metrics:
        for own, given in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
            own.copy_(given, non_blocking=True)
        self._replay()
        return self._metrics


def record(work: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
    """Record `work` as a CUDA graph; the function returned replays it on the same memory.

    What `generator` draws in a replay follows the seed it has then. `work` is called a few times, on a side stream
    first, as PyTorch's notes on CUDA graphs ask for.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch do it by themselves, and say so
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        work()
    return graph.replay
