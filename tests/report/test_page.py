"""The page against the workspace's own files, read by another parser than the one that wrote it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_page import Page
from scipy.stats import ttest_rel
from support import tiny, tree

from saukit.core.artifacts import added_files
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, make_split
from saukit.data.synthetic import load_cache
from saukit.evaluation.comparison_files import MEASURES as TITLES
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.report import collect as collecting
from saukit.report import run_sections
from saukit.report.collect import collect
from saukit.report.config import ReportConfig
from saukit.report.page import report
from saukit.training.trainer import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
MINUS = "\N{MINUS SIGN}"
MEASURES = {title: name for name, title in TITLES.items()}


def written(work: Path, out: Path | None = None, **fields: Any) -> Page:
    """The page about `work`, parsed."""
    out = out or work / "report.html"
    report(ReportConfig(**fields), Workspace(work), out=out, force=False)
    return Page(out)


def results_of(work: Path, run: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((work / "runs" / run / "results.json").read_text())
    return document


def measure(results: dict[str, Any], name: str) -> float:
    value: float = results["groups"][name]["top1"] if name in ("many", "medium", "few") else results[name]
    return value


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", MINUS)


@pytest.fixture(scope="module")
def page(report_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(report_work, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def odd_page(odd_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(odd_work, tmp_path_factory.mktemp("odd-page") / "report.html", title="</title><b>Bold & 'quoted'")


@pytest.fixture(scope="module")
def runs(report_work: Path) -> dict[str, list[str]]:
    """The run names of each label of the comparison, by seed."""
    document = json.loads((report_work / "comparisons" / "main" / "compare.json").read_text())
    return {method["label"]: [run["name"] for run in method["runs"]] for method in document["methods"]}


# --- what the numbers are -----------------------------------------------------------------------------------------


def test_the_histogram_has_the_counts_of_the_split_and_the_cache(page: Page, report_work: Path) -> None:
    split = load_split(Workspace(report_work))
    made = np.bincount(load_cache(Workspace(report_work), split).labels, minlength=10)
    table = page.tables["Images of each class"]
    assert table.column("real") == {str(c): f"{(split.train.labels == c).sum():,}" for c in range(10)}
    assert table.column("synthetic") == {str(c): f"{made[c]:,}" for c in range(10)}
    assert [row[0] for row in table.rows[1:]] == list("0123456789")  # by falling count
    groups = page.tables["Shot groups"]
    assert groups.column("real") == {"many": "142", "medium": "212", "few": "38"}
    assert groups.column("classes")["few"] == "5, 6, 7, 8, 9"
    assert groups.column("synthetic")["few"] == str(made[5:].sum())


def test_the_bars_are_as_long_as_the_counts(page: Page, report_work: Path) -> None:
    split = load_split(Workspace(report_work))
    bars = re.findall(
        r'<svg class="bar (many|medium|few)".*?<rect class="fill" width="([\d.]+)%"', page.section("data")
    )
    widths = [float(width) for _, width in bars]
    np.testing.assert_allclose(widths, 100 * split.class_counts / split.class_counts.max(), atol=0.006)
    assert [group for group, _ in bars] == ["many"] + ["medium"] * 4 + ["few"] * 5


def test_the_comparison_is_mean_and_deviation_of_the_runs(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    table = page.tables["Accuracy of each method"]
    assert [row[0] for row in table.rows[1:]] == ["ce, real images alone", "sau+synth, real and synthetic images"]
    for row, label in zip(table.rows[1:], runs, strict=True):
        for head, name in MEASURES.items():
            values = [measure(results_of(report_work, run), name) for run in runs[label]]
            expected = f"{percent(float(np.mean(values)))} ± {percent(float(np.std(values, ddof=1)))}"
            assert row[table.rows[0].index(head)] == expected, (label, head)
        assert row[table.rows[0].index("seeds")] == "2"


def test_the_best_of_each_column_is_marked(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page.section("comparison"), flags=re.S)[:2]
    for place, name in enumerate(MEASURES.values()):
        means = [np.mean([measure(results_of(report_work, run), name) for run in names]) for names in runs.values()]
        best = min(means) if name == "ece" else max(means)
        marked = [re.findall(r'<td class="n( best)?">', row)[place] == " best" for row in rows]
        assert marked == [value == best for value in means], name


def test_the_verdict_is_the_paired_difference_of_scipy(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    """Both lines of the answer, and the chart that says the same of every measure."""
    ours, theirs = (
        {name: [measure(results_of(report_work, run), name) for run in runs[label]] for name in MEASURES.values()}
        for label in ("sau+synth", "ce")
    )
    summary = " ".join(re.sub(r"<[^>]+>", " ", page.section("summary")).split())
    for head, name in (("Balanced accuracy", "balanced_accuracy"), ("Few-shot accuracy", "few")):
        change = float(np.mean(ours[name]) - np.mean(theirs[name]))
        both = f"{percent(float(np.mean(ours[name])))} % against {percent(float(np.mean(theirs[name])))} %"
        said = f"{head}: {both}, {signed(change)} points"
        short = "balanced" if name == "balanced_accuracy" else "few"
        if np.ptp(np.subtract(ours[name], theirs[name])) < 1e-9:
            assert f"{said}; with equal differences at 2 seeds there is no interval" in summary
            assert f"{short} {signed(change)}" in summary
            continue
        interval = ttest_rel(ours[name], theirs[name]).confidence_interval(0.95)
        bounds = f"{signed(interval.low)} to {signed(interval.high)}"
        assert f"{said} (95 % interval {bounds}, 2 seeds, paired)" in summary
        assert f"{short} {signed(change)} ({bounds})" in summary
    clear = not interval_has_zero(ours["balanced_accuracy"], theirs["balanced_accuracy"])
    assert ("No clear effect of synthetic images" in summary) is not clear


def interval_has_zero(ours: list[float], theirs: list[float]) -> bool:
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    return bool(interval.low <= 0 <= interval.high)


def test_differences_to_the_baseline_are_those_of_compare_json(page: Page, report_work: Path) -> None:
    document = json.loads((report_work / "comparisons" / "main" / "compare.json").read_text())
    found = document["methods"][1]["difference"]
    row = page.tables["Differences to the baseline"].rows[1]
    assert row[0] == "sau+synth"
    assert row[1:] == [
        signed(found[name]["mean"])
        + ("" if found[name]["low"] is None else f" ({signed(found[name]['low'])} to {signed(found[name]['high'])})")
        for name in document["methods"][1]["mean"]
    ]


def test_each_class_has_the_mean_over_the_seeds(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    table = page.tables["Accuracy of each class as a table"]
    for label, names in {**runs, "extra": ["extra"]}.items():
        rows = [[entry["top1"] for entry in results_of(report_work, name)["per_class"]] for name in names]
        assert list(table.column(label).values()) == [percent(value) for value in np.mean(rows, axis=0)]
    methods = table.rows[0][2:]
    bars = re.findall(r'<svg class="bar c(\d)".*?width="([\d.]+)%"', page.section("classes"))
    shown = [[float(cell) for cell in row[2:]] for row in table.rows[1:]]
    assert [int(colour) for colour, _ in bars] == list(range(len(methods))) * 10
    np.testing.assert_allclose([float(width) for _, width in bars], np.ravel(shown), atol=0.06)


def test_a_run_outside_the_comparison_has_a_row_of_its_own(page: Page, report_work: Path) -> None:
    table = page.tables["Accuracy of each run"]
    assert [row[0] for row in table.rows[1:]] == ["extra, real images alone"]
    results = results_of(report_work, "extra")
    assert table.rows[1][1:] == [*(percent(measure(results, name)) for name in MEASURES.values()), "1"]


def test_the_audit_is_that_of_the_cache(page: Page, report_work: Path) -> None:
    audit = json.loads((report_work / "synth" / "audit.json").read_text())
    table = page.tables["Audit of each class"]
    wanted = [row for row in audit["per_class"] if row["wanted"]]
    assert list(table.column("class"))[:-1] == [row["class"] for row in wanted] and len(wanted) == 5
    for cells, row in zip(table.rows[1:], [*wanted, audit["overall"]], strict=True):
        shares = (row["agreement"], row["diversity"]["ratio"], row["memorised"], row["leaked"])
        assert cells[2] == f"{row['kept']} / {row['wanted']}"
        assert cells[3:] == ["-" if share is None else percent(share) for share in shares]
    closest = (report_work / "synth" / "closest.png").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(closest).decode()}" in page.attributes("src")


def test_confusion_matrices_are_summed_over_the_seeds(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    for label, names in runs.items():
        counts = np.sum([results_of(report_work, name)["confusion"] for name in names], axis=0)
        shares = counts / counts.sum(1, keepdims=True)
        cells = [row[1:] for row in page.tables[f"Confusion matrix of {label}"].rows[1:]]
        assert cells == [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in shares]
    opened = re.findall(r"<details( open)?><summary>([^ <]+)", page.section("confusion"))
    assert [label for state, label in opened if state] == ["sau+synth"]  # the best one on synthetic images


def test_calibration_bins_are_pooled_over_the_seeds(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    rows = [row for row in page.tables["Calibration bins"].rows[1:] if row[0] == "ce"]
    documents = [results_of(report_work, name)["calibration"] for name in runs["ce"]]
    expected = []
    for bins in zip(*documents, strict=True):
        images = sum(row["images"] for row in bins)
        if images:
            hits = sum(row["images"] * row["accuracy"] for row in bins if row["images"])
            expected.append([str(images), percent(hits / images)])
    assert [[row[2], row[4]] for row in rows] == expected and len(expected) > 1
    assert sum(int(row[2]) for row in rows) == 2 * 359


def test_curves_end_at_the_last_losses_of_the_log(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    column = page.tables["Last losses of each method"].column("last losses, means over the seeds")
    for label, names in runs.items():
        logs = [(report_work / "runs" / name / "metrics.jsonl").read_text().splitlines() for name in names]
        last = [json.loads(lines[-1])["losses"] for lines in logs]
        for loss in last[0]:
            value = np.mean([losses[loss] for losses in last])
            assert f"{loss.replace('_', ' ')} {value:.3f}" in column[label]
    assert page.section("training").count("<polyline") == (1 + 2) * (1 + 3) + 1  # two seeds and their mean; extra


def test_what_differs_and_what_it_cost(page: Page, report_work: Path) -> None:
    differs = page.tables["What differs between the methods"]
    assert {"method", "synthetic", "steps"} <= set(differs.rows[0])
    assert differs.column("steps") == {"ce": "4", "sau+synth": "4", "extra": "30"}
    assert differs.column("seeds") == {"ce": "0, 1", "sau+synth": "0, 1", "extra": "0"}
    cost = page.tables["Cost of each method"]
    manifest = json.loads((report_work / "runs" / "ce" / "manifest.json").read_text())
    assert cost.column("parameters")["ce"] == f"{manifest['summary']['parameters']:,}"
    assert cost.column("images seen") == {"ce": "64", "sau+synth": "256", "extra": "480"}  # sau: four views
    assert page.tables["Every run"].column("digest")["ce"] == manifest["digest"][:12]
    common = dict(re.findall(r"<dt>(\w+)</dt><dd>([^<]+)</dd>", page.section("configuration")))
    assert common["batch_size"] == "16" and common["select"] == "last" and "steps" not in common
    digests = page.tables["Artefacts"].column("SHA-256 of its content")
    assert digests["split"] == json.loads((report_work / "split" / "manifest.json").read_text())["digest"]
    assert list(digests) == ["split", "synthetic images", "comparison"]


def test_samples_are_the_first_images_of_each_class_pixel_by_pixel(page: Page, report_work: Path) -> None:
    split = load_split(Workspace(report_work))
    cache = load_cache(Workspace(report_work), split)
    pictures = {found["alt"]: found["src"] for tag, found in page.elements if tag == "img"}
    for alt, images, labels in (
        ("Real images of class 7", split.train.images, split.train.labels),
        ("Synthetic images of class 7", cache.images, cache.labels),
    ):
        source = pictures[alt]
        assert source is not None
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) as image:
            pixels = np.asarray(image.convert("RGBA"))
        side, own = split.image_size[0], images[labels == 7][:6]
        assert len(own) == 6 and pixels.shape == (side, 6 * side + 5, 4)
        for index, expected in enumerate(own):
            tile = pixels[:, index * (side + 1) : index * (side + 1) + side]
            np.testing.assert_array_equal(tile[..., :3].transpose(2, 0, 1), expected)
            assert (tile[..., 3] == 255).all()
        assert (pixels[:, side, 3] == 0).all()
    assert "Synthetic images of class 0" not in pictures and "none needed" in page.text  # it is full already
    names = [alt for alt in pictures if alt and alt.startswith("Real")]
    assert names[0] == "Real images of class 9"  # the rarest on top


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    from saukit.report.pictures import strip

    large = np.random.default_rng(0).integers(0, 255, (3, 3, 100, 200), dtype=np.uint8)
    picture = strip(large)
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))) as image:
        assert image.size == (3 * 48 + 2 * 4, 24) == (picture.width, picture.height)


# --- what the page is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["page", "odd_page"])
def test_it_is_well_formed_and_stands_alone(which: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(which)
    assert page.problems == []
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert not re.search(r"@import|url\(|https?:", style)
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert len(page.source) < 3_000_000


@pytest.mark.parametrize("which", ["page", "odd_page"])
def test_anchors_and_labels(which: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(which)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [target[1:] for target in page.attributes("href")]
    assert len(targets) > 6 and set(targets) <= set(ids)
    assert {f"{target}-title" for target in targets if target != "main"} <= set(ids)
    labels = [found["aria-label"] for _, found in page.elements if found.get("role") == "region"]
    assert len(labels) == len(set(labels)) and all(labels)
    assert all(found.get("tabindex") == "0" for _, found in page.elements if found.get("role") == "region")
    assert all(found["alt"] for tag, found in page.elements if tag == "img")
    pictures = page.source.split("<svg")[1:]
    for picture in pictures:
        head = picture[: picture.index(">")]
        named = 'role="img"' in head and re.match(r"[^>]*><title>[^<]+</title>", picture)
        assert named or 'aria-hidden="true"' in head


def test_only_its_own_script_may_run(page: Page) -> None:
    policy = next(found["content"] for _, found in page.elements if found.get("http-equiv"))
    script = re.findall(r"<script>(.*?)</script>", page.source, flags=re.S)
    assert len(script) == 1 and policy is not None
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_names_that_are_markup_stay_text(odd_page: Page, odd_work: Path) -> None:
    classes = load_split(Workspace(odd_work)).classes
    images = len(load_split(Workspace(odd_work)).train.labels)
    assert f"A folder of images: {images} real training images in 34 classes, from" in odd_page.text
    assert '<b>&"x' in classes and "<script>alert(1)<script>" in classes
    table = odd_page.tables["Images of each class"]
    assert sorted(row[0] for row in table.rows[1:]) == sorted(classes)
    assert [row[0] for row in odd_page.tables["Accuracy of each run"].rows[1:]] == ['<i>&"run, real images alone']
    assert odd_page.title == "</title><b>Bold & 'quoted'"
    assert {tag for tag, _ in odd_page.elements}.isdisjoint({"b", "i"})
    assert sum(tag == "script" for tag, _ in odd_page.elements) == 1
    assert sum(tag == "img" for tag, _ in odd_page.elements) == odd_page.source.count("<img") < 30
    assert 'Real images of class <b>&"x' in odd_page.attributes("alt")
    assert "{{ 7 * 7 }}" in odd_page.text


def test_many_classes_have_a_chart_of_columns_and_a_matrix_as_a_picture(odd_page: Page, odd_work: Path) -> None:
    split = load_split(Workspace(odd_work))
    heights = re.findall(r'<rect class="fill \w+"[^>]*height="([\d.]+)%"', odd_page.section("data").split("</svg>")[0])
    ordered = np.sort(split.class_counts)[::-1]
    np.testing.assert_allclose([float(height) for height in heights], 100 * ordered / ordered.max(), atol=0.006)
    source = next(found["src"] for _, found in odd_page.elements if "map" in (found.get("class") or ""))
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    order = sorted(range(34), key=lambda c: -split.class_counts[c])
    confusion = np.array(results_of(odd_work, '<i>&"run')["confusion"])[np.ix_(order, order)]
    shares = confusion / confusion.sum(1, keepdims=True)
    assert pixels.shape == (34, 34)
    assert pixels[shares == 1].max() < pixels[shares == 0].min()
    assert "14 more classes are not shown" in odd_page.text  # of the samples
    assert "Balanced accuracy on the validation part" in odd_page.text


def test_writing_again_gives_the_same_bytes(report_work: Path, tmp_path: Path) -> None:
    before = tree(report_work)
    first = written(report_work, tmp_path / "a.html").source
    assert written(report_work, tmp_path / "a.html").source == first
    assert tree(report_work) == before


def test_the_commands_repeat_the_comparison_and_the_runs_beside_it(page: Page, report_work: Path) -> None:
    text = re.search(r"<pre.*?><code>(.*?)</code></pre>", page.section("repeat"), flags=re.S)
    assert text is not None
    commands = [shlex.split(line) for line in text[1].splitlines()]
    assert [command[1] for command in commands] == ["make-lt", "synth", "compare", "train", "eval", "report"]
    for command in commands[:4]:
        config = command[command.index("--config") + 1]
        assert (report_work.parent / config).is_file()
    assert commands[3][-2:] == ["--name", "extra"] and commands[4][-1] == "extra"


# --- what a workspace may lack ------------------------------------------------------------------------------------


def test_only_a_split(split_work: Path) -> None:
    page = written(split_work)
    assert page.problems == []
    assert page.tables["Images of each class"].rows[0] == ["class", "images", "real"]
    assert "There are no synthetic images: saukit synth makes them." in page.text
    assert "There is no run yet: saukit train, then saukit eval." in page.text
    assert (
        "392 real training images in 10 classes, from 142 down to 2 images a class (ratio 50 asked for, 71" in page.text
    )
    anchors = [target[1:] for target in page.attributes("href") if target != "#main"]
    assert anchors == ["summary", "data", "samples", "repeat", "limits"]


def test_without_a_comparison_there_is_no_verdict(work: Path) -> None:
    page = written(work)
    assert "Of 1 evaluated runs, the best balanced accuracy is" in page.text and "saukit compare" in page.text
    assert 'class="answer' not in page.source
    assert "sau: not evaluated: saukit eval --run sau" in page.text
    assert "audit" not in page.attributes("id")  # this cache has none


def test_runs_that_are_not_evaluated_show_their_training(work: Path) -> None:
    page = written(work, runs=("sau",))
    assert "No run is evaluated yet: saukit eval --run sau." in page.text
    assert "Last losses of each method" in page.tables and "Accuracy of each run" not in page.tables
    assert {"confusion", "calibration", "classes"}.isdisjoint(page.attributes("id"))


def test_runs_evaluated_before_there_were_bins(work: Path) -> None:
    path = work / "runs" / "ce" / "results.json"
    document = json.loads(path.read_text())
    del document["calibration"]
    with added_files(work / "runs" / "ce", kind="run", files=["results.json"]):
        path.write_text(json.dumps(document))
    page = written(work)
    assert "Evaluated before saukit kept the bins: ce. saukit eval --force --run ce adds them." in page.text
    assert "Calibration bins" not in page.tables
    evaluate(EvalConfig(run="ce"), Workspace(work), device=CPU, force=True, reporter=QUIET)
    assert "Calibration bins" in written(work).tables


def test_an_absent_group_is_a_dash(tmp_path: Path) -> None:
    config = SplitConfig(imb=2, groups="thresholds")
    make_split(config, Workspace(tmp_path), root=None, force=False, reporter=QUIET)
    fit(tiny(synthetic=False), Workspace(tmp_path), name="a", device=CPU, force=False, resume=False, reporter=QUIET)
    evaluate(EvalConfig(), Workspace(tmp_path), device=CPU, force=False, reporter=QUIET)
    page = written(tmp_path)
    assert page.tables["Accuracy of each run"].column("few") == {"a, real images alone": "-"}
    assert "few" not in page.tables["Shot groups"].column("real")


def test_thirds_are_among_the_limits(tmp_path: Path) -> None:
    make_split(SplitConfig(imb=50, groups="thirds"), Workspace(tmp_path), root=None, force=False, reporter=QUIET)
    assert "The shot groups are thirds of the classes by rank" in written(tmp_path).text


def test_the_limits_name_what_one_test_image_is_worth(page: Page) -> None:
    assert "359 test images: one of them is 0.28 points of top-1, and 0.56 points among the 179" in page.text
    assert "2 training seeds a method" in page.text
    assert "Every model is the one of the last step" in page.text
    assert "(1 to 4 a step)" in page.text


# --- what is damaged, stale, or not there -------------------------------------------------------------------------


def test_a_damaged_run_is_left_out_unless_asked_for(work: Path) -> None:
    path = work / "runs" / "sau" / "metrics.jsonl"
    path.write_text(path.read_text() + "\n")
    page = written(work)
    assert re.search(r"sau: .*runs/sau is damaged: metrics.jsonl has \d+ bytes instead of \d+", page.text)
    with pytest.raises(CorruptArtifactError, match="runs/sau is damaged"):
        written(work, runs=("sau",))


def test_a_run_and_a_cache_of_another_split_are_left_out(work: Path) -> None:
    make_split(SplitConfig(imb=20), Workspace(work), root=None, force=True, reporter=QUIET)
    page = written(work)
    assert "run ce was made from another split than the one in this workspace" in page.text
    assert "synth was made from another split" in page.text
    with pytest.raises(DataError, match="run ce was made from another split than the one in this workspace"):
        written(work, runs=("ce",))


def test_a_run_that_is_not_there(work: Path) -> None:
    with pytest.raises(DataError, match=r"no complete run 'x', 'y' in .*runs \(complete runs: sau, ce\)"):
        written(work, runs=("x", "ce", "y"))
    assert not (work / "report.html").exists()


def test_a_comparison_that_is_not_there(work: Path, report_work: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no complete comparison 'x' of this split .*\(no complete comparisons\): run"):
        written(work, comparison="x")
    with pytest.raises(DataError, match=r"\(complete comparisons: main\): run `saukit compare` first"):
        written(report_work, tmp_path / "r.html", comparison="x")


def test_comparisons_damaged_or_of_another_split(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    document = work / "comparisons" / "main" / "compare.json"
    content = document.read_text()
    document.write_text(content.replace("0.95", "0.90"))
    assert "comparison is damaged" in written(work).text
    with pytest.raises(CorruptArtifactError, match="comparisons/main is damaged"):
        written(work, comparison="main")
    document.write_text(content)
    make_split(SplitConfig(imb=20), Workspace(work), root=None, force=True, reporter=QUIET)
    page = written(work)
    assert "main: comparison of another split than the one in this workspace" in page.text
    assert "comparison" not in page.attributes("id")


def test_the_best_method_of_a_comparison_comes_first(report_work: Path) -> None:
    document = json.loads((report_work / "comparisons" / "main" / "compare.json").read_text())
    means = {method["label"]: method["mean"]["balanced_accuracy"] for method in document["methods"]}
    shown = [series.label for series in collect(ReportConfig(), Workspace(report_work)).series]
    assert shown[: len(means)] == sorted(means, key=lambda label: -means[label])
    assert shown[: len(means)] != list(means)  # the order of the document is another here


def test_a_run_made_anew_since_the_comparison_is_no_part_of_it(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    workspace, other = Workspace(work), tiny(steps=5, synthetic=False)
    fit(other, workspace, name="ce", device=CPU, force=True, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="ce"), workspace, device=CPU, force=False, reporter=QUIET)
    contents = collect(ReportConfig(), workspace)
    compared = {series.label: [run.seed for run in series.runs] for series in contents.series[:2]}
    assert compared == {"ce": [1], "sau+synth": [0, 1]}
    others = {series.label: [run.config["steps"] for run in series.runs] for series in contents.series[2:]}
    assert others == {"extra": [30], "ce (not compared)": [5]}


def test_the_latest_comparison_is_shown_or_the_one_asked_for(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    shutil.copytree(work / "comparisons" / "main", work / "comparisons" / "another")
    manifest = work / "comparisons" / "another" / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "created": "2020-01-01T00:00:00+00:00"}))
    workspace = Workspace(work)
    for asked, expected in ((None, "main"), ("another", "another")):
        found = collect(ReportConfig(comparison=asked), workspace).comparison
        assert found is not None and found.name == expected


def test_more_methods_than_the_page_holds_are_listed(
    report_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "MOST_SERIES", 2)
    page = written(report_work, tmp_path / "r.html")
    assert "extra: more than 2 methods: saukit report --runs extra" in page.text
    monkeypatch.setattr(collecting, "MOST_RUNS", 4)
    monkeypatch.setattr(collecting, "MOST_SERIES", 12)
    text = written(report_work, tmp_path / "s.html").text
    assert "extra: more than 4 runs, the best methods come first: saukit report --runs extra" in text


def test_runs_trained_on_another_cache_are_marked(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    shutil.rmtree(work / "synth")
    assert "Trained on other synthetic images than the ones on this page: sau+synth" in written(work).text
    assert "Trained on other synthetic images" not in written(report_work, tmp_path / "r.html").text


# --- where it is written ------------------------------------------------------------------------------------------


def test_a_file_that_saukit_did_not_write_is_kept(split_work: Path) -> None:
    out = split_work / "mine.html"
    out.write_text("<!doctype html><p>saukit is good")
    with pytest.raises(UsageError, match=r"mine.html exists but saukit did not write it: give another --out, or repla"):
        written(split_work, out)
    assert out.read_text() == "<!doctype html><p>saukit is good"
    report(ReportConfig(title="new"), Workspace(split_work), out=out, force=True)
    assert Page(out).title == "new"
    assert written(split_work, out, title="newer").title == "newer"  # its own is written over
    with pytest.raises(UsageError, match=r"split is a folder: give a file as --out, such as .*split/report.html"):
        written(split_work, split_work / "split")


def test_lines_of_a_log_are_thinned_to_means() -> None:
    points = [(step, float(step % 7)) for step in range(20, 20 + 20 * 500, 20)]
    thinned = run_sections._thinned(points)
    assert len(thinned) == run_sections.MOST_POINTS and thinned[-1][0] == points[-1][0]
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    sizes = np.diff([0, *(points.index((int(x), float(x % 7))) + 1 for x, _ in thinned)])
    assert np.average([y for _, y in thinned], weights=sizes) == pytest.approx(np.mean([y for _, y in points]))
    assert run_sections._thinned([(4, 2.0)]) == ((0.0, 2.0), (4.0, 2.0))
