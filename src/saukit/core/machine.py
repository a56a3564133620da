"""What this machine lets the process use, cores and memory; and work on all cores."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
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


def usable_cores(membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, at least 1: the scheduler's affinity, and the quota of its control groups.

    `membership` names the process's control groups, `mounts` holds their hierarchies; both may be missing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(membership, mounts)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


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


def _cpu_quota(membership: Path, mounts: Path) -> float | None:
    """Cores that the control groups (version 1 or 2) grant this process; None without a limit.

    A group's quota holds for all groups below it. In a container the path may be the host's, of which only the root
    can be seen, so groups that are not there are passed over.
    """
    quotas = []
    for line in _text(membership).splitlines():
        fields = line.split(":", 2)  # hierarchy, controllers (none in version 2), path
        if len(fields) < 3 or (fields[1] and "cpu" not in fields[1].split(",")):
            continue
        _, controllers, path = fields
        names = [name for name in path.split("/") if name]
        for hierarchy in {mounts / controllers, mounts / "cpu"} if controllers else {mounts}:
            for depth in range(len(names) + 1):
                group = hierarchy.joinpath(*names[:depth])
                if controllers:
                    quota_and_period = f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
                else:
                    quota_and_period = _text(group / "cpu.max")
                # No limit is -1 in version 1 and "max" in version 2.
                if limited := re.fullmatch(r"\s*([1-9]\d*)\s+([1-9]\d*)\s*", quota_and_period):
                    quotas.append(int(limited[1]) / int(limited[2]))
    return min(quotas, default=None)


def _text(path: Path) -> str:
    """A small file's text; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
