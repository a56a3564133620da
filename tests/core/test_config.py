import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from saukit.core.config import differences, from_mapping, load_config, read_fields, to_mapping, to_yaml
from saukit.core.errors import UsageError
from saukit.data.config import SplitConfig
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.synthesis.config import SynthConfig
from saukit.training.config import TrainConfig

DEFAULTS = [SplitConfig(), SynthConfig(), TrainConfig(), EvalConfig(), CompareConfig()]
# Every field away from its default; names that YAML 1.1 would read as something else.
CHANGED = [
    SplitConfig(
        dataset="folder",
        imb=1 / 3,
        profile="counts",
        counts={"no": 5, "3": 7, "1e3": 1, "größe: [x]": 9, "010": 2, "null": 3},
        image_size=48,
        test_fraction=0.25,
        val_fraction=0.1,
        groups="100,20",
        skip_bad=True,
        flip=False,
        test_dir="no",
        train_list="01.txt",
        val_list="über: all.csv",
        test_list="null",
        columns={"path": "no", "group": "", "label": "1"},
        class_names="[x].txt",
        group_by=r"/(p\d+)_: #",
        fit="pad",
        background="0,0,0",
        white_level=4095,
        class_depth="leaf",
        min_images=3,
        drop_duplicates=True,
        seed=2**32 - 1,
    ),
    SynthConfig(
        per_class_target=5000,
        generator="pipeline",
        model="some/where",
        from_folder="no",
        preset="small",
        balance=0.5,
        tail="cbdm",
        variation=0.1 + 0.2,
        sampler="unipc",
        train_steps=10,
        train_batch_size=3,
        train_parts=2,
        amp="bf16",
        prompts="prompts.yaml",
        descriptions="1e3",
        templates=("a {class}: [x]", "null"),
        negative_prompt="größe",
        class_ids="010",
        lora="lora",
        lora_scale=0.5,
        pipeline_size=64,
        dtype="float16",
        guidance=1.5,
        sampler_steps=12,
        sample_batch_size=7,
        seed=4,
        skip_bad=True,
        filter="classifier+clip",
        classifier="3",
        clip_model="yes",
        min_confidence=0.25,
        min_clip=0.125,
        min_distance=0.25,
        max_distance=1.25,
        reject_copies=True,
        max_tries=2.0,
        preflight=3,
        audit=False,
        inception="weights.pth",
    ),
    TrainConfig(
        method="balanced-softmax",
        synthetic=False,
        preset="paper",
        backbone="resnet32-w64",
        weights="run:ce",
        tune="head",
        head="class-means",
        lora_rank=4,
        multi_crop=True,
        optimizer="adamw",
        head_share=0.25,
        layer_decay=0.75,
        freeze_bn=True,
        clip_norm=1.0,
        average=0.999,
        crop_scale=0.35,
        views="photo",
        epochs=3,
        steps=4,
        batch_size=128,
        drop_last=False,
        lr=1e-5,
        weight_decay=5e-4,
        schedule="cosine-step",
        warmup=0.1 + 0.2,
        noise="drop",
        temperature=0.07,
        prior_correction=0.75,
        synthetic_weight=0.5,
        real_finish=0.5,
        label_smoothing=0.1,
        check_after=0.25,
        as_published=True,
        flip=True,
        select="val",
        patience=5,
        amp="off",
        compile=True,
        sync_batchnorm=True,
        cuda_graph=True,
        seed=9,
    ),
    EvalConfig("007", "few", True),
    CompareConfig(
        methods=("ce", "sau+synth-prior0.75"),
        variants={"no": {"method": "ce", "lr": 1e-5, "steps": None, "flip": True}, "010": {}},
        seeds=3,
        baseline="no",
        train={"steps": 400, "preset": "small"},
    ),
]


@dataclass(frozen=True)
class Everything:
    """A field of each kind."""

    share: float = 0.5
    count: int = 1
    flag: bool = False
    name: str = "x"
    maybe: float | None = None
    means: tuple[float, ...] = (1.0, 2.0)
    counts: dict[str, int] | None = None
    anything: dict[str, Any] | None = None


@pytest.mark.parametrize("config", [*DEFAULTS, *CHANGED], ids=lambda config: type(config).__name__)
def test_a_round_trip_through_yaml(tmp_path: Path, config: object) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    loaded = load_config(type(config), path)
    assert loaded == config
    assert {field.name: type(getattr(loaded, field.name)) for field in fields(loaded)} == {  # type: ignore[arg-type]
        field.name: type(getattr(config, field.name))
        for field in fields(config)  # type: ignore[arg-type]
    }
    assert list(yaml.safe_load(path.read_text("utf-8"))) == [field.name for field in fields(config)]  # type: ignore[arg-type]
    assert differences(loaded, config) == []


@pytest.mark.parametrize(("default", "changed"), list(zip(DEFAULTS, CHANGED, strict=True)))
def test_the_round_trip_was_made_with_every_field_changed(default: object, changed: object) -> None:
    one_choice = {"protocol"}
    told = {line.split(":")[0] for line in differences(default, changed)}
    assert told == set(to_mapping(default)) - one_choice


def test_tuples_are_lists_in_yaml_and_tuples_again() -> None:
    assert to_mapping(Everything())["means"] == [1.0, 2.0]
    assert from_mapping(Everything, {"means": [3, "4"]}, where="here").means == (3.0, 4.0)


@pytest.mark.parametrize(
    ("text", "value"), [("5e-4", 5e-4), ("1E5", 1e5), ("1", 1.0), ("0.5", 0.5), ("'0.5'", 0.5), ("-3", -3.0)]
)
def test_numbers_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"lr: {text}\nweight_decay: {text}\ntemperature: {text}\n")
    config = load_config(TrainConfig, path)
    assert (config.lr, config.weight_decay, config.temperature) == (value, value, value)
    assert isinstance(config.lr, float)


QUOTES = "; text that looks like a number or yes needs quotes: YAML reads 01 without them as 1"


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({"share": "half"}, "share: 'half' is not a number"),
        ({"share": None}, "share: None is not a number"),
        ({"share": True}, "share: True is not a number"),
        ({"share": float("nan")}, "share: nan is not a number"),
        ({"share": ".nan"}, "share: '.nan' is not a number"),
        ({"share": "nan"}, "share: 'nan' is not a number"),
        ({"maybe": float("nan")}, "maybe: nan is not a number or null"),
        ({"maybe": [1]}, "maybe: [1] is not a number or null"),
        ({"count": True}, "count: True is not a whole number"),
        ({"count": 1.0}, "count: 1.0 is not a whole number"),
        ({"count": "1"}, "count: '1' is not a whole number"),
        ({"flag": 1}, "flag: 1 is not true or false"),
        ({"flag": "yes"}, "flag: 'yes' is not true or false"),
        ({"name": 7}, f"name: 7 is not text{QUOTES}"),
        ({"name": None}, "name: None is not text"),
        ({"means": 1.0}, "means: 1.0 is not a list, each a number"),
        ({"means": ["x"]}, "means: ['x'] is not a list, each a number"),
        ({"counts": [1]}, "counts: [1] is not a mapping of text to a whole number or null"),
        ({"counts": {3: 4}}, f"counts: {{3: 4}} is not a mapping of text to a whole number or null{QUOTES}"),
        ({"anything": {1: 2}}, f"anything: {{1: 2}} is not a mapping of text to any value or null{QUOTES}"),
        ({"anything": [1]}, "anything: [1] is not a mapping of text to any value or null"),
        ({"counts": {"cat": 1.5}}, "counts: {'cat': 1.5} is not a mapping of text to a whole number or null"),
    ],
)
def test_a_value_of_the_wrong_type(mapping: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(f'here: {problem}')}$"):
        from_mapping(Everything, mapping, where="here")


def test_a_choice_lists_the_others() -> None:
    with pytest.raises(UsageError, match=r"^here: noise: 'neg' is not one of pos_neg, neg_only, drop$"):
        from_mapping(TrainConfig, {"noise": "neg"}, where="here")
    with pytest.raises(
        UsageError, match=r"^here: schedule: \['cosine-step'\] is not one of .*cosine-step, step or null$"
    ):
        from_mapping(TrainConfig, {"schedule": ["cosine-step"]}, where="here")


def test_every_problem_is_in_the_one_error(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("epoch: 3\nlr: fast\nepochs: 1.5\nseed: true\nmethod: sau\nflip: maybe\n1: 2\n")
    with pytest.raises(UsageError) as caught:
        load_config(TrainConfig, path)
    known = ", ".join(sorted(field.name for field in fields(TrainConfig)))
    assert str(caught.value) == (
        f"{path}: unknown field 'epoch' (known: {known}); unknown field 1 (known: {known}); "
        "lr: 'fast' is not a number or null; epochs: 1.5 is not a whole number or null; "
        "seed: True is not a whole number; flip: 'maybe' is not true or false or null"
    )
    assert caught.value.exit_code == 2


def test_infinity_is_a_number_for_the_stage_to_judge() -> None:
    assert from_mapping(Everything, {"share": float("inf")}, where="here").share == float("inf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: [1, 2", "is not YAML: "),
        (b"- 1\n- 2\n", "holds no mapping of field names to values"),
        (b"", "holds no mapping of field names to values"),
        (b"lr: \xff\xfe", "config.yaml cannot be used: it is not UTF-8 text \\(byte 4\\); give"),
        (b"lr: !!python/object/apply:os.getcwd []\n", "line 1 has the tag .*os.getcwd.*, which saukit does not read"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(TrainConfig, path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    message = f"^no configuration file {re.escape(str(path))}; give the config.yaml of an earlier run$"
    with pytest.raises(UsageError, match=message):
        load_config(TrainConfig, path)
    path.mkdir()
    with pytest.raises(UsageError, match=f"^cannot read {re.escape(str(path))}: "):
        load_config(TrainConfig, path)


def test_differences_are_told_a_line_a_field() -> None:
    old = TrainConfig(method="sau", epochs=200, lr=0.01)
    assert differences(old, replace(old, epochs=50, method="ce", lr=None)) == [
        "method: 'sau' -> 'ce'",
        "epochs: 200 -> 50",
        "lr: 0.01 -> None",
    ]
    assert differences(Everything(), Everything(means=(1.0,))) == ["means: [1.0, 2.0] -> [1.0]"]
    assert differences(Everything(share=1), Everything(share=1.0)) == []


def test_any_value_stays_as_it_is() -> None:
    values = {"a": 1, "b": [True, None], "c": {"d": "5e-4"}, "e": 1.5}
    assert from_mapping(Everything, {"anything": values}, where="here").anything == values
    assert from_mapping(Everything, {"anything": None}, where="here").anything is None


def test_fields_can_be_read_without_the_others() -> None:
    values, problems = read_fields(TrainConfig, {"lr": "5e-4", "steps": None, "epochs": "x", "nonsense": 1})
    assert values == {"lr": 5e-4, "steps": None}
    assert [problem.split(" (known")[0] for problem in problems] == [
        "unknown field 'nonsense'",
        "epochs: 'x' is not a whole number or null",
    ]


def test_what_a_resolved_type_leaves_open_no_more_has_to_be_there(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Open:
        lr: float | None = None
        note: str | None = None

    @dataclass(frozen=True)
    class Resolved(Open):
        lr: float

    (tmp_path / "config.yaml").write_text("note: x\n")
    assert load_config(Open, tmp_path / "config.yaml") == Open(None, "x")
    with pytest.raises(UsageError, match=r"config\.yaml: lr is missing"):
        load_config(Resolved, tmp_path / "config.yaml")
