"""Faults are put into workspaces and files; each test has an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers.utils import logging

logging.get_logger()  # it writes to the stderr that it first meets, which must not be a single test's


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAUKIT_DATA", "SAUKIT_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
