"""`saukit compare` as a user types it: tables, JSON, a dry run, sweep files, signals and kills."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import Begun
from support import Cli, Outcome, tree

from saukit.cli.compare import SHARED
from saukit.evaluation import jobs as room
from saukit.training import trainer as training_room
from saukit.training.config import TrainConfig

TINY = ("--steps", "4", "--batch-size", "16", "--amp", "off", "--jobs", "1")


def test_a_comparison_on_the_terminal(cli: Cli, work: Path) -> None:
    arguments = ("compare", "--methods", "ce, sau+synth", "--seeds", "2", "--baseline", "ce", *TINY, "-w", work)
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    said = [line for line in outcome.err.splitlines() if line[:1].isdigit()]  # without the warning of little trust
    assert said[0] == ("4 runs (2 methods x 2 seeds): 2 there already, 0 begun, 2 to start")
    for line, expected in zip(said[1:], ("3/4 ce seed 1", "4/4 sau+synth seed 1"), strict=True):
        assert re.match(rf"{re.escape(expected)}: balanced \d+\.\d, few \d+\.\d, \d+ s", line), line
    assert re.search(r"│ sau\+synth +│( +\d+\.\d±\d+\.\d │){5}", outcome.out)
    assert re.search(r"│ sau\+synth │( +[+-]\d+\.\d \(too few seeds\) │){2}", outcome.out)  # an interval needs three
    assert "Too few seeds to say whether synthetic images help" in outcome.out
    assert "points of balanced accuracy at 4 steps of batch size 16" in outcome.out
    assert "last step (4 runs); test images chose none, and each run was evaluated on them once" in outcome.out
    folder = work / "comparisons" / "main"
    assert f"written to {folder}" in outcome.out and str(folder / "compare.md") in outcome.out

    before = tree(work)
    again = cli(*arguments, "--json")
    assert again.code == 0 and again.document == json.loads((folder / "compare.json").read_text())
    assert "nothing to do" in again.err and "4 there already" in again.err
    assert cli(*arguments, "-q") == Outcome(0, "", "")
    assert tree(work) == before
    other = cli(*arguments, "--no-flip", "--steps", "3")
    assert other.code == 2
    assert "compare was" not in other.error and "was made with another configuration (train: {" in other.error
    assert "replace it with --force, or give another --name" in other.error


def test_a_dry_run_lists_the_runs_and_writes_nothing(cli: Cli, work: Path) -> None:
    before = tree(work)
    arguments = ("compare", "--methods", "ce,balanced-softmax", "--seeds", "2", *TINY, "-w", work, "--dry-run")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    assert re.search(r"│ ce +│ 0 +│ ce +│ complete │ +4 │", outcome.out)
    assert re.search(r"│ balanced-softmax │ 1 +│ balanced-softmax-seed1 │ new +│ +4 │", outcome.out)
    assert re.search(r"│ runs to train +│ 3 of 4 +│\n│ jobs +│ 1 +│\n│ estimated time +│ \d+ s +│", outcome.out)
    document = cli(*arguments, "--json").document
    assert document["dry_run"] is True and document["config"]["baseline"] == "ce"
    assert [(run["name"], run["state"]) for run in document["runs"]] == [
        ("ce", "complete"), ("balanced-softmax", "new"), ("ce-seed1", "new"), ("balanced-softmax-seed1", "new")
    ]  # fmt: skip
    assert tree(work) == before


def test_options_win_over_the_file(cli: Cli, work: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        yaml.safe_dump(
            {
                "methods": ["sau", "sau+synth"],
                "variants": {"hot": {"method": "ce", "lr": 0.3}},
                "seeds": 7,
                "train": {"epochs": 2, "batch_size": 16, "temperature": 0.2},
            }
        )
    )
    given = ("--methods", "ce", "--seeds", "1", "--steps", "3", "--amp", "off", "--baseline", "hot")
    outcome = cli("compare", "--config", sweep, *given, "-w", work, "--dry-run", "--json")
    assert outcome.code == 0, outcome
    config = outcome.document["config"]
    assert config["methods"] == ["ce"] and config["seeds"] == 1 and config["baseline"] == "hot"
    assert config["train"] == {"batch_size": 16, "temperature": 0.2, "steps": 3, "amp": "off", "preset": "small"}
    assert [(run["label"], run["steps"]) for run in outcome.document["runs"]] == [("ce", 3), ("hot", 3)]
    bad = cli("compare", "--config", sweep, "--methods", "cee,ce-prior0.50", "--seeds", "0", "-w", work)
    assert bad.code == 2
    for problem in ("methods: unknown method 'cee'", "write 'ce-prior0.5'", "seeds must be at least 1"):
        assert problem in bad.error


def test_the_options_that_all_share_are_those_of_train(cli: Cli) -> None:
    text, train = cli("compare", "--help").out, cli("train", "--help").out
    fixed = {"method", "synthetic", "prior_correction", "synthetic_weight", "real_finish", "label_smoothing", "seed"}
    assert set(SHARED) == {field.name for field in dataclasses.fields(TrainConfig)} - fixed
    for name in SHARED:
        option = f"--{name.replace('_', '-')}"
        assert option in train and option in text, option
    for option in ("--prior-correction", "--synthetic-weight", "--synthetic ", "--method ", "--seed "):
        assert option in train and option not in text, option


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_names_itself_and_goes_on(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    original, steps = training_room.Trainer.advance, []

    def advance(trainer: training_room.Trainer) -> None:
        original(trainer)
        steps.append((trainer.plan.name, trainer.step_count))
        if len(steps) == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(training_room.Trainer, "advance", advance)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stopped = cli("compare", "--methods", "ce,sau+synth", "--seeds", "2", *TINY, "-w", work)
    assert stopped.code == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    command = shlex.split(stopped.err.split("continue with: ")[1])
    assert command == ["saukit", "compare", "--methods", "ce,sau+synth", "--seeds", "2", *TINY, "-w", str(work)]
    outcome = cli(*command[1:])
    assert outcome.code == 0 and "2 there already, 1 begun, 1 to start" in outcome.err
    assert steps == [*(("ce-seed1", n) for n in (1, 2, 3, 4)), *(("sau+synth-seed1", n) for n in (1, 2, 3, 4))]


def test_stopped_between_two_runs(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("compare", "--methods", "ce", "--seeds", "1", *TINY, "-w", str(work))

    def evaluate(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(room, "evaluate", evaluate)
        stopped = cli(*arguments)
    assert stopped.code == 143 and stopped.error.endswith(f"continue with: saukit {shlex.join(arguments)}")
    assert cli(*arguments).code == 0


# Loads everything once and forks a process for each job, which is killed from within at its n-th opening, renaming or
# removing of a file of the workspace.
DRIVER = """
import json, os, signal, sys
import saukit.evaluation.compare
from saukit.cli.main import run
from saukit.training import trainer

trainer.CHECKPOINT_SECONDS = -1.0
for arguments, last_touch in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        touched, workspace = 0, arguments[-1]

        def count(event, details):
            global touched
            if event in ("open", "os.rename", "os.remove") and str(details[0]).startswith(workspace + "/runs/"):
                touched += 1
                if touched == last_touch:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        sys.argv = ["saukit", *arguments]
        try:
            run()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(work: Path, split_work: Path) -> None:
    """Two workspaces on one split; in the second the comparison is killed, each time further on."""
    arguments = ["compare", "--methods", "ce,balanced-softmax", "--seeds", "2", *TINY, "--name", "killed", "-q", "-w"]
    touches = [3, 20, 31, 60]
    jobs = [([*arguments, str(work)], None), *(([*arguments, str(split_work)], n) for n in touches),
            ([*arguments, str(split_work)], None)]  # fmt: skip
    done = Begun("-c", DRIVER, json.dumps(jobs)).wait()
    assert done.stdout.split() == ["0", *["-9"] * len(touches), "0"], done.stderr
    names = {"ce", "ce-seed1", "balanced-softmax", "balanced-softmax-seed1"}
    assert {path.name for path in (split_work / "runs").iterdir()} == names
    for name in names:
        model = f"runs/{name}/model.safetensors"
        assert (work / model).read_bytes() == (split_work / model).read_bytes()
    figures = [json.loads((root / "comparisons/killed/compare.json").read_text()) for root in (work, split_work)]
    assert [[m["mean"], m["difference"]] for m in figures[0]["methods"]] == [
        [m["mean"], m["difference"]] for m in figures[1]["methods"]
    ]
    assert not list(split_work.glob(".*")) and not list(split_work.rglob("*.partial"))
