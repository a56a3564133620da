"""What all commands share: Ctrl-C, which names what was typed; how help spells values; completion; python -m saukit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import Cli

import saukit
from saukit.cli.help import _spelled
from saukit.evaluation import evaluate as evaluation
from saukit.models import inference


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_stopped_command_names_itself(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: signal.Signals, code: int
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(inference, "predict", stopped)
    monkeypatch.setattr(evaluation, "FeatureStore", stopped)
    Image.new("RGB", (8, 8)).save("a.png")
    arguments = ("eval", "--run", "sau") if command == "eval" else ("predict", "sau", "a.png")
    outcome = cli(*arguments, "-w", work)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.error.endswith(f"continue with: saukit {' '.join(arguments)} -w {work}")


def test_help_spells_values_as_a_person_would() -> None:
    many = "<" + "|".join(f"choice{index}" for index in range(5)) + ">"
    listed = "choice0, choice1, choice2, choice3, choice4"
    assert _spelled(f"--way {many}", "How.  [default: choice1]") == (
        "--way <choice>", f"How.  [one of: {listed}; default: choice1]"
    )  # fmt: skip
    assert _spelled(f"--way {many}", "How.") == ("--way <choice>", f"How.  [one of: {listed}]")
    assert _spelled("--way <a|b>", "How.  [default: (a, or b)]") == ("--way <a|b>", "How.  [default: a, or b]")
    assert _spelled("--to <path>", "Where.  [env var: X; default: (here (or there)); required]") == (
        "--to <path>", "Where.  [env var: X; default: here (or there); required]"
    )  # fmt: skip
    assert _spelled("files... <list[Path]>", "Files.") == ("files... <path>", "Files.")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("saukit comp", ["compare"]),
        ("saukit compare --met", ["--methods"]),
        ("saukit train --method ba", ["balanced-softmax"]),
    ],
)
def test_the_shell_completes(cli: Cli, monkeypatch: pytest.MonkeyPatch, typed: str, completed: list[str]) -> None:
    monkeypatch.setenv("_SAUKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    outcome = cli()
    assert (outcome.code, outcome.out.split()) == (0, completed)


def test_the_package_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "saukit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"saukit {saukit.__version__}\n"
