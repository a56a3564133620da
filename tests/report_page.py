"""A report as tests read it: parsed by html.parser, not by what made it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "input", "br", "hr", "link"}
INLINE = {"a", "code", "span", "strong"}


@dataclass
class Table:
    """Rows of cells, as text."""

    label: str
    rows: list[list[str]] = field(default_factory=list)

    def column(self, head: str) -> dict[str, str]:
        """First cell to the one below `head`."""
        place = self.rows[0].index(head)
        return {row[0]: row[place] for row in self.rows[1:]}


class Page(HTMLParser):
    """The elements of a page with their attributes, the text, and the tables by the label of the box they are in."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, Table] = {}
        self.problems: list[str] = []
        self.title = ""
        self.texts: list[str] = []  # what a reader sees or hears: neither style nor script
        self._open: list[str] = []
        self._label = ""
        self._table: Table | None = None
        self.feed(self.source)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self._open]

    @property
    def text(self) -> str:
        """All text on one line."""
        return " ".join("".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [value for _, found in self.elements if (value := found.get(name)) is not None]

    def section(self, anchor: str) -> str:
        """The source of a section."""
        start = self.source.index(f'<section id="{anchor}"')
        return self.source[start : self.source.index("</section>", start)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if len(found) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, found))
        if found.get("role") == "region":
            self._label = found.get("aria-label") or ""
        if tag == "table":
            self._table = self.tables[self._label] = Table(self._label)
        if self._table is not None and tag == "tr":
            self._table.rows.append([])
        if self._table is not None and tag in ("td", "th"):
            self._table.rows[-1].append("")
        if tag not in INLINE:
            self.texts.append(" ")
        if tag not in VOID:
            self._open.append(tag)

    def charts(self, anchor: str) -> dict[str, str]:
        """The SVG figures of a section by their titles."""
        found = re.findall(
            r'<svg class="plot" role="img"[^>]*><title>(.*?)</title>(.*?)</svg>', self.section(anchor), re.S
        )
        return {unescape(title): source for title, source in found}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes what is not open, line {self.getpos()[0]}")
        if tag not in INLINE:
            self.texts.append(" ")
        if self._table is not None and tag in ("td", "th"):
            self._table.rows[-1][-1] = " ".join(self._table.rows[-1][-1].split())
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("style", "script"):
            return
        if inside == "title" and "svg" not in self._open:
            self.title += data
        self.texts.append(data)
        if self._table is not None and "svg" not in self._open and {"td", "th"}.intersection(self._open):
            self._table.rows[-1][-1] += data
