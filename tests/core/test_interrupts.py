import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from saukit.core.errors import Interrupted
from saukit.core.interrupts import StopRequest, continue_command, typed_command

# A command of saukit that works until asked to stop; `hang` makes it work on after that.
SCRIPT = """
import sys, time
from saukit.cli import main
from saukit.core.interrupts import StopRequest

def work(**_):
    with StopRequest() as stop:
        print("working", flush=True)
        while not stop.requested:
            time.sleep(0.005)
        print("noted", stop.signal_number, flush=True)
        while {hang}:
            time.sleep(0.005)
        print("saved", flush=True)
        raise stop.interrupted()

main.app = work
main.run()
"""


@contextmanager
def working(*, hang: bool) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SCRIPT.format(hang=hang), "train", "-w", "my work", "--force"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "working\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_then_work_is_saved_and_the_exit_code_tells(
    number: signal.Signals, code: int
) -> None:
    with working(hang=False) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert out == f"noted {int(number)}\nsaved\n"
    assert err == "error: stopped and saved; continue with: saukit train -w 'my work' --resume\n"
    assert process.returncode == code


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
)
def test_the_second_signal_ends_the_process_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with working(hang=True) as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert process.stdout.readline() == f"noted {int(first)}\n"
        process.send_signal(second)
        out, err = process.communicate(timeout=20)
    assert process.returncode == -second
    assert (out, err) == ("", "")


def test_nothing_is_requested_without_a_signal_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before
    assert all(one != other for one, other in zip(during, before, strict=True))
    error = stop.interrupted()
    assert (error.exit_code, str(error)) == (143, "stopped and saved; continue with: the same call")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("train --steps 9", "saukit train --steps 9 --resume"),
        ("train --resume --name a", "saukit train --name a --resume"),
        ("synth --force -w x", "saukit synth -w x --resume"),
        ("synth --shard 0/3 --force", "saukit synth --shard 0/3"),
        ("compare --methods ce,sau --force", "saukit compare --methods ce,sau --force"),
        ("demo", "saukit demo"),
    ],
)
def test_what_continues_is_the_command_that_was_typed(typed: str, expected: str) -> None:
    with typed_command(typed.split()):
        assert continue_command() == expected
        assert str(StopRequest().interrupted("another")) == f"stopped and saved; continue with: {expected}"
    assert continue_command("the same call") == "the same call"


def test_in_another_thread_signals_are_left_to_the_main_one() -> None:
    handlers: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            handlers.append(signal.getsignal(signal.SIGINT))
            handlers.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT), False]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_at_once_ends_the_work_where_it_stands(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, StopRequest(at_once="saukit compare"):
        try:
            signal.raise_signal(number)
        except Exception:  # such as of a reader that skips damaged files
            pytest.fail("it was swallowed")
        pytest.fail("it went on")
    assert (caught.value.exit_code, str(caught.value)) == (code, "stopped and saved; continue with: saukit compare")
    assert signal.getsignal(number) == before


def test_a_stage_inside_notes_signals_first() -> None:
    with (
        pytest.raises(Interrupted, match="continue with: saukit train"),
        StopRequest(at_once="saukit compare"),
        StopRequest() as stop,
    ):
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        raise stop.interrupted("saukit train")


@pytest.mark.parametrize("at_once", [None, "saukit compare"])
def test_a_signal_too_late_for_a_stage_is_passed_on(at_once: str | None) -> None:
    outer, went_on = StopRequest(at_once=at_once), []
    try:
        with outer:
            with StopRequest():
                signal.raise_signal(signal.SIGTERM)
                went_on.append("stage")
            went_on.append("outer")
    except Interrupted as error:
        assert error.exit_code == 143
    assert outer.requested
    assert went_on == (["stage", "outer"] if at_once is None else ["stage"])


def test_a_failure_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="broken"), StopRequest(at_once="again"), StopRequest():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("broken")
