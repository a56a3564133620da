"""Two writers of an artefact, and --force while another runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from injection import CACHE, RUN, begun, forked, started, untimed
from support import Cli, tree

from saukit.core.locks import hold

TRAIN = ("train", "--name", "ce", "--method", "ce", "--no-synthetic", *RUN)
WRITERS: list[tuple[str, tuple[str, ...]]] = [
    ("split", ("make-lt", "--imb", "50")),
    ("split", ("make-lt", "--imb", "20", "--force")),
    ("synth", CACHE),
    ("synth", (*CACHE, "--force")),
    ("synth", (*CACHE, "--resume")),
    ("synth", (*CACHE, "--refilter")),
    ("runs/ce", TRAIN),
    ("runs/ce", (*TRAIN, "--force")),
    ("runs/ce", (*TRAIN, "--resume")),
    ("runs/ce", ("eval", "--run", "ce", "--force")),
    ("comparisons/main", ("compare", "--methods", "ce", "--seeds", "1", "--jobs", "1", *RUN)),
    ("out", ("export", "ce", "--to", "{work}/out")),
]


@pytest.mark.parametrize(("artefact", "command"), WRITERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_second_writer_names_the_first_and_changes_nothing(
    cli: Cli, work: Path, artefact: str, command: tuple[str, ...]
) -> None:
    before = tree(work)
    with hold(work / f".{artefact.replace('/', '-')}.lock", work / artefact):
        outcome = cli(*(word.format(work=work) for word in command), "-w", work)
    assert outcome.code == 1, outcome.err
    assert f"{work / artefact} is being written by process {os.getpid()} on " in outcome.error
    assert "wait for it, or stop it" in outcome.error and "Traceback" not in outcome.err
    now = tree(work)
    assert {name: now[name] for name in before} == before
    assert artefact == "comparisons/main" or now == before  # whose runs may be trained before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["make-lt", "export"])
def test_two_at_once_make_what_one_makes(shared_work: Path, tmp_path: Path, name: str) -> None:
    whole = started(name, shared_work, tmp_path / "whole")
    assert forked(name, whole).code == 0
    work = started(name, shared_work, tmp_path / "work")
    (tmp_path / "other").symlink_to(work)  # so that each says by itself what became of it
    both = [begun(name, work), begun(name, tmp_path / "other")]
    ended = [process.wait() for process in both]
    assert 0 in {each.code for each in ended}, ended
    for each in ended:
        assert each.code == 0 or (each.code == 1 and "is being written by" in each.err), each.err
    assert untimed(tree(work)) == untimed(tree(whole))
