"""How the fields of a configuration become options of a command, and what all commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from saukit.core.config import from_mapping, load_config
from saukit.core.console import Reporter
from saukit.core.interrupts import StopRequest
from saukit.core.options import EMPTY, Option, Tables, at_home, displaced, idle, options_of, without_effect
from saukit.core.ranks import job_rank
from saukit.core.words import DEFAULT_WORKSPACE

if TYPE_CHECKING:
    import torch

    from saukit.core.workspace import Workspace

Config = TypeVar("Config")
COMMON = "Common options"


def _common(kind: Any, default: Any, *flags: str, **facts: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*flags, rich_help_panel=COMMON, **facts)], default


# In the order of the help; a command leaves out those that mean nothing to it.
COMMON_OPTIONS: dict[str, tuple[Any, Any]] = {
    "workspace": _common(
        Path, DEFAULT_WORKSPACE, "--workspace", "-w", envvar="SAUKIT_WORKSPACE",
        help="Folder of one split and all made from it.",
    ),
    "config": _common(Path | None, None, "--config", help="A saved config.yaml; options given here win."),
    "device": _common(str, "auto", help="auto, cpu, cuda, cuda:0, mps, xpu or xpu:0."),
    "dry_run": _common(bool, False, "--dry-run", help="Show what would be done; write nothing."),
    "force": _common(bool, False, "--force", help="Replace what an earlier command made."),
    "json": _common(bool, False, "--json", help="One JSON document on stdout, all else on stderr."),
    "quiet": _common(bool, False, "--quiet", "-q", help="Only warnings and errors."),
    "debug": _common(bool, False, "--debug", help="Show the traceback of an error."),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A command as it was called: its common options, and what is opened from them when first asked for."""

    context: typer.Context
    reporter: Reporter
    workspace_path: Path = DEFAULT_WORKSPACE
    device_name: str = "auto"
    file: Path | None = None
    dry_run: bool = False
    force: bool = False
    json: bool = False
    quiet: bool = False

    @functools.cached_property
    def workspace(self) -> Workspace:
        """The workspace. Raises: UsageError if its path is a file, or one of its artefacts."""
        from saukit.core.artifacts import CONFIG_NAME, MANIFEST_NAME
        from saukit.core.errors import UsageError
        from saukit.core.workspace import Workspace

        path = self.workspace_path
        if path.exists() and not path.is_dir():
            kind = "a file" if path.is_file() else "not a folder"
            raise UsageError(f"the workspace {path} is {kind}: give a folder as --workspace")
        if (path / MANIFEST_NAME).exists() and (path / CONFIG_NAME).exists():
            raise UsageError(f"the workspace {path} is a split, cache, run or comparison: give the one it lies in")
        return Workspace(path)

    @functools.cached_property
    def device(self) -> torch.device:
        """The device, and this process ready for it. Loads torch."""
        from saukit.core import device

        return device.open_device(self.device_name)

    def was_given(self, name: str) -> bool:
        """Whether a parameter came from the command line or the environment."""
        source = self.context.get_parameter_source(name)
        return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")

    def given(self, config_type: Any) -> dict[str, Any]:
        """The fields of `config_type` that were given as options, parsed."""
        values = {}
        for name, entry in options_of(config_type).items():
            if name in self.context.params and self.was_given(name):
                value = self.context.params[name]
                values[name] = value if entry.parse is None else entry.parse(value)
        return values

    def show_plan(
        self,
        command: str,
        config: object,
        rows: Mapping[str, object],
        *,
        document: Mapping[str, Any],
        tables: Tables = EMPTY,
    ) -> None:
        """What --dry-run found out: what is set and has an effect, then `rows` as a table of facts.

        tables: those of the configuration's needs (`core.options.idle`). The JSON document has the whole configuration,
        and `document`.
        """
        from saukit.core.config import to_mapping, to_yaml

        self.reporter.result(f"{command} would use this configuration; nothing is written:")
        lines, hidden = to_yaml(config).splitlines(), idle(config, tables)
        shown = [line for line in lines if not line.endswith(": null") and line.partition(":")[0] not in hidden]
        self.reporter.result("\n".join(shown))
        facts = [[name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in rows.items()]
        if facts:
            self.reporter.table(f"{command} --dry-run", ["what", "here"], facts, text_columns=2)
        self.reporter.document({"dry_run": True, "config": to_mapping(config), **document})


def stage_command(
    config_type: Any = None,
    *,
    without: Collection[str] = (),
    others: Sequence[inspect.Parameter] = (),
    every_process: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function `(call, [config,] own options...)`.

    The options are the function's own, in its order, with the fields of `config_type` where its parameter `config`
    stands, then `others`, which `call.given` reads, and the common ones but `without`. Under torchrun the first process
    does the work, and the others end, unless it is a command of `every_process`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        own = inspect.signature(function, eval_str=True).parameters
        for name, parameter in own.items():
            if name == "config":
                parameters += field_parameters(config_type)
            elif name != "call":
                parameters.append(parameter)
        common = [name for name in COMMON_OPTIONS if name not in without]
        parameters += [*others, *(_parameter(name, *COMMON_OPTIONS[name]) for name in common)]

        @functools.wraps(function)
        def command(context: typer.Context, **given: Any) -> None:
            given = {name: value if isinstance(value, str) else at_home(value) for name, value in given.items()}
            shared = {name: given[name] for name in common}
            call = Call(
                context=context,
                reporter=Reporter(quiet=shared["quiet"], json_output=shared["json"]),
                workspace_path=shared.get("workspace", DEFAULT_WORKSPACE),
                device_name=shared.get("device", "auto"),
                file=shared.get("config"),
                **{name: shared[name] for name in ("dry_run", "force", "json", "quiet") if name in shared},
            )
            extra = {name: value for name, value in given.items() if name in own and name not in ("call", "config")}
            if config_type is not None:
                extra["config"] = build_config(config_type, call.given(config_type), call.file)
            if job_rank() > 0 and not (every_process and not call.dry_run):
                return
            with StopRequest(at_once="the same command"):
                function(call, **extra)

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        command.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        return command

    return decorate


def field_parameters(
    config_type: Any, names: Collection[str] | None = None, *, panel: str | None = None
) -> list[inspect.Parameter]:
    """The fields of a configuration as parameters of a command; `names` are some of them, `panel` one for them all."""
    hints = typing.get_type_hints(config_type)
    return [
        _parameter(name, *_annotated(name, hints[name], getattr(config_type, name), entry, panel or entry.panel))
        for name, entry in options_of(config_type).items()
        if not entry.file_only and (names is None or name in names)
    ]


def build_config(
    config_type: type[Config],
    given: Mapping[str, Any],
    file: Path | None,
    *,
    load: Callable[[type[Config], Path], Config] = load_config,
) -> Config:
    """The configuration of a command: defaults, then `file`, then the options that were given.

    An option replaces what the file says in its place another way: `--epochs` the file's `steps`, a preset the values
    that the file's own preset filled in, `--filter none` the bounds of the file's filter.
    Raises: UsageError for a bad value, and for a bad file as `load` says.
    """
    if file is None:
        return from_mapping(config_type, given, where="options")
    base = load(config_type, file)
    gone = {field for name in given for field in displaced(config_type, name)}
    fields = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    kept = {name: getattr(config_type if name in gone else base, name) for name in fields}
    config = from_mapping(config_type, {**kept, **given}, where="options")
    lost = without_effect(config).keys() - without_effect(base).keys() - given.keys()
    return dataclasses.replace(config, **{name: getattr(config_type, name) for name in lost})  # type: ignore[type-var]


def _annotated(name: str, hint: Any, default: Any, entry: Option, panel: str | None) -> tuple[Any, Any]:
    flag = f"--{name.replace('_', '-')}"
    kind = typing.get_args(hint)[0] if type(None) in typing.get_args(hint) and len(typing.get_args(hint)) == 2 else hint
    flags = entry.flags or ((f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,))
    shown = entry.shown or ("from the preset" if entry.preset else None)
    facts: dict[str, Any] = {} if shown is None else {"show_default": shown}
    if entry.metavar is not None:
        facts["metavar"] = entry.metavar
    if entry.cli_type is not None:
        hint, default = entry.cli_type, None
    return Annotated[hint, typer.Option(*flags, help=entry.help, rich_help_panel=panel, **facts)], default


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
