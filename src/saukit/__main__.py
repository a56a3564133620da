"""`python -m saukit`, the same program as `saukit`; torchrun starts it this way."""

from saukit.cli.main import run

if __name__ == "__main__":
    run()
