"""The mechanics of artefacts, whatever their kinds say in their summaries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from saukit.core import artifacts


@pytest.fixture(autouse=True)
def any_summary() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own
        patch.setattr(artifacts, "SUMMARIES", {})
        yield
