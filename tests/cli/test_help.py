"""What the program says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Cli

import saukit
from saukit.cli import doctor
from saukit.cli.main import app
from saukit.core import extras

REPOSITORY = Path(__file__).parents[2]
COMMANDS = sorted(str(command.name) for command in app.registered_commands)
STAGES = ("make-lt", "synth", "train", "eval")


def test_there_are_the_commands_of_the_design() -> None:
    assert {*STAGES, "demo", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(cli: Cli, name: str) -> None:
    outcome = cli(name, "--help")
    assert outcome.code == 0
    heading = outcome.out.index("Example")
    assert f"saukit {name}" in outcome.out[heading:]
    assert cli(name, "-h").out == outcome.out


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_the_common_options(cli: Cli, name: str) -> None:
    text = cli(name, "--help").out
    for option in ("--workspace", "-w", "--config", "--device", "--dry-run", "--force", "--json", "--quiet", "-q",
                   "--debug"):  # fmt: skip
        assert option in text, option
    assert name == "eval" or "--seed" in text


@pytest.mark.parametrize(
    "example",
    [
        line.strip()
        for module in sorted((REPOSITORY / "src/saukit/cli").glob("*.py"))
        for line in module.read_text(encoding="utf-8").splitlines()
        if re.match(r"^      saukit \S", line)
    ],
)
def test_every_example_of_the_help_can_be_parsed(cli: Cli, example: str) -> None:
    """The options exist and their values are taken: what goes wrong at most is the data that is not there."""
    arguments = example.split()[1:]
    if arguments[0] in ("demo", "doctor"):
        arguments.append("--help")
    outcome = cli(*arguments, *(["--dry-run"] if arguments[0] in STAGES else []))
    assert "No such option" not in outcome.err and "Usage:" not in outcome.err, outcome.err
    if outcome.code:
        assert re.search(
            r"lies in a folder|first|is not in|no configuration file|is not a folder|no complete run", outcome.error
        ), outcome.error


def test_no_arguments_show_the_help(cli: Cli) -> None:
    shown = cli().err  # as Click has it: a command is missing
    assert all(name in shown for name in COMMANDS)


# --- doctor -------------------------------------------------------------------------------------------------------


def test_doctor_as_json(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("doctor", "--json", "-w", tmp_path / "not" / "there")
    assert outcome.code == 0
    document = outcome.document
    assert document["problems"] == []
    assert document["versions"]["saukit"] == saukit.__version__
    assert {"python", "torch", "torchvision", "diffusers", "numpy"} <= set(document["versions"])
    assert document["devices"][0]["name"] == "cpu" and document["devices"][0]["amp"] in ("bf16", "off")
    threads = document["threads"]
    assert 1 <= threads["used"] == torch.get_num_threads() <= threads["usable_cores"] <= threads["cores"]
    assert document["free_disk_bytes"] > 0
    extras_there = {name: type(there) for name, there in document["extras"].items()}
    assert extras_there == dict.fromkeys(extras.EXTRAS, bool)
    assert not (tmp_path / "not").exists()


def test_doctor_names_the_remedy_for_a_missing_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing_packages", lambda extra: ["peft"] if extra == "text2image" else [])
    outcome = cli("doctor")
    assert outcome.code == 0
    assert re.search(r"threads +│ \d+, this process may use \d+ of \d+ cores", outcome.out)
    assert re.search(r"extra clip +│ installed", outcome.out)
    assert re.search(r"extra text2image +│ not installed: pip install 'saukit\[text2image\]'", outcome.out)


def test_doctor_fails_for_a_package_that_cannot_be_used(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    outcome = cli("doctor", "--json")
    assert outcome.code == 5
    assert "torchvision cannot be imported (operator torchvision::nms does not exist)" in outcome.error
    assert "install torch and torchvision together" in outcome.error
    assert len(outcome.document["problems"]) == 1
    assert outcome.document["threads"] is None


def test_a_command_lowers_the_threads_to_the_cores(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("saukit.core.device.usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        outcome = cli("train", "--dry-run", "-w", tmp_path)  # which misses its split behind that
        assert (outcome.code, torch.get_num_threads()) == (3, 2)
    finally:
        torch.set_num_threads(before)


# --- at any width -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_and_no_word_is_cut(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    pages = []
    for columns in (width, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        pages.append(cli(name, "--help").out)
    shown, wide = pages
    assert "…" not in shown and (width > 40 or shown != wide)
    assert set(shown.split()) == set(wide.split())
