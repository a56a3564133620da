"""One optimizer step, computed eagerly or replayed as a CUDA graph.

The step reads a batch, prototypes, a learning rate and a seed, has static shapes and never makes the host wait for
the device. So on a GPU it can be recorded once and replayed: a thousand small kernels are then launched as one.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from saukit.core.device import Precision
from saukit.core.errors import EnvironmentFault, SaukitError
from saukit.core.seeding import derive_seed
from saukit.models.backbones import BACKBONES, initialise_fan_in
from saukit.models.lora import add_lora
from saukit.models.pretrained import load_pretrained, load_weights
from saukit.training.batch_norm import synchronise_batch_norm
from saukit.training.context import StepContext
from saukit.training.distributed import Share, copy_from_first, size, sum_gradients
from saukit.training.methods import MethodEntry, logit_offsets
from saukit.training.optimizers import build_optimizer, set_learning_rate, set_training_mode
from saukit.training.plan import TrainingPlan
from saukit.training.training_set import Batch
from saukit.training.views import FeatureViews, PhotoViews, Views

WARM_UP_STEPS = 3
# How far a replayed step's losses may lie from the eager step's: bf16 kernels differ in the order of their sums.
REPLAY_TOLERANCE = 0.02

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class StepBatch:
    """What changes from step to step, besides the learning rate.

    Shapes: prototypes two of [K, d], or None for a method without; `seed` of the step's augmentation. `head_only`: the
    backbone waits. `done`: the share of the steps before this one.
    """

    samples: Batch
    prototypes: tuple[Tensor, Tensor] | None
    seed: int
    second_stage: bool = False
    head_only: bool = False
    done: float = 0.0

    def tensors(self) -> list[Tensor]:
        """The tensors, in a fixed order."""
        return [*(getattr(self.samples, field.name) for field in fields(Batch)), *(self.prototypes or ())]


class TrainingStep:
    """Views, forward passes, losses, backward passes and the optimizer's update of one step.

    Forward passes run in autocast, losses in float32 (`training.methods`); each loss's backward pass comes before the
    next forward pass, so the activations of one pass are in memory at a time.
    """

    def __init__(self, method: MethodEntry, context: StepContext) -> None:
        self.method, self.context, self.network = method, context, context.network
        self.optimizer = build_optimizer(self.network, context.config, context.logit_offsets.device)
        self.scaler = context.precision.scaler()
        self._recorded: _RecordedStep | None = None

    def __call__(self, batch: StepBatch, learning_rate: float) -> Metrics:
        """One step in train mode: the network, the momentum and BatchNorm's statistics move on.

        Returns the method's losses and counts, 0-d tensors on the device; the next call may overwrite them.
        """
        return self._run(self._recorded or self._compute, batch, learning_rate)

    def warm_up(self, batch: StepBatch, other: StepBatch, learning_rate: float) -> None:
        """Have everything compiled that is compiled, and record the step where a CUDA graph is asked for.

        Nothing moves on: the state is put back. `other` must differ from `batch`; with it the recorded step has to
        compute what the eager step computes.
        Raises: SaukitError if it does not.
        """
        with self._rewound():
            for _ in range(WARM_UP_STEPS):
                self(batch, learning_rate)
        if not self.context.config.cuda_graph:
            return
        with self._rewound():
            self._recorded = _RecordedStep(self._compute, batch, self.context.generator)
        replayed, eager = (self._trial(work, other, learning_rate / 2) for work in (self._recorded, self._compute))
        for name, value in eager.items():
            if not abs(replayed[name] - value) <= REPLAY_TOLERANCE * max(abs(value), 1.0):
                raise SaukitError(
                    f"the recorded CUDA graph does not compute the training step ({name} is {replayed[name]:.4g}, "
                    f"computed eagerly {value:.4g}): train with --no-cuda-graph, and please report it"
                )

    def restore(self, optimizer: dict[str, object], scaler: dict[str, object]) -> None:
        """Continue with a saved state of optimiser and scaler; call it before `warm_up`."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(optimizer)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # loading put a copy in its place
        self.scaler.load_state_dict(scaler)

    def forget_momentum(self) -> None:
        """Let the next step be an optimiser's first."""
        self.optimizer.state.clear()

    def _run(self, work: Callable[[StepBatch], Metrics], batch: StepBatch, learning_rate: float) -> Metrics:
        set_learning_rate(self.optimizer, learning_rate)
        self.context.generator.manual_seed(batch.seed)
        self.context.done.fill_(batch.done)  # in place: a recorded step reads it from its address
        return work(batch)

    def _compute(self, batch: StepBatch) -> Metrics:
        metrics: Metrics = {}
        context = replace(self.context, prototypes=batch.prototypes, second_stage=batch.second_stage, metrics=metrics)
        if (share := Share.of(len(batch.samples.labels))) is not None:
            context = replace(context, share=share, views=replace(context.views, share=share))
        set_training_mode(self.network, context.config, head_only=batch.head_only)
        self.optimizer.zero_grad(set_to_none=True)
        for name, loss in self.method.step(batch.samples, context):
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            metrics[name] = loss.detach()
        sum_gradients(self.network)
        if context.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), context.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return metrics

    def _trial(self, work: Callable[[StepBatch], Metrics], batch: StepBatch, learning_rate: float) -> dict[str, float]:
        """Two steps' metrics, summed, without a trace: the second one sees whether the first moved the weights."""
        totals: dict[str, float] = {}
        with self._rewound():
            for _ in range(2):
                for name, value in self._run(work, batch, learning_rate).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    @contextlib.contextmanager
    def _rewound(self) -> Iterator[None]:
        """Put weights, BatchNorm's statistics and momentum back afterwards, in place."""
        state = [*self.network.parameters(), *self.network.buffers()]
        before = [tensor.detach().clone() for tensor in state]
        moments = {address: buffer.clone() for address, buffer in self._moments().items()}
        scaler = self.scaler.state_dict()
        yield
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            for address, buffer in self._moments().items():
                # Moments of zeros and no moments yet are the same to SGD and AdamW.
                buffer.copy_(moments.get(address, torch.zeros_like(buffer)))
        self.scaler.load_state_dict(scaler)
        self.optimizer.zero_grad(set_to_none=True)

    def _moments(self) -> dict[tuple[int, str], Tensor]:
        """The optimizer's state, by the parameter's position and the state's name."""
        return {
            (index, name): value
            for index, parameter in enumerate(self.network.parameters())
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }


def build_context(plan: TrainingPlan) -> StepContext:
    """What steps have at hand when a run starts: the network at its initialisation, and what the method asks for."""
    config, split, device = plan.config, plan.split, plan.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initialisation"))
        network = plan.model_spec.build_network()
        if config.as_published:
            for part in network.children():
                if part is not network.backbone or not BACKBONES[config.backbone].own_init:
                    initialise_fan_in(part)
    if config.weights == "pretrained":
        load_pretrained(network.backbone, config.backbone)
    elif plan.weights_path is not None:
        load_weights(network.backbone, plan.weights_path)
    if config.tune == "head":
        network.backbone.requires_grad_(False)
    if config.tune == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "low-rank updates"))
            add_lora(network, config.lora_rank, name=config.backbone)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.sync_batchnorm and size() > 1:
        synchronise_batch_norm(network, without="class_projection")
    copy_from_first(network)
    if config.compile:
        network.compile_backbone()
    kind = FeatureViews if config.tune == "head" else PhotoViews if config.views == "photo" else Views
    real_counts, all_counts = (
        torch.from_numpy(counts).float().to(device) for counts in (split.class_counts, plan.class_counts)
    )
    return StepContext(
        network=network,
        views=kind(
            torch.tensor(plan.model_spec.mean, device=device),
            torch.tensor(plan.model_spec.std, device=device),
            flip=config.flip,
            crop_scale=config.crop_scale,
            as_published=config.as_published,
        ),
        precision=Precision(config.amp, device.type),
        config=config,
        class_counts=all_counts,
        logit_offsets=logit_offsets(
            plan.method, config.prior_correction, real_counts=real_counts, all_counts=all_counts
        ),
        generator=torch.Generator(device),
        done=torch.zeros((), device=device),
    )


class _RecordedStep:
    """A step as a CUDA graph over inputs of its own, into which each call copies what it is given."""

    def __init__(self, compute: Callable[[StepBatch], Metrics], batch: StepBatch, generator: torch.Generator) -> None:
        self._batch = StepBatch(
            Batch(*(getattr(batch.samples, field.name).clone() for field in fields(Batch))),
            None if batch.prototypes is None else (batch.prototypes[0].clone(), batch.prototypes[1].clone()),
            batch.seed,
        )
        self._metrics: Metrics = {}

        def work() -> None:
            self._metrics = compute(self._batch)

        self._replay = record(work, generator)

    def __call__(self, batch: StepBatch) -> Metrics:
        for own, given in zip(self._batch.tensors(), batch.tensors(), strict=True):
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


@contextlib.contextmanager
def compiler_faults() -> Iterator[None]:
    """What torch.compile raises becomes an EnvironmentFault with the way out."""
    try:
        yield
    except Exception as error:
        # By name: importing the compiler to ask for its exceptions takes seconds, and most runs do not compile.
        if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
            raise
        reason = str(error).strip().splitlines()[0]
        raise EnvironmentFault(f"torch.compile failed ({reason}): train with --no-compile") from error
