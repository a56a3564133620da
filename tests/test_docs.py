"""README, docs, CONTRIBUTING, examples: commands that parse, links that lead somewhere, figures that are recorded."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import saukit
from saukit.cli.main import app
from saukit.core.words import format_bytes
from saukit.evaluation.config import parse_method
from saukit.training.methods import METHODS

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "examples/benchmarks/results/cpu"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SCRIPTS = [
    path
    for glob in ("examples/**/*.sh", "examples/**/*.slurm", "examples/**/*.yaml", ".github/**/*.yml")
    for path in sorted(REPOSITORY.glob(glob))
]
GENERATED = REPOSITORY / "docs/cli.md"
GROUP: Any = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def commands(path: Path) -> Iterator[str]:
    """Every `saukit ...` line of a page's code blocks, of a script, or of a sweep's comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text]
    for line in "\n".join(blocks).splitlines():
        if match := re.match(r"[#\s]*(?:torchrun .*-m )?(saukit\s.*)", line):
            yield match[1]


def check(command: str) -> None:
    """Parse a command as the program does. Raises what Typer raises for an unknown command, option or value."""
    _, name, *arguments = shlex.split(re.sub(r"\$\{?\w+\}?", "x", command), comments=True)
    if name in ("--help", "--version"):
        return
    context = GROUP.commands[name].make_context(name, arguments)
    for spec in (context.params.get("methods") or "").split(",") if name == "compare" else ():
        if spec:
            parse_method(spec)


COMMANDS = sorted({(name_of(path), command) for path in [*PAGES, *SCRIPTS] for command in commands(path)})


def test_a_wrong_command_is_seen() -> None:
    for command in ("saukit nothing", "saukit train --nothing", "saukit train --steps many", "saukit synth surplus",
                    "saukit compare --methods ce,nothing"):  # fmt: skip
        with pytest.raises(Exception, match=r"nothing|surplus|valid integer"):
            check(command)


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_every_command_can_be_parsed(file: str, command: str) -> None:
    check(command)


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M)
    }
    assert {"demo", "test"} <= named <= targets


def test_every_option_exists() -> None:
    known = {name for command in GROUP.commands.values() for option in command.params for name in
             (*option.opts, *option.secondary_opts)} | {"--help", "--version"}  # fmt: skip
    for page in PAGES:
        named = re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8"))
        assert sorted(set(named) - known) == [], name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"@[A-Z0-9_]+@|TODO|TBD|FIXME", text)
    links = [target.split("#")[0] for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)]
    missing = [link for link in links if page.parent / link != GENERATED and not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_is_short_and_names_every_command() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    assert [name for name in GROUP.commands if not re.search(rf"(saukit |`){re.escape(name)}\b", text)] == []


def test_the_changelog_has_this_version() -> None:
    assert f"## {saukit.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_has_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == saukit.__version__
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2408.16273"


# --- the command reference ----------------------------------------------------------------------------------------


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_has_every_command_option_and_help_text() -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", hooks().command_reference(), re.MULTILINE | re.DOTALL))
    assert list(sections) == list(GROUP.commands)
    for name, command in GROUP.commands.items():
        section = " ".join(sections[name].split())
        for option in command.params:
            for spelled in (*option.opts, *option.secondary_opts):
                assert f"`{spelled}`" in section, (name, spelled)
        assert re.search(rf"```bash\n((torchrun .*)?saukit {name}.*\n)+```", sections[name]), name
        assert len(re.findall(r" : ", section)) >= len(command.params)


def test_the_command_reference_says_choices_and_defaults() -> None:
    text = hooks().command_reference()
    assert re.search(r"`--method` · one of `sau`, .*`bcl`.* · default: sau; balanced.*\n:   \S", text)
    assert re.search(r"`--synthetic` / `--no-synthetic` · default: if there is one\n", text)
    assert re.search(r"`--workspace` / `-w` · path · default: `saukit_work`\n", text)
    assert "[dim]" not in text and "[bold]" not in text


def test_the_api_page_has_every_field_of_the_configurations() -> None:
    named = re.findall(r"<!-- fields: (\w+) -->", (REPOSITORY / "docs/api.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(name for name in saukit.__all__ if name.endswith("Config"))
    for name in named:
        text = hooks().fields(name)
        assert all(f"`{field.name}`: " in text for field in dataclasses.fields(getattr(saukit, name)))


def test_pages_contain_the_files_that_they_name() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs").glob("*.md")}
    named = {name: re.findall(r"<!-- file: (\S+) -->", text) for name, text in pages.items()}
    assert sorted(file for files in named.values() for file in files) == [
        "CHANGELOG.md", "CONTRIBUTING.md", "examples/onnx_predict.py", "examples/python_api.py"
    ]  # fmt: skip
    for page, files in named.items():
        assert "--8" not in pages[page]
        for file in files:
            assert (REPOSITORY / file).read_text(encoding="utf-8") in hooks().on_page_markdown(pages[page])


# --- figures ------------------------------------------------------------------------------------------------------


def record(file: str) -> dict[tuple[str, bool], dict[str, Any]]:
    """A comparison's methods by (label without +synth, whether with synthetic images)."""
    methods = json.loads((RESULTS / file).read_text(encoding="utf-8"))["methods"]
    return {(entry["label"].replace("+synth", "", 1), "+synth" in entry["label"]): entry for entry in methods}


def written(entry: dict[str, Any] | None, measure: str) -> str:
    if entry is None or entry["mean"].get(measure) is None:
        return "-"
    spread = "" if len(entry["runs"]) == 1 else f" ± {100 * entry['std'][measure]:.1f}"
    return f"{100 * entry['mean'][measure]:.1f}{spread}"


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a table's lines, without emphasis."""
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip(" *`") for cell in line.strip("|").split("|")]


def test_the_table_of_faults_is_of_the_suite_and_the_kills() -> None:
    text = (REPOSITORY / "docs/security.md").read_text(encoding="utf-8")
    lines = list(rows(hooks().on_page_markdown(text).split("## Tried")[1].split("##")[0]))[1:]
    named = {line[-1]: line for line in lines}
    suite = {f"tests/faults/{path.name}" for path in (REPOSITORY / "tests/faults").glob("test_*.py")}
    assert {*named} == {*suite, "examples/kills.py", "tests/faults"}
    assert all(cases == survived and what for what, cases, survived, _, _ in lines)
    earlier = json.loads((RESULTS / "faults_before.json").read_text(encoding="utf-8"))
    for test, line in named.items():
        kind = Path(test).stem.removeprefix("test_")
        outcomes = [case["outcome"] for case in earlier["cases"] if case["test"].startswith(f"test_{kind}.py::")]
        survived, tried = outcomes.count("survived"), sum(outcome != "not applicable" for outcome in outcomes)
        assert line[3] == (f"{survived} of {tried}" if tried else "-")
    kills, soak = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("kills", "soak"))
    assert kills["kills"] == {"make-lt": 10, "synth": 40, "train": 40, "compare": 10, "export": 10}
    killed = [each["killed"] for each in soak["rounds"] if each["killed"] is not None]
    assert soak["models"] == 1 and len(killed) == soak["kills"]
    words = " ".join(text.split())
    for said in (
        f"at most {kills['most_seconds_lost']:.2f} s of training done twice",
        f"with {kills['interval_seconds']} s between checkpoints",
        f"{len(soak['rounds'])} rounds with {soak['kills']} kills in {soak['minutes']:.0f} minutes",
        f"{soak['rounds'][-1]['files']} files, {soak['rounds'][-1]['open_files']} open files",
    ):
        assert said in words, said


@pytest.mark.parametrize("file", ["compare_digits50.json", "compare_cifar10.json"])
def test_the_tables_of_the_results_are_their_records(file: str) -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    table = text.split(f"<!-- table: {file} -->")[1].split("\n\n")[1]
    heading, *lines = rows(table)
    measures = [(column.startswith("real + "), column.split(": ")[1].replace("balanced", "balanced_accuracy"))
                for column in heading[2:]]  # fmt: skip
    methods = record(file)
    assert len(lines) >= 18
    for label, _, *cells in lines:
        expected = [written(methods.get((label, synthetic)), measure) for synthetic, measure in measures]
        assert cells == expected, label


def test_the_table_of_photos_is_its_records() -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    table = text.split("<!-- table: compare_clothing.json -->")[1].split("\n\n")[1]
    whole, *cuts = (record(f"compare_clothing{name}.json") for name in ("", "50_draw0", "50_draw1", "50_draw2"))
    _, *lines = rows(table)
    assert len(lines) == len(whole) == 6
    for label, *cells in lines:
        key = (label, False)
        assert cells == [
            written(whole[key], "top1"),
            *(written(found[key], "balanced_accuracy") for found in (whole, *cuts)),
        ], label
        assert {
            (found[key]["steps"], found[key]["batch_size"], len(found[key]["runs"])) for found in (whole, *cuts)
        } == {(1000, 256, 3)}
    best = [found[("balanced-softmax", False)]["mean"] for found in (whole, *cuts)]
    assert f"{100 * sum(mean['balanced_accuracy'] for mean in best[1:]) / 3:.1f} %" in text
    assert f"{100 * best[0]['top1']:.1f} % on 3,781 photos" in " ".join((REPOSITORY / "README.md").read_text().split())


def test_the_table_of_heads_with_synthetic_photos_is_its_records() -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    _, *lines = rows(text.split("<!-- table: compare_clothing50_synthetic.json -->")[1].split("\n\n")[1])
    kinds = ("synthetic", "variation", "cmo")
    found = [json.loads((RESULTS / f"compare_clothing50_{kind}.json").read_text(encoding="utf-8")) for kind in kinds]
    for (label, *cells), *methods in zip(lines, *(document["methods"] for document in found), strict=True):
        assert {row["label"] for row in methods} == {label}
        assert {(row["steps"], row["batch_size"], len(row["runs"])) for row in methods} == {(1000, 256, 3)}
        assert cells == [written(row, measure) for row in methods for measure in ("balanced_accuracy", "few")]

    def said(change: dict[str, Any]) -> str:
        mean, low, high = (f"{100 * change[key]:+.1f}" for key in ("mean", "low", "high"))
        return f"{mean} ({low} to {high}, {'clear' if change['clear'] else 'not clear'})"

    words = " ".join(text.split())
    for document in found:
        verdict = document["verdict"]
        (rival,) = (rival for rival in verdict["rivals"] if rival["label"] == "balanced-softmax")
        (pair,) = (pair for pair in verdict["pairs"] if pair["with"] == "ce+synth")
        best, own = (said(entry["difference"]["balanced_accuracy"]) for entry in (rival, pair))
        assert (
            f"`{verdict['ours']}`, against balanced softmax on the real images {best}; `ce+synth` against `ce` {own}."
            in words
        )


def test_what_is_said_of_synthetic_photos_is_their_audit() -> None:
    found = json.loads((RESULTS / "photo_synth_audit.json").read_text(encoding="utf-8"))
    text = " ".join((REPOSITORY / "docs/synthetic-images.md").read_text(encoding="utf-8").split())
    overall, (distances,) = found["overall"], found["distances"]
    assert f"On {overall['real']:,} photos of clothes" in text
    assert (
        f"of {overall['kept']:,} images {100 * overall['agreement']:.1f} % are recognised, precision and recall" in text
    )
    assert (distances["synthetic"]["precision"], distances["synthetic"]["recall"]) == (0, 0)
    unrecognised = [row for row in found["per_class"] if row["kept"] and row["agreement"] < 0.25]
    assert len([row for row in found["per_class"] if row["kept"]]) == 9 and len(unrecognised) >= 6


def test_the_table_of_fine_tuned_photos_is_its_record() -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    _, *lines = rows(text.split("<!-- table: compare_clothing50_finetuned.json -->")[1].split("\n\n")[1])
    found = record("compare_clothing50_finetuned.json")
    assert len(lines) == len(found) == 4
    for label, *cells in lines:
        row = found[(label, False)]
        assert cells == [written(row, measure) for measure in ("top1", "balanced_accuracy", "many", "medium", "few")]
        assert (row["steps"], row["batch_size"], row["real_images"], len(row["runs"])) == (150, 32, 1125, 2)


def test_the_figures_of_fine_tuning_are_their_record() -> None:
    found = json.loads((RESULTS / "photo_finetuned.json").read_text(encoding="utf-8"))
    text = " ".join((REPOSITORY / "docs/results.md").read_text(encoding="utf-8").split())
    top1, balanced = (f"{100 * found[name]:.1f} %" for name in ("top1", "balanced_accuracy"))
    assert f"reaches {top1} top-1 and {balanced} balanced on the whole set" in text
    assert f"Fine-tuned: {top1} (400 steps of 32, one seed)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    own = " ".join((REPOSITORY / "docs/own-images.md").read_text(encoding="utf-8").split())
    assert f"{top1} instead of 89.0 % on [photos of clothes]" in own
    run = found["run"]
    assert (run["steps"], run["batch_size"], run["config"]["method"], run["config"]["tune"]) == (
        400, 32, "balanced-softmax", "all"
    )  # fmt: skip
    assert f"{run['steps'] * run['batch_size']:,} images at {run['images_per_second']:.0f} a second" in text
    assert (
        f"{run['seconds'] / 60:.0f} minutes beside other work, peak memory {run['peak_memory_bytes'] / 2**30:.1f}"
        in text
    )


def test_the_figures_of_a_deployed_head_are_their_record() -> None:
    found = json.loads((RESULTS / "photo_deployed.json").read_text(encoding="utf-8"))
    text = " ".join((REPOSITORY / "docs/results.md").read_text(encoding="utf-8").split())
    assert found["differing"] == 0 and len(right := set(found["right"].values())) == 1
    assert (found["method"], found["multi_crop"], found["steps"]) == ("class-balanced", True, 1000)
    assert f"all classify {right.pop()} of 372 right, and no photo differently" in text
    assert f"{100 * found['top1']:.1f} % top-1, {100 * found['balanced_accuracy']:.1f} % balanced" in text
    (train,) = [row for row in found["commands"] if row["command"] == "train"]
    seconds = f"{train['seconds']:.0f} s ({train['processor_seconds']:.0f} s of processor time)"
    assert f"`train` took {seconds}, at most {train['peak_bytes'] / 2**30:.1f} GiB" in text


def test_the_figures_of_photo_steps_are_their_record() -> None:
    found = json.loads((RESULTS / "photo_step.json").read_text(encoding="utf-8"))
    text = " ".join((REPOSITORY / "docs/speed.md").read_text(encoding="utf-8").split())
    rate = {row["name"]: row["images_per_second"] for row in found["candidates"]}
    reference, epochs = "torchvision + timm", found["epochs_of_frozen"]
    head = 1 / (1 / rate["saukit: features"] / epochs + 1 / rate["saukit: head"])
    sau, frozen = rate[f"{reference}: SAU"], rate[f"{reference}: frozen"]
    assert f"four views, batch {found['batch_size']}, images/s | {sau:.1f} | {rate['saukit: SAU']:.1f} |" in text
    assert f"| {found['ratio']:.2f} | `photo_step.json` |" in text
    assert f"frozen, {epochs} epochs, images/s | {frozen:.1f} | {head:,.0f} | {found['ratio_frozen']:.1f} |" in text
    in_layout = f"{found['ratio_channels_last']:.2f} and {found['ratio_frozen_channels_last']:.1f}"
    assert f"With a reference in channels_last the ratios are {in_layout}" in text
    top1 = {name: f"{100 * share:.1f} %" for name, share in found["top1_of_a_head"].items()}
    assert f"{top1[reference]} top-1 on the reference's features and {top1['saukit']} on saukit's" in text


def test_the_figures_of_the_photo_feed_and_of_a_folder_are_their_records() -> None:
    feed, folder = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("photo_feed", "photo_folder")
    )
    text = " ".join((REPOSITORY / "docs/speed.md").read_text(encoding="utf-8").split())
    alone, fed, reference, viewed = (f"{row['images_per_second']:,.0f}" for row in feed["candidates"])
    missed = {
        name: "missed" if feed[name] < target else "met" for name, target in (("ratio", 2.5), ("ratio_to_decode", 0.8))
    }
    assert (
        f"decoding, images/s | {alone} | {fed} | {feed['ratio_to_decode']:.2f} | 0.8, {missed['ratio_to_decode']} |"
        in text
    )
    assert f"three views, images/s | {reference} | {viewed} | {feed['ratio']:.2f} | 2.5, {missed['ratio']} |" in text
    spent = [f"{milliseconds:.1f}" for milliseconds in feed["processor_milliseconds_per_image"]]
    assert f"processor time, ms per image | {spent[0]} | {spent[1]} | {feed['processor_ratio']:.1f} | |" in text
    seconds = [row["seconds"] for row in folder["commands"]]
    assert (folder["images"]["train"], max(seconds) < 30, folder["peak_bytes"] < 2**30) == (3068, True, True)


def test_each_layout_of_the_table_has_its_test() -> None:
    text = (REPOSITORY / "docs/own-images.md").read_text(encoding="utf-8")
    _, *lines = rows(text.split("## Every layout and file")[1])
    assert len(lines) >= 40
    for *_, test in lines:
        file, _, name = test.strip("`").partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), test


def test_the_published_rows_are_their_records() -> None:
    text = {page: " ".join((REPOSITORY / page).read_text(encoding="utf-8").split()) for page in (
        "README.md", "docs/benchmark.md"
    )}  # fmt: skip
    results = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    _, *table = rows(results.split("<!-- table: cifar10_ldam -->")[1].split("\n\n")[1])
    records = {path.stem.removeprefix("cifar10_ldam_"): path for path in RESULTS.glob("cifar10_ldam_*.json")}
    assert [row[0] for row in table] == sorted(records)
    for method, top1, many, medium, few, _, hours, speed in table:
        found = json.loads(records[method].read_text(encoding="utf-8"))
        run = found["run"]
        config = {
            key: run["config"][key] for key in ("preset", "method", "synthetic", "backbone", "epochs", "batch_size")
        }
        assert list(config.values()) == ["ldam", method, False, "resnet32-w16", 200, 128]
        assert (run["real_images"], run["steps"], run["chosen_by"]) == (12_406, 19_400, "last step")
        groups = [f"{100 * found['groups'][group]['top1']:.1f}" for group in ("many", "medium", "few")]
        assert [top1, many, medium, few] == [f"{100 * found['top1']:.1f}", *groups]
        assert [hours, speed] == [f"{run['seconds'] / 3600:.1f}", f"{run['images_per_second']:.0f}"]
        assert all(f"`{method}` {top1}" in page for page in text.values())


def test_the_figures_of_the_preset_fast_are_their_records() -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    section = text.split("## The preset fast")[1].split("\n## ")[0]
    methods, ldam = record("compare_cifar10_fast.json"), json.loads((RESULTS / "cifar10_ldam_ce.json").read_text())
    _, *table = rows(section.split("<!-- table: compare_cifar10_fast.json -->")[1].split("\n\n")[1])
    assert [row[0] for row in table] == [label for label, _ in methods]
    for label, *cells, published in table:
        found = methods[(label, False)]
        assert cells == [written(found, measure) for measure in ("top1", "many", "medium", "few")]
        assert published == (f"{100 * ldam['top1']:.1f}" if label == "ce" else "not run")
        config = {key: found["config"][key] for key in ("preset", "backbone", "epochs", "synthetic")}
        assert list(config.values()) == ["fast", "resnet9-w16", 100, False] and found["steps"] == 9600
    seeds = {len(found["runs"]) for found in methods.values()}
    assert ("one seed" if seeds == {1} else f"{seeds.pop()} seeds") in section
    time = json.loads((RESULTS / "presets.json").read_text())
    hours = {row["preset"]: row["hours"] for row in time["rows"]}
    said = f"{hours['fast']:.2f} hours with one thread of a quiet CPU, one with `ldam` {hours['ldam']:.1f}"
    assert f"{said}: a factor of {time['ratio']:.1f}" in section and time["ratio"] > 5
    step = {row["preset"]: row["milliseconds_a_step"]["median"] for row in time["rows"]}
    per_step = f"({step['fast']:.0f} against {step['ldam']:.0f} ms per step)"
    assert f"Of that, {step['ldam'] / step['fast']:.1f} comes from the network {per_step}" in section
    assert written(methods[("ce", False)], "top1") in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_figures_of_photos_are_their_records() -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = {name: json.loads((RESULTS / f"photo_{name}.json").read_text(encoding="utf-8"))
             for name in ("storage", "list", "folder")}  # fmt: skip
    assert not any(record["quick"] for record in found.values())

    def table(name: str) -> list[list[str]]:
        return list(rows(text.split(f"<!-- table: photo_{name}.json -->")[1].split("\n\n")[1]))[1:]

    assert table("storage") == [
        [f"{row['images']:,}", f"{row['seconds']:.0f}", *map(format_bytes, (row["peak_bytes"], row["stored_bytes"]))]
        for row in found["storage"]["counts"]
    ]
    resumed = found["storage"]["resumed"]
    assert resumed["equal_bytes"] and resumed["shards_reused"] == resumed["killed_after_shards"]
    assert f"after {resumed['killed_after_shards']} of 49 shards of {resumed['images']:,} photos" in text
    assert f"used {resumed['shards_reused']} of them again and took {resumed['seconds']:.0f} seconds more" in text
    assert table("list") == [
        [row["command"], f"{row['seconds']:.0f}", f"{row['processor_seconds']:.0f}", format_bytes(row["peak_bytes"])]
        for row in found["list"]["commands"]
    ]
    assert f"({found['list']['classes']:,} classes, {found['list']['training_images']:,} training images" in text
    folder, words = found["folder"], " ".join(text.split())
    spent, levels = max(row["processor_seconds"] for row in folder["commands"]), folder["levels_from_pillow"]
    assert f"takes {spent:.0f} seconds of processor time and {format_bytes(folder['peak_bytes'])}" in words
    assert f"up to {folder['seconds']:.0f} seconds by the clock" in words and folder["image_size"] == 224
    assert f"by {min(levels):.1f} to {max(levels):.1f} of 255 levels" in words


def test_the_table_of_threads_is_its_record() -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = {(row["pixels"], row["backbone"], row["state"]): row for row in
             json.loads((RESULTS / "threads.json").read_text(encoding="utf-8"))["rows"]}  # fmt: skip
    _, *lines = rows(text.split("<!-- table: threads.json -->")[1].split("\n\n")[1])
    assert len(lines) == len(found) / 2
    for pixels, backbone, *cells in lines:
        quiet, busy = (found[(int(pixels), backbone, state)] for state in ("as found", "all cores busy"))
        speeds = [f"{row[threads]:,.0f}" for row in (quiet, busy) for threads in ("one_thread", "all_threads")]
        assert cells == [*speeds, f"{busy['ratio']:.1f}"]


def test_the_table_of_the_readme_is_its_records() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    files = [f"compare_{name}.json" for name in ("digits50", "digits20", "cifar10")]
    lines = [cells for cells in rows(text) if cells[0] in ("real", "real + synthetic")]
    assert len(lines) >= 6
    for _, label, *cells in lines:
        name = label.split("`")[0]
        key = (name.replace("+synth", "", 1), "+synth" in name)
        assert cells == [written(record(file)[key], "balanced_accuracy") for file in files], name


@pytest.mark.parametrize(("file", "steps", "seeds"), [("digits50", 300, 5), ("digits20", 300, 5), ("cifar10", 600, 3)])
def test_the_budgets_of_the_readme_are_those_of_the_records(file: str, steps: int, seeds: int) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"{steps} steps of 64, {seeds} seeds" in text
    for entry in record(f"compare_{file}.json").values():
        assert (entry["steps"], entry["batch_size"], len(entry["runs"])) == (steps, 64, seeds)


@pytest.mark.parametrize(
    ("page", "file", "said"),
    [
        ("README.md", "compare_digits50.json", "{mean} points (95 % interval {low} to {high})"),
        ("README.md", "compare_digits50_budget.json", "{ours} against {theirs}, {mean} points ({low} to {high}"),
        ("docs/results.md", "compare_digits50.json", "{mean} points balanced ({low} to {high})"),
        ("docs/results.md", "compare_digits50_budget.json", "{ours} against {theirs} of `sau-prior1`"),
        ("docs/results.md", "compare_digits50_budget.json", "images: {mean} balanced ({low} to {high})"),
    ],
)
def test_a_claim_is_its_record(page: str, file: str, said: str) -> None:
    ours, theirs = record(file)[("sau-prior1-finish0.5", True)], record(file)[("sau-prior1", False)]
    points = {name: f"{100 * ours['difference']['balanced_accuracy'][name]:+.1f}" for name in ("mean", "low", "high")}
    values = {"ours": written(ours, "balanced_accuracy"), "theirs": written(theirs, "balanced_accuracy")}
    text = " ".join((REPOSITORY / page).read_text(encoding="utf-8").split())
    assert said.format(**points, **values) in text


def test_the_constraints_are_the_newest_versions_of_the_records() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    recorded: dict[str, set[str]] = {}
    for file in RESULTS.glob("*.json"):
        environment = json.loads(file.read_text(encoding="utf-8")).get("environment", {})
        for name, version in environment.get("versions", {}).items():
            recorded.setdefault(name, set()).add(version)
    assert pinned == {
        name: max(versions, key=lambda version: [int(part) for part in version.split(".")])
        for name, versions in recorded.items()
        if name not in ("python", "platform", "saukit")
    }


@pytest.mark.parametrize("name", ["ranks_digits", "ranks_cifar10"])
def test_the_table_of_processes_is_its_record(name: str) -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (found["steps"], found["batch_size"], found["processes"]) == (200, 16, 2) and "(200 steps of 16," in text
    assert f"{len(found['methods'])} of {len(METHODS)} methods (`{name}.json`):" in text
    _, *lines = rows(text.split(f"<!-- table: {name}.json -->")[1].split("\n\n")[1])
    assert len(lines) == len(found["methods"])
    for (method, variants), line in zip(found["methods"].items(), lines, strict=True):
        two, nudged, *double = variants.values()
        assert all(row["bits_equal_in_both_processes"] for row in variants.values())
        assert all(row["largest"]["loss"] < 1e-12 and row["largest"]["weights"] < 1e-12 for row in double)
        assert two["largest"]["weights"] < 3 * nudged["largest"]["weights"]  # as far as a last bit leads
        cells = [f"{two['loss_by_step'][step]:.0e} / {nudged['loss_by_step'][step]:.0e}" for step in ("1", "20", "200")]
        cells.append(f"{two['largest']['weights']:.0e} / {nudged['largest']['weights']:.0e}")
        cells += [f"{row['largest']['loss']:.0e}, {row['largest']['weights']:.0e}" for row in double] or ["-"]
        assert line == [method, *cells]


def test_the_table_of_plans_is_its_record() -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS.parent / "planning.json").read_text(encoding="utf-8"))
    _, *lines = rows(text.split("<!-- table: planning.json -->")[1].split("\n\n")[1])
    assert len(lines) == len(found["rows"]) / 2
    for index, line in enumerate(lines):
        one, eight = found["rows"][2 * index : 2 * index + 2]
        assert (one["gpus"], eight["gpus"], one["what"]) == (1, 8, eight["what"])
        memory, hours = (f"{one[name] / of:.{n}f} / {eight[name] / of:.{n}f}"
                         for name, of, n in (("memory_bytes", 1e9, 1), ("hours", 1, 2)))  # fmt: skip
        amounts = [f"{one['steps']:,}", f"{one['flops'] / 1e15:.0f}", f"{one['image_bytes'] / 1e9:.2f}"]
        run = f"{one['epochs']} x {one['batch_size']}"
        assert line == [one["what"], run, *amounts, memory, hours, one["limited_by"]]
    assumed, words = found["assumed"], " ".join(text.split())
    assert assumed["share_of_peak"] == 0.25 and "the hours assume a quarter of the GPU's peak in bf16" in words
    for part in (
        f"({assumed['peak_flops'] / 1e12:.0f} TFLOP/s)",
        f"{assumed['cores_per_gpu']} cores per GPU",
        f"decode {assumed['decoded_images_per_second_and_core']} images a second each",
        f"{assumed['exchange_bytes_per_second'] / 1e9:.0f} GB/s between the GPUs",
    ):
        assert part in words


def test_the_table_of_estimates_is_its_record() -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "estimates.json").read_text(encoding="utf-8"))
    assert found["within"] and found["allowed"] == 0.2
    _, *lines = rows(text.split("<!-- table: estimates.json -->")[1].split("\n\n")[1])
    assert len(lines) == len(found["rows"])
    for row, (run, _, *cells) in zip(found["rows"], lines, strict=True):
        assert 0.8 <= row["estimate_over_run"] <= 1.2
        assert row["estimate_over_run"] == pytest.approx(row["estimated_seconds"] / row["run_seconds"], abs=0.002)
        seconds = [f"{row[name]:.1f}" for name in ("estimated_seconds", "run_seconds")]
        assert (run, cells) == (row["run"], [*seconds, f"{row['estimate_over_run']:.2f}"])


def test_the_table_of_processes_and_threads_is_its_record() -> None:
    text = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "ranks_speed.json").read_text(encoding="utf-8"))
    rounds = {len(turns) for turns in found["turns"].values()}
    assert rounds == {9} and "medians of nine rounds" in text
    _, *lines = rows(text.split("<!-- table: ranks_speed.json -->")[1].split("\n\n")[1])
    assert len(lines) == len(found["rows"])
    for index, (row, (what, batch_size, *cells)) in enumerate(zip(found["rows"], lines, strict=True)):
        assert (what, batch_size) == (row["what"], str(row["batch_size"]))
        rates = [statistics.median(turn[index]["rate"] for turn in turns) for turns in found["turns"].values()]
        assert rates == list(row["images_per_second"].values())
        speeds = [f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" for rate in rates]
        share = f"{100 * row['share_of_time_in_exchanges']:.0f} %"
        assert cells == [*speeds, f"{rates[1] / rates[0]:.2f}", share]


def test_the_times_of_jobs_are_their_record() -> None:
    words = " ".join((REPOSITORY / "docs/speed.md").read_text(encoding="utf-8").split())
    found = json.loads((RESULTS / "ranks_jobs.json").read_text(encoding="utf-8"))["rows"]
    assert all(row["equal_bytes"] and row["files"] > 10 for row in found.values())
    for name, said in (
        ("compare --jobs", "`compare --jobs 2` took {two:.0f} seconds and `--jobs 1` {one process:.0f}"),
        ("synth", "a cache by two processes {two:.0f} and by one {one process:.0f}"),
        ("synth --train-parts 2", "with `--train-parts 2` {two:.0f} and {one process:.0f}"),
    ):
        assert said.format(**found[name]["seconds"]) in words
