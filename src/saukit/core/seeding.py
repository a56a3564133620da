"""Randomness by name: a generator from (seed, purpose, index), never global state.

A stream depends on nothing but its name, so a resumed run, another shard or another order draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """A seed in [0, 2^63) for one purpose, from SHA-256 of (seed, purpose, index)."""
    name = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, *index))


def torch_generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose on `device`."""
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *index))
