"""The program in this process, and small workspaces on digits, made once a session, which tests copy."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import Cli, Outcome, tiny
from typer.main import get_command

from saukit.cli import main
from saukit.cli.main import run
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation import compare as compare_room
from saukit.evaluation import evaluate as evaluate_room
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


@pytest.fixture(autouse=True)
def one_thread_everywhere() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for each other make tests many times slower.

    Before and after each test, as a command or a benchmark of one sets its own number.
    """
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing that tests write has to outlast a power cut. What they start as a program of its own does flush."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which also refuses what is no open file
        yield


@pytest.fixture(scope="session", autouse=True)
def no_log_records() -> Iterator[None]:
    """What libraries log goes nowhere, as it does where pytest collects it; without a handler it would go to stderr."""
    logging.getLogger().addHandler(handler := logging.NullHandler())
    yield
    logging.getLogger().removeHandler(handler)


@functools.cache
def commands() -> Any:
    """The program's commands, which take longer to build than many of them to do their work."""
    return get_command(main.app)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call saukit in this process as its entry point does: cli("train", "-w", folder).

    Anything but an exit with a code is a traceback, and fails the test.
    """

    monkeypatch.setattr(main, "app", commands())

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


@pytest.fixture(scope="session")
def shared_val_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only a split: digits at ratio 50 (142 to 2 images a class) with a validation part."""
    root = tmp_path_factory.mktemp("shared-val")
    make_split(SplitConfig(imb=50, val_fraction=0.2), Workspace(root), root=None, force=False, reporter=QUIET)
    return root


@pytest.fixture(scope="session")
def shared_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at ratio 50, 62 synthetic images (20 a class), and the runs `ce` and `sau`; `ce` is evaluated."""
    root = tmp_path_factory.mktemp("shared")
    workspace = Workspace(root)
    make_split(SplitConfig(imb=50), workspace, root=None, force=False, reporter=QUIET)
    micro = SynthConfig(
        per_class_target=20, train_steps=3, train_batch_size=4, sampler_steps=2, amp="off", preflight=0, audit=False
    )
    synthesize(micro, workspace, device=CPU, force=False, resume=False, reporter=QUIET)
    for method, synthetic in (("sau", True), ("ce", False)):
        config = tiny(method=method, synthetic=synthetic)
        fit(config, workspace, name=method, device=CPU, force=False, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="ce"), workspace, device=CPU, force=False, reporter=QUIET)
    return root


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations and comparisons write a dot in place of their pictures, which take most of their time."""

    def dot(figure: object, path: Path) -> None:
        Image.new("RGB", (2, 2)).save(path)

    def dot_of_errors(path: Path, *_: object, **__: object) -> None:
        dot(None, path)

    for room in (evaluate_room, compare_room):
        monkeypatch.setattr(room, "save_figure", dot)
    for name in ("per_class_figure", "confusion_figure"):
        monkeypatch.setattr(evaluate_room, name, lambda *_, **__: None)
    monkeypatch.setattr(compare_room, "comparison_figure", lambda *_: None)
    monkeypatch.setattr(evaluate_room, "save_errors", dot_of_errors)


@pytest.fixture
def work(shared_work: Path, tmp_path: Path) -> Path:
    """A copy of the shared workspace: split, cache and two runs."""
    return shutil.copytree(shared_work, tmp_path / "copied-work")


@pytest.fixture
def split_work(shared_work: Path, tmp_path: Path) -> Path:
    """A workspace with a copy of the shared split alone."""
    shutil.copytree(shared_work / "split", tmp_path / "split-work" / "split")
    return tmp_path / "split-work"


@pytest.fixture
def val_work(shared_val_work: Path, tmp_path: Path) -> Path:
    """A copy of the shared workspace that has a validation part, and nothing but its split."""
    return shutil.copytree(shared_val_work, tmp_path / "val-work")
