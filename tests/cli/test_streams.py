"""What a shell does with stdout and stderr: closes them, pipes them to head, or knows few characters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The program with a command of its own; --help is the real one.
SCRIPT = """
import os, sys, time
from saukit.cli import main
from saukit.core.console import Reporter

def work(**_):
    reporter = Reporter(json_output="--json" in sys.argv, quiet="--quiet" in sys.argv)
    try:
        if reporter.json_output:
            time.sleep(0.5)  # for the reader to leave
        for line in range(100 if reporter.json_output else 8000):  # more than a pipe holds
            reporter.result(f"line {line}")
            reporter.say("a bar: █")
        reporter.document({"lines": line})
    finally:
        open(os.environ["END"], "w").write("closed in order")
    raise SystemExit(0)

if "--help" not in sys.argv:
    main.app = work
main.run()
"""


def piped(tmp_path: Path, *arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a shell; `redirect` goes behind it."""
    command = f'"$0" -c "$1" {" ".join(arguments)} {redirect}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "END": str(tmp_path / "end"), **environment},
    )


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--help",)])
def test_a_reader_that_leaves_ends_it_as_it_ends_cat(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = piped(tmp_path, *arguments, redirect="2>/dev/null | true")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "", "")
    if "--help" not in arguments:
        assert (tmp_path / "end").read_text() == "closed in order"


def test_head_has_what_it_wants(tmp_path: Path) -> None:
    done = piped(tmp_path, redirect="2>&1 | head -n 3")
    assert (done.returncode, done.stdout) == (141, "line 0\na bar: █\nline 1\n")


def test_a_closed_stdout_is_an_error_if_there_was_something_to_say(tmp_path: Path) -> None:
    for arguments in ((), ("--json", "2>/dev/null")):
        assert piped(tmp_path, *arguments, redirect=">&-").returncode == 5
    done = piped(tmp_path, redirect=">&-")
    assert done.stderr == "error: cannot write to stdout: it is closed; redirect it to a file\n"
    assert piped(tmp_path, "--quiet", redirect=">&-").returncode == 0
    assert piped(tmp_path, "--json", redirect="2>&-").returncode == 0


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    done = piped(tmp_path, redirect="2>&1 >/dev/full | grep error")
    assert (
        done.returncode == 5
        and "cannot write to stdout: No space left on device; check where it is redirected to" in done.stdout
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_terminal_cannot_show_is_replaced(tmp_path: Path, encoding: str) -> None:
    done = piped(tmp_path, redirect="2>&1 >/dev/null", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.startswith("a bar: #\n")
