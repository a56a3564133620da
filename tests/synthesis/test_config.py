"""What a configuration may hold: every field that would have no effect is refused, and none that has one."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from saukit.core.config import load_config, to_yaml
from saukit.core.errors import UsageError
from saukit.data.split import Split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.plan import resolve

CPU = torch.device("cpu")
PIPELINE: dict[str, Any] = {"generator": "pipeline", "model": "some/model"}
FOLDER: dict[str, Any] = {"generator": "folder", "from_folder": "made"}
UNSEEN: dict[str, Any] = {"audit": False, "preflight": 0}
TRAINED = "has no effect with model: leave one of them out"
BOUND = "with filter {}: use filter {} or classifier+clip, or leave it out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_confidence": 0.6}, "min_confidence has no effect " + BOUND.format("none", "classifier")),
        ({"min_clip": 0.3}, "min_clip has no effect " + BOUND.format("none", "clip")),
        ({"min_clip": 0.3, "filter": "classifier"}, "min_clip has no effect " + BOUND.format("classifier", "clip")),
        ({"min_distance": 0.3}, "min_distance has no effect with filter none: use filter aid, or leave it out"),
        ({"max_distance": 3.0}, "max_distance has no effect with filter none: use filter aid, or leave it out"),
        ({"filter": "aid", "min_distance": 1.5}, "min_distance must be below max_distance 1.5, got 1.5"),
        ({"clip_model": "folder"}, "clip_model has no effect " + BOUND.format("none", "clip")),
        (
            {"classifier": "judge", **UNSEEN},
            "classifier has no effect without filter classifier, classifier+clip or aid or audit or preflight: set",
        ),
        (
            {"max_tries": 2.0},
            "max_tries has no effect without filter classifier, clip, classifier+clip or aid or reject_co",
        ),
        ({"inception": "weights.pth", "audit": False}, "inception has no effect without audit: set audit, or leave"),
        ({"lora_scale": 0.5, **PIPELINE}, "lora_scale has no effect without lora: set lora, or leave it out"),
        ({"model": "generator", "balance": 0.5}, f"balance {TRAINED}"),
        ({"model": "generator", "tail": "cbdm"}, f"tail {TRAINED}"),
        ({"model": "generator", "train_steps": 9}, f"train_steps {TRAINED}"),
        ({"model": "generator", "train_batch_size": 9}, f"train_batch_size {TRAINED}"),
        ({"train_steps": 9, **PIPELINE}, "train_steps has no effect with generator pipeline: use generator diffusion"),
        (
            {"model": "x", **FOLDER},
            "model has no effect with generator folder: use generator diffusion or pipeline,",
        ),
        ({"from_folder": "made"}, "from_folder has no effect with generator diffusion: use generator folder, or"),
        *(
            ({"generator": "cmo", **change}, f"{next(iter(change))} has no effect with generator cmo: use generator")
            for change in (
                {"model": "x"},
                {"guidance": 2.0},
                {"sampler_steps": 9},
                {"preset": "small"},
                {"train_steps": 9},
                {"amp": "off"},
                {"variation": 0.5},
                {"prompts": "a.yaml"},
                {"skip_bad": True},
            )
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(split: Split, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(SynthConfig(**change), split, CPU)
    assert message in str(caught.value)


def test_every_problem_is_in_the_one_message(split: Split) -> None:
    change: dict[str, Any] = {"variation": 2.0, "lora": "x", "min_clip": 0.3, "max_tries": 2.0, "per_class_target": 0}
    with pytest.raises(UsageError) as caught:
        resolve(SynthConfig(**change), split, CPU)
    problems = str(caught.value).split("; ")
    assert sorted(problem.split()[0] for problem in problems) == sorted(change)


# Away from their defaults, with all that they need: at least once for every field.
WHOLE: list[dict[str, Any]] = [
    {},
    {"per_class_target": 150, "guidance": 2.0, "sampler_steps": 5, "sample_batch_size": 8, "seed": 3, "amp": "off"},
    {"preset": "small", "balance": 0.5, "tail": "cbdm", "sampler": "unipc", "train_steps": 9},
    {"variation": 0.5, "train_batch_size": 4, "train_parts": 2, "preflight": 2, "inception": "weights.pth"},
    {"model": "generator", "variation": 0.9, "preset": "small"},
    {"filter": "classifier", "classifier": "judge", "min_confidence": 0.2, "max_tries": 3.0},
    {"filter": "clip", "clip_model": "folder", "min_clip": 0.1, "max_tries": 2.0, "audit": False},
    {"filter": "classifier+clip", "min_confidence": 0.4, "min_clip": 0.1, "classifier": "judge", **UNSEEN},
    {"filter": "aid", "classifier": "judge", "min_distance": 0.25, "max_distance": 1.25, "max_tries": 2.0, **UNSEEN},
    {"classifier": "judge", "preflight": 0},
    {"classifier": "judge", "audit": False},
    {"reject_copies": True, "max_tries": 2.0, **UNSEEN},
    {**PIPELINE, "prompts": "a.yaml", "descriptions": "b.yaml", "templates": ("a {class}", "one {class}")},
    {**PIPELINE, "lora": "x", "lora_scale": 0.5, "pipeline_size": 64, "dtype": "bfloat16", "negative_prompt": "blur"},
    {**PIPELINE, "class_ids": "ids.yaml", "guidance": 0.0, "sampler_steps": 1, "filter": "classifier"},
    {"generator": "cmo", "seed": 2, "sample_batch_size": 8, "reject_copies": True, "max_tries": 3.0, "preflight": 2},
    {**FOLDER, "skip_bad": True, "filter": "clip", "min_clip": -0.5, "max_tries": 8.0},
]


@pytest.mark.parametrize("change", WHOLE, ids=lambda change: " ".join(change))
def test_the_saved_configuration_repeats_what_it_was_saved_of(
    split: Split, change: dict[str, Any], tmp_path: Path
) -> None:
    resolved = resolve(SynthConfig(**change), split, CPU)
    assert {name: getattr(resolved, name) for name in change} == change
    (tmp_path / "config.yaml").write_text(to_yaml(resolved))
    assert load_config(type(resolved), tmp_path / "config.yaml") == resolved
    saved = load_config(SynthConfig, tmp_path / "config.yaml")
    assert resolve(saved, split, CPU) == resolved


def test_every_field_is_given_somewhere_above() -> None:
    assert {name for change in WHOLE for name in change} == {field.name for field in fields(SynthConfig)}


def test_a_generator_that_is_trained_already_has_no_training_to_resolve(split: Split) -> None:
    resolved = resolve(SynthConfig(model="generator"), split, CPU)
    assert (resolved.train_steps, resolved.train_batch_size) == (None, None)
    assert resolved.preset == "tiny" and resolved.sampler_steps is not None
