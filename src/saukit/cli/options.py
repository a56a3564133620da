"""What every command shares: its common options, and how options and a saved config.yaml become one configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from saukit.core.config import from_mapping, load_config
from saukit.core.console import Reporter

if TYPE_CHECKING:
    import torch

    from saukit.core.workspace import Workspace

Config = TypeVar("Config")
COMMON = "Common options"
DEFAULT_WORKSPACE = Path("saukit_work")

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        envvar="SAUKIT_WORKSPACE",
        help="Folder of one split and all made from it.",
        rich_help_panel=COMMON,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="A saved config.yaml; options given here win.", rich_help_panel=COMMON),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.", rich_help_panel=COMMON)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done; write nothing.", rich_help_panel=COMMON)
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace what an earlier command made.", rich_help_panel=COMMON)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.", rich_help_panel=COMMON)
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.", rich_help_panel=COMMON)]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=COMMON)]


def build_config(
    context: typer.Context,
    config_type: type[Config],
    file: Path | None,
    *,
    displaces: Mapping[str, Sequence[str]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of a command: defaults, then `file`, then the options that were given.

    `displaces` maps an option to the fields of `file` that it replaces by their defaults: `--epochs` wins over the
    file's `steps`, and a preset over the values that the file's own preset filled in. `extra` holds fields that were
    given by options of other names.
    Raises: UsageError for a bad file or a value of the wrong type.
    """
    names = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    given = {name: value for name, value in context.params.items() if name in names and was_given(context, name)}
    base: Config = config_type() if file is None else load_config(config_type, file)
    gone = {field for name in given for field in (displaces or {}).get(name, ())}
    values = {field: getattr(config_type if field in gone else base, field) for field in names} | given
    values |= extra or {}
    return from_mapping(config_type, values, where="options")


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter came from the command line or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def open_workspace(path: Path) -> Workspace:
    """The workspace at `path`. Raises: UsageError if that is a file."""
    from saukit.core.errors import UsageError
    from saukit.core.workspace import Workspace

    if path.exists() and not path.is_dir():
        raise UsageError(f"the workspace {path} is a file: give a folder as --workspace")
    return Workspace(path)


def open_device(name: str) -> torch.device:
    """As `core.device.open_device`, which loads torch."""
    from saukit.core import device

    return device.open_device(name)


@dataclass(frozen=True)
class DryRun:
    """What --dry-run found out; `show` prints it as lines or as the JSON document."""

    command: str
    config: object
    facts: dict[str, Any]

    def show(self, reporter: Reporter) -> None:
        """Print the resolved configuration, then the facts."""
        from saukit.core.config import to_mapping, to_yaml

        reporter.result(f"{self.command} would use this configuration; nothing is written:")
        reporter.result(to_yaml(self.config).rstrip())
        for name, value in self.facts.items():
            reporter.result(f"{name.replace('_', ' ')}: {value}")
        reporter.document({"dry_run": True, "config": to_mapping(self.config), **self.facts})
