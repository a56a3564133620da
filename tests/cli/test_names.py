"""Names of classes that are signs somewhere: the whole chain on them, and each thing that it makes."""

from __future__ import annotations

import csv
import html
import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from report_page import Page
from rich.cells import cell_len

from saukit.cli.main import run
from saukit.core.plots import numbered
from saukit.core.words import brief, one_line
from saukit.core.workspace import Workspace
from saukit.data.split import load_split

LONG = "L" * 200
NAMES = (
    "$x^2$", "under_score_", "[red]x", "<b>bold<", "a|b", "*star*", "`tick`", "猫", "\U0001f431", "قط", LONG,
    "\x1b[31mred", "new\nline", "01", "1", "test", "{{ 7 * 7 }}", " a b ", "=1+1", "\\back", "#hash", "café",
)  # fmt: skip
OFF = ("--filter", "none", "--no-audit", "--preflight", "0")
SHORT_RUN = ("--steps", "2", "--batch-size", "8")


@dataclass(frozen=True)
class Chain:
    """What the commands said, and the folder in which they worked."""

    said: dict[str, str]
    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"


def call(*arguments: str | Path, encoding: str = "utf-8", columns: int = 80) -> str:
    """stdout and stderr of a command that has to succeed, as a terminal of that encoding and width gets them."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # of matplotlib, for a character that no font has
        patch.setattr("sys.argv", ["saukit", *map(str, arguments)])
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("SAUKIT_OFFLINE", "1")
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            try:
                run()
            except SystemExit as end:
                assert end.code in (0, None), streams[1].buffer.getvalue()  # type: ignore[attr-defined]
    for stream in streams:
        stream.flush()
    return "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("names")
    draw = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(10 - label // 3):
            pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    at = ("-w", root / "work")
    said = {
        "make-lt": call("make-lt", "--dataset", "folder", "--root", root / "pictures", "--val-fraction", "0.2", *at),
        "synth": call(
            "synth", "--generator", "folder", "--from", root / "pictures", "--per-class-target", "8", *OFF, *at
        ),
        "compare": call("compare", "--methods", "ce,balanced-softmax", "--seeds", "1", *SHORT_RUN, *at),
        "eval": call("eval", "--run", "ce", "--suspects", *at),
        "report": call("report", *at),
        "predict": call("predict", root / "work/runs/ce", root / "pictures", "--out", root / "predicted.csv"),
        "export": call("export", root / "work/runs/ce", "--to", root / "exported", "--format", "hub"),
    }
    return Chain(said, root)


@pytest.mark.parametrize(("encoding", "columns"), [("utf-8", 80), ("utf-8", 40), ("ascii", 80), ("latin-1", 40)])
def test_terminals(chain: Chain, encoding: str, columns: int) -> None:
    at: dict[str, Any] = {"encoding": encoding, "columns": columns}
    said = [call("eval", "--run", "ce", "-w", chain.work, **at)]
    root = ("--dataset", "folder", "--root", chain.root / "pictures", "--val-fraction", "0.2")
    said.append(call("make-lt", *root, "-w", chain.work, **at))

    def written(text: str) -> str:
        return one_line(text).encode(encoding, "backslashreplace").decode(encoding)

    for text in said:
        assert "\x1b" not in text
        table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└+|" and line not in map(written, NAMES)]
        assert all(cell_len(line) == cell_len(table[0]) <= columns for line in table[:3])
    lines = [line.rstrip() for line in said[0].splitlines()]
    chart = said[1].splitlines()[: len(NAMES)]
    for name in NAMES:
        assert any(line.startswith(written(name)[:9]) for line in chart), name
        if columns == 40:  # each row of the table under its name
            assert any(line.startswith(written(name)[:9].rstrip()) for line in lines)
            assert max(cell_len(line) for line in lines if line.startswith("  ")) <= columns
    places = {
        cell_len(line[: line.index(group)])
        for line in chart
        for group in ("  many ", "  medium ", "  few ")
        if group in line
    }
    assert len(places) == 1  # the columns of the chart are straight


def test_the_split_and_files_keep_names_as_they_are(chain: Chain) -> None:
    names = set(NAMES)
    assert set(load_split(Workspace(chain.work)).classes) == names
    exported = json.loads((chain.root / "exported/classes.json").read_text(encoding="utf-8"))
    assert set(exported["classes"]) == names
    for path, column in (
        ("predicted.csv", "class"),
        ("work/runs/ce/errors.csv", "true"),
        ("work/split/files.csv", "label"),
    ):
        with (chain.root / path).open(encoding="utf-8", newline="") as file:
            found = {row[column] for row in csv.DictReader(file)}
        assert found and found <= names, path
    assert found == names


@pytest.mark.parametrize("path", ["work/comparisons/main/compare.md", "exported/README.md"])
def test_markdown(chain: Chain, path: str) -> None:
    text = (chain.root / path).read_text(encoding="utf-8")
    assert text.isprintable() or all(letter.isprintable() or letter == "\n" for letter in text)
    body = text.split("\n---\n", 1)[1] if text.startswith("---") else text
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = html.unescape(reader.render(body))
    for name in NAMES:
        assert one_line(name).strip() in shown, name
    assert "<b>bold<" not in reader.render(body)


def test_page(chain: Chain) -> None:
    page = Page(chain.work / "report.html")
    assert not page.problems and "\x1b" not in page.source
    table = page.tables["Images of each class"]
    assert {row[0] for row in table.rows[1:]} == {one_line(name).strip() for name in NAMES}
    note = numbered(load_split(Workspace(chain.work)).classes)
    assert note is None or note in page.text
    for name in NAMES:
        assert brief(name).strip() in page.text


def test_pictures_are_there(chain: Chain) -> None:
    """That no character was drawn as a box is in `call`: matplotlib warns of one."""
    for path in ("split/counts.png", "synth/samples.png", "runs/ce/per_class.png", "runs/ce/confusion.png",
                 "runs/ce/errors.png"):  # fmt: skip
        with Image.open(chain.work / path) as picture:
            assert len(set(picture.convert("L").resize((40, 40)).tobytes())) > 10
    note = numbered(load_split(Workspace(chain.work)).classes)
    assert note is None or note in chain.said["make-lt"]
