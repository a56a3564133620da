"""The commands of a user's day, on digits with tiny settings."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import Cli, program, timeless_metrics, tree

import saukit
from saukit.training import trainer as training_room

SYNTH = ("--per-class-target", "10", "--train-steps", "2", "--train-batch-size", "4", "--sampler-steps", "2",
         "--no-audit", "--preflight", "0")  # fmt: skip
TRAIN = ("--steps", "3", "--batch-size", "16", "--amp", "off")


@pytest.mark.slow
def test_the_four_commands_each_in_its_own_process(tmp_path: Path) -> None:
    """With --json each prints one document on stdout and nothing else, whatever a library says on the way."""
    work = tmp_path / "w"
    made = [
        program("make-lt", "--imb", "50", "-w", work, "--json"),
        program("synth", *SYNTH, "-w", work, "--json"),
        program("train", *TRAIN, "-w", work, "--json"),
        program("eval", "--split", "few", "-w", work, "--json"),
    ]
    assert [outcome.code for outcome in made] == [0] * 4, made
    split, cache, run, result = (outcome.document for outcome in made)
    assert [document["state"] for document in (split, cache, run)] == ["new"] * 3
    assert sum(split["counts"]) == split["train_images"] == 392
    assert cache["images"] == sum(max(10 - count, 0) for count in split["counts"])
    assert run["name"] == "sau+synth"
    assert (run["real_images"], run["synthetic_images"]) == (392, cache["images"])
    assert result == {**json.loads((work / "runs/sau+synth/results.json").read_text()), "selected": result["selected"]}
    assert result["selected"]["split"] == "few"
    assert result["selected"]["top1"] == result["groups"]["few"]["top1"]
    assert not list(work.glob(".*"))


def test_a_beginner_is_told_what_to_start_with(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    advice = "at 0.1 passes over the real images start with `--method class-balanced` ("
    for arguments, told in (((), True), (("--method", "sau"), False)):
        run = cli("train", *TRAIN, *arguments, "--force", "-w", split_work)
        assert run.code == 0
        assert (f"no --method given: {advice}" in run.err) == told
    document = cli("doctor", "-w", split_work, "--json").document
    assert document["start_with"].startswith("at 327 passes over the real images start with `--method mixup-cutmix ")
    assert cli("doctor", "-w", tmp_path / "empty", "--json").document["start_with"] is None


def test_measuring_is_for_dry_runs(cli: Cli, split_work: Path) -> None:
    alone = cli("train", *TRAIN, "--measure", "-w", split_work)
    assert (alone.code, "--measure has no effect without --dry-run" in alone.error) == (2, True)
    times = [cli("train", *TRAIN, *more, "--dry-run", "-w", split_work) for more in ((), ("--measure",))]
    assert all("estimated time" in outcome.out for outcome in times)
    assert not (split_work / "runs").exists()


def test_the_four_commands_say_what_they_made(cli: Cli, tmp_path: Path) -> None:
    work = tmp_path / "w"
    split = cli("make-lt", "--imb", "50", "-w", work)
    assert split.code == 0
    assert "0  142  many" in split.out and "9    2  few" in split.out
    assert f"written to {work / 'split'}" in split.out
    cache = cli("synth", *SYNTH, "-w", work)
    assert cache.code == 0
    assert "18 synthetic images" in cache.out and str(work / "synth" / "samples.png") in cache.out
    run = cli("train", *TRAIN, "-w", work)
    assert run.code == 0
    assert "sau+synth: 3 steps" in run.out and f"written to {work / 'runs' / 'sau+synth'}" in run.out
    assert "392 real + 18 synthetic images" in run.err
    result = cli("eval", "-w", work)
    assert result.code == 0
    assert "sau+synth on 359 test images" in result.out
    for name in ("results.json", "per_class.png", "confusion.png"):
        assert str(work / "runs" / "sau+synth" / name) in result.out
        assert (work / "runs" / "sau+synth" / name).stat().st_size > 0


def test_the_workspace_may_come_from_the_environment(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUKIT_WORKSPACE", str(work))
    assert cli("eval", "--run", "ce", "--json").document["run"]["name"] == "ce"


def test_the_default_workspace_is_in_the_current_folder(cli: Cli) -> None:
    assert cli("make-lt", "-q").code == 0
    assert Path("saukit_work/split/manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("make-lt", "--imb", "20"),
        ("synth", *SYNTH),
        ("train", *TRAIN, "--name", "new"),
        ("train", *TRAIN, "--method", "ce", "--no-synthetic", "--name", "ce"),
        ("eval", "--run", "sau"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_a_dry_run_shows_the_configuration_and_writes_nothing(
    cli: Cli, work: Path, arguments: tuple[str, ...], form: tuple[str, ...]
) -> None:
    before = tree(work)
    outcome = cli(*arguments, "-w", work, "--dry-run", *form)
    assert outcome.code == 0, outcome
    assert tree(work) == before
    if form:
        assert outcome.document["dry_run"] is True
        assert None not in [
            outcome.document["config"].get(name)
            for name in ("imb", "amp", "split")
            if name in outcome.document["config"]
        ]
    else:
        assert f"{arguments[0]} would use this configuration; nothing is written:" in outcome.out


def test_a_dry_run_leaves_out_what_has_no_effect(cli: Cli, split_work: Path, tmp_path: Path) -> None:
    def shown(*arguments: str, work: Path = split_work) -> set[str]:
        lines = cli(*arguments, "-w", work, "--dry-run").out.splitlines()
        return {line.partition(":")[0] for line in lines if re.match(r"[a-z_]+: ", line)}

    of_the_check = {"noise", "temperature", "check_after"}
    assert of_the_check <= shown("train", "--method", "sau", *TRAIN)
    plain = shown("train", "--method", "ce", *TRAIN)
    assert not of_the_check & plain and {"method", "lr", "label_smoothing"} <= plain
    assert {"fit", "white_level", "skip_bad"}.isdisjoint(shown("make-lt", work=tmp_path / "w"))


def test_a_dry_run_of_make_lt_makes_no_workspace(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("make-lt", "-w", tmp_path / "w", "--dry-run", "--json")
    assert outcome.code == 0
    assert outcome.document["counts"][0] == 142
    assert outcome.document["config"]["imb"] == 100
    assert not (tmp_path / "w").exists()


def test_dry_runs_tell_counts_bytes_and_time(cli: Cli, split_work: Path) -> None:
    synth = cli("synth", *SYNTH, "-w", split_work, "--dry-run", "--json").document
    assert synth["images"] == sum(synth["images_per_class"].values()) == 18
    assert synth["bytes"] >= 18 * 3 * 64 and synth["estimated_seconds"] > 0
    train = cli("train", *TRAIN, "-w", split_work, "--dry-run", "--json").document
    assert (train["name"], train["training_images"], train["steps"]) == ("sau", 392, 3)
    assert not (split_work / "runs").exists() and not (split_work / "synth").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("make-lt", "--imb", "50"),
        ("synth", "--per-class-target", "20", "--train-steps", "3", "--train-batch-size", "4", "--sampler-steps", "2",
         "--amp", "off", "--no-audit", "--preflight", "0"),
        ("train", "--method", "ce", "--no-synthetic", "--steps", "4", "--batch-size", "16", "--amp", "off"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_the_same_command_again_has_nothing_to_do(cli: Cli, work: Path, arguments: tuple[str, ...]) -> None:
    before = tree(work)
    outcome = cli(*arguments, "-w", work)
    assert outcome.code == 0, outcome
    assert "nothing to do" in outcome.out and "every file is as it was written" in outcome.out
    assert cli(*arguments, "-w", work, "--json").document["state"] == "complete"
    assert tree(work) == before


def test_the_inverse_ratio_is_the_same_split(cli: Cli, work: Path) -> None:
    assert "nothing to do" in cli("make-lt", "--imb", "0.02", "-w", work).out


def test_an_evaluation_again_is_read_and_force_computes_it(cli: Cli, work: Path) -> None:
    path = work / "runs" / "ce" / "results.json"
    first = path.stat().st_mtime_ns
    assert "evaluated earlier; --force evaluates again" in cli("eval", "--run", "ce", "-w", work).out
    assert path.stat().st_mtime_ns == first
    before = path.read_bytes()
    assert "evaluated earlier" not in cli("eval", "--run", "ce", "-w", work, "--force").out
    assert path.stat().st_mtime_ns > first and path.read_bytes() == before
    assert cli("eval", "--run", "ce", "-w", work).code == 0  # the manifest vouches for the new files


@pytest.mark.parametrize(
    ("arguments", "fields", "another"),
    [
        (("make-lt", "--imb", "20", "--seed", "3"), ["imb: 50.0 -> 20.0", "seed: 0 -> 3"], "another --workspace"),
        (("synth", "--per-class-target", "30", *SYNTH[2:], "--amp", "off"),
         ["per_class_target: 20 -> 30", "train_steps: 3 -> 2"], "another --workspace"),
        (("train", *TRAIN, "--method", "ce", "--no-synthetic", "--lr", "0.5"), ["lr: 0.05 -> 0.5", "steps: 4 -> 3"],
         "another --name"),
    ],
    ids=["make-lt", "synth", "train"],
)  # fmt: skip
def test_another_configuration_lists_the_fields_and_both_ways_on(
    cli: Cli, work: Path, arguments: tuple[str, ...], fields: list[str], another: str
) -> None:
    before = tree(work)
    outcome = cli(*arguments, "-w", work)
    assert outcome.code == 2
    assert "was made with another configuration" in outcome.error
    assert all(field in outcome.error for field in fields), outcome.error
    assert f"replace it with --force, or give {another}" in outcome.error
    assert tree(work) == before


def test_force_replaces_and_what_was_made_from_it_notices(cli: Cli, work: Path) -> None:
    assert cli("make-lt", "--imb", "20", "-w", work, "--force", "-q").code == 0
    assert yaml.safe_load((work / "split" / "config.yaml").read_text())["imb"] == 20
    outcome = cli("eval", "--run", "ce", "-w", work)
    assert outcome.code == 3
    assert "was made from another split" in outcome.error and "`saukit train --name ce --force -w" in outcome.error
    outcome = cli("synth", *SYNTH, "-w", work)
    assert outcome.code == 2 and "--force" in outcome.error
    assert cli("train", "--method", "ce", "--no-synthetic", *TRAIN, "-w", work, "--force", "-q").code == 0
    assert cli("eval", "--run", "ce", "-w", work, "-q").code == 0


# --- saved configurations -----------------------------------------------------------------------------------------


def test_a_saved_configuration_repeats_the_run_to_the_same_bits(cli: Cli, work: Path) -> None:
    saved = work / "runs" / "sau" / "config.yaml"
    assert cli("train", "-w", work, "--config", saved, "--name", "again", "-q").code == 0
    one, other = work / "runs" / "sau", work / "runs" / "again"
    assert (other / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    assert (other / "config.yaml").read_bytes() == saved.read_bytes()
    assert timeless_metrics(other) == timeless_metrics(one)


def test_a_saved_split_is_repeated_in_another_workspace(cli: Cli, work: Path, tmp_path: Path) -> None:
    assert cli("make-lt", "--config", work / "split" / "config.yaml", "-w", tmp_path / "w", "-q").code == 0
    for name in ("train.safetensors", "test.safetensors", "config.yaml", "counts.png"):
        assert (tmp_path / "w" / "split" / name).read_bytes() == (work / "split" / name).read_bytes()


def dry(cli: Cli, *arguments: str | Path) -> dict[str, Any]:
    outcome = cli(*arguments, "--dry-run", "--json")
    assert outcome.code == 0, outcome.error
    config: dict[str, Any] = outcome.document["config"]
    return config


def test_options_on_the_line_win_over_the_file(cli: Cli, work: Path) -> None:
    saved = yaml.safe_load((work / "runs" / "ce" / "config.yaml").read_text())
    shown = dry(cli, "train", "-w", work, "--config", work / "runs/ce/config.yaml", "--lr", "0.5", "--name", "b")
    assert shown == {**saved, "lr": 0.5}
    # A value that is the default of the program was still given, and wins.
    shown = dry(cli, "train", "-w", work, "--config", work / "runs/ce/config.yaml", "--method", "sau", "--name", "b")
    assert shown == {**saved, "method": "sau"}


def test_an_option_displaces_what_it_replaces_in_the_file(cli: Cli, work: Path) -> None:
    train = ("train", "-w", work, "--config", work / "runs" / "ce" / "config.yaml", "--name", "b")
    assert {k: dry(cli, *train, "--epochs", "2")[k] for k in ("epochs", "steps")} == {"epochs": 2, "steps": None}
    paper = dry(cli, *train, "--preset", "paper", "--batch-size", "64")
    expected = {"preset": "paper", "epochs": 200, "steps": None, "lr": 0.01, "batch_size": 64, "method": "ce"}
    assert {name: paper[name] for name in expected} == expected
    split = ("make-lt", "--config", work / "split" / "config.yaml", "-w", work.parent / "other")
    counts = dry(cli, *split, "--counts", "8=5", "9=3")
    assert (counts["profile"], counts["imb"], counts["counts"]) == ("counts", None, {"8": 5, "9": 3})
    step = dry(cli, *split, "--profile", "step")
    assert (step["profile"], step["imb"]) == ("step", 50)
    synth = ("synth", "-w", work, "--config", work / "synth" / "config.yaml")
    assert dry(cli, *synth, "--preset", "small")["train_steps"] == 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\nlr: fast\n", "unknown field 'colour'"),
        ("colour: red\nlr: fast\n", "lr: 'fast' is not a number or null"),
        ("method: [\n", "is not YAML"),
        ("- 1\n", "holds no mapping of field names to values"),
        ("method: sgd\n", "method: 'sgd' is not one of sau, sau-aware, mixup-cutmix, ce, focal, "),
    ],
)
def test_a_bad_configuration_file(cli: Cli, work: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    before = tree(work)
    outcome = cli("train", "-w", work, "--config", tmp_path / "bad.yaml", "--name", "b")
    assert outcome.code == 2
    assert message in outcome.error and str(tmp_path / "bad.yaml") in outcome.error
    assert tree(work) == before


def test_a_missing_configuration_file(cli: Cli, work: Path, tmp_path: Path) -> None:
    outcome = cli("train", "-w", work, "--config", tmp_path / "no.yaml")
    assert outcome.code == 2
    assert f"no configuration file {tmp_path / 'no.yaml'}; give the config.yaml of an earlier run" in outcome.error


# --- the results --------------------------------------------------------------------------------------------------


def test_one_shot_group_is_shown_alone(cli: Cli, work: Path) -> None:
    outcome = cli("eval", "--run", "ce", "--split", "few", "-w", work)
    document = json.loads((work / "runs" / "ce" / "results.json").read_text())
    group = document["groups"]["few"]
    rows = [line for line in outcome.out.splitlines() if "│" in line]
    assert any("5, 6, 7, 8, 9" in row and f"{100 * group['top1']:.1f}" in row for row in rows)
    assert not any("many" in row or "medium" in row for row in rows)
    assert len([row for row in rows if "│ few" in row]) == 1 + 5  # the group, and each of its classes


def test_a_group_that_does_not_exist_is_a_dash_with_the_reason(cli: Cli, tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert cli("make-lt", "--imb", "2", "--groups", "thresholds", "-w", work, "-q").code == 0
    assert cli("train", "--method", "ce", *TRAIN, "-w", work, "-q").code == 0
    outcome = cli("eval", "--split", "few", "-w", work)
    assert outcome.code == 0
    (row,) = [line for line in outcome.out.splitlines() if "│ few" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["few", "-", "-", "-", "-"]
    rule = "thresholds: many > 100, medium 20-100, few < 20"
    assert f"few: no class of this split belongs to it ({rule})" in outcome.out
    document = cli("eval", "--split", "few", "-w", work, "--json").document
    assert document["groups"]["few"] is None and document["selected"] == {"split": "few"}


def test_eval_takes_the_run_completed_last(cli: Cli, work: Path) -> None:
    assert cli("eval", "-w", work, "--json").document["run"]["name"] == "ce"
    assert cli("train", "--method", "ce", *TRAIN, "--name", "aaa", "-w", work, "-q").code == 0
    assert cli("eval", "-w", work, "--json").document["run"]["name"] == "aaa"


def test_quiet_says_nothing(cli: Cli, work: Path) -> None:
    outcomes = [cli("make-lt", "--imb", "50", "-w", work, "-q"), cli("eval", "--run", "sau", "-w", work, "-q")]
    assert [(outcome.code, outcome.out, outcome.err) for outcome in outcomes] == [(0, "", "")] * 2


def test_ctrl_c_saves_and_the_command_it_prints_continues(
    cli: Cli, split_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "--method", "ce", "--steps", "8", "--batch-size", "16", "-w", split_work)
    assert cli(*arguments, "--name", "undisturbed", "-q").code == 0
    original = training_room.Trainer.advance
    with pytest.MonkeyPatch.context() as patch:

        def advance(trainer: training_room.Trainer) -> None:
            original(trainer)
            if trainer.step_count == 3:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(training_room.Trainer, "advance", advance)
        stopped = cli(*arguments, "--name", "a")
    assert stopped.code == 130
    said = stopped.err.split("stopped and saved; continue with: ")[1].strip()
    outcome = cli(*shlex.split(said)[1:])
    assert outcome.code == 0 and "resuming a at step 3 of 8" in outcome.err
    runs = split_work / "runs"
    assert (runs / "a/model.safetensors").read_bytes() == (runs / "undisturbed/model.safetensors").read_bytes()


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"saukit {saukit.__version__}\n")


def test_an_audited_and_filtered_cache(cli: Cli, work: Path) -> None:
    """The run `ce` judges: it is named, so no other classifier is trained."""
    looked_at = ("--classifier", "ce", "-w", work)
    outcome = cli("synth", *SYNTH[:-3], *looked_at, "--preflight", "2", "--force")
    assert outcome.code == 0, outcome
    assert "audit of the kept images, % (judged by ce; diversity" in outcome.out
    assert re.search(r"│ all +│ +392 │ +18 / 18 │", outcome.out)
    audit = json.loads((work / "synth" / "audit.json").read_text())
    assert audit["classifier_run"] == "ce" and audit["classifier_also_filters"] is False
    assert audit["overall"]["kept"] == 18
    assert {row["images"] for row in json.loads((work / "synth" / "preflight.json").read_text())["per_class"]} == {2}
    assert {path.name for path in (work / "runs").iterdir()} == {"ce", "sau"}

    again = cli("synth", "--refilter", "--filter", "classifier", "--min-confidence", "0.02", "-w", work, "--json")
    assert again.code == 0, again
    assert again.document["config"]["min_confidence"] == 0.02 and again.document["config"]["train_steps"] == 2
    assert again.document["images"] + again.document["rejected"].get("low confidence", 0) == 18
    assert again.document["audit"]["overall"]["kept"] == again.document["images"]


def test_jobs_and_a_resume(cli: Cli, split_work: Path) -> None:
    for job in ("0/2", "1/2"):
        outcome = cli("synth", *SYNTH, "--shard", job, "-w", split_work)
        assert outcome.code == 0, outcome
        assert f"job {job}: " in outcome.out and "saukit synth --resume" in outcome.out
    merged = cli("synth", "--resume", "-w", split_work, "--json")
    assert merged.code == 0, merged
    assert merged.document["images"] == 18
    assert cli("synth", *SYNTH, "-w", split_work, "--json").document["state"] == "complete"


def test_doctor_tells_of_each_gpu_whether_a_step_works_there(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here torch says that there is an Apple GPU, and cannot use it."""
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    outcome = cli("doctor", "--json")
    assert outcome.code == 0
    cpu, *_, mps = outcome.document["devices"]
    assert (cpu["name"], cpu["problem"], cpu["limits"]) == ("cpu", None, [])
    assert mps["name"] == "mps:0" and mps["about"].endswith("12 GiB free")
    assert mps["problem"].startswith("a training step fails: ")
    assert "for one process" in mps["limits"]
    assert "a training step works" in outcome.err and mps["problem"].split()[-1] in outcome.err
