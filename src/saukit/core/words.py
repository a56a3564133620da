"""What messages are made of: names, lists and figures, each in one way."""

import re
from collections.abc import Iterable
from pathlib import Path

from rich.cells import cell_len

DEFAULT_WORKSPACE = Path("saukit_work")
_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[A-Za-z0-9][A-Za-z0-9._+-]{0,199}(?<!\.)")


def name_problem(what: str, name: str) -> str | None:
    """Why `name` cannot name `what`, a folder on every system; None if it can."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"{what} {shown(name)}: use letters, digits, '.', '_', '+' and '-', a letter or digit first, no '.' last, at "
        "most 200 in all, and no name that Windows keeps for itself, such as con"
    )


def is_text(path: object) -> bool:
    """Whether a path can be written as UTF-8, and opened by a library that knows no other names."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def shortened(items: Iterable[object], separator: str = ", ", *, limit: int = 20) -> str:
    """The first items of a list, and how many more there are."""
    texts = [one_line(str(item)) for item in items]
    shown = separator.join(texts[:limit])
    before_last = " " if separator == ", " else separator
    return shown if len(texts) <= limit else f"{shown}{before_last}and {len(texts) - limit} more"


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, else the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def format_bytes(count: float | None) -> str:
    """`count` bytes for a person: 38 KiB, 1.2 GiB; a dash for a number that is not there."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 3 min 20 s, 2 h 05 min, 3.4 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def format_share(value: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal; a dash for a number that is not there."""
    return "-" if value is None else f"{100 * value:.1f}"


def shown(value: object, *, limit: int = 80, quotes: bool = True) -> str:
    """A value for a message: as Python writes it, or without `quotes` as it reads, and cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**limit:
        return f"a whole number of more than {limit} digits"  # which Python may refuse to write out
    text = repr(value) if quotes or not isinstance(value, str) else value
    return text if len(text) <= limit else f"{text[: limit - limit // 4]}...{text[-(limit // 8) :]}"


# What would move a terminal's cursor, colour what follows or turn its direction; a new line and a tab may stay.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """`text` as `printable` has it, on one line: a class's name may hold a new line or a tab."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def brief(name: str, width: int = 40) -> str:
    """A class's name on one line of at most `width` columns of a terminal, cut in the middle where it is longer."""
    text = one_line(name)
    if cell_len(text) <= width:
        return text
    start, end = text[:width], text[-(width // 4) :]
    while cell_len(end) > width // 4:
        end = end[1:]
    while cell_len(start) > width - 1 - cell_len(end):
        start = start[:-1]
    return f"{start}…{end}"


# What Markdown, GitHub's tables and formulas, and HTML read as a sign; at the start of a line there are more of them.
_MARKS, _FIRST_MARK = re.compile(r"[\\`*_\[\]<>|$~&{}]"), re.compile(r"^(\s*\d*)([#+\-=.)])")


def markdown(text: str) -> str:
    """`text` on one line as Markdown that shows it letter by letter, also in a cell of a table."""
    return _FIRST_MARK.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", one_line(text)))


def printable(text: str) -> str:
    """`text` with escape sequences and other characters that act on a terminal made visible: `\\x1b[31m`."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
