"""What a command says: results on stdout, everything else on stderr; bars on a terminal, plain lines in a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from saukit.core.words import format_duration, printable

PLAIN_INTERVAL_SECONDS = 60.0


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
            self._err.print(_plain(text))

    def warn(self, text: str) -> None:
        """Something the user should know; shown even when quiet."""
        self._err.print(f"[yellow]warning:[/yellow] {_plain(text)}")

    def result(self, text: str) -> None:
        """One line of what was asked for."""
        if not self.quiet:
            self._out.print(_plain(text))

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
    ) -> None:
        """A table of what was asked for; the first `text_columns` columns are text, the others are numbers."""
        if self.quiet:
            return
        table = Table(title=_plain(title), title_justify="left", header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(_plain(column), justify="left" if index < text_columns else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(_plain, row))
        self._out.print(table)

    def document(self, document: Any) -> None:
        """With --json, the one JSON document on stdout; otherwise nothing."""
        if self.json_output:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def progress(self, label: str, total: int, *, done: int = 0) -> ProgressLine:
        """A progress display of `total` pieces of work, `done` of them already there."""
        return ProgressLine(self._err, label, total, done=done, quiet=self.quiet)


def _plain(text: str) -> str:
    """`text` as rich shows it unchanged, and no terminal acts on it."""
    return escape(printable(text))


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
                SpinnerColumn(),
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
            self._task = self._bar.add_task(_plain(self._label), total=self._total, completed=self._first, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            self._bar.update(self._task, completed=done, note=_plain(note))
        elif not self._quiet and time.monotonic() - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = time.monotonic()
            self._console.print(_plain(f"{self._label} {done}/{self._total}  {note}"))
