"""The Hugging Face Hub, asked once whether it answers before a library asks it over and over."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from saukit.core.extras import OFFLINE, is_offline

ANSWER_SECONDS = 8.0


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """While entered, Hugging Face's libraries fetch what their cache lacks; where SAUKIT_OFFLINE forbids it, or the Hub
    does not answer, they read the cache alone, as with HF_HUB_OFFLINE, which they read only when they are imported.

    By themselves they try for a minute before they say that there is no network, and log each attempt.
    Raises: ConnectionError that says so, for what the cache lacks then.
    """
    from huggingface_hub import constants

    places: list[Any] = [constants]
    if "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    reason = None
    if not any(before):
        reason = f"{OFFLINE} is set" if is_offline() else None if _answers() else "the Hub does not answer"
    for place in places:
        place.HF_HUB_OFFLINE = any(before) or reason is not None
    disabled = logging.root.manager.disable
    if reason is not None:
        logging.disable(logging.WARNING)  # each library says in its own words that it is offline
    try:
        yield
    except OSError as error:
        if reason is None:
            raise
        raise ConnectionError(f"{reason}, and its cache on this machine lacks it") from error
    finally:
        logging.disable(disabled)
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was


def _answers() -> bool:
    """Whether the Hub, or its mirror or proxy, answers anything in time; looking up its name may take longer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # of its HTTP library, whichever that is
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return answered.is_set()
