import io
import json
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from saukit.core import console as console_module
from saukit.core.console import ProgressLine, Reporter

PATH = r"/data/[bold]/:car:/[red]x[/red]\[a]"  # markup, an emoji's name, and a backslash
DOCUMENT = {"top1": 0.5, "classes": ["größe", PATH], "few": None}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def say_everything(reporter: Reporter) -> None:
    reporter.say(f"said {PATH}")
    reporter.warn(f"warned {PATH}")
    reporter.result(f"result {PATH}")
    reporter.table(f"title {PATH}", ["class", "top-1"], [[PATH, "97.0"]])
    with reporter.progress("train", 10) as progress:
        progress.update(5, "note")
    reporter.document(DOCUMENT)


def test_results_go_to_stdout_and_the_rest_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    say_everything(Reporter())
    out, err = capfd.readouterr()
    assert err == f"said {PATH}\nwarning: warned {PATH}\n"
    assert out.startswith(f"result {PATH}\ntitle {PATH}\n")
    assert re.search(rf"{re.escape(PATH)} +│ +97\.0 │", out)
    assert "top1" not in out


def test_json_leaves_stdout_to_one_document(capfd: pytest.CaptureFixture[str]) -> None:
    say_everything(Reporter(json_output=True))
    out, err = capfd.readouterr()
    assert json.loads(out) == DOCUMENT
    assert out.endswith("}\n")
    for text in ("said ", "warning: warned ", "result ", "title "):
        assert f"{text}{PATH}\n" in err


def test_json_has_no_nan(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Reporter(json_output=True).document({"top1": float("nan")})
    assert capfd.readouterr().out == ""


def test_quiet_keeps_warnings_and_the_document(capfd: pytest.CaptureFixture[str]) -> None:
    say_everything(Reporter(quiet=True))
    assert tuple(capfd.readouterr()) == ("", f"warning: warned {PATH}\n")
    say_everything(Reporter(quiet=True, json_output=True))
    out, err = capfd.readouterr()
    assert json.loads(out) == DOCUMENT
    assert err == f"warning: warned {PATH}\n"


def test_a_file_gets_plain_lines_now_and_then(
    capfd: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    reporter = Reporter()
    with reporter.progress("train [bold]", 10) as progress:
        for done in range(1, 11):
            clock(24)
            progress.update(done, "loss [red] 0.5")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (  # a minute apart at least
        "train [bold] 3/10  loss [red] 0.5  ETA 2 min 48 s\n"
        "train [bold] 6/10  loss [red] 0.5  ETA 1 min 36 s\n"
        "train [bold] 9/10  loss [red] 0.5  ETA 24 s\n"
    )
    with Reporter(quiet=True).progress("train", 10) as progress:
        clock(60)
        progress.update(5)
    assert tuple(capfd.readouterr()) == ("", "")


def test_no_colours_and_no_bars_in_a_file(capfd: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    reporter = Reporter()
    say_everything(reporter)
    with reporter.progress("train", 10) as progress:
        clock(60)
        progress.update(5)
    out, err = capfd.readouterr()
    assert "train 5/10" in err
    assert not re.search("[\x1b\r\b]", out + err)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_gets_a_bar_unless_quiet(quiet: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    with ProgressLine(console, "train [bold]", 10, done=2, quiet=quiet) as progress:
        progress.update(7, "loss [red]")
    text = screen.getvalue()
    if quiet:
        assert text == ""
    else:
        assert "\x1b[" in text
        assert all(part in text for part in ("train [bold]", "7/10", "loss [red]", "━"))


def test_the_eta_counts_only_work_of_this_process(clock: Callable[[float], None]) -> None:
    progress = Reporter(quiet=True).progress("train", 100, done=50)
    clock(3)
    assert progress.eta_seconds is None
    progress.update(50)
    assert progress.eta_seconds is None
    clock(7)
    progress.update(60)
    assert progress.eta_seconds == pytest.approx(40)  # 10 pieces in 10 s, 40 pieces left
    progress.update(100)
    assert progress.eta_seconds == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only when called: clock(seconds)."""
    now = [1000.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(console_module, "time", Time)
    return advance


def test_a_narrow_table_leaves_out_optional_columns_and_folds_names_between_their_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        row = ["sau+synth-prior1-finish0.5", "92.4", "86.0", "17.2"]
        Reporter().table("t", ["method", "balanced", "few", "ECE"], [row], optional=["ECE", "few"])
        lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines() if "│" in line]
        return [" ".join(line.replace("│", " ").split()) for line in lines]

    assert shown(60) == ["sau+synth-prior1-finish0.5 92.4 86.0 17.2"]
    assert shown(50) == ["sau+synth-prior1-finish0.5 92.4 86.0"]
    assert shown(35) == ["sau+synth-prior1- 92.4", "finish0.5"]
