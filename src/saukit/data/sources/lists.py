"""Files that list images: `path label` a line, or a table with columns (CSV, TSV, Parquet)."""

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saukit.core.errors import DataError, UsageError
from saukit.core.extras import require_extra
from saukit.core.files import check_regular, read_regular, reading
from saukit.core.words import shortened
from saukit.data.image_files import EXTENSIONS
from saukit.data.source_config import COLUMN_ROLES

MOST_BYTES = 1 << 28
PARQUET = (".parquet", ".pq")
TABLES = (".csv", ".tsv", ".tab", *PARQUET)
LINE = re.compile(r"([^\t]*[^\t ]) *\t *([^\t]*\S)|(.*\S)[ \t]+(\S+)")  # one tab parts, or the last blank
# What the columns of a table are usually called, in lower case.
USUAL = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_id"),
    "label": ("label", "class", "class_name", "category", "target", "species", "diagnosis", "dx"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "lesion_id", "video_id"),
    "split": ("split", "part", "subset", "partition"),
}
OPTIONAL = ("group", "split")
Rows = Iterator[tuple[int, Sequence[Any]]]  # line (of a Parquet file, row) and fields


class Entry(NamedTuple):
    """An image of a list: where it stands there, its path as it is written, its label, and its group and part."""

    line: int
    path: str
    label: str
    group: str | None = None
    part: str | None = None


class Columns(NamedTuple):
    """The columns of a table by role, and the roles whose column was guessed by its name."""

    names: dict[str, str]
    guessed: tuple[str, ...]


def read_entries(
    file: Path, columns: Mapping[str, str] | None, group_by: str | None
) -> tuple[list[Entry], Columns | None]:
    """The images that `file` lists, and the columns where it is a table; `group_by` may name that of the group.

    Raises: DataError for a file that cannot be read, lists nothing, or is not understood; EnvironmentFault for a
    Parquet file without the extra `parquet`; UsageError for columns of a plain list.
    """
    suffix = file.suffix.lower()
    if suffix not in TABLES:
        if columns:
            raise UsageError(f"columns has no effect with {file}, which is a plain list: leave it out")
        entries, chosen, nothing = list(_plain(file)), None, "lists no image: write 'path label' on each line"
    else:
        header, rows = _parquet(file, columns, group_by) if suffix in PARQUET else _separated(file)
        chosen = choose_columns(header, columns, group_by, where=str(file))
        entries, nothing = list(_entries(file, header, rows, chosen.names)), "has a header but no rows"
    if not entries:
        raise DataError(f"{file} {nothing}")
    return entries, chosen


def choose_columns(
    header: Sequence[str], columns: Mapping[str, str] | None, group_by: str | None, *, where: str
) -> Columns:
    """The column of each role: as named, else the one with a usual name.

    `group_by` is the group's column if there is one called so; else it is for file names, and no column is looked for.
    Raises: DataError if that is not clear.
    """
    wanted, found, guessed = dict(columns or {}), {}, []
    if group_by is not None:
        wanted["group"] = group_by if group_by in header else ""
    for role in COLUMN_ROLES:
        if (name := wanted.get(role)) == "" and role in OPTIONAL:
            continue
        fits = [column for column in header if (column == name if name else column.lower() in USUAL[role])]
        if not fits and not name and role in OPTIONAL:
            continue
        if len(fits) != 1:
            what = ("columns " if fits else "column ") + (repr(name) if name else f"called like a {role}")
            hint = "" if name else f"; name it with --columns {role}=NAME"
            hint += f", or use none with --columns {role}=" if hint and role in OPTIONAL else ""
            there = shortened(map(repr, fits or header))
            raise DataError(f"{where} has {len(fits) or 'no'} {what}: there are {there}{hint}")
        found[role] = fits[0]
        if not name:
            guessed.append(role)
    return Columns(found, tuple(guessed))


def read_names(file: Path) -> tuple[str, ...]:
    """One name a line. Raises: DataError for a file that cannot be read, an empty name, or one that is there twice."""
    names = tuple(line.strip() for line in _lines(_read_text(file).rstrip()))
    first = {name: number for number, name in reversed(list(enumerate(names, 1)))}
    if odd := [f"{number}: {name!r}" for number, name in enumerate(names, 1) if not name or first[name] != number]:
        raise DataError(f"{file} needs one name per line, each once; not so in line {shortened(odd, limit=5)}")
    return names


def _read_text(file: Path) -> str:
    try:
        data = read_regular(file, MOST_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; give another file") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file} is UTF-16: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise DataError(f"{file}, line {line}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{file} is not a text file: it holds NUL")
    return text


def _lines(text: str) -> list[str]:
    """The lines of `text`; str.splitlines would also split at characters that a name may hold."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _plain(file: Path) -> Iterator[Entry]:
    for number, line in enumerate(_lines(_read_text(file)), 1):
        if not (line := line.strip(" \t")):
            continue
        path, label = [field for field in match.groups() if field] if (match := LINE.fullmatch(line)) else ("", "")
        if not label or _is_image(label):
            hint = "; tables are read from files called .csv or .tsv" if re.search("[,;]", line) else ""
            raise DataError(f"{file}, line {number}: {line!r} is not a path, a blank and a label{hint}")
        yield Entry(number, path, label)


def _is_image(text: str) -> bool:
    return Path(text).suffix.lower() in EXTENSIONS


def _separated(file: Path) -> tuple[list[str], Rows]:
    text = _read_text(file)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count) if file.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)

    def rows() -> Rows:
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: {error}") from error

    lines = rows()
    header = [str(cell).strip() for cell in next(lines, (0, []))[1]]
    wanted = "its first line has to name the columns, such as path,label"
    if not header:
        raise DataError(f"{file} is empty: {wanted}")
    if any(map(_is_image, header)):
        raise DataError(f"{file} has no header: {wanted}")
    if len(header) == 1:
        kinds = "tabs" if file.suffix.lower() != ".csv" else "commas, semicolons or tabs"
        raise DataError(f"{file} has one column, {header[0]!r}: separate columns by {kinds}")
    return header, lines


def _parquet(file: Path, columns: Mapping[str, str] | None, group_by: str | None) -> tuple[list[str], Rows]:
    require_extra("parquet", purpose=f"reading {file}")
    import pyarrow
    from pyarrow import parquet

    with reading(file, remedy="write it again as Parquet, or give another file"):
        check_regular(file)
        schema = parquet.read_schema(file)
        names = list(dict.fromkeys(choose_columns(schema.names, columns, group_by, where=str(file)).names.values()))
        for name in names:
            kind = schema.field(name).type
            if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
                raise DataError(
                    f"column {name!r} of {file} holds {kind}, not text or numbers; a table that holds the images "
                    "themselves is read with --dataset huggingface"
                )
        table = parquet.read_table(file, columns=names).to_pydict()
    return names, iter(enumerate(zip(*(table[name] for name in names), strict=True), 1))


def _entries(file: Path, header: Sequence[str], rows: Rows, names: Mapping[str, str]) -> Iterator[Entry]:
    place = {role: header.index(name) for role, name in names.items()}
    empty: dict[str, list[int]] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{file}, line {line}: {len(row)} fields, but the header has {len(header)}; fix it"
                " (a field with a separator in it needs quotes)"
            )
        fields = {role: text_of(row[index]) for role, index in place.items()}
        for role, field in fields.items():
            if not field:
                empty.setdefault(names[role], []).append(line)
        yield Entry(line, fields["path"], fields["label"], fields.get("group"), fields.get("split"))
    if empty:
        some = (f"{name} ({len(lines)}: line {shortened(lines, limit=5)})" for name, lines in empty.items())
        raise DataError(f"{file} has rows without {shortened(some)}; fill or remove them")


def text_of(value: Any) -> str:
    """A field as text; "" for one that is missing, as NaN is where pandas wrote the file."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return "" if text.lower() in ("nan", "<na>") else text
