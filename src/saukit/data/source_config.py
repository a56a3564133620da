"""The part of `make-lt`'s configuration that a source reads when it is opened. Imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saukit.core.options import option


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which source, and how its files are to be understood; `SplitConfig` adds what is chosen from it."""

    dataset: str = option("digits", "A row of the table of sources.")
    test_dir: str | None = option(
        None,
        "Folder of --root that is the test set, such as val.",
        metavar="NAME",
        shown="test",
        needs={"dataset": "folder"},
    )
    class_depth: Literal["top", "leaf"] = option(
        "top", "Which folders are the classes: the top ones, or the innermost ones.", needs={"dataset": "folder"}
    )
    min_images: int = option(
        0,
        "Leave out classes with fewer images.",
        least=0,
        needs={"dataset": "folder"},
        shown="none may be empty",
    )
