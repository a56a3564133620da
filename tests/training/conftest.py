import pytest

from saukit.models import dual_branch


@pytest.fixture
def narrow_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection of 32 hidden units instead of 2048, so that a step and a checkpoint take milliseconds."""
    monkeypatch.setattr(dual_branch, "PROJECTION_HIDDEN", 32)
    monkeypatch.setattr(dual_branch, "PROJECTION_DIM", 16)
