"""One place per option: a field of a configuration carries its help, its limits, and when it has an effect.

    noise: Noise = option("pos_neg", "What happens to synthetic images whose label is not trusted.",
                          needs={"method": ("sau", "sau-aware")})

The command line (`saukit.cli.options`), the checks and their messages, and the fields that a preset fills in are all
made from it.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saukit.core.errors import UsageError
from saukit.core.words import is_text, shown

T = TypeVar("T")
MOST = 2**63  # no whole number that an array can hold
KEY = "option"  # of a field's metadata
# What another field, or one of several, has to be: a value, a tuple of values, True (set) or None (not set). The key
# "method.two_stages" is a column of the table "method", in the row that the field `method` names.
Needs = Mapping[str, Any]
Tables = Mapping[str, Mapping[Any, Any]]
EMPTY: Tables = {}


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its type and default.

    `off` is what switches a field off that a preset fills in.
    `least` and `most` are inclusive limits, `above` and `below` exclusive ones; `note` follows them in the message.
    `shown` is the default that the help shows where the field's own is None. `preset`: None means "from the preset".
    `needs`: each of these has to hold for the option to have an effect. `excludes`: options that say the same thing
    another way; `displaces`: what it replaces in a file given with --config. `tag` names it in a run's name.
    `reselects`: it changes which images are kept, not which are sampled. `flags`, `cli_type`, `parse` and `metavar`
    shape the command line's option where the field's name and type do not; `file_only`: there is none, the field is
    given in a file. `path`: a file or a folder, or a name instead of one; `~` is the home folder. `check` returns
    problems with a value.
    """

    help: str
    panel: str | None = None
    shown: str | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    note: str = ""
    preset: bool = False
    off: Any = False
    needs: tuple[Needs, ...] = ()
    excludes: tuple[str, ...] = ()
    displaces: tuple[str, ...] = ()
    tag: str | None = None
    reselects: bool = False
    flags: tuple[str, ...] = ()
    cli_type: Any = None
    file_only: bool = False
    parse: Callable[[Any], Any] | None = None
    metavar: str | None = None
    path: bool = False
    check: Callable[[Any], list[str]] | None = None

    def problems(self, name: str, value: Any) -> Iterator[str]:
        """What is wrong with a value of the right type."""
        if value is None:
            return
        if self.check is not None:
            yield from self.check(value)
        if isinstance(value, int) and abs(value) >= MOST:
            yield f"{name} must be below 2^63, got {shown(value)}"
        elif isinstance(value, int | float) and not isinstance(value, bool) and not self._within(value):
            yield f"{name} must be {self._range()}{self.note and f' ({self.note})'}, got {value}"

    def _within(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        parts = [
            f"{word} {limit:g}" if abs(limit) < 1e6 else f"{word} {limit:.0f}"
            for word, limit in (
                ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below),
            )
            if limit is not None
        ]  # fmt: skip
        return " and ".join(parts) or "finite"


def option(default: T, help: str, *, needs: Needs | Sequence[Needs] = (), **facts: Any) -> T:
    """A field of a configuration that is an option of its command; `facts` are those of `Option`."""
    required = (needs,) if isinstance(needs, Mapping) else tuple(needs)
    return dataclasses.field(default=default, metadata={KEY: Option(help, needs=required, **facts)})


class Paths:
    """A configuration in which `~` is the home folder, wherever its values come from.

    Raises: UsageError for a path that config.yaml cannot hold, or that no system takes.
    """

    def __post_init__(self) -> None:
        for name, entry in options_of(type(self)).items():
            if entry.path and getattr(self, name) is not None:
                path = at_home(getattr(self, name))
                if not is_text(path):
                    raise UsageError(f"{name} {shown(str(path))} is not UTF-8, as config.yaml has to be: rename it")
                object.__setattr__(self, name, path)


def at_home(path: T) -> T:
    """A path, as text or not, with the home folder for a `~` at its start; paths in a list too; all else as it is.

    Raises: UsageError for a path that no system takes.
    """
    if isinstance(path, list):
        return [at_home(one) for one in path]  # type: ignore[return-value]
    if isinstance(path, str | Path) and "\0" in str(path):
        raise UsageError(f"{shown(str(path))} is not a path: it holds a NUL")
    if isinstance(path, str | Path) and str(path).startswith("~"):
        return type(path)(os.path.expanduser(str(path)))  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    return path


def options_of(config_type: Any) -> dict[str, Option]:
    """The options among a configuration's fields, in the order of its help; a resolved type has those of its base."""
    found = {}
    for kind in reversed(config_type.__mro__):
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            if KEY in field.metadata:
                found[field.name] = field.metadata[KEY]
    return found


def split_commas(text: str) -> tuple[str, ...]:
    """The parts of an option that takes several values in one word."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def preset_fields(config_type: Any) -> tuple[str, ...]:
    """The fields that a preset fills in."""
    return tuple(name for name, entry in options_of(config_type).items() if entry.preset)


def displaced(config_type: Any, name: str) -> set[str]:
    """The fields of a file that the option `name` on the command line replaces by their defaults."""
    entries = options_of(config_type)
    if name not in entries:
        return set()
    gone = {*entries[name].displaces, *excluded(config_type, name)}
    return gone | set(preset_fields(config_type)) if name == "preset" else gone


def excluded(config_type: Any, name: str) -> set[str]:
    """The fields that say what the field `name` says, another way."""
    entries = options_of(config_type)
    return {*entries[name].excludes, *(other for other, entry in entries.items() if name in entry.excludes)}


def idle(config: Any, tables: Tables = EMPTY) -> dict[str, Needs]:
    """The fields that have no effect beside the others, each with what it needs and lacks.

    Needs that are columns of a table are passed over where that is not among `tables`, and needs of a field that a
    preset has yet to fill in.
    """
    found: dict[str, Needs] = {}
    entries = options_of(type(config))
    unfilled = {name for name, entry in entries.items() if entry.preset and getattr(config, name) is None}
    for name, entry in entries.items():
        for needs in entry.needs:
            known = {
                key: need
                for key, need in needs.items()
                if key not in unfilled and ("." not in key or key.split(".")[0] in tables)
            }
            if known and not any(_holds(_look_up(config, key, tables), wanted) for key, wanted in known.items()):
                found[name] = known
                break
    return found


def without_effect(config: Any, tables: Tables = EMPTY) -> dict[str, str]:
    """The fields that are not at their defaults and have no effect (`idle`): why, and the fix."""
    entries, found = options_of(type(config)), {}
    for name, needs in idle(config, tables).items():
        value, entry = getattr(config, name), entries[name]
        # At its default, or what a preset leaves off.
        if value not in (getattr(type(config), name), None) and not (entry.preset and value == entry.off):
            found[name] = f"{name} has no effect {_reason(config, needs, tables)}"
    return found


def check(config: Any, *others: str, tables: Tables = EMPTY) -> None:
    """Raises: UsageError that lists every value out of its limits, every one without effect, and `others`."""
    entries = options_of(type(config))
    problems = [problem for name, entry in entries.items() for problem in entry.problems(name, getattr(config, name))]
    for name, entry in entries.items():
        problems += [
            f"give {name} or {other}, not both"
            for other in entry.excludes
            if getattr(config, name) is not None and getattr(config, other) is not None
        ]
    problems += [*without_effect(config, tables).values(), *others]
    if problems:
        raise UsageError("; ".join(problems))


def resolved_as(resolved_type: type[T], config: Any, values: Mapping[str, Any]) -> T:
    """`config` as its resolved type: `values` for its open fields, those that are None or "auto"."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields |= {name: value for name, value in values.items() if fields[name] in (None, "auto")}
    return resolved_type(**fields)


def _look_up(config: Any, key: str, tables: Tables) -> Any:
    name, _, column = key.partition(".")
    value = getattr(config, name)
    return getattr(tables[name][value], column) if column else value


def _holds(value: Any, wanted: Any) -> bool:
    if wanted is True:
        return bool(value)
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def _reason(config: Any, needs: Needs, tables: Tables) -> str:
    if len(needs) > 1:
        wanted = [other if value is True else f"{other} {_listed(value)}" for other, value in needs.items()]
        return f"without {' or '.join(wanted)}: set one of them, or leave it out"
    ((key, value),) = needs.items()
    name, _, column = key.partition(".")
    if column:
        rows = tables[name].items()
        choices: Any = tuple(row for row, entry in rows if _holds(getattr(entry, column), value))
        return f"with {name} {getattr(config, name)}: use {name} {_listed(choices)}, or leave it out"
    if value is True:
        return f"without {name}: set {name}, or leave it out"
    if value is None:
        return f"with {name}: leave one of them out"
    return f"with {name} {getattr(config, name)}: use {name} {_listed(value)}, or leave it out"


def _listed(wanted: Any) -> str:
    values = [str(value) for value in (wanted if isinstance(wanted, tuple) else (wanted,))]
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
