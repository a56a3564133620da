"""The one reader of JSON and YAML: what it takes is what json and yaml take, and every bomb is an error at once."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from saukit.core.documents import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_YAML_BYTES,
    parse_json,
    read_json,
    read_json_lines,
    read_yaml,
)
from saukit.core.errors import CorruptArtifactError, DataError, UsageError

SOURCE = Path(__file__).parents[2] / "src"
DEEP = 100_000
# Who calls json or yaml besides the reader: writers of text that they made themselves.
READERS = re.compile(r"\bjson\.loads?\(|\byaml\.(?!safe_dump)\w*load|\bfrom json import|JSONDecoder")


def refused(path: Path, content: str | bytes, message: str, **options: Any) -> None:
    """Reading `content` fails within a second with a short message."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = read_yaml if path.suffix == ".yaml" else read_json
    began = time.process_time()
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}") as raised:
        read(path, fault=DataError, remedy="give another", **options)
    assert time.process_time() - began < 2
    assert message in str(raised.value) and str(raised.value).endswith("; give another")
    assert len(str(raised.value)) < 600


def test_no_other_place_reads_json_or_yaml() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "documents.py"]
    found = [f"{path.name}: {line}" for path in files for line in READERS.findall(path.read_text(encoding="utf-8"))]
    assert len(files) > 50 and found == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": [1, -2, 3.5, 1e-9, None, True, 'ü [{ \\" ]'], "b": {"c": [[[]]]}},
        {"x": "[" * 500 + '"\\', "y": [[index] for index in range(200)], "z": 12345678901234567890},
        {'quote"d': "\\", "brackets }]": "{[", "n": [{"k": "]"}] * 100},
    ],
)
def test_json_is_read_as_json_reads_it(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "x.json"
    for indent in (None, 2):
        for ascii_only in (True, False):
            path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
            assert read_json(path) == document


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: -2\nc: 1.5\nd: 1e5\ne: 1.0e+5\nf: .inf\ng: yes\nh: no\ni: ~\nj: null\nk:\nl: 0o7\nm: 0x1F\n",
        "a: '1'\nb: \"no\"\nc: |\n  text\n  more\nd: >\n  folded\n  text\n",
        "- 1\n- [a, {b: c, d: [e]}]\n- - x\n  - y\n- {}\n- []\n",
        "{7: a, 2.5: b, true: c, null: d}",
        "größe: [é, 日本]\n'a: b': 'it''s'\n# a comment\n",
        "010: 010\n1:30:00: 5\n+1: -0\n",
    ],
)
def test_yaml_is_read_as_safe_load_reads_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == yaml.safe_load(text)
    assert read_yaml(path, texts=True) == yaml.load(text, Loader=yaml.BaseLoader)


def test_a_date_and_a_merge_sign_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 2024-01-31\nb: 2024-13-99\n=: 1\n")
    assert read_yaml(path) == {"a": "2024-01-31", "b": "2024-13-99", "=": 1}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "line 1 has an anchor or an alias"),
        ("a: &x 1\nb: *x\n", "line 1 has an anchor or an alias"),
        ("a: *x\n", "line 1 has an anchor or an alias"),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", "line 2 has the tag"),
        ("a: !!int x\n", "has the tag"),
        ("a: !local 1\n", "has the tag '!local'"),
        ("? [a, b]\n: 1\n", "has a list for a name"),
        ("? {a: b}\n: 1\n", "has a mapping for a name"),
        ("a: 1\nb: 2\na: 3\n", "has 'a' twice"),
        ("1: a\n1.0: b\n", "twice"),
        ("[" * 300, f"it is nested more than {MAX_DEPTH} deep"),
        ("[" * DEEP, "nest"),  # libyaml has a limit of its own
        ("{a: " * 300, f"it is nested more than {MAX_DEPTH} deep"),
        ("- " * DEEP + "x", f"it is nested more than {MAX_DEPTH} deep"),
        ("a: " + "9" * 400, f"is a number of more than {MAX_DIGITS} digits"),
        ("a: 0." + "9" * 400, f"is a number of more than {MAX_DIGITS} digits"),
        ("a: 0x" + "f" * 9000, f"is a number of more than {MAX_DIGITS} digits"),
        ("a: 0b_\n", "which is not a number"),
        ("a: 1\n---\nb: 2\n", "it holds 2 documents, not one"),
        ("a: [", "it is not YAML"),
        ("a: \x00b", "it is not YAML"),
        ("a: 'open", "it is not YAML"),
        ("\t- a\n", "it is not YAML"),
        ("x: " + "y" * MAX_YAML_BYTES, "it has 1.0 MiB, and at most 1.0 MiB are read"),
        (b"a: \xff\xfe", "it is not UTF-8 text (byte 3)"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    refused(tmp_path / "x.yaml", content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * DEEP, f"it is nested more than {MAX_DEPTH} deep"),
        ('{"a":' * DEEP, f"it is nested more than {MAX_DEPTH} deep"),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", f"it is nested more than {MAX_DEPTH} deep"),
        ('{"\\"[[' + '\\"[' * DEEP, "it is not JSON"),
        ('"' * DEEP + "[" * DEEP, f"it is nested more than {MAX_DEPTH} deep"),
        ('{"a": ' + "9" * 400 + "}", f"is a number of more than {MAX_DIGITS} digits"),
        ('{"a": -' + "9" * 5000 + "}", f"is a number of more than {MAX_DIGITS} digits"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ('{"a": "\\ud800"}', "is half a character"),
        ("[1]", "it is not a mapping of names to values"),
        ("null", "it is not a mapping of names to values"),
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ('{"a": 1}}', "it is not JSON"),
        ('{"a": "\n"}', "it is not JSON"),
        (b'{"a": "\xff"}', "it is not UTF-8 text (byte 7)"),
        (b"\x00" * 100, "it is not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    refused(tmp_path / "x.json", content, message)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(10 << 40)  # a hole: it takes no disk
    with pytest.raises(CorruptArtifactError, match=r"is damaged: it has 10\.0 TiB, and at most 64 MiB are read"):
        read_json(path)


def test_depth_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert read_json(path, mapping=False) == yaml.safe_load(path.read_text()) == read_yaml(path)
    path.write_text("[[]," + "[" * (MAX_DEPTH - 1) + "]" * MAX_DEPTH)  # with a bracket more than it is deep
    assert read_json(path, mapping=False) == yaml.safe_load(path.read_text()) == read_yaml(path)


def test_what_is_missing_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"none is missing; remake the artefact with --force$"):
        read_json(tmp_path / "none")
    with pytest.raises(UsageError, match=r"^give one$"):
        read_yaml(tmp_path / "none", fault=UsageError, missing="give one")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    messages = {
        tmp_path: "it is a folder, not a file",
        tmp_path / "pipe": "it is a pipe, not a file",
        Path("/dev/zero"): "it is a device, not a file",
        tmp_path / "loop": "[Tt]oo many levels of symbolic links",
        tmp_path / "broken": "is missing",
    }
    for path, message in messages.items():
        for read in (read_json, read_yaml):
            with pytest.raises(DataError, match=message) as raised:
                read(path, fault=DataError, remedy="give another")
            assert str(path) in str(raised.value) and "give another" in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_file_of_somebody_else_names_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.chmod(0o600)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from saukit.core.documents import read_json\n"
        "os.setuid(12345)\n"
        "try: read_json(Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(SOURCE), str(path)], capture_output=True, text=True)
    assert "EnvironmentFault cannot read" in done.stdout, done.stderr
    assert "Permission denied; check whose file it is, and its mode" in done.stdout


def test_a_line_of_many_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(CorruptArtifactError, match=r"^line 2 of .*x\.jsonl is damaged: it is not JSON"):
        read_json_lines(path)


def test_a_text_is_named_by_its_place() -> None:
    assert parse_json('{"a": 1}', where="here") == {"a": 1}
    with pytest.raises(CorruptArtifactError, match=r"^here is damaged: it is not JSON"):
        parse_json("{", where="here")
