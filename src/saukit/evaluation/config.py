"""The configurations of `saukit eval` and `compare`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from saukit.core.config import from_mapping, read_fields
from saukit.core.errors import UsageError
from saukit.core.options import excluded, option, split_commas
from saukit.core.words import name_problem
from saukit.training.config import Method, TrainConfig, default_run_name, tags

Selection = Literal["all", "many", "medium", "few"]

DEFAULT_COMPARISON = "main"
GRAMMAR = "METHOD[+synth][-priorTAU][-weightW][-finishSHARE][-smoothSHARE]"
_NUMBERS = {tag: field for field, tag in tags().items()}
IN_A_SPEC = ("method", "synthetic", *_NUMBERS.values())  # the fields that a method's spec says
_SPEC = re.compile(
    rf"(?P<method>{'|'.join(map(re.escape, get_args(Method)))})(?P<synth>\+synth)?"
    + "".join(rf"(?:-{word}(?P<{field}>\d+(?:\.\d+)?(?:e[+-]?\d+)?))?" for word, field in _NUMBERS.items())
)


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation. `run` None is the run completed last; `split` is the part of the test set that is shown."""

    run: str | None = option(None, "Name of the run.", shown="the one completed last")
    split: Selection = option("all", "Which shot group to show.")
    suspects: bool = option(False, "List real images whose label is probably wrong.", flags=("--suspects",))


def parse_method(spec: str) -> TrainConfig:
    """The training run that a spec such as `sau+synth-prior0.75` stands for: a run's default name without its seed.

    Without +synth it is trained on real images alone, whether there is a cache or not.
    Raises: UsageError that lists the methods, or says how the spec is written.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"unknown method {spec!r}: {GRAMMAR}, where METHOD is one of {', '.join(get_args(Method))}")
    numbers = {field: match[field] for field in _NUMBERS.values() if match[field] is not None}
    said = {"method": match["method"], "synthetic": match["synth"] is not None, **numbers}
    config = from_mapping(TrainConfig, said, where=spec)
    if config.prior_correction == 0:
        config = replace(config, prior_correction=None)  # no prior has one name
    if (written := default_run_name(config)) != spec:
        raise UsageError(f"method {spec!r}: write {written!r}, which is what its runs are called")
    return config


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a training run with others over them, which replace what says the same another way (epochs, steps)."""
    gone = {other for name, value in over.items() if value is not None for other in excluded(TrainConfig, name)}
    return {name: value for name, value in base.items() if name not in gone} | dict(over)


def _check_methods(methods: tuple[str, ...]) -> list[str]:
    problems = []
    for spec in dict.fromkeys(methods):
        try:
            parse_method(spec)
        except UsageError as error:
            problems.append(f"methods: {error}")
        if methods.count(spec) > 1:
            problems.append(f"methods: {spec!r} is there {methods.count(spec)} times")
    return problems


def _check_variants(variants: dict[str, Any] | None) -> list[str]:
    problems = []
    for label, fields in (variants or {}).items():
        if (problem := name_problem("variants: label", label)) is not None:
            problems.append(problem)
        if not isinstance(fields, dict):
            problems.append(f"variants.{label}: {fields!r} is not a mapping of fields of a training run to values")
            continue
        problems += [f"variants.{label}: {problem}" for problem in read_fields(TrainConfig, fields)[1]]
        if "seed" in fields:
            problems.append(f"variants.{label}: seed: a comparison has its own, by `seeds`")
    return problems


def _check_train(train: dict[str, Any] | None) -> list[str]:
    problems = [f"train: {problem}" for problem in read_fields(TrainConfig, train or {})[1]]
    problems += [
        f"train: {name}: each of `methods` says its own ({GRAMMAR}), and `variants` may"
        for name in train or {}
        if name in IN_A_SPEC
    ]
    return problems + (["train: seed: a comparison has its own, by `seeds`"] if "seed" in (train or {}) else [])


@dataclass(frozen=True)
class CompareConfig:
    """A comparison: every method of `methods` (specs) and `variants`, each trained with the seeds 0 to `seeds` - 1.

    `train` holds fields of TrainConfig that all share. `variants` maps labels to fields that are laid over those; a
    variant without `synthetic` is trained on real images alone, as a method without +synth is. Differences are to the
    label `baseline`; None is the first.
    """

    methods: tuple[str, ...] = option(
        (),
        f"{GRAMMAR}, separated by commas: methods of train; +synth: on synthetic images too.",
        cli_type=str,
        parse=split_commas,
        check=_check_methods,
    )
    variants: dict[str, Any] | None = option(None, "Labels and their fields.", file_only=True, check=_check_variants)
    seeds: int = option(5, "Runs per method, with the seeds 0, 1, ...", least=1, note="runs per method")
    baseline: str | None = option(None, "The method that the others are compared with.", shown="the first")
    train: dict[str, Any] | None = option(None, "Fields that all share.", file_only=True, check=_check_train)
