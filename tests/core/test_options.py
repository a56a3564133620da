"""One place per option: limits, needs and presets out of a field's metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saukit.core.config import from_mapping
from saukit.core.errors import UsageError
from saukit.core.options import (
    at_home,
    check,
    displaced,
    excluded,
    option,
    options_of,
    preset_fields,
    resolved_as,
    without_effect,
)
from saukit.data.config import SplitConfig
from saukit.synthesis.config import SynthConfig
from saukit.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: str = option("plain", "Kind.")
    preset: str = option("auto", "Preset.")
    size: int | None = option(None, "Size.", preset=True, least=2, most=9, note="pixels")
    share: float = option(0.5, "Share.", above=0, below=1)
    long: int | None = option(None, "Length.", excludes=("short",), preset=True)
    short: int | None = option(None, "Length, another way.")
    model: str | None = option(None, "Model.", displaces=("share",))
    judge: bool = option(False, "Judge.")
    bound: float = option(0.0, "Bound.", needs={"kind": ("fancy", "very fancy")})
    scale: float = option(1.0, "Scale.", needs={"model": True})
    steps: int = option(5, "Steps.", needs=({"model": None}, {"kind.trains": True}))
    either: int = option(0, "Either.", needs={"judge": True, "kind": "fancy"})
    needy: int = option(0, "Needy.", needs={"size": 2})


@dataclass(frozen=True, kw_only=True)
class Resolved(Config):
    size: int


@dataclass(frozen=True)
class Row:
    trains: bool


TABLES = {"kind": {"plain": Row(True), "fancy": Row(False), "third": Row(True)}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 1}, "size must be at least 2 and at most 9 (pixels), got 1"),
        ({"size": 10}, "size must be at least 2 and at most 9 (pixels), got 10"),
        ({"share": 0.0}, "share must be above 0 and below 1, got 0.0"),
        ({"share": float("nan")}, "share must be above 0 and below 1, got nan"),
        ({"long": 1, "short": 2}, "give long or short, not both"),
        ({"bound": 0.5}, "bound has no effect with kind plain: use kind fancy or very fancy, or leave it out"),
        ({"scale": 2.0}, "scale has no effect without model: set model, or leave it out"),
        ({"steps": 7, "model": "m"}, "steps has no effect with model: leave one of them out"),
        (
            {"steps": 7, "kind": "fancy"},
            "steps has no effect with kind fancy: use kind plain or third, or leave it out",
        ),
        ({"either": 1}, "either has no effect without judge or kind fancy: set one of them, or leave it out"),
    ],
)
def test_a_value_is_refused_with_the_fix(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(Config(**fields), tables=TABLES)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "fields",
    [{}, {"size": 2}, {"size": 9}, {"share": 0.999}, {"kind": "fancy", "bound": 0.5}, {"model": "m", "scale": 2.0},
     {"steps": 7}, {"judge": True, "either": 1}, {"kind": "fancy", "either": 1}],
)  # fmt: skip
def test_what_makes_sense_passes(fields: dict[str, Any]) -> None:
    check(Config(**fields), tables=TABLES)


def test_columns_of_a_table_that_is_not_there_are_passed_over() -> None:
    assert without_effect(Config(steps=7, kind="fancy")) == {}
    assert list(without_effect(Config(steps=7, kind="fancy"), TABLES)) == ["steps"]


def test_a_need_of_what_a_preset_has_yet_to_fill_in_is_passed_over() -> None:
    assert without_effect(Config(needy=1)) == {}
    assert list(without_effect(Resolved(size=3, needy=1))) == ["needy"]
    assert without_effect(Resolved(size=2, needy=1)) == {}


def test_every_problem_is_listed_and_others_come_last() -> None:
    with pytest.raises(UsageError, match=r"^size must .*; share must .*; bound has .*; and this$"):
        check(Config(size=1, share=2.0, bound=1.0), "and this", tables=TABLES)


def test_what_an_option_replaces_in_a_file() -> None:
    assert preset_fields(Config) == ("size", "long")
    assert displaced(Config, "preset") == {"size", "long"}
    assert displaced(Config, "model") == {"share"}
    assert displaced(Config, "short") == excluded(Config, "short") == {"long"}
    assert displaced(Config, "long") == {"short"}
    assert displaced(Config, "kind") == displaced(Config, "unknown") == set()


def test_a_resolved_type_has_the_options_of_its_base_and_its_open_fields_filled() -> None:
    assert options_of(Resolved) == options_of(Config)
    found = resolved_as(Resolved, Config(short=3, preset="auto"), {"size": 4, "preset": "small", "share": 0.1})
    assert (found.size, found.preset, found.share, found.short) == (4, "small", 0.5, 3)
    with pytest.raises(UsageError, match=r"^size must be"):
        check(Resolved(size=1))


def test_a_tilde_is_the_home_folder_in_every_option_that_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    paths = set()
    kinds: tuple[Any, ...] = (SplitConfig, SynthConfig, TrainConfig)
    for config_type in kinds:
        for name, entry in options_of(config_type).items():
            if entry.path:
                paths.add(name)
                given = from_mapping(config_type, {name: "~/x"}, where="here")  # as --config and the command line do
                made = config_type(**{name: "~/x"})  # as Python does
                assert getattr(given, name) == getattr(made, name) == "/home/someone/x"
                assert getattr(config_type(**{name: "~nobody-of-that-name/x"}), name) == "~nobody-of-that-name/x"
            elif re.search(r"(?i)(?<![=\w])(file|folder)\b", entry.help) and name not in (
                "dataset",
                "generator",
                "test_dir",
            ):
                pytest.fail(f"{name} may be a path: {entry.help}")
    assert paths >= {"weights", "train_list", "class_names", "model", "prompts", "lora", "from_folder", "inception"}
    assert at_home([Path("~/a"), Path("b")]) == [Path("/home/someone/a"), Path("b")]
    assert at_home("a/~") == "a/~"
