import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from saukit.core.errors import DataError, UsageError
from saukit.data.split import Split
from saukit.synthesis.config import PRESETS, SynthConfig, auto_preset, preset_values, resolve_config, smaller_preset
from saukit.synthesis.plan import SynthesisPlan, make_plan, plan_synthesis


def planned(real: list[int], *, target: int, batch: int = 4, seed: int = 0) -> SynthesisPlan:
    config = SynthConfig(per_class_target=target, sample_batch_size=batch, seed=seed)
    names = [f"class {index}" for index in range(len(real))]
    return make_plan(config, classes=names, image_size=(8, 8), real_counts=np.array(real))


@pytest.mark.parametrize(("real", "target", "batch"), [([9, 5, 2], 9, 4), ([300, 3, 1], 120, 7), ([4, 4], 6, 64)])
def test_labels_and_seeds_are_those_of_a_plain_loop(real: list[int], target: int, batch: int) -> None:
    labels, seeds = [], []
    for label, count in enumerate(real):
        for index in range(target - count):  # nothing for a class at or above the target
            digest = hashlib.sha256(f"3/image/{label}/{index}".encode()).digest()
            labels.append(label)
            seeds.append(int.from_bytes(digest[:8], "little") >> 1)
    plan = planned(real, target=target, batch=batch, seed=3)
    assert plan.labels.tolist() == labels
    assert plan.seeds.tolist() == seeds
    assert plan.seeds.min() >= 0
    assert len(set(seeds)) == len(seeds)
    assert [n + m for n, m in zip(real, plan.synthetic_counts, strict=True)] == [max(target, n) for n in real]


@pytest.mark.parametrize(("total", "batch"), [(1, 64), (63, 64), (850, 64), (1028, 32), (37_594, 64), (37_594, 100)])
def test_batches_and_shards_hold_every_image_once_in_order(total: int, batch: int) -> None:
    plan = planned([total + 1, 1], target=total + 1, batch=batch)
    seen = [image for shard in plan.shards for part in plan.batches(shard) for image in range(part.start, part.stop)]
    assert seen == list(range(total))
    assert plan.shard_images % batch == 0
    sizes = [part.stop - part.start for shard in plan.shards for part in plan.batches(shard)]
    assert all(size == batch for size in sizes[:-1])  # only the very last is short
    assert len(plan.shards) <= 256


def test_a_small_cache_has_several_shards_and_a_large_one_not_thousands() -> None:
    assert len(planned([851, 1], target=851, batch=64).shards) >= 5
    assert len(planned([37_595, 1], target=37_595, batch=64).shards) < 100
    assert len(planned([400_001, 1], target=400_001, batch=64).shards) <= 256


def test_the_digest_tells_plans_apart() -> None:
    plan = planned([9, 5, 2], target=9)
    assert plan.digest == planned([9, 5, 2], target=9).digest
    others = [
        planned([9, 5, 2], target=9, seed=1),
        planned([9, 4, 2], target=9),
        planned([9, 5, 2], target=9, batch=2),
    ]
    assert plan.digest not in {other.digest for other in others}


@pytest.mark.parametrize(
    ("real", "target", "message"),
    [
        (
            [9, 5, 2],
            2,
            "per_class_target 2 needs no synthetic image: the smallest class has 2 real images already, "
            "the largest 9; give a --per-class-target above 2",
        ),
        ([5, 5], 5, "every class has 5 real images; give a --per-class-target above 5"),
    ],
)
def test_a_target_that_is_reached_already_says_what_is_there(real: list[int], target: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(real, target=target)
    assert message in str(caught.value)


def test_a_class_without_real_images_is_named() -> None:
    with pytest.raises(DataError, match="no real training image of class 1"):
        planned([5, 0], target=5)


def test_the_default_target_is_the_largest_class(split: Split) -> None:
    plan = plan_synthesis(SynthConfig(), split, torch.device("cpu"))
    assert plan.config.per_class_target == max(split.class_counts)
    assert (split.class_counts + plan.synthetic_counts).tolist() == [142] * 10
    assert plan.config.preset == "tiny"
    assert None not in vars(plan.config).values()
    assert "auto" not in vars(plan.config).values()


def test_resolving_again_changes_nothing(split: Split) -> None:
    once = plan_synthesis(SynthConfig(guidance=2.5), split, torch.device("cpu")).config
    assert once.guidance == 2.5
    assert plan_synthesis(once, split, torch.device("cpu")).config == once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class_target": 0}, "per_class_target must be at least 1 (real + synthetic images of a class), got 0"),
        ({"per_class_target": -3}, "got -3"),
        ({"guidance": 0.5}, "guidance must be from 1 to 20 (1 is no guidance), got 0.5"),
        ({"guidance": float("nan")}, "guidance must be from 1 to 20 (1 is no guidance), got nan"),
        ({"sampler_steps": 1}, "sampler_steps must be from 2 to 999, got 1"),
        ({"train_steps": 0, "train_batch_size": 0}, "train_steps must be at least 1, got 0; train_batch_size must be"),
        ({"sample_batch_size": 0}, "sample_batch_size must be from 1 to 65536, got 0"),
    ],
)
def test_values_out_of_their_limits(split: Split, change: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_synthesis(replace(SynthConfig(), **change), split, torch.device("cpu"))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_presets_by_device_and_size() -> None:
    assert auto_preset((8, 8), "cpu") == auto_preset((224, 224), "cpu") == "tiny"
    assert auto_preset((8, 8), "cuda") == "small"
    assert auto_preset((32, 32), "cuda") == "base"
    assert preset_values("tiny", (8, 8)) is PRESETS["tiny"][0]
    assert preset_values("small", (28, 32)) is PRESETS["small"][1]
    assert preset_values("base", (64, 32)) is PRESETS["base"][2]
    assert [smaller_preset(name) for name in PRESETS] == [None, "tiny", "small"]


def test_every_preset_resolves() -> None:
    for name in PRESETS:
        for size in ((8, 8), (32, 32), (64, 64)):
            config = resolve_config(
                SynthConfig(preset=name), image_size=size, largest_class=10, device_type="cpu", amp="off"
            )
            assert config.preset == name
            assert config.train_steps == preset_values(name, size).train_steps


def test_bytes_are_those_of_the_shards_on_disk(split: Split) -> None:
    plan = plan_synthesis(SynthConfig(), split, torch.device("cpu"))
    pixels = plan.total * (3 * 8 * 8 + 16)
    assert pixels < plan.bytes <= pixels + 4096 * len(plan.shards)
