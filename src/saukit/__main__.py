"""`python -m saukit`, the same program as `saukit`; torchrun starts it this way."""

import signal
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run() -> None:
    """Run the program. Ctrl-C while it is still loading, when there is nothing to save, ends it without a word."""
    signal.signal(signal.SIGINT, _stop)
    from saukit.cli.main import run as program

    program()


if __name__ == "__main__":
    run()
