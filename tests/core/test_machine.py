import os
from pathlib import Path

import pytest

from saukit.core.machine import CHUNK, available_memory, in_threads, usable_cores


def test_available_memory_is_plausible() -> None:
    available = available_memory()
    assert available is not None and 2**20 < available < 2**46


def groups(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """What /proc/self/cgroup and /sys/fs/cgroup would be."""
    (root / "membership").write_text(membership)
    for name, text in files.items():
        (root / "mounts" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "mounts" / name).write_text(text)
    return root / "membership", root / "mounts"


V1, V1_QUOTA, V1_PERIOD = "5:memory:/job\n4:cpu,cpuacct:/job\n", "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="a container"),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 3, id="rounded up"),
        pytest.param("0::/\n", {"cpu.max": "20000 100000\n"}, 1, id="at least one"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 48, id="no limit"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 48, id="a limit above the affinity"),
        pytest.param(
            "0::/a/b/c\n",
            {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "600000 100000\n", "a/b/c/cpu.max": "max 100000\n"},
            4,
            id="the tightest of all groups above",
        ),
        pytest.param("0::/a\n", {"b/cpu.max": "100000 100000\n"}, 48, id="another's limit"),
        pytest.param("0::/hidden/job\n", {"cpu.max": "300000 100000\n"}, 3, id="a path of the host"),
        pytest.param("0::/../up\n", {"cpu.max": "300000 100000\n"}, 3, id="a path outside the namespace"),
        pytest.param(
            V1,
            {f"cpu,cpuacct/job/{V1_QUOTA}": "150000\n", f"cpu,cpuacct/job/{V1_PERIOD}": "50000\n"},
            3,
            id="version 1",
        ),
        pytest.param(
            V1, {f"cpu/{V1_QUOTA}": "200000\n", f"cpu/{V1_PERIOD}": "100000\n"}, 2, id="version 1 in a container"
        ),
        pytest.param(V1, {f"cpu/job/{V1_QUOTA}": "-1\n", f"cpu/job/{V1_PERIOD}": "100000\n"}, 48, id="no limit, 1"),
        pytest.param(V1, {f"cpu/job/{V1_QUOTA}": "200000\n"}, 48, id="version 1 without a period"),
        pytest.param("0::/\n", {"cpu.max": "0 0\n"}, 48, id="nonsense"),
        pytest.param("0::/\n", {"cpu.max": ""}, 48, id="empty"),
        pytest.param("no groups\n", {"cpu.max": "200000 100000\n"}, 48, id="not a membership"),
    ],
)
def test_usable_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(48)), raising=False)
    assert usable_cores(*groups(tmp_path, membership, files)) == expected


def test_usable_cores_without_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 1


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
