"""The page against the workspace's own files, read by another parser than the one that wrote it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_page import Page
from scipy.stats import ttest_rel
from support import resealed, tiny, tree

from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, make_split
from saukit.data.synthetic import load_cache
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.evaluation.summary import MEASURES as TITLES
from saukit.report import sections
from saukit.report.collect import collect
from saukit.report.config import ReportConfig
from saukit.report.page import report
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
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


def texts(chart: str) -> list[str]:
    """What an SVG figure says."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", chart)]


def percent(value: Any) -> str:
    return f"{100 * value:.1f}"


def signed(value: Any) -> str:
    return f"{100 * value:+.1f}".replace("-0.0", "+0.0")


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


def test_the_chart_of_the_split_says_each_count(page: Page, report_work: Path) -> None:
    split = load_split(Workspace(report_work))
    made = np.bincount(load_cache(Workspace(report_work), split).labels, minlength=10)
    (chart,) = page.charts("data").values()
    said = texts(chart)
    numbers = [f"{a:,} + {b:,}" if b else f"{a:,}" for a, b in zip(split.class_counts, made, strict=True)]
    assert [text for text in said if text in numbers] == numbers
    assert {"many (1)", "medium (4)", "few (5)", "synthetic"} <= set(said)


def test_the_comparison_is_mean_and_deviation_of_the_runs(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    table = page.tables["Accuracy of each method"]
    assert [row[0] for row in table.rows[1:]] == ["ce, real images alone", "sau+synth, real and synthetic images"]
    for row, label in zip(table.rows[1:], runs, strict=True):
        for head, name in MEASURES.items():
            values = [measure(results_of(report_work, run), name) for run in runs[label]]
            expected = f"{percent(np.mean(values))} ± {percent(np.std(values, ddof=1))}"
            assert row[table.rows[0].index(head)] == expected, (label, head)
        assert row[table.rows[0].index("seeds")] == "3"


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
    """The sentences of the answer, and the chart that says the same of every measure."""
    ours, theirs = (
        {name: [measure(results_of(report_work, run), name) for run in runs[label]] for name in MEASURES.values()}
        for label in ("sau+synth", "ce")
    )
    summary = " ".join(re.sub(r"<[^>]+>", " ", page.section("summary")).split())
    ((title, chart),) = page.charts("summary").items()
    for head, name in (("balanced", "balanced_accuracy"), ("few", "few")):
        change = np.mean(ours[name]) - np.mean(theirs[name])
        if np.ptp(np.subtract(ours[name], theirs[name])) < 1e-9:
            bounds, sentence = "no spread", f"{signed(change)} points (no spread)"
        else:
            interval = ttest_rel(ours[name], theirs[name]).confidence_interval(0.95)
            bounds = f"{signed(interval.low)} to {signed(interval.high)}"
            clear = "clear" if interval.low > 0 or interval.high < 0 else "not clear"
            sentence = f"{signed(change)} points ({bounds}, {clear})"
        assert sentence in summary, name
        assert f"{head} {signed(change)} ({bounds})" in title and f"{signed(change)} ({bounds})" in texts(chart)
    assert f"sau+synth, {percent(np.mean(ours['balanced_accuracy']))} % balanced accuracy" in summary
    assert f"{percent(np.mean(ours['few']))} % against {percent(np.mean(theirs['few']))} %" in summary
    assert "at 4 steps of batch size 16" in summary
    audit = json.loads((report_work / "synth" / "audit.json").read_text())
    assert audit["overall"]["agreement"] < 0.3  # the generator had three steps
    assert f"the judge recognises {percent(audit['overall']['agreement'])} % of them, and chance is 10.0 %" in summary


def test_differences_to_the_baseline_are_those_of_compare_json(page: Page, report_work: Path) -> None:
    document = json.loads((report_work / "comparisons" / "main" / "compare.json").read_text())
    found = document["methods"][1]["difference"]
    row = page.tables["Differences to the baseline"].rows[1]
    assert row[0] == "sau+synth"
    assert row[1:] == [
        signed(found[name]["mean"])
        + (
            " (no spread)"
            if found[name]["low"] is None
            else f" ({signed(found[name]['low'])} to {signed(found[name]['high'])})"
        )
        for name in document["methods"][1]["mean"]
    ]


def test_each_class_has_the_mean_over_the_seeds(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    table = page.tables["Accuracy of each class"]
    for label, names in {**runs, "extra": ["extra"]}.items():
        rows = [[entry["top1"] for entry in results_of(report_work, name)["per_class"]] for name in names]
        assert list(table.column(label).values()) == [percent(value) for value in np.mean(rows, axis=0)]
    assert table.rows[0] == ["class", "real", "sau+synth", "ce", "extra"]  # of the verdict, then the others
    assert list(page.charts("classes")) == ["Accuracy per class of sau+synth and ce, in %"]


def test_each_method_has_its_precision_recall_and_f1(page: Page, report_work: Path, runs: dict[str, list[str]]) -> None:
    for label, names in {**runs, "extra": ["extra"]}.items():
        table = page.tables[f"Precision, recall and F1 of {label}"]
        assert table.rows[0] == ["class", "real", "precision", "recall", "F1"]
        confusions = [np.array(results_of(report_work, name)["confusion"]) for name in names]
        with np.errstate(invalid="ignore"):
            precisions = np.array([np.diag(it) / it.sum(0) for it in confusions])
        for c, told in enumerate(table.column("precision").values()):
            there = precisions[:, c][~np.isnan(precisions[:, c])]
            assert told == (percent(there.mean()) if len(there) else "-")
        recalls = np.mean([np.diag(it) / it.sum(1) for it in confusions], axis=0)
        assert list(table.column("recall").values()) == [percent(value) for value in recalls]
    assert "-" in page.tables["Precision, recall and F1 of ce"].column("precision").values()


def test_the_first_methods_have_their_most_confident_mistakes(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    pictures = {found["alt"]: found["src"] for tag, found in page.elements if tag == "img" and found["alt"]}
    shown = [(alt, src) for alt, src in pictures.items() if alt.startswith("Misclassified test images of ")]
    assert len(shown) == sections.AT_FIRST < 3
    for (alt, src), run in zip(shown, (runs["sau+synth"][0], runs["ce"][0]), strict=True):
        assert f"images of {run}," in alt and src is not None
        drawn = (report_work / "runs" / run / "errors.png").read_bytes()
        assert base64.b64decode(src.split(",")[1]) == drawn
        assert f"<code>errors.csv</code> of the run {run}" in page.source


def test_photos_of_mistakes_travel_as_jpeg(tmp_path: Path) -> None:
    from saukit.report.sections import framed

    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "errors.png")
    picture = framed(tmp_path / "errors.png")
    assert picture.uri.startswith("data:image/jpeg;base64,") and (picture.width, picture.height) == (300, 200)
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))) as image:
        assert image.size == (600, 400)
        assert np.abs(np.asarray(image, np.int16) - noise).mean() < 30


def test_label_suspects_are_listed_where_they_were_looked_for(
    page: Page, report_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [name for name in page.tables if name.startswith("Label suspects")]
    shutil.copytree(report_work, tmp_path / "work")
    evaluate(
        EvalConfig(run="extra", suspects=True), Workspace(tmp_path / "work"), device=CPU, force=False, reporter=QUIET
    )
    with (tmp_path / "work" / "runs" / "extra" / "suspects.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    monkeypatch.setattr(sections, "MOST_SUSPECTS", 2)
    assert len(listed) > 2
    table = written(tmp_path / "work").tables["Label suspects of extra"]
    assert table.rows[1:] == [
        [it["index"], it["part"], it["label"], it["suggested"]]
        + [percent(float(it[name])) for name in ("confidence", "confidence_of_suggested")]
        for it in listed[: sections.MOST_SUSPECTS]
    ]


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


def test_the_models_have_figures_over_all_their_seeds(
    page: Page, report_work: Path, runs: dict[str, list[str]]
) -> None:
    charts = page.charts("models")
    for label, names in runs.items():
        confusion = np.sum([results_of(report_work, name)["confusion"] for name in names], axis=0)
        shares = 100 * confusion / confusion.sum(1, keepdims=True)
        said = texts(charts[f"Confusion matrix of {label}: true rows, predicted columns, in % of the true class"])
        cells = [f"{share:.0f}" for share in shares.ravel() if share >= 0.5]
        assert [text for text in said if text.isdigit()][-len(cells) :] == cells
        ece = np.mean([results_of(report_work, name)["ece"] for name in names])
        assert f"Calibration of {label}: ECE {percent(ece)} %" in charts
        log = (report_work / "runs" / names[0] / "metrics.jsonl").read_text().splitlines()
        losses = [name.replace("_", " ") for name in json.loads(log[-1])["losses"]]
        assert set(losses) <= set(texts(charts[f"Losses of {label}"]))
    assert re.findall(r'class="model"[^>]*><summary>([^ <]+)', page.section("models")) == ["sau+synth", "ce", "extra"]
    assert page.section("models").count('<details class="model" open>') == 2


def test_calibration_bins_are_pooled_over_the_seeds(report_work: Path, runs: dict[str, list[str]]) -> None:
    documents = [results_of(report_work, name) for name in runs["ce"]]
    bins = zip(*(document["calibration"] for document in documents), strict=True)
    for pooled, rows in zip(sections._pooled(documents), bins, strict=True):
        images = [row["images"] for row in rows]
        assert pooled["images"] == sum(images)
        if sum(images):
            hits = sum(row["images"] * row["accuracy"] for row in rows if row["images"])
            assert pooled["accuracy"] == pytest.approx(hits / sum(images))
        else:
            assert pooled["accuracy"] is None


def test_what_differs_and_what_it_cost(page: Page, report_work: Path) -> None:
    table = page.tables["Configuration and cost of each method"]
    assert table.rows[0][:2] == ["method", "method"] and {"synthetic", "steps"} <= set(table.rows[0])
    assert table.column("steps") == {"ce": "4", "sau+synth": "4", "extra": "30"}
    assert table.column("seeds") == {"ce": "3", "sau+synth": "3", "extra": "1"}
    manifest = json.loads((report_work / "runs" / "ce" / "manifest.json").read_text())
    assert table.column("parameters")["ce"] == f"{manifest['summary']['parameters']:,}"
    assert table.column("images seen") == {"ce": "64", "sau+synth": "256", "extra": "480"}  # sau: four views
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
    assert (
        "Synthetic images of class 0" not in pictures and '<span class="none">none</span>' in page.source
    )  # it is full
    names = [alt for alt in pictures if alt and alt.startswith("Real")]
    assert names[0] == "Real images of class 9"  # the rarest on top


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    from saukit.report.sections import strip

    large = np.random.default_rng(0).integers(0, 255, (3, 3, 100, 200), dtype=np.uint8)
    picture = strip(large)
    assert picture is not None and strip(large[:0]) is None
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
    assert len(page.source) < 1_000_000


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


def test_many_classes(odd_page: Page) -> None:
    assert "14 more classes are not shown" in odd_page.text  # of the samples
    chart = odd_page.charts("models")['Losses of <i>&"run']
    assert "validation accuracy, % (right)" in texts(chart)
    assert "classes by falling count" in texts(odd_page.charts("data").popitem()[1])


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
    assert page.tables["Images of each class"].rows[0] == ["class", "group", "real"]
    assert "There are no synthetic images: saukit synth makes them." in page.text
    assert "There is no evaluated run yet: saukit train, then saukit eval." in page.text
    assert "392 real training images in 10 classes, from 142 down to 2 per class (ratio 50 asked for, 71" in page.text
    anchors = [target[1:] for target in page.attributes("href") if target != "#main"]
    assert anchors == ["summary", "data", "samples", "repeat", "limits"]


def test_without_a_comparison_there_is_no_verdict(work: Path) -> None:
    page = written(work)
    assert (
        "Of 1 evaluated run, the best balanced accuracy is" in page.text
        and "There is no comparison" in page.text.split(" steps of ")[1][:40]
        and "saukit compare" in page.text
    )
    assert 'class="answer' not in page.source
    assert "sau: run sau is not evaluated: saukit eval --run sau" in page.text
    assert "audit" not in page.attributes("id")  # this cache has none


def test_a_run_that_is_not_evaluated_must_be(work: Path) -> None:
    with pytest.raises(DataError, match="run sau is not evaluated: saukit eval --run sau"):
        written(work, runs=("sau",))


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
    assert "3 training seeds per method" in page.text
    assert "Every model is that of the last step" in page.text
    assert "Methods see 1 to 4 views of an image per step" in page.text


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
    with pytest.raises(DataError, match=r"\(complete comparisons: main\): run `saukit compare -w"):
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


def test_a_run_trained_again_since_the_comparison_is_not_part_of_it(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    workspace, other = Workspace(work), tiny(steps=5, synthetic=False)
    fit(other, workspace, name="ce", device=CPU, force=True, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="ce"), workspace, device=CPU, force=False, reporter=QUIET)
    contents = collect(ReportConfig(), workspace)
    compared = {method.label: [run.seed for run in method.runs] for method in contents.compared}
    assert compared == {"ce": [1, 2], "sau+synth": [0, 1, 2]}
    others = {method.label: [run.config["steps"] for run in method.runs] for method in contents.others}
    assert others == {"extra": [30], "ce (not compared)": [5]}


def test_the_latest_comparison_is_shown_or_the_one_asked_for(report_work: Path, tmp_path: Path) -> None:
    work = shutil.copytree(report_work, tmp_path / "work")
    shutil.copytree(work / "comparisons" / "main", work / "comparisons" / "another")
    resealed(work / "comparisons/another/manifest.json", created="2020-01-01T00:00:00+00:00")
    workspace = Workspace(work)
    for asked, expected in ((None, "main"), ("another", "another")):
        found = collect(ReportConfig(comparison=asked), workspace).comparison
        assert found is not None and found.name == expected


def test_more_methods_than_have_figures_are_listed(
    report_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "MOST_CARDS", 2)
    page = written(report_work, tmp_path / "r.html")
    assert "Without figures here: extra." in page.text and len(page.charts("models")) == 6


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
