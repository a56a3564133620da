"""Faults are put into a workspace of digits, and commands are called in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import Cli, Outcome

from saukit.cli.main import run


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAUKIT_DATA", "SAUKIT_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call saukit as its entry point does; anything but an exit with a code is a traceback, and fails the test."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["saukit", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call
