"""Completing a cache once its candidates are sampled and chosen: sample grid, audit, summary, manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.artifacts import CONFIG_NAME, Manifest, check_document, write_json, write_manifest
from saukit.core.console import Reporter
from saukit.core.device import describe_device
from saukit.core.documents import START_OVER, read_json
from saukit.core.errors import SaukitError, UsageError
from saukit.core.shapes import AMOUNT
from saukit.core.state import remove_states
from saukit.core.workspace import Workspace
from saukit.data.split import Part, Split, load_test
from saukit.data.synthetic import COMMAND, KIND, SELECTION_NAME, shard_path
from saukit.synthesis.audit.document import SHAPE, FeatureExtractor, audit_document, closest_pairs
from saukit.synthesis.audit.pictures import COLUMNS, save_closest_pairs, save_grid, shown_classes
from saukit.synthesis.audit.preflight import PREFLIGHT_NAME
from saukit.synthesis.cache import candidates, save_selection
from saukit.synthesis.generators.protocol import CHECKPOINT, ImageGenerator
from saukit.synthesis.generators.table import find_generator
from saukit.synthesis.judging.judges import Judges
from saukit.synthesis.judging.scorers import InceptionFeatures
from saukit.synthesis.judging.selection import BLACKED_OUT, Selection
from saukit.synthesis.plan import PLAN_NAME, SynthesisPlan
from saukit.synthesis.sampling import Rate

GRID, AUDIT, CLOSEST, SOURCE = "samples.png", "audit.json", "closest.png", "source.json"
AUDIT_AGAIN = "make the cache again with `saukit synth --force`"
AT_CHANCE = 0.1  # agreement this part of the way from chance to certainty, or less, is as good as chance


def complete(
    workspace: Workspace,
    plan: SynthesisPlan,
    selection: Selection,
    judges: Judges,
    *,
    split: Split,
    device: torch.device,
    reporter: Reporter,
) -> Manifest:
    """Write what was chosen, audit what is kept, and vouch for it all.

    Raises: SaukitError if nothing is kept.
    """
    folder = workspace.synth
    _warn_of_shortage(plan, selection, workspace.command(f"{COMMAND} --refilter"), reporter)
    save_selection(folder, selection.reasons)
    save_sample_grid(folder, plan, selection, split)
    for name in (AUDIT, CLOSEST):
        (folder / name).unlink(missing_ok=True)
    if plan.config.audit:
        reporter.say("auditing what is kept")
        # The test images are read here, when nothing can be chosen any more.
        document = _write_audit(folder, plan, selection, judges, train=split.train, test=load_test(workspace))
        if (text := not_recognised(document)) is not None:
            reporter.warn(text)
    optional = [name for name in (AUDIT, CLOSEST, PREFLIGHT_NAME) if (folder / name).exists()]
    shards = [shard_path(folder, index).name for index in range(plan.shard_count)]
    own = find_generator(plan.config.generator).files
    manifest = write_manifest(
        folder,
        kind=KIND,
        files=[CONFIG_NAME, PLAN_NAME, SOURCE, SELECTION_NAME, GRID, *optional, *own, *shards],
        inputs={"split": split.manifest.digest},
        summary=_summary(plan, selection, judges, read_source(folder)),
        device=describe_device(device),
    )
    remove_states(folder / CHECKPOINT)
    return manifest


def note_source(folder: Path, generator: ImageGenerator, rate: Rate | None = None, *, images: int = 0) -> None:
    """Keep what samples the images, which a later choice among them has to say too.

    `rate`, once this process has sampled: how fast it did, and so how long all `images` candidates take.
    Raises: UsageError if the generator is not the one that the work began with.
    """
    if (folder / SOURCE).exists() and (before := read_source(folder)["digest"]) != generator.digest:
        raise UsageError(
            f"the generator is not the one that {folder} was begun with ({before[:12]} then, {generator.digest[:12]} "
            "now): bring that back, or start over with --force"
        )
    source: dict[str, Any] = {"digest": generator.digest, "description": generator.description}
    if rate is not None and rate.images_per_second is not None:
        source["sample_seconds"] = round(images / rate.images_per_second, 1)
        source["images_per_second"] = round(rate.images_per_second, 2)
    write_json(folder / SOURCE, source)


def read_source(folder: Path) -> dict[str, Any]:
    """What `note_source` kept."""
    source: dict[str, Any] = read_json(folder / SOURCE, remedy=START_OVER)
    shape = {"digest": str, "description": {"train_seconds?": AMOUNT}, "sample_seconds?": AMOUNT}
    check_document(source, {**shape, "images_per_second?": AMOUNT}, folder / SOURCE, remedy=START_OVER)
    return source


def read_audit(folder: Path) -> dict[str, Any]:
    """The audit of a cache. Raises: CorruptArtifactError for what `audit_document` does not make."""
    document: dict[str, Any] = read_json(folder / AUDIT, remedy=AUDIT_AGAIN)
    check_document(document, SHAPE, folder / AUDIT, remedy=AUDIT_AGAIN)
    return document


def _warn_of_shortage(plan: SynthesisPlan, selection: Selection, refilter: str, reporter: Reporter) -> None:
    kept = plan.count(selection.kept)
    black = plan.count(selection.reasons == BLACKED_OUT)
    throughout = [
        name for name, made, all_of in zip(plan.classes, black, plan.generated, strict=True) if made == all_of > 0
    ]
    if throughout:
        reporter.warn(
            f"the pipeline's safety checker blacked out every image of {', '.join(throughout)}: give other --prompts"
        )
    if black.sum() == plan.total:
        raise SaukitError(
            f"the pipeline's safety checker blacked out all {plan.total:,} candidates: give other --prompts"
        )
    if not kept.any():
        raise SaukitError(
            f"the filters rejected all {plan.total:,} candidates: choose again from the same candidates with "
            f"`{refilter}` and looser rules (--min-confidence, --min-clip, --min-distance, --max-distance, "
            "--no-reject-copies)"
        )
    short = [
        f"{name} {have:,} of {want:,}"
        for name, have, want in zip(plan.classes, kept.tolist(), plan.wanted.tolist(), strict=True)
        if have < want
    ]
    fix = "loosen the filters, or allow more candidates per image with --max-tries"
    if not plan.config.rejects:  # only a folder can do that
        fix = "put more images of these classes into the folder"
    if short:
        reporter.warn(f"not all that was wanted is there ({', '.join(short)}): {fix}")


def save_sample_grid(folder: Path, plan: SynthesisPlan, selection: Selection, split: Split) -> None:
    """Write the picture of real images beside kept ones."""
    rows = shown_classes(len(plan.classes))
    wanted = {c: np.flatnonzero(selection.kept & (plan.labels == c))[:COLUMNS] for c in rows}
    shown = candidates(folder, plan, np.concatenate([wanted[c] for c in rows]))
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


def _write_audit(
    folder: Path, plan: SynthesisPlan, selection: Selection, judges: Judges, *, train: Part, test: Part
) -> dict[str, Any]:
    """Audit the kept images, and write the document and the picture of the closest pairs; returns the document."""
    classifier, detector = judges.classifier, judges.copies
    assert classifier is not None
    rows = np.flatnonzero(selection.kept)
    images, labels = candidates(folder, plan, rows), plan.labels[rows]
    nearest = detector.nearest(images)
    extractors: list[FeatureExtractor] = [classifier]
    if plan.config.inception is not None:
        extractors.append(InceptionFeatures(Path(plan.config.inception), detector.device))
    document = audit_document(
        classes=plan.classes,
        real=(train.images, train.labels),
        test=(test.images, test.labels),
        synthetic=(images, labels),
        generated_counts=plan.generated,
        wanted_counts=plan.wanted,
        rejected=selection.rejected_counts(plan.labels, len(plan.classes)),
        extractors=extractors,
        detector=detector,
        nearest=nearest,
    )
    document["classifier_run"] = classifier.name
    document["classifier_also_filters"] = plan.config.classifier_filters
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


def _summary(plan: SynthesisPlan, selection: Selection, judges: Judges, source: dict[str, Any]) -> dict[str, Any]:
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
