"""scikit-learn's 1797 digits of 8 x 8 pixels, embedded in it."""

from pathlib import Path

from saukit.data.source import Source
from saukit.data.source_config import SourceConfig
from saukit.data.sources.in_memory import source_of_arrays


def open_digits(config: SourceConfig, root: Path) -> Source:
    """The digits; their values 0..16 become 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * 255 / 16).astype(np.uint8)
    return source_of_arrays(tuple("0123456789"), (grey, bunch.target.astype(np.int64)), None, where="digits")
