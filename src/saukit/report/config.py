"""What `saukit report` can be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """A report. `title` None is made from the data set, `comparison` None is the one completed last, if there is one,
    `runs` None is every evaluated run."""

    title: str | None = None
    comparison: str | None = None
    runs: tuple[str, ...] | None = None
