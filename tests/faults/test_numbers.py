"""Every numeric option of every command, with every number that a person or a script may give it."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from support import Cli, Count, tree

from saukit.core.config import from_mapping, read_fields
from saukit.core.errors import UsageError
from saukit.core.options import check, options_of
from saukit.data.config import SplitConfig
from saukit.deploy.config import PredictConfig
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.synthesis.config import SynthConfig
from saukit.training.config import TrainConfig

CONFIGS: list[Any] = [SplitConfig, SynthConfig, TrainConfig, EvalConfig, CompareConfig, PredictConfig]
NUMBERS: list[Any] = [
    *(0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 10**5000, True),
    *(0.0, -0.0, -1.0, 0.5, 1e-320, 5e-324, 1e-30, 1e30, 1e308, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "0x10",
        "1e999",
        "nan",
        "-inf",
        "9" * 400,
        "1_0",
        "½",
        "٣",
        "1,5",
        "one",
        None,
        [],
        {},
        [1],
        "1" * 9999,
    ),
]


def numeric_fields(kind: Any) -> list[str]:
    hints = typing.get_type_hints(kind)
    numbers = {int, float}
    return [n for n in options_of(kind) if hints[n] in numbers or numbers & {*typing.get_args(hints[n])}]


CASES = [(kind, name) for kind in CONFIGS for name in numeric_fields(kind)]


def test_there_are_numbers_to_give() -> None:
    assert len(CASES) > 30 and {kind for kind, _ in CASES} >= {SplitConfig, SynthConfig, TrainConfig, CompareConfig}


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_is_taken_or_refused_with_its_name(record_property: Count, kind: Any, name: str) -> None:
    record_property("cases", len(NUMBERS))
    for value in NUMBERS:
        values, problems = read_fields(kind, {name: value})
        assert len(problems) + len(values) == 1
        assert all(name in problem and len(problem) < 400 for problem in problems)
        if problems:
            continue
        try:
            config = from_mapping(kind, values, where="options")
            check(dataclasses.replace(config))
        except UsageError as error:
            assert name in str(error) and len(str(error)) < 2000
        except KeyError as error:  # a table that this check is not given
            assert "." in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make-lt", "--imb", "1e-320"), "imb must lie between 1e-09 and 1e+09, got 9.99989e-321"),
        (("make-lt", "--imb", "1e300"), "imb must lie between 1e-09 and 1e+09, got 1e+300"),
        (("make-lt", "--imb", "5e-324"), "imb must lie between"),
        (("make-lt", "--imb", "-1e30"), "imb must be above 0"),
        (("make-lt", "--counts", "0=1e30"), "'0=1e30' is not a count"),
        (("make-lt", "--counts", "0=-1"), "'0=-1' is not a count"),
        (("make-lt", "--counts", "0=" + "9" * 5000), "is not a count: write CLASS=N"),
        (("make-lt", "--counts", "0=999999999999999999"), "counts do not fit the data: 0=999999999999999999"),
        (("make-lt", "--seed", "-1"), "seed must be at least 0"),
        (("make-lt", "--seed", str(2**70)), "seed must be below 2^63"),
        (("make-lt", "--image-size", "9" * 400), "image_size must be below 2^63"),
        (("make-lt", "--val-fraction", "nan"), "val_fraction: nan is not a number"),
        (("synth", "--per-class-target", "1e30"), "Invalid value for '--per-class-target'"),
        (("synth", "--per-class-target", str(10**30)), "per_class_target must be below 2^63"),
        (("synth", "--per-class-target", str(10**12)), "per_class_target must be at least 1 and at most 10000000"),
        (("synth", "--train-steps", str(2**64)), "train_steps must be below 2^63"),
        (("train", "--lr", "inf"), "lr must be above 0, got inf"),
        (("train", "--lr", "nan"), "lr: nan is not a number"),
        (("train", "--steps", str(10**25), "--method", "ce"), "steps must be below 2^63"),
        (("train", "--epochs", "-5"), "epochs must be at least 1"),
        (("train", "--batch-size", str(2**63)), "batch_size must be below 2^63"),
        (("compare", "--seeds", "-1"), "seeds must be at least 1"),
        (("compare", "--jobs", "0"), "jobs must be from 1 to 1024"),
        (("compare", "--jobs", str(10**9)), "jobs must be from 1 to 1024"),
        (("demo", "--jobs", "9" * 400), "jobs must be from 1 to 1024"),
        (("eval", "--json", "--run", "9" * 150), "no complete run"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_numbers_on_the_command_line(cli: Cli, shared_work: Path, arguments: tuple[str, ...], message: str) -> None:
    before = tree(shared_work)
    force = ["--force"] if arguments[0] == "make-lt" else []
    outcome = cli(*arguments, "-w", shared_work, *force)
    assert message in " ".join(outcome.error.replace("│", " ").split())
    assert outcome.code == (3 if arguments[0] == "eval" else 2) and "Traceback" not in outcome.err
    assert tree(shared_work) == before
