"""What mkdocs adds to this folder: the reference, from commands and configurations, and equations as MathML."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main
from rich.text import Text
from typer.utils import get_params_from_function

import saukit
from saukit.cli.help import description
from saukit.cli.main import app
from saukit.core.options import options_of

REPOSITORY = Path(__file__).parents[1]


def command_reference() -> str:
    """The page `cli.md`: every command with its examples, and every option with its values, default and help."""
    group: Any = typer.main.get_command(app)
    functions = {str(info.name): info.callback for info in app.registered_commands if info.callback}
    lines = ["# Commands", "", group.help, "", "| command | what it does |", "|---|---|"]
    for name, command in group.commands.items():
        lines.append(f"| [`{name}`](#{name}) | {_plain(command.help.splitlines()[0])} |")
    lines += ["", "Exit codes and files: [Artefacts and exit codes](artefacts.md).", ""]
    for name, command in group.commands.items():
        types = {name: meta.annotation for name, meta in get_params_from_function(functions[name]).items()}
        paragraphs, examples = description(command)
        lines += ["", f"## {name}", "", "\n\n".join(paragraphs), "", "```bash", *examples, "```", ""]
        lines += _parameters(command, types)
    return "\n".join(lines) + "\n"


def _parameters(command: Any, types: dict[str, Any]) -> Iterator[str]:
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not parameter.hidden:
            panel = parameter.rich_help_panel or ("Options" if _is_option(parameter) else "Arguments")
            panels.setdefault(panel, []).append(parameter)
    for panel, parameters in panels.items():
        yield from (f"**{panel}**", "")
        for parameter in parameters:
            value = parameter.metavar or _type_name(types[parameter.name])
            default = _default(parameter)
            notes = [_plain(value)] if value else []
            notes += [default if default == "required" else f"default: {_plain(default)}"] if default else []
            yield from (" · ".join((_spelled(parameter), *notes)), f":   {_plain(parameter.help or '')}", "")


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _spelled(parameter: Any) -> str:
    return " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _type_name(annotation: Any) -> str:
    """How a value is written: the choices, `int`, `path`, ...; nothing for a flag."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is dict:
        return "mapping"
    inner = [_type_name(argument) for argument in get_args(annotation) if argument not in (type(None), ...)]
    if inner:
        return inner[0]
    return {"bool": "", "str": "text"}.get(annotation.__name__, annotation.__name__.lower())


def fields(name: str) -> str:
    """The fields of `saukit.NAME`, a configuration: type, default and help of each."""
    config_type = getattr(saukit, name)
    hints, options = get_type_hints(config_type), options_of(config_type)
    lines = []
    for field in dataclasses.fields(config_type):
        kind = _type_name(hints[field.name])
        default = "" if field.default is dataclasses.MISSING else f" = `{field.default!r}`"
        help_text = options[field.name].help if field.name in options else ""
        lines += [f"`{field.name}`: {_plain(kind) or 'bool'}{default}", f":   {_plain(help_text)}", ""]
    return "\n".join(lines)


def faults() -> str:
    """What `pytest tests/faults --record-faults` counted, a row per file in the words of its docstring, the kills of
    `examples/kills.py`, and what a sample of the same tests found before the repairs."""
    results = REPOSITORY / "examples/benchmarks/results/cpu"
    names = ("faults", "kills", "faults_before")
    record, kills, earlier = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in names)
    before = {f"tests/faults/test_{name}.py": row for name, row in earlier["kinds"].items() if row["tried"]}
    rows = []
    for name, row in record["kinds"].items():
        file = f"tests/faults/test_{name}.py"
        what = ast.get_docstring(ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))) or ""
        rows.append((_plain(what.partition("\n\n")[0]), row["cases"], row["survived"], file))
    named = ", ".join(f"{name} {count}" for name, count in kills["kills"].items())
    what = f"Killed at a random moment ({named}): the command that continues makes the same bits."
    rows.append((what, len(kills["records"]), kills["same_bits"], "examples/kills.py"))
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows), "tests/faults"))
    lines = []
    for what, cases, survived, test in rows:
        sample = f"{before[test]['survived']} of {before[test]['tried']}" if test in before else "-"
        lines.append(f"| {what} | {cases:,} | {survived:,} | {sample} | `{test}` |")
    return "\n".join(
        ["| what is tried | cases | survived | before, of a sample | test |", "|---|---|---|---|---|", *lines]
    )


def _default(parameter: Any) -> str:
    shown, default = parameter.show_default, parameter.default
    if parameter.required:
        return "required"
    if isinstance(shown, str):
        return shown
    if parameter.secondary_opts and isinstance(default, bool):
        return f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
    if default is None or default is False or default == () or default == []:
        return ""
    return f"`{default}`"


def _plain(text: str) -> str:
    """`text` without Rich's markup, on one line, with what Markdown would read as markup escaped."""
    plain = re.sub(r"\s+", " ", Text.from_markup(text).plain).strip()
    return re.sub(r"([\[\]|<])", r"\\\1", plain)


def _equation(source: str, language: str, class_name: str, options: Any, md: Any, **attributes: Any) -> str:
    """A ```math fence as MathML, which browsers show without any script."""
    from latex2mathml.converter import convert

    return f'<div class="equation">{convert(source, display="block")}</div>'


def on_config(config: Any) -> None:
    """mkdocs calls this once, with the whole configuration."""
    fence = {"name": "math", "class": "math", "format": _equation}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files: Any, config: Any) -> None:
    """mkdocs calls this with the files it found."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "cli.md", content=command_reference()))


def on_page_markdown(markdown: str, **context: Any) -> str:
    """mkdocs calls this with each page's source: `<!-- fields: NAME -->` becomes the fields of a configuration,
    `<!-- file: PATH -->` that file of the repository, and `<!-- faults -->` the table of faults."""
    markdown = markdown.replace("<!-- faults -->", faults() if "<!-- faults -->" in markdown else "")
    markdown = re.sub(r"<!-- file: (\S+) -->", lambda match: _file(REPOSITORY / match[1]), markdown)
    return re.sub(r"<!-- fields: (\w+) -->", lambda match: fields(match[1]), markdown)


def _file(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else f"```python\n{text}```"


def on_page_content(html: str, **context: Any) -> str:
    """mkdocs calls this with each page: a docstring's shapes and errors begin a line, as in the source."""
    return re.sub(r"\n(Shapes|Raises|Returns): ", r"<br>\n<b>\1:</b> ", html)
