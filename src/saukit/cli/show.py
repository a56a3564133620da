"""How the results of the stages look on the terminal and as JSON documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saukit.core.config import to_mapping
from saukit.core.console import Reporter
from saukit.core.plots import numbered
from saukit.core.words import brief, format_bytes, format_duration, format_share, shortened
from saukit.core.workspace import State, Workspace
from saukit.data.charts import counts_chart
from saukit.data.shots import GROUP_NAMES, ShotGroups
from saukit.evaluation.config import Selection

if TYPE_CHECKING:
    from saukit.data.split import SplitResult
    from saukit.deploy.export import ExportResult
    from saukit.deploy.predict import PredictResult
    from saukit.evaluation.compare import ComparisonResult
    from saukit.evaluation.evaluate import EvalResult
    from saukit.report.page import ReportResult
    from saukit.synthesis.jobs import Job
    from saukit.synthesis.stage import SynthesisResult
    from saukit.training.stage import TrainingResult

AUDIT_ROWS = 20  # classes of an audit's table; audit.json has all


def show_classes(summary: dict[str, Any], groups: ShotGroups, reporter: Reporter) -> None:
    """The classes of a split, there or planned: bar chart, shot groups, how many images there are."""
    classes, counts = summary["classes"], summary["counts"]
    for line in counts_chart(classes, counts, groups, reporter.cut):
        reporter.result(line)
    reporter.table(
        f"shot groups: {groups.rule}",
        ["group", "classes", "real training images"],
        [
            [name, shortened((brief(classes[c]) for c in rows), limit=12), f"{sum(counts[c] for c in rows):,}"]
            for name in GROUP_NAMES
            if (rows := groups.members.get(name))
        ],
        text_columns=2,
    )
    reporter.result(
        f"{summary['source']}: {summary['train_images']:,} training, {summary['val_images']:,} validation and "
        f"{summary['test_images']:,} test images of {summary['image_size']} pixels ({format_bytes(summary['bytes'])}); "
        f"largest / smallest class {summary['imb_reached']:.4g}"
    )


def show_split(result: SplitResult, folder: Path, reporter: Reporter) -> None:
    """A split: its classes, and where it is."""
    summary = result.summary
    show_classes(summary, result.groups, reporter)
    if (note := numbered(summary["classes"])) is not None:
        reporter.say(note)
    _finish(result, folder, reporter, summary)


def show_synthesis(result: SynthesisResult, reporter: Reporter) -> None:
    """A cache: how many images of how many candidates, how long it took, what the audit says, where to look."""
    summary, audit = result.summary, result.audit
    assert result.manifest is not None
    times = []
    if summary["generator"].get("train_seconds"):
        times.append(f"training {format_duration(summary['generator']['train_seconds'])}")
    if summary["sample_seconds"] and summary["images_per_second"]:
        times.append(
            f"sampling {format_duration(summary['sample_seconds'])} ({summary['images_per_second']:.1f} images/s "
            f"on {result.manifest.device})"
        )
    reporter.result("; ".join([f"{summary['images']:,} synthetic images", *([", ".join(times)] if times else [])]))
    if summary["rejected"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["rejected"].items())
        reporter.result(f"not kept of {summary['candidates']:,} candidates: {reasons}")
    if audit is not None:
        _show_audit(audit, reporter)
    reporter.result(f"look at {result.samples}: real images on the left, synthetic ones on the right")
    _finish(result, result.folder, reporter, summary, {} if audit is None else {"audit": audit})


def show_job(result: SynthesisResult, job: Job, reporter: Reporter) -> None:
    """One job's part of a cache."""
    part = result.plan.rounds[0]
    mine, total = job.shards(part), part.total
    images = sum(part.shards[index].stop - part.shards[index].start for index in mine)
    reporter.result(
        f"job {job}: {images:,} of {total:,} images in {len(mine)} shards; when all {job.count} jobs are done: "
        f"{Workspace(result.folder.parent).command('saukit synth --resume')}"
    )
    document = {"state": "job done", "folder": str(result.folder), "config": to_mapping(result.config)}
    reporter.document(document | {"job": str(job), "images": images, "shards": len(mine)})


def show_run(result: TrainingResult, reporter: Reporter) -> None:
    """A run: what was trained, how fast, where it is."""
    summary = result.manifest.summary
    reporter.result(
        f"{result.name}: {summary['steps']:,} steps in {format_duration(summary['seconds'])} "
        f"({summary['images_per_second']:,.0f} images/s on {result.manifest.device}), "
        f"peak memory {format_bytes(summary['peak_memory_bytes'])}; "
        f"the model of the {summary['chosen_by']} is kept (step {summary['chosen_step']:,})"
    )
    _finish(result, result.folder, reporter, {"name": result.name}, summary)


def show_evaluation(result: EvalResult, selection: Selection, reporter: Reporter) -> None:
    """A run's accuracies: overall, by shot group, and by class for what was selected."""
    document = result.document
    name = document["run"]["name"]
    if selection == "all":
        reporter.table(
            f"{name} on {document['test_images']:,} test images",
            ["top-1", "top-5", "balanced accuracy", "macro F1", "calibration error"],
            [[format_share(document[name]) for name in ("top1", "top5", "balanced_accuracy", "macro_f1", "ece")]],
            text_columns=0,
        )
    chosen = GROUP_NAMES if selection == "all" else (selection,)
    reporter.table(
        f"{name}: accuracy by shot group, % ({document['groups_rule']})",
        ["group", "classes", "real training images", "test images", "top-1"],
        [_group_row(group, document["groups"][group]) for group in chosen],
        text_columns=2,
    )
    reporter.table(
        f"{name}: by class, % (recall is the class's accuracy)",
        ["class", "group", "real images", "test images", "precision", "recall", "F1"],
        [
            [
                *(reporter.cut(row["class"]), row["group"], f"{row['train_images']:,}", f"{row['test_images']:,}"),
                *(format_share(row[score]) for score in ("precision", "recall", "f1")),
            ]
            for row in document["per_class"]
            if row["group"] in chosen
        ],
        text_columns=2,
    )
    for group in chosen:
        if document["groups"][group] is None:
            reporter.result(f"{group}: no class of this split belongs to it ({document['groups_rule']})")
    if not result.computed:
        reporter.result("evaluated earlier; --force evaluates again")
    reporter.result(", ".join(map(str, result.files)))
    if result.suspects is not None:
        reporter.result(result.suspects.sentence)
        document = {**document, "suspects": result.suspects.document}
    extra = {} if selection == "all" else {"selected": {"split": selection, **(document["groups"][selection] or {})}}
    reporter.document({**document, **extra})


def _group_row(name: str, group: dict[str, Any] | None) -> list[str]:
    if group is None:
        return [name, "-", "-", "-", "-"]
    counts = [f"{group[count]:,}" for count in ("train_images", "images")]
    return [name, shortened(map(brief, group["classes"]), limit=12), *counts, format_share(group["top1"])]


def _show_audit(audit: dict[str, Any], reporter: Reporter) -> None:
    """What of each class was kept, and what is known of it; then the distances to the test images."""
    rows = [_audit_row(reporter.cut(row["class"]), row) for row in audit["per_class"] if row["wanted"]]
    chose = ", which chose them too" if audit["classifier_also_filters"] else ""
    if len(rows) > AUDIT_ROWS:
        rows = [*rows[: AUDIT_ROWS // 2], ["...", *[""] * 6], *rows[-AUDIT_ROWS // 2 :]]
    reporter.table(
        f"audit of the kept images, % (judged by {audit['classifier']}{chose}; diversity: of test images; "
        "copies: of training images; leaked: copies of test images)",
        ["class", "real", "kept / wanted", "recognised", "diversity", "copies", "leaked"],
        [*rows, _audit_row("all", audit["overall"])],
    )
    for distances in audit["distances"]:
        ours, yardstick = distances["synthetic"], distances["yardstick"]
        if ours is None:
            continue
        text = (
            f"Frechet distance to the test images in the features of {distances['features']}: {ours['frechet']:.1f} "
            f"(precision {ours['precision']:.2f}, recall {ours['recall']:.2f})"
        )
        if yardstick is not None:
            text += (
                f"; with as few images as the rarest class has, {yardstick['synthetic']['frechet']:.1f}, and "
                f"{yardstick['real']['frechet']:.1f} for real training images"
            )
        reporter.result(text)


def _audit_row(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{row['real']:,}",
        f"{row['kept']:,} / {row['wanted']:,}",
        format_share(row["agreement"]),
        format_share(row["diversity"]["ratio"]),
        *(format_share(row[key]) for key in ("memorised", "leaked")),
    ]


def _say_state(state: State, folder: Path, reporter: Reporter) -> None:
    if state == "complete":
        reporter.result(f"nothing to do: {folder} is complete, and every file is as it was written")
    else:
        reporter.result(f"written to {folder}")


def _finish(result: Any, folder: Path, reporter: Reporter, *facts: dict[str, Any]) -> None:
    """What every stage that makes an artefact ends with: its state, and the JSON document."""
    _say_state(result.state, folder, reporter)
    document = {"state": result.state, "folder": str(folder), "config": to_mapping(result.config)}
    reporter.document({name: value for part in (document, *facts) for name, value in part.items()})


def show_predictions(result: PredictResult, file: Path, reporter: Reporter) -> None:
    """Predictions that were written to a file: how many, and how many of each class."""
    best, given = result.labels[:, 0].tolist(), (~result.rejected).tolist()
    counts = Counter(
        result.classifier.classes[label] if is_given else "(no class)"
        for label, is_given in zip(best, given, strict=True)
    )
    rows = [[reporter.cut(name), f"{count:,}"] for name, count in counts.most_common()]
    reporter.table("predicted", ["class", "images"], rows)
    skipped = f", {len(result.skipped):,} skipped" if result.skipped else ""
    reporter.result(f"{len(result.images):,} images by {result.model}{skipped}: written to {file}")
    reporter.document({"out": str(file), **result.document()})


def show_export(result: ExportResult, reporter: Reporter) -> None:
    """An export: its formats, how far each one's logits are from the model's, and its files."""
    reporter.table(
        f"{result.model}, checked on {result.checked_on}",
        ["format", "largest difference of a logit"],
        [[check.format, f"{check.max_difference:.2g}"] for check in result.checks],
    )
    reporter.result(f"written to {result.folder}: {', '.join(result.files)}")
    reporter.document(result.document)


def show_comparison(result: ComparisonResult, reporter: Reporter) -> None:
    """A comparison: its means, its paired differences, its verdict, how its models were chosen, where it is."""
    from saukit.evaluation.comparison_files import (
        CLEAR,
        answer,
        chosen_by,
        difference_rows,
        footnotes,
        mean_rows,
        trust,
    )
    from saukit.evaluation.summary import MEASURES

    document = result.document
    runs = [len(method["runs"]) for method in document["methods"]]
    reporter.table(
        f"accuracy in % on {document['split']['test_images']:,} test images, mean ± standard deviation, "
        f"training seeds: {runs[0]} ({document['groups_rule']})",
        ["method", *MEASURES.values()],
        [[cell.replace(" ± ", "±") for cell in row] for row in mean_rows(document)],
        optional=[MEASURES[name] for name in ("ece", "macro_f1", "top1")],
    )
    for note in (*footnotes(document), *trust(document)):
        reporter.say(note)
    shown = [name for name in ("balanced_accuracy", "few") if document["methods"][0]["mean"][name] is not None]
    if rows := difference_rows(document, shown):
        share = f"{100 * document['confidence']:.0f} %"
        reporter.table(
            f"differences to {document['baseline']} in points, paired by seed, with {share} intervals; {CLEAR}: clear",
            ["method", *(MEASURES[name] for name in shown)],
            rows,
        )
    if (verdict := answer(document)) is not None:
        reporter.result("\n".join([verdict.headline, *verdict.sentences]))
    reporter.result(chosen_by(document))
    reporter.result(f"look at {' and '.join(map(str, result.files))}")
    _say_state(result.state, result.folder, reporter)
    reporter.document(document)


def show_report(result: ReportResult, reporter: Reporter) -> None:
    """A page that was written: what it says of synthetic images, what it leaves out, where it is."""
    if result.headline is not None:
        reporter.result(result.headline)
    for entry in result.left_out:
        reporter.say(f"not on the page: {entry.name} ({entry.reason})")
    reporter.result(f"{len(result.runs)} runs, {format_bytes(result.bytes)}: written to {result.path}")
    reporter.document(result.document)
