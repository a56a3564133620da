"""What `saukit eval` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Selection = Literal["all", "many", "medium", "few"]


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation. `run` None is the run completed last; `split` is the part of the test set that is shown."""

    run: str | None = None
    split: Selection = "all"
