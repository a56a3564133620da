"""What `saukit make-lt` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Profile = Literal["exp", "step", "pareto", "counts", "none"]


@dataclass(frozen=True)
class SplitConfig:
    """A long-tailed split. Every default of `make-lt` lives here."""

    dataset: str = "digits"
    imb: float | None = None
    profile: Profile | None = None
    counts: dict[str, int] | None = None
    protocol: Literal["ldam"] = "ldam"
    image_size: int | None = None
    test_fraction: float = 0.2
    val_fraction: float = 0.0
    groups: str = "auto"
    skip_bad: bool = False
    seed: int = 0
