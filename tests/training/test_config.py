"""What a training configuration becomes: presets by device and image size, and every problem at once."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from saukit.core.errors import UsageError
from saukit.models.backbones import BACKBONES
from saukit.training.config import Method, TrainConfig, default_run_name
from saukit.training.methods import METHODS
from saukit.training.presets import PRESETS, resolve


def resolved(config: TrainConfig, **facts: Any) -> TrainConfig:
    given = {"cache_exists": True, "image_side": 32, "default_flip": True, "device_type": "cpu", "amp": "off"}
    given |= {"real_images": 500, "may_freeze": True, "has_timm": True}
    return resolve(config, methods=METHODS, backbones=BACKBONES, **{**given, **facts})


# The figures of the paper and of the issue, written out by hand.
EXPECTED = {
    "paper": {
        "epochs": 200,
        "steps": None,
        "lr": 0.01,
        "weight_decay": 5e-3,
        "warmup": 0.0,
        "schedule": "cosine-epoch",
    },
    # LDAM-DRW's cifar_train.py: 200 epochs of batches of 128, SGD 0.1, weight decay 2e-4, five epochs of warm-up.
    "ldam": {
        "epochs": 200,
        "steps": None,
        "lr": 0.1,
        "weight_decay": 2e-4,
        "warmup": 5 / 200,
        "schedule": "step",
        "drop_last": False,
    },
    "fast": {"epochs": 100, "steps": None, "lr": 0.1, "weight_decay": 5e-4, "warmup": 0.1, "schedule": "cosine-step"},
    "small": {
        "epochs": None,
        "steps": 1000,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "warmup": 0.05,
        "schedule": "cosine-step",
    },
}
BACKBONE_AT_32 = {"paper": "resnet32-w64", "ldam": "resnet32-w16", "fast": "resnet9-w16", "small": "resnet32-w16"}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("side", [8, 16, 17, 32, 64])
@pytest.mark.parametrize("preset", sorted(EXPECTED))
def test_a_preset_fills_in_its_row_and_the_image_size_chooses_the_network(
    preset: Any, side: int, device_type: str
) -> None:
    config = resolved(TrainConfig(preset=preset), image_side=side, device_type=device_type)
    assert {name: getattr(config, name) for name in EXPECTED[preset]} == EXPECTED[preset]
    assert config.batch_size == 128
    assert config.backbone == ("convnet-small" if side <= 16 else BACKBONE_AT_32[preset])


@pytest.mark.parametrize(
    ("device_type", "side", "preset"),
    [("cpu", 8, "small"), ("cpu", 32, "small"), ("cpu", 64, "small"), ("cuda", 8, "small"), ("cuda", 32, "fast")],
)
def test_auto_is_small_on_a_processor_and_for_tiny_images(device_type: str, side: int, preset: str) -> None:
    assert resolved(TrainConfig(), device_type=device_type, image_side=side).preset == preset


@pytest.mark.parametrize("preset", sorted(EXPECTED))
def test_what_is_given_wins_over_the_preset(preset: Any) -> None:
    given: dict[str, Any] = {
        "backbone": "resnet32-w16",
        "batch_size": 7,
        "lr": 0.3,
        "weight_decay": 0.0,
        "schedule": "cosine-step",
        "warmup": 0.25,
        "flip": False,
        "synthetic": False,
        "steps": 11,
    }
    config = resolved(TrainConfig(preset=preset, **given), image_side=8)
    assert {name: getattr(config, name) for name in given} == given
    assert config.epochs is None


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 3}])
@pytest.mark.parametrize("preset", sorted(EXPECTED))
def test_a_length_that_is_given_replaces_the_presets(preset: Any, length: dict[str, Any]) -> None:
    config = resolved(TrainConfig(preset=preset, **length))
    assert (config.epochs, config.steps) == (length.get("epochs"), length.get("steps"))


def test_data_decide_what_was_left_open() -> None:
    assert resolved(TrainConfig(), cache_exists=True).synthetic is True
    assert resolved(TrainConfig(), cache_exists=False).synthetic is False
    assert resolved(TrainConfig(), default_flip=False).flip is False
    assert resolved(TrainConfig(), default_flip=True).flip is True
    assert resolved(TrainConfig(amp="auto"), amp="bf16").amp == "bf16"


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("preset", ["auto", *EXPECTED])
def test_nothing_is_left_open_and_resolving_again_changes_nothing(preset: Any, side: int) -> None:
    once = resolved(TrainConfig(preset=preset), image_side=side)
    left = {name for name, value in vars(once).items() if value is None}
    # What is none stays None: of a run without a prior correction there is nothing to tell.
    assert left - {"epochs", "steps"} == {"prior_correction", "clip_norm", "average", "crop_scale", "head", "patience"}
    assert len(left) == 7
    # On another machine and without a cache the saved configuration still means the same.
    assert resolved(once, image_side=64, cache_exists=False, device_type="cuda", default_flip=False) == once


def test_the_preset_for_photos_trains_a_head_on_a_pretrained_network() -> None:
    """Its weight decay is that of scikit-learn's C 0.01: 1 / (C N), since its loss is a mean instead of a sum."""
    config = resolved(TrainConfig(preset="photo-small", method="ce"), image_side=224, real_images=3068)
    assert (config.backbone, config.weights, config.tune) == ("timm/tf_efficientnet_lite0", "pretrained", "head")
    assert config.weight_decay == pytest.approx(1 / (0.01 * 3068))
    assert config.multi_crop is True
    assert resolved(TrainConfig(preset="photo-small", method="ce"), image_side=8).backbone == config.backbone


FROM_SCRATCH = {"cpu": "small", "cuda": "fast"}
PRETRAINED = {"cpu": "photo-small", "cuda": "photo"}
FROZEN = {"cpu": "photo-small", "cuda": "photo-small"}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("given", "facts", "presets", "frozen_on_a_cpu"),
    [
        ({}, {}, PRETRAINED, True),
        ({"method": "ldam-drw"}, {}, PRETRAINED, True),
        ({"backbone": "timm/resnet50"}, {}, PRETRAINED, True),
        ({"weights": "run:other"}, {}, PRETRAINED, True),
        ({"method": "sau"}, {}, PRETRAINED, False),  # its views are of pixels
        ({"method": "bcl"}, {}, PRETRAINED, False),
        ({"tune": "all"}, {}, PRETRAINED, False),
        ({"tune": "lora"}, {}, PRETRAINED, False),
        ({}, {"may_freeze": False}, PRETRAINED, False),  # beside methods that need more views, in a comparison
        ({"tune": "head"}, {}, FROZEN, True),
        ({}, {"image_side": 128}, FROZEN, True),  # not what preset photo's network takes
        ({"weights": "none"}, {}, FROM_SCRATCH, False),
        ({"backbone": "resnext50"}, {}, FROM_SCRATCH, False),
        ({"preset": "small"}, {}, dict.fromkeys(["cpu", "cuda"], "small"), False),
        ({}, {"has_timm": False}, FROM_SCRATCH, False),
        ({}, {"image_side": 64}, FROM_SCRATCH, False),
    ],
)
def test_auto_takes_a_pretrained_backbone_for_photos(
    given: dict[str, Any], facts: dict[str, Any], presets: dict[str, str], frozen_on_a_cpu: bool, device_type: str
) -> None:
    once = resolved(TrainConfig(**given), **{"image_side": 224, "device_type": device_type, **facts})
    assert once.preset == presets[device_type]
    frozen = frozen_on_a_cpu and once.preset == "photo-small"
    assert once.tune == given.get("tune", "head" if frozen else "all")
    assert once.multi_crop is frozen
    from_scratch = presets is FROM_SCRATCH or "preset" in given
    assert once.method == given.get("method", "sau" if from_scratch else "balanced-softmax")
    assert resolved(once, image_side=48, device_type="cuda", has_timm=False) == once


def test_the_preset_that_fine_tunes_can_train_a_head_too() -> None:
    config = resolved(TrainConfig(preset="photo"), image_side=224)
    assert (config.tune, config.weights, config.optimizer) == ("all", "pretrained", "adamw")
    assert (config.layer_decay, config.crop_scale, config.views) == (0.75, 0.35, "photo")
    head = resolved(TrainConfig(preset="photo", tune="head"), image_side=224)
    assert (head.layer_decay, head.crop_scale, head.head_share, head.method) == (1.0, None, 0.0, "balanced-softmax")


@pytest.mark.parametrize("given", [{"tune": "all"}, {"method": "sau"}, {"tune": "lora"}])
def test_the_preset_with_a_frozen_network_can_fine_tune_it(given: dict[str, Any]) -> None:
    """With the settings measured in `photo_finetuned.json`."""
    config = resolved(TrainConfig(preset="photo-small", **given), image_side=224)
    assert (config.optimizer, config.lr, config.weight_decay, config.batch_size) == ("adamw", 5e-4, 0.05, 32)
    assert (config.epochs, config.steps, config.warmup, config.head_share) == (None, 400, 0.05, 0.15)
    assert (config.freeze_bn, config.clip_norm, config.views, config.crop_scale) == (True, 1.0, "small", 0.35)
    assert config.layer_decay == (1.0 if "lora" in given.values() else 0.8)  # of lora's updates there are no layers
    assert config.multi_crop is False


def test_crops_are_of_a_frozen_backbone() -> None:
    with pytest.raises(UsageError, match="multi_crop has no effect with tune all: use tune head, or leave it out"):
        resolved(TrainConfig(multi_crop=True))
    with pytest.raises(UsageError, match="views has no effect with tune head: use tune all or lora, or leave it out"):
        resolved(TrainConfig(preset="photo-small", method="ce", views="photo"))
    with pytest.raises(UsageError, match="head has no effect with method logit-adjustment: use method sau, "):
        resolved(TrainConfig(head="cosine", method="logit-adjustment"))
    with pytest.raises(UsageError, match="head class-means starts from features, and weights none has learned nothing"):
        resolved(TrainConfig(head="class-means", method="ce"))
    assert resolved(TrainConfig(head="cosine", method="ldam-drw")) == resolved(TrainConfig(method="ldam-drw"))
    resolved(TrainConfig(multi_crop=False))  # what every other preset says


@pytest.mark.parametrize(
    ("side", "given", "views"),
    [(64, {}, "small"), (65, {}, "photo"), (224, {"views": "small"}, "small"), (32, {"views": "photo"}, "photo"),
     (224, {"tune": "head", "method": "ce", "preset": "photo"}, "small")],
)  # fmt: skip
def test_views_go_by_the_size_of_the_images(side: int, given: Any, views: str) -> None:
    once = resolved(TrainConfig(**{"preset": "small", **given}), image_side=side)
    assert once.views == views
    assert resolved(once, image_side=48) == once


def test_exactly_one_length_in_each_preset() -> None:
    assert all((row.epochs is None) != (row.steps is None) for row in PRESETS.values())
    assert set(PRESETS) == {*EXPECTED, "photo-small", "photo"}


def test_every_problem_is_listed() -> None:
    bad = TrainConfig(
        epochs=0,
        steps=-1,
        batch_size=1,
        lr=0.0,
        temperature=float("nan"),
        weight_decay=-0.1,
        warmup=1.0,
        prior_correction=-1.0,
        synthetic_weight=0.0,
        real_finish=1.0,
        backbone="resnet18",
    )
    with pytest.raises(UsageError) as caught:
        resolved(bad)
    assert str(caught.value).split("; ") == [
        "epochs must be at least 1, got 0",
        "steps must be at least 1, got -1",
        "batch_size must be at least 2 (BatchNorm needs two images), got 1",
        "lr must be above 0, got 0.0",
        "weight_decay must be at least 0, got -0.1",
        "warmup must be at least 0 and below 1, got 1.0",
        "temperature must be above 0, got nan",
        "prior_correction must be at least 0, got -1.0",
        "synthetic_weight must be above 0 and at most 1, got 0.0",
        "real_finish must be at least 0 and below 1, got 1.0",
        "give epochs or steps, not both",
        "unknown backbone 'resnet18': use one of resnet32-w64, resnet32-w16, resnet9-w16, convnet-small, resnext50",
    ]


@pytest.mark.parametrize("value", [0, -3])
def test_a_batch_of_nothing_is_refused(value: int) -> None:
    with pytest.raises(
        UsageError, match=rf"^batch_size must be at least 2 \(BatchNorm needs two images\), got {value}$"
    ):
        resolved(TrainConfig(batch_size=value))


@pytest.mark.parametrize(
    "field", ["lr", "weight_decay", "warmup", "prior_correction", "synthetic_weight", "real_finish"]
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_none_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{field} must be .*, got {value}$"):
        resolved(replace(TrainConfig(), **{field: value}))


@pytest.mark.parametrize("weight", [-0.5, 1.5])
def test_a_weight_is_at_most_that_of_a_real_image(weight: float) -> None:
    with pytest.raises(UsageError, match=f"^synthetic_weight must be above 0 and at most 1, got {weight}$"):
        resolved(TrainConfig(synthetic_weight=weight))


@pytest.mark.parametrize("facts", [{"cache_exists": False}, {"synthetic": False}])
def test_a_weight_for_synthetic_images_needs_some(facts: dict[str, bool]) -> None:
    config = TrainConfig(synthetic_weight=0.5, synthetic=facts.get("synthetic"))
    with pytest.raises(UsageError) as caught:
        resolved(config, cache_exists=facts.get("cache_exists", True))
    assert str(caught.value) == ("synthetic_weight has no effect without synthetic: set synthetic, or leave it out")
    assert resolved(replace(config, synthetic_weight=1.0), cache_exists=False).synthetic is False


@pytest.mark.parametrize("method", get_args(Method))
def test_a_finish_on_real_images_needs_synthetic_ones_and_a_method_that_counts_real_ones(method: Any) -> None:
    config = TrainConfig(method=method, real_finish=0.5)
    with pytest.raises(UsageError) as caught:
        resolved(config, cache_exists=False)
    assert "real_finish has no effect without synthetic: set synthetic, or leave it out" in str(caught.value)
    if method in ("ce", "mixup-cutmix", "sau", "sau-aware", "class-balanced", "focal", "class-weights"):
        assert resolved(config, cache_exists=True).real_finish == 0.5
        return
    with pytest.raises(UsageError) as caught:
        resolved(config, cache_exists=True)
    assert str(caught.value) == (
        f"real_finish has no effect with method {method}: "
        "use method sau, sau-aware, mixup-cutmix, ce, focal, class-weights or class-balanced, or leave it out"
    )


@pytest.mark.parametrize("method", get_args(Method))
def test_methods_of_two_stages_are_not_recorded(method: Any) -> None:
    config = TrainConfig(method=method, cuda_graph=True)
    if method not in ("crt", "ldam-drw", "cmo", "synaug"):
        assert resolved(config, device_type="cuda").cuda_graph
        return
    with pytest.raises(UsageError, match=f"^cuda_graph has no effect with method {method}: use method sau, "):
        resolved(config, device_type="cuda")


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_balanced_softmax_takes_no_other_prior(tau: float) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(TrainConfig(method="balanced-softmax", prior_correction=tau))
    assert str(caught.value) == (
        "prior_correction has no effect with method balanced-softmax: "
        "use method sau, sau-aware, mixup-cutmix, ce or focal, or leave it out"
    )


@pytest.mark.parametrize("method", ["ce", "sau", "mixup-cutmix"])
def test_a_prior_correction_of_0_is_none(method: Any) -> None:
    none, zero = (resolved(TrainConfig(method=method, prior_correction=tau)) for tau in (None, 0.0))
    assert none == zero
    assert resolved(TrainConfig(method=method, prior_correction=0.75)).prior_correction == 0.75


def test_every_method_that_can_be_named_is_there() -> None:
    assert list(METHODS) == list(get_args(Method))


def test_run_names_tell_the_prior_and_the_weight() -> None:
    synth = TrainConfig(method="ce", synthetic=True)
    assert default_run_name(replace(synth, prior_correction=0.75)) == "ce+synth-prior0.75"
    assert default_run_name(replace(synth, synthetic_weight=0.5)) == "ce+synth-weight0.5"
    assert default_run_name(replace(synth, prior_correction=1.0, synthetic_weight=0.5, seed=2)) == (
        "ce+synth-prior1-weight0.5-seed2"
    )
    own = TrainConfig(method="sau", synthetic=True, prior_correction=1.0, real_finish=0.5, seed=1)
    assert default_run_name(own) == "sau+synth-prior1-finish0.5-seed1"
    assert default_run_name(TrainConfig(method="mixup-cutmix", synthetic=False)) == "mixup-cutmix"
    close = [0.75, 0.7500001, 0.75000001, 1e-5, 1.0, 10.0]
    assert len({default_run_name(replace(synth, prior_correction=tau)) for tau in close}) == len(close)


def test_run_names_tell_method_data_and_seed() -> None:
    assert default_run_name(TrainConfig(synthetic=True)) == "sau+synth"
    assert default_run_name(TrainConfig(method="ce", synthetic=False)) == "ce"
    assert default_run_name(TrainConfig(method="balanced-softmax", synthetic=True, seed=3)) == (
        "balanced-softmax+synth-seed3"
    )


def test_sau_is_as_in_its_paper_unless_told_otherwise() -> None:
    """Temperature, noise strategy, and a label check from the first step on: written out by hand."""
    config = resolved(TrainConfig(preset="paper"))
    assert (config.method, config.temperature, config.noise, config.check_after) == ("sau", 0.1, "pos_neg", 0.0)
    assert config.as_published and (config.prior_correction, config.label_smoothing, config.real_finish) == (None, 0, 0)


@pytest.mark.parametrize(("method", "fine"), [("sau", True), ("sau-aware", True), ("bcl", False), ("ce", False)])
def test_only_sau_checks_labels(method: Any, fine: bool) -> None:
    given = TrainConfig(method=method, check_after=0.5)
    if fine:
        assert resolved(given).check_after == 0.5
        return
    with pytest.raises(
        UsageError, match=f"check_after has no effect with method {method}: use method sau or sau-aware"
    ):
        resolved(given)
