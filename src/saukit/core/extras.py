"""Optional packages: imported where they are used, with the remedy in the error where they are not installed."""

from __future__ import annotations

import importlib.util

from saukit.core.errors import EnvironmentFault

EXTRAS = {
    "clip": ("transformers",),
    "text2image": ("transformers", "accelerate", "peft"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
}


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if importlib.util.find_spec(package) is None]


def require_extra(extra: str, *, purpose: str) -> None:
    """Raises: EnvironmentFault that names the extra if one of its packages is not installed."""
    missing = missing_packages(extra)
    if missing:
        raise EnvironmentFault(f"{purpose} needs {' and '.join(missing)}: pip install 'saukit[{extra}]'")
