import os

import pytest

from saukit.core.machine import CHUNK, available_memory, in_threads, usable_cores


def test_available_memory_is_plausible() -> None:
    available = available_memory()
    assert available is not None and 2**20 < available < 2**46


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs an affinity")
def test_no_more_cores_than_the_affinity_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 48)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert usable_cores() == 1


def test_work_in_threads_comes_back_in_order_and_says_how_far_it_is() -> None:
    heard: list[int] = []
    items = range(3 * CHUNK + 5)
    assert in_threads(lambda item: item * item, items, heard.append) == [item * item for item in items]
    assert heard == [CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + 5]
    assert in_threads(str, []) == []


def test_a_failure_in_a_thread_cancels_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saukit.core.machine.usable_cores", lambda: 1)
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        in_threads(work, range(50 * CHUNK))
    assert len(begun) < 50
