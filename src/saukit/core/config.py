"""Frozen dataclasses to YAML and back.

A configuration is the pure input of a stage. Its dataclass holds every default once; `config.yaml` holds the resolved
values, so that `--config` repeats a run.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from saukit.core.documents import START_OVER, read_yaml
from saukit.core.errors import CorruptArtifactError, SaukitError, UsageError
from saukit.core.words import shortened, shown
from saukit.core.writing import expected, intact

Config = TypeVar("Config")
LISTED = 20  # problems in a message
Amp = Literal["auto", "bf16", "fp16", "off"]  # the arithmetic of forward passes; device.resolve_amp resolves it


def to_mapping(config: object) -> dict[str, Any]:
    """The fields of a configuration dataclass as plain YAML-able values (tuples become lists)."""
    mapping = dataclasses.asdict(config)  # type: ignore[call-overload]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in mapping.items()}


def to_yaml(config: object) -> str:
    """A configuration as the text of its config.yaml, fields in the order of the dataclass."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True, width=120)


def from_mapping(config_type: type[Config], mapping: Mapping[str, Any], *, where: str) -> Config:
    """Build `config_type` from plain values.

    Raises: UsageError that lists every unknown field and every value of the wrong type.
    """
    return _built(config_type, mapping, lambda problems: UsageError(f"{where}: {problems}"))


def read_fields(config_type: type[Config], mapping: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of `mapping` that fit the fields of `config_type`, and what is wrong with each of the others."""
    hints = _hints(config_type)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    problems = [
        f"unknown field {shown(name)} (known: {', '.join(sorted(fields))})" for name in mapping if name not in fields
    ]
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in fields:
            continue
        try:
            values[name] = _coerce(value, hints[name])
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name}: {shown(value)} is not {_describe(hints[name])}{_quotes(value, hints[name])}")
    return values, problems


def load_config(
    config_type: type[Config],
    path: Path,
    *,
    fault: type[SaukitError] = UsageError,
    remedy: str = "give the config.yaml of an earlier run",
) -> Config:
    """Read a saved config.yaml.

    Raises: `fault`, with `remedy`, if the file is missing, is not a YAML mapping, or does not fit `config_type`.
    """
    mapping = read_yaml(path, fault=fault, remedy=remedy, missing=f"no configuration file {path}; {remedy}")
    if not isinstance(mapping, dict):
        raise fault(f"{path} holds no mapping of field names to values; {remedy}")
    end = "" if fault is UsageError else f"; {remedy}"
    return _built(config_type, mapping, lambda problems: fault(f"{path}: {problems}{end}"))


def load_saved(config_type: type[Config], path: Path) -> Config:
    """Read the config.yaml of an artefact. Raises: CorruptArtifactError as `load_config`, or for one that was changed
    while the artefact is unfinished."""
    if expected(path) and path.exists() and not intact(path):
        raise CorruptArtifactError(f"{path} was changed after it was written: {START_OVER}")
    return load_config(config_type, path, fault=CorruptArtifactError, remedy=START_OVER)


def differences(old: object, new: object) -> list[str]:
    """One line a field that differs between two configurations of the same type: `epochs: 200 -> 50`."""
    before, after = to_mapping(old), to_mapping(new)
    return [
        f"{name}: {shown(before.get(name))} -> {shown(after[name])}"
        for name in after
        if before.get(name) != after[name]
    ]


@functools.cache
def _hints(config_type: type[Any]) -> dict[str, Any]:
    """The types of the fields: evaluating their annotations takes longer than reading a file."""
    return typing.get_type_hints(config_type)


def _built(config_type: type[Config], mapping: Mapping[Any, Any], error: Callable[[str], SaukitError]) -> Config:
    values, problems = read_fields(config_type, mapping)
    hints = _hints(config_type)  # type: ignore[arg-type]
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        may_be_none = hints[field.name] is Any or type(None) in typing.get_args(hints[field.name])
        left_open = field.default is None and not may_be_none  # by the base of a resolved type
        if field.name not in mapping and (left_open or field.default is field.default_factory is dataclasses.MISSING):
            problems.append(f"{field.name} is missing")
    if problems:
        raise error(shortened(problems, "; ", limit=LISTED))
    return config_type(**values)


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; raises TypeError or ValueError if it is none."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for choice in arguments:
            try:
                return _coerce(value, choice)
            except (TypeError, ValueError, OverflowError):
                continue
        raise TypeError
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | origin):
            raise TypeError
        return origin(_coerce(item, arguments[0]) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError
        return {_coerce(key, arguments[0]): _coerce(item, arguments[1]) for key, item in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value)  # YAML 1.1 reads 5e-4 as a string
        if math.isnan(number):
            raise ValueError
        return number
    if (hint is bool or not isinstance(value, bool)) and isinstance(value, hint):
        return value
    raise TypeError


def _quotes(value: Any, hint: Any) -> str:
    """The fix where YAML made a number or a bool of what was to be text: alone, in a list, or as a mapping's key."""
    kind = tuple if isinstance(value, list) else dict if isinstance(value, dict) else None
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if is_union else (hint,)
    texts = [choice if kind is None else typing.get_args(choice)[0] for choice in choices
             if kind is typing.get_origin(choice)]  # fmt: skip
    parts = [value] if kind is None else [*value]
    if str not in texts or not any(isinstance(part, int | float) for part in parts):
        return ""
    return "; text that looks like a number or yes needs quotes: YAML reads 01 without them as 1"


def _describe(hint: Any) -> str:
    """The type `hint` in words, for messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if choice is type(None) else _describe(choice) for choice in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Any: "any value"}
    if origin in (tuple, list):
        return "a list, each " + _describe(arguments[0])
    if origin is dict:
        return f"a mapping of {_describe(arguments[0])} to {_describe(arguments[1])}"
    return names.get(hint, str(hint))
