"""`saukit report` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from report_page import Page
from support import Cli


def test_the_page_is_written_into_the_workspace(cli: Cli, work: Path) -> None:
    outcome = cli("report", "-w", work)
    assert outcome.code == 0
    assert f"written to {work / 'report.html'}" in outcome.out and "1 runs, " in outcome.out
    assert "not on the page: sau (run sau is not evaluated: saukit eval --run sau)" in outcome.err
    page = Page(work / "report.html")
    assert page.title == "Long-tailed digits, 10 classes"
    results = json.loads((work / "runs" / "ce" / "results.json").read_text())
    assert page.tables["Accuracy of each run"].rows[1][1] == f"{100 * results['top1']:.1f}"


def test_title_file_and_runs_as_a_document(cli: Cli, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    outcome = cli("report", "-w", work, "--out", out, "--title", "A & B", "--runs", "ce,", "--json")
    assert outcome.code == 0
    document = outcome.document
    assert document["path"] == str(out) and document["bytes"] == out.stat().st_size
    assert (document["title"], document["runs"]) == ("A & B", ["ce"])
    assert (document["comparison"], document["headline"], document["left_out"]) == (None, None, [])
    assert document["sections"][0] == "Summary" and "Models" in document["sections"]
    assert Page(out).title == "A & B"
    assert not (work / "report.html").exists()


def test_quiet_says_nothing(cli: Cli, split_work: Path) -> None:
    outcome = cli("report", "-w", split_work, "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert (split_work / "report.html").exists()


def test_another_file_is_kept_unless_forced(cli: Cli, split_work: Path) -> None:
    out = split_work / "report.html"
    out.write_text("mine")
    outcome = cli("report", "-w", split_work)
    assert outcome.code == 2
    assert "report.html exists but saukit did not write it: give another --out, or replace it with --force" in (
        outcome.error
    )
    assert out.read_text() == "mine"
    assert cli("report", "-w", split_work, "--force").code == 0
    assert cli("report", "-w", split_work).code == 0
    assert Page(out).problems == []


def test_what_is_not_there(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        (("-w", tmp_path / "nowhere"), 3, "run `saukit make-lt -w"),
        (("-w", split_work, "--runs", "x"), 3, "no complete run 'x' in"),
        (("-w", split_work, "--runs", " , "), 2, "--runs names no run: give names with commas between them"),
        (("-w", split_work, "--comparison", "x"), 3, "no complete comparison 'x' of this split in"),
        (("-w", split_work, "--out", split_work), 2, "is a folder: give a file as --out"),
    ):
        outcome = cli("report", *arguments)
        assert outcome.code == code and message in outcome.error, outcome
    assert not (tmp_path / "nowhere").exists() and not (split_work / "report.html").exists()
