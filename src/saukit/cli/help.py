"""How --help looks: plain text in the width of the terminal, in which no option name and no word is ever broken."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 100
NAMES = 30  # columns of the widest name that has its help beside it
NARROW = 60  # below, the help is under the names


def help_page(command: Any, context: typer.Context) -> str:
    """The whole page of a command or of the program: usage, description, examples, then a section per panel."""
    width = min(shutil.get_terminal_size().columns, WIDEST) - 1
    paragraphs, examples = description(command)
    lines = _wrapped(command.get_usage(context).split(), width, "", "    ")
    for paragraph in paragraphs:
        lines += ["", *_wrapped(paragraph.split(), width, "", "")]
    if examples:
        lines += ["", _heading("Examples:" if len(examples) > 1 else "Example:")]
        for example in examples:
            lines += _wrapped(example.split(" "), width, "  ", "      ")
    for title, rows in _sections(command, context).items():
        lines += ["", _heading(f"{title}:"), *_rows(rows, width)]
    if command.epilog:
        lines += ["", *_wrapped(command.epilog.split(), width, "", "")]
    return "\n".join(lines) + "\n"


def description(command: Any) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's docstring, and the command lines under its `Example:` or `Examples:`."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\nExample")
    return text.strip().split("\n\n"), [line.strip() for line in examples.splitlines()[1:] if line.strip()]


class Command(TyperCommand):
    """A command with this page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(help_page(self, ctx))


class Group(TyperGroup):
    """The program with this page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(help_page(self, ctx))


def _sections(command: Any, context: typer.Context) -> dict[str, list[tuple[str, str]]]:
    """Names and help of what a command takes, by panel, in the order of the first of each."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if (row := parameter.get_help_record(context)) is not None:
            panel = parameter.rich_help_panel or f"{parameter.param_type_name.capitalize()}s"
            found.setdefault(panel, []).append(_spelled(*row))
    for name in command.list_commands(context) if isinstance(command, TyperGroup) else ():
        found.setdefault("Commands", []).append((name, command.get_command(context, name).get_short_help_str(200)))
    return found


def _spelled(name: str, text: str) -> tuple[str, str]:
    """A name and its help in our own spelling: long lists of choices in the help, no brackets within brackets."""
    name = re.sub(r"<list\[(\w+)\]>", lambda found: f"<{found[1].lower()}>", name)
    text = re.sub(r"default: \((.+)\)(?=[;\]])", r"default: \1", text)
    option, _, choices = name.partition(" <")
    if len(name) > NAMES and "|" in choices:
        listed = f"one of: {choices[:-1].replace('|', ', ')}"
        name = f"{option} <choice>"
        text = text.replace("  [", f"  [{listed}; ", 1) if "  [" in text else f"{text}  [{listed}]"
    return name, text


def _rows(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    column = 4 if width < NARROW else 4 + min(NAMES, max(len(name) for name, _ in rows))
    for name, text in rows:
        beside = len(name) + 4 <= column
        lines = _wrapped(text.split(), width, " " * column, " " * column)
        if beside and lines:
            lines[0] = f"  {name}".ljust(column) + lines[0].lstrip()
        else:
            yield f"  {name}"
        yield from lines


def _wrapped(words: Sequence[str], width: int, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        " ".join(words), width, initial_indent=first, subsequent_indent=later, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _heading(text: str) -> str:
    return typer.style(text, bold=True)
