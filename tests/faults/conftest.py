"""Faults are put into workspaces and files; each test has an environment of its own.

A test counts as one case, or as the number that it gives to `record_property("cases", ...)`. The counts of each kind
are printed at the end, and `pytest tests/faults --record-faults FILE` writes them for the table in docs/security.md.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers.utils import logging

logging.get_logger()  # it writes to the stderr that it first meets, which must not be a single test's
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAUKIT_DATA", "SAUKIT_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with the options given, as of mount -o; the test is skipped where that is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True)
        if done.returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "-l", disk], check=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-faults", metavar="FILE", help="Write the number of faults of each kind as JSON.")


def kinds(reports: list[pytest.TestReport]) -> dict[str, dict[str, Any]]:
    """Of each file of this folder: its tests, its cases, and those of the tests that passed."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        file = report.nodeid.split("::")[0]
        if report.when == "call" and (HERE / Path(file).name).exists():
            row = found.setdefault(Path(file).stem.removeprefix("test_"), {"tests": 0, "cases": 0, "survived": 0})
            given: dict[str, Any] = dict(report.user_properties)
            cases = given.get("cases", 1)
            row["tests"] += 1
            row["cases"] += cases
            row["survived"] += cases if report.passed else 0
    return dict(sorted(found.items()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = kinds([report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])])
    for name, row in found.items():
        terminalreporter.write_line(f"faults, {name}: {row['survived']} of {row['cases']} cases survived")
    if (file := config.getoption("--record-faults", None)) is not None:
        given = map(str, config.invocation_params.args)
        words = [Path(word).name if Path(word).is_absolute() else word for word in given]
        document = {"command": " ".join(["pytest", *words]), "kinds": found}
        Path(file).write_text(json.dumps(document, indent=1) + "\n")
