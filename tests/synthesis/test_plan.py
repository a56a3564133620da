import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saukit.core.errors import CorruptArtifactError, DataError, UsageError
from saukit.core.options import preset_fields
from saukit.data.split import Split
from saukit.synthesis.config import ResolvedSynthConfig, SynthConfig
from saukit.synthesis.generators.presets import PRESETS, auto_preset, default_steps, drawn_size, preset_values
from saukit.synthesis.plan import SynthesisPlan, begin, load_plan, outline, resolve

CPU = torch.device("cpu")


def outlined(real: list[int], *, target: int, batch: int = 4, **fields: Any) -> SynthesisPlan:
    """The outline for a split with `real` training images of each class."""
    config = ResolvedSynthConfig(per_class_target=target, sample_batch_size=batch, **fields)
    names = tuple(f"class {index}" for index in range(len(real)))
    split: Any = SimpleNamespace(classes=names, image_size=(8, 8), class_counts=np.array(real))
    return outline(config, split)


def planned(real: list[int], *, target: int, **fields: Any) -> SynthesisPlan:
    return begin(outlined(real, target=target, **fields))


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
    assert plan.rounds[0].seeds.tolist() == seeds
    assert min(seeds) >= 0
    assert len(set(seeds)) == len(seeds)
    assert [n + m for n, m in zip(real, plan.wanted, strict=True)] == [max(target, n) for n in real]


@pytest.mark.parametrize(("total", "batch"), [(1, 64), (63, 64), (850, 64), (1028, 32), (37_594, 64), (37_594, 100)])
def test_batches_and_shards_hold_every_image_once_in_order(total: int, batch: int) -> None:
    plan = planned([total + 1, 1], target=total + 1, batch=batch)
    first = plan.rounds[0]
    batches = [part for shard in first.shards.values() for part in first.batches(shard)]
    seen = [image for part in batches for image in range(part.start, part.stop)]
    assert seen == list(range(total))
    assert plan.shard_images % batch == 0
    sizes = [part.stop - part.start for part in batches]
    assert all(size == batch for size in sizes[:-1])  # only the very last is short
    assert plan.shard_count <= 256


def test_a_small_cache_has_several_shards_and_a_large_one_not_thousands() -> None:
    assert planned([851, 1], target=851, batch=64).shard_count >= 5
    assert planned([37_595, 1], target=37_595, batch=64).shard_count < 100
    assert planned([400_001, 1], target=400_001, batch=64).shard_count <= 256


def test_the_digest_tells_rounds_apart() -> None:
    def digest(real: list[int], **options: Any) -> str:
        return planned(real, target=9, **options).rounds[0].digest

    assert digest([9, 5, 2]) == digest([9, 5, 2])
    assert digest([9, 5, 2]) not in {digest([9, 5, 2], seed=1), digest([9, 4, 2]), digest([9, 5, 2], batch=2)}


def test_a_further_round_goes_on_where_the_one_before_it_ended() -> None:
    plan = planned([9, 5, 2], target=9)
    longer = plan.with_round(np.array([0, 1, 5]))
    assert longer.rounds[0] is plan.rounds[0]
    second = longer.rounds[1]
    assert second.labels.tolist() == [1, 2, 2, 2, 2, 2]
    assert second.ordinals.tolist() == [4, 7, 8, 9, 10, 11]  # after the 4 and 7 of the first round
    assert list(second.shards) == [plan.shard_count, plan.shard_count + 1]
    assert longer.generated.tolist() == [0, 5, 12]
    assert not set(second.seeds.tolist()) & set(plan.rounds[0].seeds.tolist())
    # An image's seed is its class's and its number's, whatever round it is sampled in.
    assert second.seeds[0] == planned([9, 1, 2], target=9).rounds[0].seeds[4]


def test_a_plan_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    plan = planned([9, 5, 2], target=9, batch=3)
    bare = outlined([9, 5, 2], target=9, batch=3)
    with pytest.raises(CorruptArtifactError, match=r"plan.json is missing; start over with --force"):
        load_plan(tmp_path, bare)
    longer = replace(plan.with_round(np.array([0, 1, 5])), closed=True)
    longer.save(tmp_path)
    found = load_plan(tmp_path, replace(bare, batch_images=64, shard_images=640))  # the saved sizes count
    assert found.closed
    assert [part.digest for part in found.rounds] == [part.digest for part in longer.rounds]
    assert (found.batch_images, found.shard_images) == (3, longer.shard_images)


DOCUMENT: dict[str, Any] = {"batch_images": 4, "shard_images": 4, "rounds": [[0, 4, 7]], "closed": False}
WRONG: list[dict[str, Any]] = [{"rounds": [[1]]}, {"rounds": []}, {"rounds": [[0, -1, 7]]}, {"rounds": [[0, 0, 0]]},
         {"rounds": [[0, 4, "7"]]}, {"rounds": [[0, 10**12, 7]]}, {"rounds": [[1, 4, 7]]}, {"batch_images": 0},
         {"shard_images": -4}, {"batch_images": 10**40}, {"closed": "no"}]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", *(json.dumps(DOCUMENT | change) for change in WRONG)])
def test_a_damaged_plan_is_an_error_with_the_remedy(text: str, tmp_path: Path) -> None:
    plan = planned([9, 5, 2], target=9)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=r"plan.json is damaged.*[:;] start over with --force"):
        load_plan(tmp_path, plan)


def test_a_folder_limits_the_candidates() -> None:
    plan = outlined([9, 5, 2], target=9)
    assert begin(plan, capacity=np.array([50, 1, 3])).generated.tolist() == [0, 1, 3]
    with pytest.raises(DataError, match=r"no image of a class that needs one \(class 1, class 2\)"):
        begin(plan, capacity=np.array([50, 0, 0]))


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
    plan = outline(resolve(SynthConfig(), split, CPU), split)
    assert plan.config.per_class_target == max(split.class_counts)
    assert (split.class_counts + plan.wanted).tolist() == [142] * 10
    assert plan.config.preset == "tiny"
    open_fields = (*preset_fields(SynthConfig), "amp")
    assert not [name for name in open_fields if getattr(plan.config, name) in (None, "auto")]


def test_resolving_again_changes_nothing(split: Split) -> None:
    once = resolve(SynthConfig(guidance=2.5), split, CPU)
    assert once.guidance == 2.5
    assert resolve(once, split, CPU) == once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class_target": 0}, "per_class_target must be at least 1 and at most 10000000, got 0"),
        ({"per_class_target": -3}, "got -3"),
        ({"guidance": 0.5}, "guidance must be at least 1 (none) and at most 20 with generator diffusion, got 0.5"),
        ({"guidance": float("nan")}, "guidance must be at least 0 and at most 50, got nan"),
        ({"sampler_steps": 1}, "sampler_steps must be at least 2 with generator diffusion, got 1"),
        ({"train_steps": 0, "train_batch_size": 0}, "train_steps must be at least 1, got 0; train_batch_size must be"),
        ({"balance": 1.5}, "balance must be at least 0 and at most 1, got 1.5"),
        (
            {"variation": 0.0},
            "variation must be at least 0.05 and at most 1 (the share of noise)",
        ),
        (
            {"generator": "pipeline"},
            "--generator pipeline needs a --model: a folder, or the name of a model on the Hub",
        ),
        ({"generator": "folder"}, "--generator folder needs --from"),
        (
            {"generator": "folder", "from_folder": "x", "tail": "cbdm", "lora": "y"},
            "tail has no effect with generator folder: use generator diffusion, or leave it out; lora has no ef",
        ),
        (
            {"prompts": "p.yaml"},
            "prompts has no effect with generator diffusion: use generator pipeline",
        ),
        ({"sample_batch_size": 0}, "sample_batch_size must be at least 1 and at most 65536, got 0"),
    ],
)
def test_values_out_of_their_limits(split: Split, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(SynthConfig(**change), split, CPU)
    assert message in str(caught.value)


def test_presets_by_device_and_size() -> None:
    assert auto_preset((8, 8), "cpu") == auto_preset((224, 224), "cpu") == "tiny"
    assert auto_preset((8, 8), "cuda") == "small"
    assert auto_preset((32, 32), "cuda") == "base"
    assert drawn_size((8, 8)) == (8, 8) and drawn_size((64, 64)) == (64, 64)
    assert drawn_size((224, 224)) == drawn_size((65, 65)) == (64, 64)
    assert preset_values("tiny", (8, 8)) is PRESETS["tiny"][0]
    assert preset_values("small", (28, 32)) is PRESETS["small"][1]
    assert preset_values("base", (64, 32)) is PRESETS["base"][2]


def test_every_preset_resolves(split: Split) -> None:
    for name in PRESETS:
        config = resolve(SynthConfig(preset=name), split, CPU)
        assert (config.preset, config.guidance) == (name, preset_values(name, (8, 8)).guidance)


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(392, None, 154), (392, 32, 307), (10, None, 150), (12_406, None, 1000), (2_000, None, 782)],
)
def test_a_small_set_is_not_learned_by_heart(images: int, batch: int | None, steps: int) -> None:
    """At most 25 passes over the images, at least 150 steps, never more than the preset's."""
    assert default_steps(PRESETS["tiny"][0], images, batch) == steps
    assert default_steps(PRESETS["base"][1], images, batch) == PRESETS["base"][1].train_steps


def test_bytes_are_those_of_the_shards_on_disk(split: Split) -> None:
    plan = begin(outline(resolve(SynthConfig(), split, CPU), split))
    pixels = plan.total * (3 * 8 * 8 + 16)
    assert pixels < plan.bytes <= pixels + plan.total * 12 + 4096 * plan.shard_count
