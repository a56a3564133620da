"""What this machine lets the process use, cores and memory; and work on all cores."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 32  # items that a thread takes at once


def slices(count: int, size: int) -> Iterator[slice]:
    """`count` items in slices of `size`, one after the other; the last may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    done: Callable[[int], object] = lambda count: None,
    *,
    chunk: int = CHUNK,
    kept: bool = False,
) -> list[Result]:
    """`work` of each item, in their order, on every core; `done` hears how many there are so far. A thread takes
    `chunk` items at once. `kept`: on threads that stay for the next time, for work that takes milliseconds and calls
    nothing of the kind itself.

    A failure cancels what has not begun.
    """
    results: list[Result] = []
    with contextlib.nullcontext(_kept_pool(os.getpid())) if kept else ThreadPoolExecutor(usable_cores()) as pool:
        chunks = [items[part] for part in slices(len(items), chunk)]
        try:
            for some in pool.map(lambda chunk: [work(item) for item in chunk], chunks):
                results += some
                done(len(results))
        except BaseException:
            if not kept:  # of which pool.map cancels its own
                pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


@functools.cache
def _kept_pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; one that it forks has none of them."""
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="kept")


def usable_cores() -> int:
    """Cores that this process may use, at least 1: the scheduler's affinity, and the quota of a container."""
    from joblib import cpu_count

    return int(cpu_count())


def available_memory() -> int | None:
    """Bytes of memory that are free for this process, by the kernel and by its control group; None if unknown."""
    known = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        known.append(limit - used)
    if not known:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(min(known), 0) if known else None
