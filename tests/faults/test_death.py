"""Killed at any change of a file: the command that continues makes the same bits, and leaves nothing beside them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from injection import COMMANDS, forked, moments, started, untimed
from support import Count, tree

PARTS = 2  # of the changes, one test each


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", ["make-lt", "export"])  # test_kill.py has train and synth
def test_killed_at_any_change(record_property: Count, shared_work: Path, tmp_path: Path, name: str, part: int) -> None:
    whole = started(name, shared_work, tmp_path / "whole")
    undisturbed = forked(name, whole)
    assert undisturbed.code == 0, undisturbed.err
    good, made = untimed(tree(whole)), COMMANDS[name][2]
    tried = moments(undisturbed.changes, part, PARTS)
    record_property("cases", len(tried))
    for at in tried:
        work = started(name, shared_work, tmp_path / f"work{at}")
        before = {file: what for file, what in tree(work).items() if not file.startswith(made)}
        case = f"{name}, killed at change {at} of {undisturbed.changes}"
        assert forked(name, work, at=at).code == -signal.SIGKILL, case
        assert {file: what for file, what in tree(work).items() if file in before} == before, case
        again = forked(name, work, resume=True)
        assert again.code == 0, f"{case}: {again.err}"
        assert untimed(tree(work)) == good, case
        shutil.rmtree(work)
