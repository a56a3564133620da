"""Lists that are tables: CSV, TSV and Parquet."""

import codecs
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core import extras
from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.data.config import SplitConfig
from saukit.data.source import Source
from saukit.data.source_config import parse_columns
from saukit.data.sources.table import open_source

ROWS = [("a.png", "cat", "p1", "train"), ("b.png", "cat", "p2", "train"), ("c.png", "dog", "p1", "train"),
        ("d.png", "dog", "p3", "train"), ("e.png", "dog", "p4", "val"), ("f.png", "cat", "p5", "test")]  # fmt: skip
HEADER = ("path", "label", "group", "split")
needs_parquet = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index, (name, *_) in enumerate(ROWS):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def text_of(columns: int = 4, *, delimiter: str = ",", header: tuple[str, ...] = HEADER) -> str:
    return "".join(delimiter.join(row[:columns]) + "\n" for row in (header, *ROWS))


def opened(root: Path, text: str | bytes, name: str = "table.csv", **options: Any) -> Source:
    file = root.parent / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_source(SplitConfig(dataset="list", train_list=str(file), **options), root)


def check(source: Source) -> None:
    """That this is the source of all four columns."""
    assert source.classes == ("cat", "dog") and source.train_labels.tolist() == [0, 0, 1, 1]
    assert source.val_labels is not None and source.val_labels.tolist() == [1]
    assert source.test_labels is not None and source.test_labels.tolist() == [0]
    assert source.groups == {"train": ["p1", "p2", "p1", "p3"], "val": ["p4"], "test": ["p5"]}
    assert source.files is not None and list(source.files()["train"]) == ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", text_of()),
        ("t.CSV", text_of().replace("\n", "\r\n")),
        ("t.csv", codecs.BOM_UTF8 + text_of().encode()),
        ("t.csv", text_of(delimiter=";")),
        ("t.csv", text_of(delimiter=", ")),
        ("t.csv", text_of(delimiter="\t")),
        ("t.tsv", text_of(delimiter="\t")),
        ("t.csv", text_of().replace("cat", '"cat"').replace(",train\n", ', "train"\n\n')),
        ("t.csv", text_of().replace("path", " Filename ").replace("label", "Species").replace("group", "PATIENT_ID")),
        ("t.csv", text_of().replace(",train\n", ",Training\n").replace(",val\n", ",validation\n")),
    ],
    ids=["csv", "crlf", "bom", "semicolon", "blanks", "tab", "tsv", "quoted", "usual names", "part names"],
)
def test_a_table_is_read(root: Path, name: str, text: str | bytes) -> None:
    check(opened(root, text, name))


def test_columns_are_named(root: Path) -> None:
    text = text_of(header=("my file", "what", "who", "where"))
    source = opened(root, text, columns=parse_columns("path=my file,label=what,group=who,split=where"))
    check(source)
    assert not source.notes
    assert opened(root, text_of()).notes == (
        "columns of table.csv: path as path, label as label, group as group, split as split (--columns names others)",
    )


def test_optional_columns_are_left_out_where_asked(root: Path) -> None:
    source = opened(root, text_of(), columns=parse_columns("group=,split="))
    assert source.groups is None and source.test_labels is None and len(source.train_labels) == 6


def test_group_by_is_a_column_or_an_expression(root: Path) -> None:
    text = text_of(header=("path", "label", "who", "split"))
    assert opened(root, text).groups is None
    assert opened(root, text, group_by="who").groups == {
        "train": ["p1", "p2", "p1", "p3"],
        "val": ["p4"],
        "test": ["p5"],
    }
    assert opened(root, text_of(), group_by="(.)").groups is None  # of paths, which the plan looks at


def test_a_table_and_a_list_of_each_part(root: Path) -> None:
    (root.parent / "test.csv").write_text("file,label,split\nf.png,cat,test\n")
    header, *rows = text_of().splitlines()
    source = opened(root, "\n".join([header, *rows[:4]]), test_list=str(root.parent / "test.csv"))
    assert source.test_labels is not None and source.test_labels.tolist() == [0] and len(source.train_labels) == 4
    with pytest.raises(UsageError, match="give a split column, or lists of the parts"):
        opened(root, text_of(), test_list=str(root.parent / "test.csv"), columns={"split": "split"})


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", None, "is empty: its first line has to name the columns"),
        ("path,label\n", None, "has a header but no rows"),
        (text_of(2).split("\n", 1)[1], None, "has no header: its first line has to name the columns"),
        (text_of(2, delimiter="|"), None, r"has one column, 'path\|label': separate columns by commas, semicol"),
        ("path,label\na.png,cat\nb.png\n", None, "line 3: 1 fields, but the header has 2"),
        ('path,label\n"a.png,cat\n', None, "line 2: unexpected end of data"),
        ("x,y\na.png,cat\n", None, r"no column called like a path: there are 'x', 'y'; name it with --columns path="),
        ("path,y\na.png,cat\n", None, r"no column called like a label: there are 'path', 'y'; name it with"),
        ("path,file,label\na,b,c\n", None, r"has 2 columns called like a path: there are 'path', 'file'; name it"),
        ("path,label,label\na,b,c\n", None, r"2 columns called like a label: .*'label', 'label'"),
        ("path,label,patient,subject\na,b,c,d\n", None, r"NAME, or use none with --columns group="),
        (text_of(), {"label": "breed"}, r"has no column 'breed': there are 'path', 'label', 'group', 'split'"),
        (text_of().replace(",val", ",holdout"), None, r"column 'split' of .* holds 'holdout': it has to be train, val"),
        (text_of().replace(",train", ",test"), None, "column 'split' of .* has no row of train"),
        (text_of().replace("b.png,cat", "b.png,"), None, r"rows without label \(1: line 3\); fill or remove them"),
        (text_of().replace("b.png,cat", "b.png,NaN").replace("c.png", ""), None, r"label \(1: line 3\), path \(1: l"),
        (text_of().replace("f.png,cat", "f.png,eel"), None, r"classes without a training image: eel \(line 7\)"),
    ],
)  # fmt: skip
def test_a_bad_table_is_told(root: Path, text: str, columns: dict[str, str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(root, text, columns=columns)


def test_a_tsv_wants_tabs(root: Path) -> None:
    with pytest.raises(DataError, match="has one column, 'path,label': separate columns by tabs"):
        opened(root, text_of(2), "t.tsv")


def test_columns_of_a_plain_list_have_no_effect(root: Path) -> None:
    with pytest.raises(UsageError, match=r"columns has no effect with .*t.txt, which is a plain list"):
        opened(root, "a.png cat\nc.png dog\n", "t.txt", columns={"label": "x"})


@pytest.mark.parametrize("text", ["path", "path=a,path=b", "name=x", "=x", ""])
def test_columns_are_roles_with_names(text: str) -> None:
    with pytest.raises(UsageError, match="is not one of path=NAME, label=NAME, group=NAME, split=NAME, each once"):
        parse_columns(text)


def parquet(root: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    file = root.parent / "table.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    return file


def read(root: Path, columns: dict[str, Any], **options: Any) -> Source:
    return open_source(SplitConfig(dataset="list", train_list=str(parquet(root, columns)), **options), root)


@needs_parquet
def test_parquet_is_read(root: Path) -> None:
    columns: dict[str, Any] = {name: [row[index] for row in ROWS] for index, name in enumerate(HEADER)}
    check(read(root, {**columns, "other": list(range(6))}))


@needs_parquet
def test_parquet_has_labels_of_every_kind(root: Path) -> None:
    import pyarrow

    paths = [row[0] for row in ROWS]
    for labels in (
        [0, 1, 10, 0, 1, 10],
        [0.0, 1.0, 10.0, 0.0, 1.0, 10.0],
    ):  # pandas makes floats where some are missing
        assert read(root, {"path": paths, "label": labels}).classes == ("0", "1", "10")
    source = read(root, {"path": paths, "label": pyarrow.array(["x", "y"] * 3).dictionary_encode()})
    assert source.classes == ("x", "y") and source.train_labels.tolist() == [0, 1] * 3


@needs_parquet
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [], "label": []}, "has a header but no rows"),
        ({"path": ["a.png", "b.png"], "label": [0.5, 1.5]}, "labels such as 0.5, 1.5: labels are integers"),
        ({"path": ["a.png", "b.png"], "label": [float("nan"), 1.0]}, r"rows without label \(1: line 1\)"),
        ({"path": ["a.png", None], "label": [0, 1]}, r"rows without path \(1: line 2\)"),
        ({"image": [{"bytes": b"x"}] * 2, "label": [0, 1]}, "holds struct<.*read with --dataset huggingface"),
        ({"path": ["a.png", "b.png"], "label": [[0], [1, 0]]}, "column 'label' of .* holds list<"),
    ],
)
def test_bad_parquet_is_told(root: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(root, columns)


@needs_parquet
def test_what_is_no_parquet_is_told(root: Path) -> None:
    with pytest.raises(DataError, match=r"t.parquet cannot be read \(.+\): write it again as Parquet"):
        opened(root, "path,label\n", "t.parquet")


def test_parquet_without_the_extra_names_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "parquet", ("a_package_that_is_not_there",))
    with pytest.raises(
        EnvironmentFault, match=r"t.parquet needs a_package_that_is_not_there: pip install 'saukit\[parquet\]'"
    ):
        opened(root, "", "t.parquet")
