import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import resealed, tiny, tree

from saukit.core.artifacts import read_manifest
from saukit.core.config import load_config
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, LockHeldError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation import jobs as room
from saukit.evaluation.compare import ComparisonResult, compare
from saukit.evaluation.config import CompareConfig, parse_method
from saukit.evaluation.contenders import Contender, plan_comparison
from saukit.training import trainer as training_room
from saukit.training.config import Method, TrainConfig, default_run_name
from saukit.training.stage import fit
from saukit.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
TINY = {"steps": 4, "batch_size": 16, "amp": "off"}
# `ce` and `sau` (which is sau+synth) with seed 0 are there already, under these names.
CONFIG = CompareConfig(methods=("ce", "sau+synth"), seeds=2, train=TINY)
SWEEPS = Path(__file__).parents[2] / "examples" / "sweeps"
MEASURES = ("top1", "balanced_accuracy", "macro_f1", "many", "medium", "few", "ece")


def run_compare(config: CompareConfig, work: Path, *, name: str = "main", force: bool = False) -> ComparisonResult:
    return compare(config, Workspace(work), name=name, devices=["cpu"], force=force, reporter=QUIET)


def made_at(work: Path) -> dict[str, int]:
    """When the model of each run was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in work.glob("runs/*/model.safetensors")}


@pytest.fixture(scope="module")
def compared(shared_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the comparison of CONFIG. Tests only read it."""
    work = shutil.copytree(shared_work, tmp_path_factory.mktemp("compared") / "work")
    assert run_compare(CONFIG, work).state == "new"
    return work


def document_of(work: Path, name: str = "main") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((work / "comparisons" / name / "compare.json").read_text())
    return document


# --- the figures --------------------------------------------------------------------------------------------------


def test_the_document_recomputed_from_the_results_of_the_runs(compared: Path) -> None:
    document = document_of(compared)
    figures: dict[str, dict[str, list[float]]] = {}
    for label, names in {"ce": ["ce", "ce-seed1"], "sau+synth": ["sau", "sau+synth-seed1"]}.items():
        figures[label] = {}
        for name in names:
            results = json.loads((compared / "runs" / name / "results.json").read_text())
            flat = {name: results[name] for name in ("top1", "balanced_accuracy", "macro_f1", "ece")}
            for group in ("many", "medium", "few"):
                flat[group] = results["groups"][group]["top1"]
            for measure, value in flat.items():
                figures[label].setdefault(measure, []).append(value)
    assert [method["label"] for method in document["methods"]] == ["ce", "sau+synth"]
    for method in document["methods"]:
        mine = figures[method["label"]]
        assert set(method["mean"]) == set(method["std"]) == set(mine) == set(MEASURES)
        for measure, values in mine.items():
            assert [run[measure] for run in method["runs"]] == values
            assert method["mean"][measure] == pytest.approx(sum(values) / 2)
            assert method["std"][measure] == pytest.approx(np.std(values, ddof=1))
    ce, sau = document["methods"]
    assert ce["difference"] is None
    for measure, difference in sau["difference"].items():
        assert (difference["low"], difference["high"], difference["clear"]) == (None, None, False)  # two seeds
        assert difference["mean"] == pytest.approx(sau["mean"][measure] - ce["mean"][measure])
        assert difference["seeds"] == 2
    # Or all this would be true of equal numbers.
    assert sau["mean"]["top1"] != ce["mean"]["top1"]
    assert (document["verdict"]["ours"], document["verdict"]["theirs"]) == ("sau+synth", "ce")


def test_the_document_says_what_was_compared(compared: Path) -> None:
    document = document_of(compared)
    split = read_manifest(compared / "split", kind="split")
    assert split is not None
    assert (document["format_version"], document["name"], document["baseline"]) == (1, "main", "ce")
    assert document["confidence"] == 0.95
    told = document["split"]
    assert told["digest"] == split.digest and told["test_images"] == 359
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert told["class_counts"][0] == 142 and told["class_counts"][-1] == 2
    assert sorted(c for rows in told["groups"].values() for c in rows) == list(range(10))
    assert document["groups_rule"].startswith("thirds") or document["groups_rule"].startswith("thresholds")
    ce, sau = document["methods"]
    assert (ce["method"], ce["real_images"], ce["synthetic_images"], ce["views_per_step"]) == ("ce", 392, 0, 1)
    assert (sau["method"], sau["synthetic_images"], sau["views_per_step"]) == ("sau", 62, 4)
    assert (sau["steps"], sau["batch_size"], sau["images_seen"]) == (4, 16, 4 * 16 * 4)
    assert ce["config"] == {
        key: value
        for key, value in yaml.safe_load((compared / "runs/ce/config.yaml").read_text()).items()
        if key != "seed"
    }
    runs = [read_manifest(compared / "runs" / run["name"], kind="run") for run in sau["runs"]]
    assert sau["seconds"] == pytest.approx(sum(run.summary["seconds"] for run in runs if run) / 2)
    assert [run["seed"] for run in sau["runs"]] == [0, 1]
    assert {(run["chosen_by"], run["chosen_step"]) for run in ce["runs"] + sau["runs"]} == {("last step", 4)}
    per_class = [json.loads((compared / "runs" / run["name"] / "results.json").read_text())["per_class"]
                 for run in sau["runs"]]  # fmt: skip
    assert sau["per_class"] == pytest.approx([(a["top1"] + b["top1"]) / 2 for a, b in zip(*per_class, strict=True)])


def test_the_manifest_vouches_for_every_file_and_names_every_run(compared: Path) -> None:
    folder = compared / "comparisons" / "main"
    manifest = read_manifest(folder, kind="comparison")
    assert manifest is not None
    assert set(tree(folder)) == {*manifest.files, "manifest.json"}
    assert {"compare.json", "compare.csv", "compare.md", "compare.png", "config.yaml"} == set(manifest.files)
    expected = {"split": compared / "split", "synth": compared / "synth"}
    expected |= {f"run {name}": compared / "runs" / name for name in ("ce", "ce-seed1", "sau", "sau+synth-seed1")}
    digests = {name: json.loads((path / "manifest.json").read_text())["digest"] for name, path in expected.items()}
    assert manifest.inputs == digests


def test_the_csv_has_a_row_a_run(compared: Path) -> None:
    rows = list(csv.DictReader((compared / "comparisons/main/compare.csv").open()))
    assert [(row["label"], row["name"], row["seed"], row["reused"]) for row in rows] == [
        ("ce", "ce", "0", "True"), ("ce", "ce-seed1", "1", "False"),
        ("sau+synth", "sau", "0", "True"), ("sau+synth", "sau+synth-seed1", "1", "False"),
    ]  # fmt: skip
    for row in rows:
        results = json.loads((compared / "runs" / row["name"] / "results.json").read_text())
        assert float(row["macro_f1"]) == results["macro_f1"]
        assert float(row["top1"]) == results["top1"] and float(row["few"]) == results["groups"]["few"]["top1"]
        assert row["chosen_by"] == "last step"


def test_the_markdown_tells_a_person(compared: Path) -> None:
    text, document = (compared / "comparisons/main/compare.md").read_text(), document_of(compared)
    ce, sau = document["methods"]
    row = next(line for line in text.splitlines() if line.startswith("| sau+synth |"))
    cells = [cell.strip(" *") for cell in row.split("|")[2:-1]]
    assert cells == [f"{100 * sau['mean'][m]:.1f} ± {100 * sau['std'][m]:.1f}" for m in MEASURES]
    bold = {line.split("|")[1].strip(): re.findall(r"\*\*(.+?)\*\*", line) for line in text.splitlines()[:10]
            if line.startswith("| ")}  # fmt: skip
    better = max((ce, sau), key=lambda method: method["mean"]["balanced_accuracy"])
    assert f"{100 * better['mean']['balanced_accuracy']:.1f}" in " ".join(bold[better["label"]])
    told = " | ".join(f"{100 * sau['difference'][measure]['mean']:+.1f} (too few seeds)" for measure in MEASURES)
    assert f"| sau+synth | {told} |" in text
    assert text.count("| method | top-1 | balanced | macro F1 | many | medium | few | ECE |") == 2
    for words in ("**Too few seeds to say whether synthetic images help", "do not cover another sample of the split",
                  "Intervals cover what the training seed decides",
                  "test images chose none", "last step (4 runs)", "training seeds: 0, 1",
                  "392 real + 62 synthetic", f"split: {document['split']['digest'][:16]}"):  # fmt: skip
        assert words in text, words


def test_the_picture_has_something_on_it(compared: Path) -> None:
    pixels = np.asarray(Image.open(compared / "comparisons/main/compare.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 150 and pixels.std() > 5


# --- runs that exist ----------------------------------------------------------------------------------------------


def test_runs_that_exist_are_used_whatever_they_are_called(work: Path) -> None:
    config = tiny(method="ce", synthetic=False, seed=1)
    fit(config, Workspace(work), name="mine", device=CPU, force=False, resume=False, reporter=QUIET)
    before = made_at(work)
    document = run_compare(CONFIG, work).document
    after = made_at(work)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"sau+synth-seed1"}
    told = {run["name"]: run["reused"] for method in document["methods"] for run in method["runs"]}
    assert told == {"ce": True, "mine": True, "sau": True, "sau+synth-seed1": False}


def test_a_shared_field_is_left_out_where_the_method_has_no_use_for_it_alone(shared_work: Path) -> None:
    train = {**TINY, "temperature": 0.2, "crop_scale": 0.5}
    config = CompareConfig(methods=("ce", "bcl"), seeds=1, train=train)
    ce, bcl = plan_comparison(config, Workspace(shared_work), device=CPU).contenders
    assert (ce.config.temperature, bcl.config.temperature) == (0.1, 0.2)
    assert ce.config.crop_scale == bcl.config.crop_scale == 0.5  # what --tune is, the preset has yet to say


def test_again_there_is_nothing_to_do(compared: Path, tmp_path: Path) -> None:
    work = shutil.copytree(compared, tmp_path / "work")
    before = tree(work)
    again = run_compare(CONFIG, work)
    assert again.state == "complete" and again.document == document_of(compared)
    assert tree(work) == before
    # What the saved configuration says in full is the same comparison.
    saved = load_config(CompareConfig, work / "comparisons/main/config.yaml")
    assert saved.baseline == "ce" and saved.train == {**TINY, "preset": "small"}
    assert run_compare(saved, work).state == "complete"


def test_another_comparison_needs_another_name_or_force(compared: Path, tmp_path: Path) -> None:
    work = shutil.copytree(compared, tmp_path / "work")
    runs = made_at(work)
    one_more = replace(CONFIG, baseline="sau+synth")
    with pytest.raises(UsageError, match=r"baseline: 'ce' -> 'sau\+synth'\): replace it with --force, or give another"):
        run_compare(one_more, work)
    assert run_compare(one_more, work, name="other").state == "new"
    assert document_of(work)["baseline"] == "ce" and document_of(work, "other")["baseline"] == "sau+synth"
    assert run_compare(one_more, work, force=True).document["baseline"] == "sau+synth"
    assert made_at(work) == runs


def test_another_comparison_under_the_name_is_told_before_anything_is_trained(compared: Path, tmp_path: Path) -> None:
    work = shutil.copytree(compared, tmp_path / "work")
    before = tree(work)
    with pytest.raises(UsageError, match="seeds: 2 -> 3"):
        run_compare(replace(CONFIG, seeds=3), work)
    assert tree(work) == before


def test_a_name_that_another_configuration_has_is_left_to_it(work: Path) -> None:
    """`ce` was trained for 4 steps; the comparison wants 3."""
    before = made_at(work)
    config = CompareConfig(methods=("ce",), seeds=1, train={**TINY, "steps": 3})
    (run,) = run_compare(config, work).document["methods"][0]["runs"]
    assert re.fullmatch(r"ce-[0-9a-f]{6}", run["name"]) and not run["reused"]
    assert load_config(TrainConfig, work / "runs" / run["name"] / "config.yaml").steps == 3
    assert made_at(work) == before | {run["name"]: made_at(work)[run["name"]]}
    assert run_compare(config, work, name="again").document["methods"][0]["runs"][0]["name"] == run["name"]


def test_a_run_of_another_cache_is_not_used(work: Path) -> None:
    """The same configuration, but other synthetic images: its manifest says so."""
    path = work / "runs" / "sau" / "manifest.json"
    manifest = json.loads(path.read_text())
    resealed(path, inputs=manifest["inputs"] | {"synth": "0" * 64})
    shutil.move(work / "runs" / "sau", work / "runs" / "sau+synth")
    plan = plan_comparison(CompareConfig(methods=("sau+synth",), seeds=1, train=TINY), Workspace(work), device=CPU)
    assert plan.runs[0].state == "new" and re.fullmatch(r"sau\+synth-[0-9a-f]{6}", plan.runs[0].name)


def test_two_runs_to_come_never_share_a_name(work: Path) -> None:
    config = CompareConfig(
        methods=("balanced-softmax",), variants={"balanced-softmax-seed1": {"method": "ce", "lr": 0.1}}, seeds=2,
        train=TINY,
    )  # fmt: skip
    names = [run.name for run in plan_comparison(config, Workspace(work), device=CPU).runs]
    assert len(set(names)) == 4
    assert names[:2] == ["balanced-softmax", "balanced-softmax-seed1"] and names[3] == "balanced-softmax-seed1-seed1"
    assert re.fullmatch(r"balanced-softmax-seed1-[0-9a-f]{6}", names[2])


def test_a_damaged_run_is_told_before_anything_is_trained(work: Path) -> None:
    model = work / "runs" / "ce" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    before = tree(work)
    with pytest.raises(CorruptArtifactError, match=r"runs/ce is damaged: model.safetensors.*or move the folder away"):
        run_compare(CONFIG, work)
    assert tree(work) == before


def test_a_comparison_of_runs_that_were_made_anew_says_so(compared: Path, tmp_path: Path) -> None:
    work = shutil.copytree(compared, tmp_path / "work")
    path = work / "comparisons/main/manifest.json"
    resealed(path, inputs=json.loads(path.read_text())["inputs"] | {"run ce": "0" * 64})
    with pytest.raises(UsageError, match="was made from another run ce than this workspace holds now"):
        run_compare(CONFIG, work)
    assert run_compare(CONFIG, work, force=True).state == "new"


# --- interrupted, and beside another process -----------------------------------------------------------------------


class Broken(Exception):
    """A crash in the middle of a run."""


def test_an_interrupted_run_goes_on_to_the_same_bits(
    compared: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.advance
    steps: list[int] = []

    def advance(trainer: Trainer) -> None:
        if len(steps) == 3:
            raise Broken
        original(trainer)
        steps.append(trainer.step_count)

    with monkeypatch.context() as patch:
        patch.setattr(training_room, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(Broken):
            run_compare(CONFIG, work)
    assert steps == [1, 2, 3] and (work / "runs/ce-seed1/checkpoint.pt").exists()
    plan = plan_comparison(CONFIG, Workspace(work), device=CPU)
    assert [(run.name, run.state) for run in plan.runs] == [
        ("ce", "complete"), ("sau", "complete"), ("ce-seed1", "partial"), ("sau+synth-seed1", "new"),
    ]  # fmt: skip

    def counted(trainer: Trainer) -> None:
        original(trainer)
        steps.append(trainer.step_count)

    monkeypatch.setattr(Trainer, "advance", counted)
    run_compare(CONFIG, work)
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]
    for name in ("ce-seed1", "sau+synth-seed1"):
        model = f"runs/{name}/model.safetensors"
        assert (work / model).read_bytes() == (compared / model).read_bytes()


def test_a_run_that_another_process_writes_comes_last(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, original = Workspace(work), room.fit
    held: list[Any] = []

    def other_process(*arguments: Any, **options: Any) -> Any:
        """The lock of `ce-seed1` is held until another run is done; in the meantime it was trained there."""
        if options["name"] == "ce-seed1" and not held:
            held.append("ce-seed1")
            with workspace.lock(workspace.run("ce-seed1")):
                return original(*arguments, **options)
        if held and options["name"] != "ce-seed1":
            held.append(options["name"])
            original(tiny(method="ce", synthetic=False, seed=1), workspace, name="ce-seed1", device=CPU, force=False,
                     resume=False, reporter=QUIET)  # fmt: skip
        return original(*arguments, **options)

    monkeypatch.setattr(room, "fit", other_process)
    result = run_compare(CONFIG, work)
    assert held == ["ce-seed1", "sau+synth-seed1"]
    told = {run["name"]: run["reused"] for method in result.document["methods"] for run in method["runs"]}
    assert told == {"ce": True, "ce-seed1": True, "sau": True, "sau+synth-seed1": False}


def test_a_lock_that_stays_held_ends_the_work_when_all_else_is_done(work: Path) -> None:
    workspace = Workspace(work)
    with workspace.lock(workspace.run("ce-seed1")):
        for _ in range(2):  # the second time nothing else is left
            with pytest.raises(LockHeldError, match=r"runs/ce-seed1 is being written by process \d+ on"):
                run_compare(CONFIG, work)
            assert "results.json" in {path.name for path in (work / "runs/sau+synth-seed1").iterdir()}
            assert not (work / "comparisons").exists()
    assert run_compare(CONFIG, work).state == "new"


def test_as_long_as_runs_are_given_back_the_others_are_waited_for(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = room.fit, list[str]()

    def other_processes(*arguments: Any, **options: Any) -> Any:
        """ce-seed1 is held once."""
        asked.append(options["name"])
        if asked == ["ce-seed1"]:
            raise LockHeldError("held")
        return original(*arguments, **options)

    monkeypatch.setattr(room, "fit", other_processes)
    assert run_compare(CONFIG, work).state == "new"
    assert asked == ["ce-seed1", "sau+synth-seed1", "ce-seed1"]


# --- what cannot be compared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CompareConfig(), r"^no methods: give --methods ce,balanced-softmax,sau\+synth"),
        (CompareConfig(("ce", "sau+synth"), baseline="b"), r"^baseline 'b' is none of the methods: ce, sau\+synth$"),
        (CompareConfig(("ce",), {"ce": {"lr": 0.1}}), "^ce is both a method and the label of a variant"),
        (CompareConfig(("ce",), {"a": {"method": "ce"}}), "^ce and a are one configuration: leave one of them out$"),
        (
            CompareConfig(("ce",), {"a": {"lr": 0.2}, "b": {"lr": "2e-1"}}),
            "^a and b are one configuration: leave one of them out$",
        ),
        (
            CompareConfig(("ce", "sau+synth"), {"x": {"backbone": "vgg"}}, train={"lr": -1}),
            r"^ce, sau\+synth: lr must be above 0, got -1.0; x: lr must be above 0, got -1.0; unknown backbone 'vgg'",
        ),
        (CompareConfig(("ce",), train={"epochs": 1, "steps": 2}), "^ce: give epochs or steps, not both$"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_trained(work: Path, config: CompareConfig, message: str) -> None:
    before = tree(work)
    with pytest.raises(UsageError, match=message):
        run_compare(config, work)
    assert tree(work) == before


def test_a_missing_cache_is_told_for_every_method_that_needs_it(split_work: Path) -> None:
    before = tree(split_work)
    with pytest.raises(
        DataError, match=r"^sau\+synth, ce\+synth: the .* is not there: run `saukit synth -w .*` first$"
    ):
        run_compare(CompareConfig(("ce", "sau+synth", "ce+synth"), train=TINY), split_work)
    with pytest.raises(UsageError, match=r"^a: lr must.*; ce\+synth: |^ce\+synth: .*; a: lr must"):
        run_compare(CompareConfig(("ce+synth",), {"a": {"lr": 0}}, train=TINY), split_work)
    with pytest.raises(DataError, match=r"run `saukit make-lt -w .*` first$"):
        run_compare(CONFIG, split_work / "nowhere")
    with pytest.raises(UsageError, match=r"comparison name '../x': use letters, digits"):
        run_compare(CONFIG, split_work, name="../x")
    assert tree(split_work) == before


@pytest.mark.parametrize(
    "spec", ["ce", "sau+synth", "ce-prior0.75", "ce+synth-weight0.5", "sau+synth-prior2-weight0.25-finish0.5"]
)
def test_a_spec_is_the_default_name_of_its_runs(spec: str) -> None:
    config = parse_method(spec)
    assert default_run_name(config) == spec
    assert config.synthetic is ("+synth" in spec)


def test_a_spec_says_prior_and_weight() -> None:
    expected = TrainConfig(method="sau", synthetic=True, prior_correction=0.75, synthetic_weight=0.5, real_finish=0.25)
    assert parse_method("sau+synth-prior0.75-weight0.5-finish0.25") == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet",
            r"^unknown method 'resnet': "
            r"METHOD\[\+synth\]\[-priorTAU\]\[-weightW\]\[-finishSHARE\]\[-smoothSHARE\], where",
        ),
        ("ce-seed1", "^unknown method 'ce-seed1'"),
        ("ce-prior", "^unknown method 'ce-prior'"),
        ("ce-prior0.5+synth", "^unknown method"),
        ("ce-prior0.50", "^method 'ce-prior0.50': write 'ce-prior0.5', which is what its runs are called$"),
        ("ce-prior0", "^method 'ce-prior0': write 'ce', which"),
        ("ce+synth-weight1.0", r"^method 'ce\+synth-weight1.0': write 'ce\+synth', which"),
    ],
)  # fmt: skip
def test_a_spec_that_is_none(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_method(spec)


def test_a_file_that_does_not_fit_says_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("seeds: many\nworkers: 2\n")
    with pytest.raises(UsageError) as caught:
        load_config(CompareConfig, path)
    known = "unknown field 'workers' (known: baseline, methods, seeds, train, variants)"
    assert str(caught.value) == f"{path}: {known}; seeds: 'many' is not a whole number"


def test_all_that_is_wrong_with_a_comparison_is_in_one_error(work: Path) -> None:
    config = CompareConfig(
        methods=("ce", "sauce", "ce"),
        variants={"long": {"epoch": 3, "lr": "fast", "seed": 1}, "a b": 5},
        seeds=0,
        train={"steps": 1.5, "method": "ce", "seed": 3},
    )
    with pytest.raises(UsageError) as caught:
        run_compare(config, work)
    for problem in (
        "methods: 'ce' is there 2 times", "methods: unknown method 'sauce'", "variants.long: unknown field 'epoch'",
        "variants.long: lr: 'fast' is not a number or null", "variants.long: seed: a comparison has its own",
        "variants: label 'a b': use letters", "variants.a b: 5 is not a mapping",
        "seeds must be at least 1 (runs per method), got 0",
        "train: steps: 1.5 is not a whole number or null", "train: method: each of `methods` says its own",
        "train: seed: a comparison has its own",
    ):  # fmt: skip
        assert problem in str(caught.value), problem


@pytest.mark.parametrize("file", sorted(path.name for path in SWEEPS.glob("*.yaml")))
def test_every_sweep_of_the_examples_is_one(file: str) -> None:
    config = load_config(CompareConfig, SWEEPS / file)
    labels = [*config.methods, *(config.variants or {})]
    assert config.baseline in labels
    if file.endswith("_full.yaml"):
        for method in get_args(Method):
            assert {method, f"{method}+synth"} <= set(labels)


def test_the_example_sweep_can_be_planned(work: Path) -> None:
    config = load_config(CompareConfig, SWEEPS / "digits.yaml")
    plan = plan_comparison(config, Workspace(work), device=CPU)
    by_label = {contender.label: contender for contender in plan.contenders}
    assert list(by_label) == [
        "ce", "balanced-softmax", "sau+synth", "sau+synth-prior0.75", "sau+synth-drop", "balanced-softmax-twice-as-long"
    ]  # fmt: skip
    assert len(plan.runs) == 5 * len(by_label) and {run.state for run in plan.runs} == {"new"}
    assert plan.baseline == "balanced-softmax"
    assert (by_label["sau+synth-drop"].config.noise, by_label["sau+synth-drop"].config.steps) == ("drop", 400)
    assert by_label["balanced-softmax-twice-as-long"].config.steps == 800
    assert by_label["balanced-softmax-twice-as-long"].config.synthetic is False


def test_the_time_of_runs_to_come_goes_with_the_views(work: Path) -> None:
    config = load_config(CompareConfig, SWEEPS / "digits.yaml")
    plan = plan_comparison(config, Workspace(work), device=CPU)
    wanted = ("ce", "sau+synth", "balanced-softmax-twice-as-long")
    plan = replace(plan, runs=[run for run in plan.runs if run.contender.label in wanted and run.seed == 0])

    def never(contender: Contender) -> float:
        raise AssertionError(contender.label)

    measured: list[str] = []

    def measure(contender: Contender) -> float:
        measured.append(contender.label)
        return 3.0

    assert plan.expected_seconds(measure) == pytest.approx(3 + 4 * 3 + 2 * 3)
    assert measured == ["ce"]  # one network, so one measurement
    assert replace(plan, runs=[]).expected_seconds(never) == 0


# --- variants, one seed, an absent group ---------------------------------------------------------------------------


def test_a_variant_lies_over_what_all_share(work: Path) -> None:
    config = CompareConfig(
        ("ce",), {"longer": {"epochs": 1, "method": "ce"}, "hot": {"lr": "2e-1", "synthetic": True}}, 1, "hot",
        TINY,
    )  # fmt: skip
    plan = plan_comparison(config, Workspace(work), device=CPU)
    longer, hot = plan.contenders[1].config, plan.contenders[2].config
    assert (longer.epochs, longer.steps, longer.synthetic, longer.batch_size) == (1, None, False, 16)
    assert (hot.lr, hot.method, hot.synthetic, hot.steps) == (0.2, "sau", True, 4)
    assert [run.name for run in plan.runs] == ["ce", "longer", "hot"]
    assert plan.config.variants is not None and plan.config.variants["hot"]["lr"] == 0.2


def test_one_seed_has_no_spread_and_no_interval(work: Path) -> None:
    result = run_compare(replace(CONFIG, seeds=1), work)
    sau = result.document["methods"][1]
    assert set(sau["std"].values()) == {None}
    assert {(entry["low"], entry["high"], entry["seeds"]) for entry in sau["difference"].values()} == {(None, None, 1)}
    text = (result.folder / "compare.md").read_text()
    assert "±" not in text and "one training seed" in text and "(too few seeds) |" in text


def test_a_group_without_classes_is_absent(tmp_path: Path) -> None:
    split = SplitConfig(imb=2, groups="500,1")
    make_split(split, Workspace(tmp_path), root=None, force=False, reporter=QUIET)
    config = CompareConfig(("ce", "balanced-softmax"), seeds=2, train=TINY)
    result = run_compare(config, tmp_path)
    ce, other = result.document["methods"]
    for group in ("many", "few"):
        assert (ce["mean"][group], ce["std"][group], other["difference"][group]) == (None, None, None)
        assert [run[group] for run in ce["runs"]] == [None, None]
    assert ce["mean"]["medium"] is not None and other["difference"]["medium"] is not None
    text = (result.folder / "compare.md").read_text()
    assert re.search(r"^\| ce \|( \S+ ± \S+ \|){3} - \| \S+ ± \S+ \| - \|", text, re.M)
    assert "- few: no class" in text
    row = next(csv.DictReader((result.folder / "compare.csv").open()))
    assert row["few"] == "" and row["medium"] != ""
