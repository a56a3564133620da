"""What a command says: results on stdout, everything else on stderr; bars on a terminal, plain lines in a file."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from saukit.core.words import brief, format_duration, one_line, printable

PLAIN_INTERVAL_SECONDS = 60.0
# What saukit itself writes, for a terminal that has ASCII alone; any other character becomes its number.
IN_ASCII = str.maketrans({"█": "#", "…": "...", "±": "+-", "†": "+"})


class Reporter:
    """The one voice of a command.

    `json_output` keeps stdout free for one JSON document; `quiet` keeps all but warnings, errors and that document.
    """

    def __init__(self, *, quiet: bool = False, json_output: bool = False) -> None:
        self.quiet = quiet
        self.json_output = json_output
        self._err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self._out = self._err if json_output else Console(highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line of progress."""
        if not self.quiet:
            self._err.print(_plain(text, self._err))

    def warn(self, text: str) -> None:
        """Something the user should know; shown even when quiet."""
        self._err.print(f"[yellow]warning:[/yellow] {_plain(text, self._err)}")

    def result(self, text: str) -> None:
        """One line of what was asked for."""
        if not self.quiet:
            self._out.print(_plain(text, self._out))

    def cut(self, name: str, width: int | None = None) -> str:
        """A class's name as stdout can write it, in `width` columns; by default those of a table's first cell."""
        width = width or max(20, self._out.width // 4)
        extra = len(_written("…", self._out)) - 1
        return _written(brief(_written(name, self._out), width - extra), self._out)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        text_columns: int = 1,
        optional: Sequence[str] = (),
    ) -> None:
        """A table of what was asked for; the first `text_columns` columns are text, the others are numbers.

        On a terminal too narrow for all columns and whole names, those of `optional` are left out, from the first on.
        """
        if self.quiet:
            return
        title, columns, rows = one_line(title), [*map(one_line, columns)], [[*map(one_line, row)] for row in rows]
        # Words of a column's head, and numbers, stay whole.
        cells = [column.split() + [row[i] for row in rows if i >= text_columns] for i, column in enumerate(columns)]
        least = [3 + max(map(cell_len, words)) for words in cells]
        shown = list(range(len(columns)))
        names = max(cell_len(row[0]) for row in rows) if rows else 0
        for name in optional:
            if 4 + names + sum(least[index] for index in shown[1:]) <= self._out.width:
                break
            shown.remove(columns.index(name))
        columns, rows = [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]
        if 1 + sum(least[index] for index in shown) > self._out.width:
            self._records(title, columns, rows)
            return
        table = Table(title=_plain(title, self._out), title_justify="left", header_style="bold")
        room = self._out.width - 4 - sum(least[index] for index in shown[1:])
        for index, column in enumerate(columns):
            justify: Literal["left", "right"] = "left" if index < text_columns else "right"
            table.add_column(_plain(column, self._out), justify=justify, overflow="fold")
        for first, *others in rows:
            table.add_row(_folded(_plain(first, self._out), room), *(_plain(cell, self._out) for cell in others))
        self._out.print(table)

    def _records(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on a terminal too narrow for it: each row under its first cell."""
        self.result(title)
        for first, *cells in rows:
            self.result(first)
            text = ", ".join(f"{column}: {cell}" for column, cell in zip(columns[1:], cells, strict=True))
            for line in Text(_written(text, self._out)).wrap(self._out, self._out.width - 2):
                self.result(f"  {line.plain.rstrip()}")

    def document(self, document: Any) -> None:
        """With --json, the one JSON document on stdout; otherwise nothing."""
        if self.json_output:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def progress(self, label: str, total: int, *, done: int = 0) -> ProgressLine:
        """A progress display of `total` pieces of work, `done` of them already there."""
        return ProgressLine(self._err, label, total, done=done, quiet=self.quiet)


def _folded(name: str, width: int) -> str:
    """A name that is longer than `width` on several lines, which end with a sign between its parts if they can."""
    lines = [""]
    for part in re.split(r"(?<=[-+/._])", name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines) if cell_len(name) > width else name


def _plain(text: str, console: Console) -> str:
    """`text` as rich shows it unchanged, no terminal acts on it, and `console` can write it."""
    return escape(_written(printable(text), console))


def _written(text: str, console: Console) -> str:
    if console.encoding.startswith("utf"):
        return text
    return text.translate(IN_ASCII).encode(console.encoding, "backslashreplace").decode(console.encoding)


class ProgressLine:
    """A live bar on a terminal; elsewhere a plain line every `PLAIN_INTERVAL_SECONDS`. Use as a context manager.

    Shapes of time: the ETA is from the rate since this process began, so that resumed work is not counted.
    """

    def __init__(self, console: Console, label: str, total: int, *, done: int, quiet: bool) -> None:
        self._console, self._label, self._total, self._first, self._quiet = console, label, total, done, quiet
        self._done: float = done
        self._started = self._last_plain = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                _plain(self._label, self._console), total=self._total, completed=self._first, note=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the rate so far; None before the first piece is done."""
        fresh = self._done - self._first
        if fresh == 0:
            return None
        return (time.monotonic() - self._started) / fresh * (self._total - self._done)

    def update(self, done: float, note: str = "") -> None:
        """`done` pieces are ready; `note` holds the figures of the moment."""
        self._done = done
        eta = self.eta_seconds
        note = note if eta is None else f"{note}  ETA {format_duration(eta)}".strip()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=_plain(note, self._console))
        elif not self._quiet and time.monotonic() - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = time.monotonic()
            self._console.print(_plain(f"{self._label} {done}/{self._total}  {note}", self._console))
