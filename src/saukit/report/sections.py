"""What the sections of the page show, ready for the template; None where there is nothing. Pictures are data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from saukit.core.documents import REMAKE
from saukit.core.errors import CorruptArtifactError
from saukit.core.files import reading
from saukit.core.plots import numbered, svg
from saukit.core.words import format_share
from saukit.data.charts import by_falling_count, counts_figure
from saukit.data.long_tail import class_counts
from saukit.data.shots import GROUP_NAMES
from saukit.data.types import Images
from saukit.evaluation.charts import (
    Row,
    calibration_figure,
    confusion_figure,
    interval_figure,
    losses_figure,
    mean_intervals,
    per_class_figure,
)
from saukit.evaluation.comparison_files import difference_text, points, tone
from saukit.evaluation.statistics import mean
from saukit.evaluation.summary import LESS_IS_BETTER, MEASURES
from saukit.report.collect import Contents, Document, Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SAMPLED, SAMPLES = 20, 6
MOST_CARDS, AT_FIRST = 8, 2  # methods with figures of their own, and those of them that are open
MOST_CONFUSIONS = 5
MOST_SCORED = 100  # classes of a method's table of precision, recall and F1
MOST_SUSPECTS = 20  # rows of a table of label suspects
SCORES = {"precision": "precision", "recall": "recall", "f1": "F1"}
MOST_DOTS = 3  # methods of the figure of accuracies per class
SHOWN = {"balanced_accuracy": "Balanced accuracy", "few": "Few-shot accuracy"}
TILE = 44  # pixels of the page that an image is shown at, at least about this
LARGEST = 48  # pixels of a side above which an image is made smaller, so that the page stays small
LARGEST_PNG = 256 << 10  # bytes; a larger one holds photos, which JPEG makes a tenth as large


def split_section(contents: Contents) -> Document:
    """Real and synthetic images of each class, by falling number of real ones, and the shot groups."""
    split, counts = contents.split, contents.split.class_counts
    cache = contents.cache
    made = np.zeros_like(counts) if cache is None else class_counts(cache.images.labels, split.num_classes)
    synthetic = None if cache is None else made.tolist()
    title = (
        f"Training images of {split.num_classes} classes by falling count, from {counts.max():,} to {counts.min():,}"
    )
    return {
        "numbered": numbered(split.classes),
        "figure": _inline(counts_figure(split.classes, counts.tolist(), split.groups, synthetic), title),
        "rows": [
            (split.classes[c], split.groups.of_class(c), int(counts[c]), int(made[c])) for c in by_falling_count(counts)
        ],
        "groups": [
            (name, [split.classes[c] for c in own], int(counts[list(own)].sum()), int(made[list(own)].sum()))
            for name in GROUP_NAMES
            if (own := split.groups.members.get(name))
        ],
    }


def samples_section(contents: Contents) -> Document:
    """The first real and synthetic images of classes, the rarest first; of many classes the ten rarest, and ten more
    spread evenly over the others."""
    split, order = contents.split, by_falling_count(contents.split.class_counts)[::-1]
    chosen = order
    if len(order) > MOST_SAMPLED:
        half = MOST_SAMPLED // 2
        chosen = [*order[:half], *(order[i] for i in np.linspace(half, len(order) - 1, half).round().astype(int))]
    sets: dict[str, Any] = {"real": split.train}
    if contents.cache is not None:
        sets["synthetic"] = contents.cache.images
    return {
        "rows": [
            {
                "name": split.classes[c],
                "group": split.groups.of_class(c),
                "count": int(split.class_counts[c]),
                "strips": {
                    kind: strip(of.images[np.flatnonzero(of.labels == c)[:SAMPLES]]) for kind, of in sets.items()
                },
            }
            for c in chosen
        ],
        "left": len(order) - len(chosen),
        "pixelated": max(split.image_size) < 44,
    }


def audit_section(contents: Contents) -> Document | None:
    """The audit document, the rows of classes that have synthetic images, and the picture of the closest pairs."""
    if contents.cache is None or contents.cache.audit is None:
        return None
    audit = contents.cache.audit
    return {
        **audit,
        "rows": [*(row for row in audit["per_class"] if row["wanted"]), {"class": "all", **audit["overall"]}],
        "distances": [entry for entry in audit["distances"] if entry["synthetic"] is not None],
        "closest": None if contents.cache.closest is None else framed(contents.cache.closest),
    }


def verdict_figure(document: Document) -> Markup:
    """The best method with synthetic images against the best without, in each measure of accuracy."""
    found = document["verdict"]
    change = found["rivals"][0]["difference"]
    rows = [
        _difference_row(title, change[name], difference_text(change[name]))
        for name, title in MEASURES.items()
        if name not in LESS_IS_BETTER and change[name] is not None
    ]
    numbers = "; ".join(f"{row.label} {row.text}" for row in rows)  # for those who hear the page: no table repeats them
    title = f"Difference of {found['ours']} to {found['theirs']} in points, with its interval: {numbers}"
    return _inline(interval_figure(rows, zero=True), title)


def comparison_section(document: Document | None) -> Document | None:
    """The methods of the comparison side by side, and their differences to its baseline."""
    if document is None:
        return None
    charts, changes = [], []
    for measure, title in SHOWN.items():
        if rows := mean_intervals(document["methods"], measure):
            charts.append((f"{title}, %", _inline(interval_figure(rows), f"{title} of each method in %")))
        rows = [
            _difference_row(method["label"], found, points(found["mean"]))
            for method in document["methods"]
            if method["difference"] is not None and (found := method["difference"][measure]) is not None
        ]
        if rows:
            against = f"{title} of each method minus that of {document['baseline']}, in points"
            changes.append((f"{title}, points", _inline(interval_figure(rows, zero=True), against)))
    pairs = [] if document["verdict"] is None else document["verdict"]["pairs"]
    return {"charts": charts, "differences": changes, "pairs": pairs, "seeds": len(document["methods"][0]["runs"])}


def classes_section(contents: Contents) -> Document | None:
    """The accuracy per class: the methods that matter most as dots, and every method in a table."""
    methods = ranked(contents)
    if not methods:
        return None
    split = contents.split
    verdict = None if contents.document is None else contents.document["verdict"]
    shown = methods[: MOST_DOTS if verdict is None else 2]
    figure = per_class_figure(
        {method["label"]: method["per_class"] for method in shown},
        classes=split.classes,
        counts=split.class_counts.tolist(),
        members=split.groups.members,
    )
    return {
        "figure": _inline(figure, f"Accuracy per class of {' and '.join(method['label'] for method in shown)}, in %"),
        "labels": [method["label"] for method in methods],
        "rows": [
            (split.classes[c], int(split.class_counts[c]), [method["per_class"][c] for method in methods])
            for c in by_falling_count(split.class_counts)
        ],
    }


def models_section(contents: Contents) -> Document | None:
    """Losses, confusion matrix and calibration of up to eight methods, those that matter most first."""
    by_label = {method.label: method for method in (*contents.compared, *contents.others)}
    methods = [by_label[entry["label"]] for entry in ranked(contents) if entry["label"] in by_label]
    if not methods:
        return None
    return {
        "cards": [_card(method, contents, index < AT_FIRST) for index, method in enumerate(methods[:MOST_CARDS])],
        "left": [method.label for method in methods[MOST_CARDS:]],
        "at_first": AT_FIRST,
    }


def configuration_section(contents: Contents) -> Document | None:
    """What the methods have in common, what differs, what each cost, and every run."""
    entries = contents.entries
    if not entries:
        return None
    fields = list(dict.fromkeys(name for entry in entries for name in entry["config"]))
    values = {name: [setting(entry["config"].get(name)) for entry in entries] for name in fields}
    varying = {name: column for name, column in values.items() if len(set(column)) > 1}
    current = None if contents.cache is None else contents.cache.images.manifest.digest
    return {
        "methods": entries,
        "varying": varying,
        "common": {name: column[0] for name, column in values.items() if name not in varying},
        "runs": contents.runs,
        "other_cache": [run.name for run in contents.runs if run.manifest.inputs.get("synth", current) != current],
    }


def ranked(contents: Contents) -> list[Document]:
    """Every method, those that matter most first: of the verdict, the baseline, the others by falling accuracy."""
    document, entries = contents.document, {entry["label"]: entry for entry in contents.entries}
    first = []
    if document is not None:
        found = document["verdict"]
        first = [*([found["ours"], found["theirs"]] if found else []), document["baseline"]]
    rest = sorted(entries, key=lambda label: -(entries[label]["mean"]["balanced_accuracy"] or 0.0))
    return [entries[label] for label in dict.fromkeys([*first, *rest])]


def setting(value: Any) -> str:
    """A value of a configuration for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _card(method: Method, contents: Contents, with_mistakes: bool) -> Document:
    results, first = [run.results for run in method.runs], method.runs[0]
    classes, counts = contents.split.classes, contents.split.class_counts.tolist()
    confusion = np.sum([of["confusion"] for of in results], axis=0)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    confused = [divmod(int(place), len(classes)) for place in np.argsort(-shares, axis=None)[:MOST_CONFUSIONS]]
    ece = format_share(mean([of["ece"] for of in results]))
    return {
        "label": method.label,
        "seeds": len(method.runs),
        "figures": [
            ("Losses", _inline(losses_figure([run.log for run in method.runs]), f"Losses of {method.label}")),
            (
                "Confusion matrix, %",
                _inline(
                    confusion_figure(confusion, classes=classes, counts=counts),
                    f"Confusion matrix of {method.label}: true rows, predicted columns, in % of the true class",
                ),
            ),
            (
                f"Calibration, ECE {ece} %",
                _inline(calibration_figure(_pooled(results)), f"Calibration of {method.label}: ECE {ece} %"),
            ),
        ],
        "confused": [
            (classes[row], classes[column], shares[row, column]) for row, column in confused if shares[row, column]
        ],
        "scores": [
            (classes[c], counts[c], [mean([of["per_class"][c][score] for of in results]) for score in SCORES])
            for c in by_falling_count(counts)[-MOST_SCORED:]
        ],
        "unscored": max(0, len(classes) - MOST_SCORED),
        "mistakes": framed(first.mistakes) if with_mistakes and first.mistakes is not None else None,
        "run": first.name,
        "suspects": next((run.suspects for run in method.runs if run.suspects is not None), None),
        "most_suspects": MOST_SUSPECTS,
    }


def _pooled(results: Sequence[Document]) -> list[Document]:
    """The calibration bins of several runs as those of one with all their images."""
    pooled = []
    for bins in zip(*(of["calibration"] for of in results), strict=True):
        images = [row["images"] for row in bins]
        means = {
            name: float(np.average([row[name] or 0.0 for row in bins], weights=images)) if any(images) else None
            for name in ("confidence", "accuracy")
        }
        pooled.append({"low": bins[0]["low"], "high": bins[0]["high"], "images": sum(images), **means})
    return pooled


def _difference_row(label: str, found: Mapping[str, Any], text: str) -> Row:
    low, high = (None if found[bound] is None else 100 * found[bound] for bound in ("low", "high"))
    ink = tone(found)
    return Row(label, text, "soft" if ink == "unclear" else ink, 100 * found["mean"], low, high)


def _inline(figure: Figure, title: str) -> Markup:
    return Markup(svg(figure, title))


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and the pixels of the page it is shown at."""

    uri: str
    width: int
    height: int


def strip(images: Images) -> Picture | None:
    """Images uint8 [n, 3, h, w] beside each other, with transparent gaps; None without images."""
    if not len(images):
        return None
    tiles = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    if max(images.shape[2:]) > LARGEST:
        for tile in tiles:
            tile.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    width, height = tiles[0].size
    factor = max(1, round(TILE / max(width, height)))
    gap = max(1, round(4 / factor))
    canvas = Image.new("RGBA", (len(tiles) * (width + gap) - gap, height))
    for index, tile in enumerate(tiles):
        canvas.paste(tile, (index * (width + gap), 0))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return Picture(data_uri(buffer.getvalue()), canvas.width * factor, canvas.height * factor)


def framed(path: Path) -> Picture:
    """A PNG that was drawn at twice the size it is to be seen at. Raises: CorruptArtifactError for another file."""
    with reading(path, remedy=REMAKE, fault=CorruptArtifactError), Image.open(path, formats=["PNG"]) as image:
        png = path.read_bytes()
        width, height = image.size
        if len(png) <= LARGEST_PNG:
            return Picture(data_uri(png), width // 2, height // 2)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80, subsampling=0)
    return Picture(data_uri(buffer.getvalue(), "jpeg"), width // 2, height // 2)


def data_uri(image: bytes, kind: str = "png") -> str:
    """The bytes of an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
