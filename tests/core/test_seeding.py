import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from saukit.core.seeding import derive_seed, numpy_generator, torch_generator

NAMES: list[tuple[Any, ...]] = [
    (seed, purpose, *index)
    for seed, purpose, index in itertools.product((0, 1, 2**40), ("image", "order"), ((), (0,), (1,), (0, 1), (1, 0)))
]


@pytest.mark.parametrize(("seed", "purpose", "index"), [(0, "image", ()), (3, "order", (7,)), (2**63, "x", (1, 2))])
def test_a_seed_is_the_upper_63_bits_of_a_hash_of_its_name(seed: int, purpose: str, index: tuple[int, ...]) -> None:
    name = "/".join(map(str, (seed, purpose, *index)))
    first = hashlib.sha256(name.encode()).digest()[:8]
    value = sum(byte << (8 * place) for place, byte in enumerate(first))
    assert derive_seed(seed, purpose, *index) == value // 2


def test_seeds_differ_by_seed_purpose_and_index_and_fit_into_int64() -> None:
    seeds = [derive_seed(*name) for name in NAMES]
    assert len(set(seeds)) == len(NAMES)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.array(seeds, dtype=np.int64).tolist() == seeds


def test_generators_repeat_by_name_and_leave_global_state_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = (torch.rand(2).tolist(), np.random.rand(2).tolist())
    torch.manual_seed(5)
    np.random.seed(5)
    draws = {name: numpy_generator(*name).random(3).tolist() for name in NAMES}
    tensors = {name: torch_generator(*name) for name in NAMES}
    values = {name: torch.rand(3, generator=generator).tolist() for name, generator in tensors.items()}
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == expected

    assert len({tuple(draw) for draw in draws.values()}) == len(NAMES)
    assert len({tuple(draw) for draw in values.values()}) == len(NAMES)
    for name in reversed(NAMES):  # another order draws the same
        assert numpy_generator(*name).random(3).tolist() == draws[name]
        assert torch.rand(3, generator=torch_generator(*name)).tolist() == values[name]
