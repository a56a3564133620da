"""One question to the Hub, and its cache alone where that is not answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import huggingface_hub.utils
import pytest
from huggingface_hub import constants

from saukit.core import extras as hub
from saukit.core.extras import fetching


class Session:
    """Stands for the HTTP client of huggingface_hub; counts what it is asked."""

    def __init__(self, answer: Any) -> None:
        self.asked: list[tuple[str, float]] = []
        self._answer = answer

    def head(self, url: str, *, timeout: float) -> object:
        self.asked.append((url, timeout))
        return self._answer()


def refuses() -> None:
    raise OSError("no route to host")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Session]:
    monkeypatch.delenv("SAUKIT_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    found = Session(request.param)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: found)
    yield found
    assert not constants.HF_HUB_OFFLINE and not logging.root.manager.disable  # as before


@pytest.mark.parametrize("session", [refuses, lambda: time.sleep(2)], indirect=True, ids=["refuses", "hangs"])
def test_a_hub_that_does_not_answer_is_asked_once_and_soon_given_up(session: Session) -> None:
    began = time.monotonic()
    message = r"^the Hub does not answer, and its cache on this machine lacks it$"
    with pytest.raises(ConnectionError, match=message), fetching():
        assert constants.HF_HUB_OFFLINE and not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)
        raise FileNotFoundError("not in the cache, and five sentences more")
    assert session.asked == [(constants.ENDPOINT, 0.2)] and time.monotonic() - began < 1.5


@pytest.mark.parametrize("session", [lambda: "a page of a proxy"], indirect=True)
def test_a_hub_that_answers_is_asked_by_the_libraries(session: Session) -> None:
    with pytest.raises(FileNotFoundError, match="no such model"), fetching():
        assert not constants.HF_HUB_OFFLINE and logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)
        raise FileNotFoundError("no such model")
    assert len(session.asked) == 1


@pytest.mark.parametrize("session", [refuses], indirect=True)
def test_what_is_in_the_cache_is_read_without_the_hub(session: Session) -> None:
    with fetching():
        found = constants.HF_HUB_OFFLINE
    assert found


@pytest.mark.parametrize("session", [refuses], indirect=True)
def test_nothing_is_asked_where_it_is_forbidden(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    with pytest.raises(ConnectionError, match=r"^SAUKIT_OFFLINE is set, and its cache"), fetching():
        raise FileNotFoundError
    assert not session.asked


@pytest.mark.parametrize("session", [refuses], indirect=True)
def test_offline_by_hugging_face_s_own_variable(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match="its own words"), fetching():
            raise FileNotFoundError("its own words")
    assert not session.asked
