"""What may be missing: optional packages, imported where they are used with the fix in the error, and the network.

The Hugging Face Hub is asked once whether it answers before a library asks it over and over.
"""

import contextlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from saukit.core.errors import EnvironmentFault

TIMM = "timm/"  # what names of timm's networks begin with
OFFLINE = "SAUKIT_OFFLINE"
ANSWER_SECONDS = 8.0
EXTRAS = {
    "clip": ("transformers",),
    "text2image": ("transformers", "accelerate", "peft"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "timm": ("timm",),
    "heif": ("pillow_heif",),
    "lora": ("peft",),
    "parquet": ("pyarrow",),
    "datasets": ("datasets",),
}


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if importlib.util.find_spec(package) is None]


def require_extra(extra: str, *, purpose: str) -> None:
    """Raises: EnvironmentFault that names the extra if one of its packages is not installed."""
    missing = missing_packages(extra)
    if missing:
        raise EnvironmentFault(f"{purpose} needs {' and '.join(missing)}: pip install 'saukit[{extra}]'")


def is_offline() -> bool:
    """Whether SAUKIT_OFFLINE forbids downloads."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


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
