"""saukit: long-tailed image recognition with synthetic data. The commands are functions in `saukit.api`."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from saukit.core.version import __version__ as __version__

if TYPE_CHECKING:
    from saukit.api import compare, evaluate, load_classifier, make_lt, predict, synth, train
    from saukit.core.errors import SaukitError
    from saukit.core.workspace import Workspace
    from saukit.data.config import SplitConfig
    from saukit.deploy.config import PredictConfig
    from saukit.evaluation.config import CompareConfig, EvalConfig
    from saukit.models.classifier import ImageClassifier
    from saukit.synthesis.config import SynthConfig
    from saukit.training.config import TrainConfig

# What an Apple GPU lacks is computed by the processor, and torch says so; it reads this when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = [
    "CompareConfig",
    "EvalConfig",
    "ImageClassifier",
    "PredictConfig",
    "SaukitError",
    "SplitConfig",
    "SynthConfig",
    "TrainConfig",
    "Workspace",
    "compare",
    "evaluate",
    "load_classifier",
    "make_lt",
    "predict",
    "synth",
    "train",
]

# Imported when first asked for, so that `import saukit` loads no torch.
_MODULES = {
    "CompareConfig": "saukit.evaluation.config",
    "EvalConfig": "saukit.evaluation.config",
    "ImageClassifier": "saukit.models.classifier",
    "PredictConfig": "saukit.deploy.config",
    "SaukitError": "saukit.core.errors",
    "SplitConfig": "saukit.data.config",
    "SynthConfig": "saukit.synthesis.config",
    "TrainConfig": "saukit.training.config",
    "Workspace": "saukit.core.workspace",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'saukit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "saukit.api")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
