"""The options of `saukit report`."""

from dataclasses import dataclass

from saukit.core.errors import UsageError
from saukit.core.options import option, split_commas


def _names(text: str) -> tuple[str, ...]:
    names = split_commas(text)
    if not names:
        raise UsageError("--runs names no run: give names with commas between them, such as --runs ce,sau+synth")
    return names


@dataclass(frozen=True)
class ReportConfig:
    """A report of everything in the workspace, or of one comparison and some runs."""

    title: str | None = option(None, "Title of the page.", shown="from the data set")
    comparison: str | None = option(None, "Name of the comparison.", shown="the one completed last, if any")
    runs: tuple[str, ...] | None = option(
        None, "Names of the runs to show, with commas.", shown="all evaluated ones", cli_type=str | None, parse=_names
    )
