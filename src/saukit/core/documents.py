"""The one reader of JSON and YAML: configurations, manifests, results, prompts, and what other programs wrote.

Limits on size, nesting and digits are checked before anything is built from the text, so that no file costs more memory
or time than its length suggests. YAML has neither anchors nor tags here, and a date is text. Only the error that the
caller asks for leaves this module.
"""

import errno
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from saukit.core.errors import CorruptArtifactError, EnvironmentFault, SaukitError
from saukit.core.files import MOST_JSON_BYTES, read_regular
from saukit.core.words import shown

MIB = 1 << 20
MAX_YAML_BYTES = MIB
MAX_DEPTH = 64
MAX_DIGITS = 100
REMAKE, START_OVER = "remake the artefact with --force", "start over with --force"
# A string, whole or cut off, or a bracket: what nesting is counted from. It never goes back over what it has read.
_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = yaml.constructor.SafeConstructor()
_RESOLVER: Any = yaml.resolver.Resolver()


class _Refused(ValueError):
    """What is wrong with a document, in words."""


def read_json(
    path: Path,
    *,
    fault: type[SaukitError] = CorruptArtifactError,
    remedy: str = REMAKE,
    missing: str | None = None,
    mapping: bool = True,
) -> Any:
    """The document in a JSON file; `mapping`: an object, as nearly every file of saukit holds.

    Raises: `fault`, with `remedy`, for a file that is no such document, or is not there (`missing` says that another
    way); EnvironmentFault for one that may not be read.
    """
    return parse_json(
        read_text(path, fault=fault, remedy=remedy, missing=missing),
        where=str(path), fault=fault, remedy=remedy, mapping=mapping,
    )  # fmt: skip


def read_json_lines(path: Path, *, fault: type[SaukitError] = CorruptArtifactError, remedy: str = REMAKE) -> list[Any]:
    """The objects of a file with one on each line. Raises: as `read_json`."""
    lines = read_text(path, fault=fault, remedy=remedy).splitlines()
    return [
        parse_json(line, where=f"line {number} of {path}", fault=fault, remedy=remedy)
        for number, line in enumerate(lines, start=1)
    ]


def parse_json(
    text: str,
    *,
    where: str,
    fault: type[SaukitError] = CorruptArtifactError,
    remedy: str = REMAKE,
    mapping: bool = True,
) -> Any:
    """The document in a JSON text, which `where` names. Raises: `fault` as `read_json`."""
    try:
        _check_nesting(text)
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=lambda digits: int(_checked_digits(digits)),
            parse_float=_real,
            parse_constant=_no_number,
        )
        if "\\u" in text:
            _check_characters(json.dumps(document, ensure_ascii=False))
        if mapping and not isinstance(document, dict):
            raise _Refused("it is not a mapping of names to values")
    except _Refused as error:
        raise _fault(fault, where, str(error), remedy) from None
    except ValueError as error:
        raise _fault(fault, where, f"it is not JSON: {error}", remedy) from None
    return document


def read_yaml(
    path: Path,
    *,
    fault: type[SaukitError] = CorruptArtifactError,
    remedy: str = REMAKE,
    missing: str | None = None,
    most: int = MAX_YAML_BYTES,
    texts: bool = False,
) -> Any:
    """The document in a YAML file of at most `most` bytes; `texts`: every scalar as it is written, `7` and `no` too.

    Raises: as `read_json`.
    """
    text = read_text(path, fault=fault, remedy=remedy, missing=missing, most=most)
    try:
        return _built(yaml.parse(text, Loader=_YAML), texts=texts)
    except _Refused as error:
        raise _fault(fault, path, str(error), remedy) from None
    except yaml.YAMLError as error:
        reason = " ".join(shown(str(error), limit=300, quotes=False).split())
        raise _fault(fault, path, f"it is not YAML: {reason}", remedy) from None


def _fault(fault: type[SaukitError], where: object, reason: str, remedy: str) -> SaukitError:
    verb = "is damaged" if issubclass(fault, CorruptArtifactError) else "cannot be used"
    return fault(f"{where} {verb}: {reason}; {remedy}")


def read_text(
    path: Path,
    *,
    fault: type[SaukitError] = CorruptArtifactError,
    remedy: str = REMAKE,
    missing: str | None = None,
    most: int = MOST_JSON_BYTES,
) -> str:
    """A text file in UTF-8 of at most `most` bytes. Raises: as `read_json`."""
    try:
        content = read_regular(path, most)
    except (FileNotFoundError, NotADirectoryError):
        raise fault(missing or f"{path} is missing; {remedy}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EFBIG:
            raise _fault(fault, path, reason, remedy) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise EnvironmentFault(f"cannot read {path}: {reason}; check whose file it is, and its mode") from None
        raise fault(f"cannot read {path}: {reason}; {remedy}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _fault(fault, path, f"it is not UTF-8 text (byte {error.start})", remedy) from None


def _check_nesting(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _NESTING.finditer(text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"it is nested more than {MAX_DEPTH} deep")
        elif first != '"':
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"{shown(twice)} is there twice")
    return document


def _real(text: str) -> float:
    number = float(_checked_digits(text))
    if not math.isfinite(number):
        raise _Refused(f"{text} is too large a number")
    return number


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"{text} is not a number")


def _checked_digits(text: str) -> str:
    if len(text) > MAX_DIGITS:
        raise _Refused(f"{shown(text, quotes=False)} is a number of more than {MAX_DIGITS} digits")
    return text


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Refused(f"{text[error.start]!a} in it is half a character") from None


def _built(events: Iterator[yaml.Event], *, texts: bool) -> Any:
    """The one document of a stream of YAML events, built without recursion."""
    documents: list[Any] = []
    stack: list[tuple[Any, list[Any]]] = []  # the start of each open collection, and what is in it so far
    here = documents
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused(f"{_at(event)} has an anchor or an alias, which saukit does not read: write it out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise _Refused(f"{_at(event)} has the tag {shown(tag)}, which saukit does not read: leave it out")
        if isinstance(event, yaml.ScalarEvent):
            _check_characters(event.value)
            here.append(event.value if texts or not event.implicit[0] else _scalar(event))
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append((event, []))
            here = stack[-1][1]
            if len(stack) > MAX_DEPTH:
                raise _Refused(f"it is nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            start, items = stack.pop()
            here = stack[-1][1] if stack else documents
            here.append(_mapping(start, items) if isinstance(start, yaml.MappingStartEvent) else items)
    if len(documents) > 1:
        raise _Refused(f"it holds {len(documents)} documents, not one")
    return documents[0] if documents else None


def _mapping(start: yaml.Event, items: list[Any]) -> dict[Any, Any]:
    names = items[::2]
    for name in names:
        if isinstance(name, dict | list):
            raise _Refused(f"{_at(start)} has {'a mapping' if isinstance(name, dict) else 'a list'} for a name")
    document = dict(zip(names, items[1::2], strict=True))
    if len(document) < len(names):
        seen: set[Any] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"{_at(start)} has {shown(twice)} twice")
    return document


def _scalar(event: yaml.ScalarEvent) -> Any:
    """A plain scalar as YAML 1.1 reads it, but a date, `=` and `<<` as text."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False)).removeprefix("tag:yaml.org,2002:")
    node = yaml.ScalarNode(tag, event.value)
    try:
        if tag in ("int", "float"):
            _checked_digits(event.value)
            return _SCALARS.construct_yaml_int(node) if tag == "int" else _SCALARS.construct_yaml_float(node)
        if tag == "bool":
            return _SCALARS.construct_yaml_bool(node)
    except _Refused as error:
        raise _Refused(f"{_at(event)}: {error}") from None
    except (ValueError, OverflowError):
        raise _Refused(f"{_at(event)} has {shown(event.value)}, which is not a number") from None
    return None if tag == "null" else event.value


def _at(event: yaml.Event) -> str:
    return "it" if event.start_mark is None else f"line {event.start_mark.line + 1}"
