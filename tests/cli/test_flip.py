"""Where left and right are classes: `make-lt --no-flip` reaches every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Cli

from saukit.core.workspace import Workspace
from saukit.data.split import load_split
from saukit.synthesis.generators import diffusion_training

Pictures = Callable[..., Path]


@pytest.mark.parametrize(("given", "expected"), [((), True), (("--no-flip",), False), (("--flip",), True)], ids=str)
def test_flip_is_a_property_of_the_split(
    cli: Cli, pictures: Pictures, tmp_path: Path, given: tuple[str, ...], expected: bool
) -> None:
    make = ("make-lt", "--dataset", "folder", "--root", pictures({"left": 8, "right": 4}), "-w", tmp_path / "w")
    made = cli(*make, *given, "--json").document
    assert made["config"]["flip"] is made["flip"] is load_split(Workspace(tmp_path / "w")).flip is expected
    plan = cli("train", "--method", "ce", "--steps", "1", "-w", tmp_path / "w", "--dry-run", "--json").document
    assert plan["config"]["flip"] is expected
    again = cli(*make, "--no-flip" if expected else "--flip")
    assert again.code == 2 and f"flip: {expected} -> {not expected}" in again.error


def test_no_flip_reaches_the_generator_and_the_search_for_copies(
    cli: Cli, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Spy(diffusion_training.TrainingImages):
        def __init__(self, *arguments: Any, flip: bool, **others: Any) -> None:
            seen.append(flip)
            super().__init__(*arguments, flip=flip, **others)

    monkeypatch.setattr(diffusion_training, "TrainingImages", Spy)
    root, work = pictures({"left": 4, "right": 2}, size=8), tmp_path / "w"
    assert cli("make-lt", "--dataset", "folder", "--root", root, "--no-flip", "-w", work).code == 0
    micro = ("--train-steps", "1", "--train-batch-size", "2", "--sampler-steps", "2", "--preflight", "0")
    cache = cli("synth", *micro, "-w", work, "--json")
    assert cache.code == 0, cache
    assert set(seen) == {False} and cache.document["audit"]["memorisation"]["mirrored"] is False


def test_digits_are_not_mirrored_unless_asked(cli: Cli, tmp_path: Path) -> None:
    flips = [
        cli("make-lt", "--counts", "1=5", *given, "-w", tmp_path / "w", "--dry-run", "--json").document["config"][
            "flip"
        ]
        for given in ((), ("--flip",))
    ]
    assert flips == [False, True]
