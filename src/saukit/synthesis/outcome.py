"""What is written and said of the kept images of a cache: the sample grid, the audit, the manifest's summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import write_json
from saukit.core.errors import SaukitError
from saukit.data.split import Part, Split
from saukit.synthesis.audit.document import FeatureExtractor, audit_document, closest_pairs
from saukit.synthesis.audit.pictures import COLUMNS, save_closest_pairs, save_grid, shown_classes
from saukit.synthesis.cache import load_images
from saukit.synthesis.judging.judges import Judges
from saukit.synthesis.judging.scorers import inception_features
from saukit.synthesis.judging.selection import Selection
from saukit.synthesis.plan import SynthesisPlan

GRID, AUDIT, CLOSEST = "samples.png", "audit.json", "closest.png"
AT_CHANCE = 0.1  # agreement this part of the way from chance to certainty, or less, is as good as chance


def shortage(plan: SynthesisPlan, selection: Selection) -> str | None:
    """What is missing of what was wanted, in words; None if nothing is.

    Raises: SaukitError if nothing at all is kept.
    """
    kept = plan.count(selection.kept)
    if not kept.any():
        raise SaukitError(
            f"the filters rejected all {plan.total:,} candidates: choose again from the same candidates with "
            "`saukit synth --refilter` and looser rules (--min-confidence, --min-clip, --no-reject-copies)"
        )
    short = [
        f"{name} {have:,} of {want:,}"
        for name, have, want in zip(plan.classes, kept.tolist(), plan.wanted.tolist(), strict=True)
        if have < want
    ]
    if not short:
        return None
    fix = "loosen the filters, or allow more candidates per image with --max-tries"
    if not plan.config.rejects:  # only a folder can do that
        fix = "put more images of these classes into the folder"
    return f"not all that was wanted is there ({', '.join(short)}): {fix}"


def save_sample_grid(folder: Path, plan: SynthesisPlan, selection: Selection, split: Split) -> None:
    """Write the picture of real images beside kept ones."""
    rows = shown_classes(len(plan.classes))
    wanted = {c: np.flatnonzero(selection.kept & (plan.labels == c))[:COLUMNS] for c in rows}
    shown = load_images(folder, plan, np.concatenate([wanted[c] for c in rows]))
    ends = np.cumsum([len(wanted[c]) for c in rows])
    synthetic = {c: shown[end - len(wanted[c]) : end] for c, end in zip(rows, ends.tolist(), strict=True)}
    save_grid(
        folder / GRID,
        plan.classes,
        plan.real_counts,
        plan.count(selection.kept),
        lambda c: split.train.images[np.flatnonzero(split.train.labels == c)[:COLUMNS]],
        lambda c: synthetic[c],
    )


def write_audit(
    folder: Path,
    plan: SynthesisPlan,
    selection: Selection,
    judges: Judges,
    *,
    train: Part,
    test: Part,
    device: torch.device,
) -> dict[str, Any]:
    """Audit the kept images, and write the document and the picture of the closest pairs; returns the document."""
    classifier, detector = judges.classifier, judges.copies
    assert classifier is not None
    rows = np.flatnonzero(selection.kept)
    images, labels = load_images(folder, plan, rows), plan.labels[rows]
    nearest = detector.nearest(images)
    extractors: list[FeatureExtractor] = [classifier]
    if plan.config.inception is not None:
        extractors.append(inception_features(Path(plan.config.inception), device))
    document = audit_document(
        classes=plan.classes,
        real_images=train.images,
        real_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        images=images,
        labels=labels,
        generated_counts=plan.generated,
        wanted_counts=plan.wanted,
        rejected=selection.rejected_counts(plan.labels, len(plan.classes)),
        extractors=extractors,
        detector=detector,
        nearest=nearest,
        device=device,
    )
    document["classifier_run"] = classifier.name
    document["classifier_also_filters"] = "classifier" in plan.config.filters
    write_json(folder / AUDIT, document)
    save_closest_pairs(
        folder / CLOSEST,
        closest_pairs(nearest, detector),
        images=images,
        labels=labels,
        real_images=train.images,
        real_labels=train.labels,
        classes=plan.classes,
        threshold=detector.threshold,
    )
    return document


def not_recognised(document: dict[str, Any]) -> str | None:
    """A warning if the judge of an audit takes hardly more of the kept images for their class than by chance."""
    agreement, chance = document["overall"]["agreement"], 1 / len(document["per_class"])
    if agreement is None or agreement > chance + AT_CHANCE * (1 - chance):
        return None
    return (
        f"the judge {document['classifier_run']} takes only {agreement:.1%} of the kept images for their class "
        f"(by chance: {chance:.1%}): look at {GRID} before you train on them"
    )


def summarise(plan: SynthesisPlan, selection: Selection, judges: Judges, source: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the cache; `source` is what sampled the candidates, and how fast."""
    kept = plan.count(selection.kept)
    rejected = selection.rejected_counts(plan.labels, len(plan.classes))
    return {
        "images": int(kept.sum()),
        "images_per_class": dict(zip(plan.classes, kept.tolist(), strict=True)),
        "real_per_class": dict(zip(plan.classes, plan.real_counts.tolist(), strict=True)),
        "per_class_target": plan.config.per_class_target,
        "candidates": plan.total,
        "rejected": {reason: int(counts.sum()) for reason, counts in rejected.items()},
        "rounds": len(plan.rounds),
        "shards": plan.shard_count,
        "classifier": None if judges.classifier is None else judges.classifier.name,
        "sample_seconds": source.get("sample_seconds"),
        "images_per_second": source.get("images_per_second"),
        "generator": source["description"],
    }
