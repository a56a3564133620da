"""What may be missing: optional packages, imported where they are used with the fix in the error, and the network."""

from __future__ import annotations

import importlib.util
import os

from saukit.core.errors import EnvironmentFault

TIMM = "timm/"  # what names of timm's networks begin with
OFFLINE = "SAUKIT_OFFLINE"
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
