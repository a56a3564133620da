"""The `saukit` program: its commands, and the one place where errors become messages and exit codes."""

import contextlib
import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from saukit.cli import compare, demo, doctor, evaluate, export, make_lt, predict, report, synth, train
from saukit.cli.help import Command, Group
from saukit.cli.streams import shell_streams, voice
from saukit.core.errors import EnvironmentFault, SaukitError, is_out_of_memory
from saukit.core.files import name_too_long, remedy_of
from saukit.core.interrupts import typed_command
from saukit.core.ranks import exit_code_of_job, has_spoken, may_speak
from saukit.core.version import __version__
from saukit.core.words import printable, shown

LONGEST_MESSAGE = 8000  # characters

app = typer.Typer(
    name="saukit",
    cls=Group,
    help="Long-tailed image recognition with synthetic data.",
    epilog="Start with `saukit demo`, or: saukit make-lt, saukit synth, saukit train, saukit eval.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("make-lt", cls=Command, context_settings={"allow_extra_args": True})(make_lt.command)
app.command("synth", cls=Command)(synth.command)
app.command("train", cls=Command)(train.command)
app.command("eval", cls=Command)(evaluate.command)
app.command("compare", cls=Command)(compare.command)
app.command("report", cls=Command)(report.command)
app.command("predict", cls=Command)(predict.command)
app.command("export", cls=Command)(export.command)
app.command("demo", cls=Command)(demo.command)
app.command("doctor", cls=Command)(doctor.command)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"saukit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Long-tailed image recognition with synthetic data."""


def run() -> None:
    """Run the program; exit codes as README.md lists them."""
    with shell_streams():
        if not _has_working_folder():  # which some libraries answer by ending the process
            _fail(EnvironmentFault("the working folder is gone: change to one that is there and run the command again"))
        try:
            with typed_command(sys.argv[1:]):
                try:
                    app(prog_name="saukit")
                except SystemExit:
                    sys.stdout.flush()  # here, where a disk that is full is an error in words
                    raise
        except SaukitError as error:
            _fail(error)
        except (MemoryError, OSError, RuntimeError) as error:
            fault = _environment_fault(error)
            if fault is None:
                _leave_unless_first(1)
                raise
            _fail(fault)
        except Exception:
            _leave_unless_first(1)
            raise


def _leave_unless_first(exit_code: int) -> None:
    """End in silence a process of a job of which another one says why it fails."""
    if not may_speak(exit_code):
        sys.exit(exit_code_of_job(exit_code))


def _fail(error: SaukitError) -> NoReturn:
    _leave_unless_first(error.exit_code)
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    console = Console(file=voice(), highlight=False, emoji=False, soft_wrap=True)
    message = printable(shown(str(error), limit=LONGEST_MESSAGE, quotes=False))
    with contextlib.suppress(EnvironmentFault):  # of a stderr that takes nothing
        console.print(f"[bold red]error:[/bold red] {escape(message)}")
    has_spoken()
    sys.exit(error.exit_code)


def _environment_fault(error: Exception) -> SaukitError | None:
    """A full disk or memory, or a disk that fails, in words; None for anything else, which is a bug."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return EnvironmentFault(f"the disk is full{where}: free some space and run the command again")
        if error.errno == errno.ENAMETOOLONG:
            return name_too_long(error.filename)
        if "temporary directory" in str(error):  # of tempfile and Matplotlib
            return EnvironmentFault(f"{error}: set TMPDIR to a folder that can be written to")
        if error.filename or error.errno in (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE):
            return EnvironmentFault(f"{error.strerror}{where}: {remedy_of(error)}")
    if is_out_of_memory(error):
        return EnvironmentFault("out of memory: give a smaller --batch-size or --image-size, or another --device")
    return None


def _has_working_folder() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False
