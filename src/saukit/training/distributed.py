"""Several processes that work as one: torchrun starts them, gloo connects processors, NCCL GPUs.

What is computed does not depend on their number. Each process has a share of a batch's images and draws the random
parameters of the whole batch; logits and embeddings are gathered, so that each loss sees the whole batch and is the
same number in every process; its gradient with respect to the parameters is the sum of what the shares contribute.
With one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from saukit.core import ranks
from saukit.core.errors import EnvironmentFault, SaukitError, UsageError
from saukit.core.interrupts import StopRequest

TIMEOUT = timedelta(days=2)  # for the others while one process trains alone; a process that ends is noticed at once
BUCKET = 2**23  # numbers that are summed over the processes at once: 32 MiB

Value = TypeVar("Value")
Drawn = TypeVar("Drawn", bound=Tensor | tuple[Tensor, ...])

_waited = 0.0
_alone = False  # whether this process does something by itself


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """While entered, the processes that torchrun started work together; nothing without torchrun.

    Raises: UsageError for one GPU for all of them; EnvironmentFault for fewer GPUs than processes, or if the processes
    do not find each other.
    """
    size = ranks.job_size()
    if size == 1:
        yield
        return
    if device.type == "mps":
        raise UsageError(f"this machine has one GPU, and each of the {size} processes needs its own: use --device cpu")
    if device.type != "cpu":
        if device.index != ranks.local_rank():
            raise UsageError(
                f"--device {device} is one GPU, and each of the {size} processes needs its own: use {device.type}"
            )
        torch.accelerator.set_device_index(device.index)
    # Imported while there is a group, its functions' defaults would keep it, and its threads, to the interpreter's end:
    # one that then lets go of a tensor aborts the process.
    importlib.import_module("torch.distributed.nn.functional")

    try:
        kept, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        store = dist.PrefixStore(f"attempt {_attempt(kept, size)}", kept)
        backend = "cpu:gloo"
        if device.type != "cpu":
            backend += f",{device.type}:{dist.get_default_backend_for_device(device)}"
        ranks.meet(store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        # One that failed at once would close connections that another one is still making.
        store.set(f"joined {rank}", "")
        store.wait([f"joined {each}" for each in range(size)], TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EnvironmentFault(f"the {size} processes of this job do not find each other ({reason})") from error
    try:
        yield
    except BaseException:
        if device.type == "cpu":  # on GPUs that would wait for what a failed process never sends
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _attempt(store: dist.Store, size: int) -> int:
    """How often the job was begun before; torchrun's store still has the addresses of processes that have ended.

    Of several machines only the one that lost a process counts a restart, so there it is every `size` arrivals.
    """
    if ranks.is_one_machine():
        return ranks.restarts()
    return int((store.add("arrivals", 1) - 1) // size)


def size() -> int:
    """Processes that work together; 1 within what one does by itself (`from_first`, `first_before_others`)."""
    return dist.get_world_size() if _is_joined() and not _alone else 1


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not _is_joined() or dist.get_rank() == 0


def seconds_waited() -> float:
    """Seconds that this process has spent in exchanges with the others, waiting for them included.

    On a GPU those of the host, which does not wait for the device.
    """
    return _waited


@dataclass(frozen=True)
class Share:
    """The rows of a batch of `count` samples that belong to process `rank` of `size`."""

    count: int
    rank: int
    size: int

    @classmethod
    def of(cls, count: int) -> Share | None:
        """This process's share; None where it has all."""
        return None if size() == 1 else cls(count, rank(), size())

    @property
    def rows(self) -> slice:
        """The rows, next to each other."""
        return slice(*self._bounds(self.rank))

    def _bounds(self, rank: int) -> tuple[int, int]:
        return rank * self.count // self.size, (rank + 1) * self.count // self.size

    def take(self, drawn: Drawn) -> Drawn:
        """What was drawn for the whole batch, [count, ...] each, for this share: a tensor, or a tuple of tensors."""
        mine: Any
        if isinstance(drawn, Tensor):
            mine = drawn[self.rows]
        else:
            parts = tuple(part[self.rows] for part in drawn)
            mine = drawn._make(parts) if hasattr(drawn, "_make") else parts
        return cast(Drawn, mine)

    def gather(self, mine: Tensor) -> Tensor:
        """The rows of all shares, [count, ...]; each process's gradient is that of its own rows.

        Right for a loss that every process computes from all rows, and whose parameters' gradients are then summed.
        """
        gathered: Tensor = _Gather.apply(mine, self)
        return gathered

    def replicated(self, same: Tensor) -> Tensor:
        """What every process computes from parameters alone: its gradient, which all of them sum, is divided."""
        divided: Tensor = _Divide.apply(same, self.size)
        return divided

    def exchange(self, mine: Tensor) -> Tensor:
        """As `gather`, without a gradient."""
        sizes = [end - start for start, end in map(self._bounds, range(self.size))]
        largest = max(sizes)
        padded = torch.cat((mine, mine.new_zeros(largest - len(mine), *mine.shape[1:]))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        with _exchanging():
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, share: Share) -> Tensor:
        ctx.rows = share.rows
        return share.exchange(mine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows].contiguous(), None


class _Divide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, same: Tensor, size: int) -> Tensor:
        ctx.size = size
        return same.view_as(same)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.size, None


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if size() > 1:
        with _exchanging():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(network: nn.Module) -> None:
    """Sum the parameters' gradients over the processes, and average BatchNorm's statistics where they are local.

    So parameters and statistics are the same in every process after each step.
    """
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    statistics = list(_local_statistics(network))
    for buffer in statistics:
        buffer.div_(size())
    buckets = list(_buckets([*gradients, *statistics]))
    flat = [torch.cat([tensor.reshape(-1) for tensor in bucket]) for bucket in buckets]
    with _exchanging():
        for work in [dist.all_reduce(numbers, async_op=True) for numbers in flat]:
            work.wait()
    for bucket, numbers in zip(buckets, flat, strict=True):
        for tensor, part in zip(bucket, torch.split(numbers, [each.numel() for each in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def sum_in_order(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The sum [n] of the rows [m, n] of all processes, of which each has as many as `counts` says.

    They are added one by one, in their order, so the bits do not depend on which process has which row.
    """
    width = -(-rows.shape[1] // size())  # of the columns that each process sums
    padded = nn.functional.pad(rows, (0, width * size() - rows.shape[1]))
    mine = padded.new_empty(sum(counts) * width)
    summed = padded.new_empty(size() * width)
    with _exchanging():
        sent = padded.view(len(rows), size(), width).transpose(0, 1).flatten()
        dist.all_to_all_single(mine, sent, [count * width for count in counts], [len(rows) * width] * size())
        own, *others = mine.view(-1, width)
        for row in others:
            own += row
        dist.all_gather_into_tensor(summed, own.contiguous())
    return summed[: rows.shape[1]]


def _local_statistics(network: nn.Module) -> Iterator[Tensor]:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and not hasattr(module, "synced"):
            yield from (buffer for buffer in module.buffers() if buffer.is_floating_point())


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


def copy_from_first(network: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if size() > 1:
        with _exchanging(), torch.no_grad():
            for tensor in [*network.parameters(), *network.buffers()]:
                dist.broadcast(tensor, 0)


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` returns in the first process, which alone calls it, and to which `size()` is 1 meanwhile.

    Raises: in all processes the SaukitError that `make` raises in the first one.
    """
    if size() == 1:
        return make()
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = _by_itself(make)
        except SaukitError as error:
            made[1] = error
    with _exchanging():
        dist.broadcast_object_list(made, 0, device=torch.device("cpu"))
    if made[1] is not None:
        raise made[1]
    return cast(Value, made[0])


def first_before_others(make: Callable[[], Value]) -> Value:
    """What `make` returns in each process, by itself; the others call it when the first one has."""
    made: list[Value] = []

    def first() -> None:
        made.append(make())

    from_first(first)
    return made[0] if made else _by_itself(make)


def _by_itself(make: Callable[[], Value]) -> Value:
    """What `make` returns where it exchanges nothing with other processes."""
    global _alone
    before, _alone = _alone, True
    try:
        return make()
    finally:
        _alone = before


@contextlib.contextmanager
def held_by_first(lock: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """While entered, the first process holds a lock; all raise what that raises."""
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(lock)

        from_first(take)
        yield


def from_all(value: Value) -> list[Value]:
    """The processes' values, in their order."""
    values: list[Any] = [value] * size()
    if size() > 1:
        with _exchanging():
            dist.all_gather_object(values, value)
    return values


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if size() == 1:
        return number
    box = torch.tensor(number)
    with _exchanging():
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def any_stops(stop: StopRequest, *, may_wait: bool = True) -> bool:
    """Whether a process was asked to stop; all of them get the same answer, and the signal that came.

    `may_wait` False asks nobody, and several processes go on.
    """
    if size() > 1:
        if not may_wait:
            return False
        stop.signal_number = largest(stop.signal_number or 0) or None
    return stop.requested


def wait_for_all() -> None:
    """Return when every process has come here."""
    largest(0)


def require_same(what: str, value: object) -> None:
    """Raises: SaukitError if `value` is not the same in every process."""
    first = from_first(lambda: value)
    if largest(int(first != value)):
        differing = f"here {value}, in the first process {first}" if first != value else "see another process"
        raise SaukitError(
            f"the processes of this job have different {what} ({differing}): give all machines the same command and "
            "one workspace that they share"
        )


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """An exchange with the other processes, timed. Raises: SaukitError if one of them is gone."""
    global _waited
    started = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise SaukitError(
            f"another process of this job has ended ({reason}): torchrun's report says which; continue with --resume, "
            "or have torchrun do so with --max-restarts"
        ) from error
    finally:
        _waited += time.perf_counter() - started
