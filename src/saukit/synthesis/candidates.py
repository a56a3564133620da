"""The candidates of a cache once they are drawn and scored: which are kept, and what is known of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saukit.core.artifacts import write_json
from saukit.core.errors import SaukitError
from saukit.core.workspace import Workspace
from saukit.data.split import Split, load_test
from saukit.synthesis.audit.document import FeatureExtractor, audit_document, closest_pairs
from saukit.synthesis.audit.pictures import COLUMNS, save_closest_pairs, save_grid, shown_classes
from saukit.synthesis.cache import load_images, load_scores
from saukit.synthesis.judging.judges import COPY_DISTANCE, Judges, rules_of
from saukit.synthesis.judging.scorers import inception_features
from saukit.synthesis.judging.selection import Selection, select
from saukit.synthesis.plan import SynthesisPlan

GRID, AUDIT, CLOSEST = "samples.png", "audit.json", "closest.png"


@dataclass(frozen=True)
class Candidates:
    """The candidates of all rounds of `plan`, in the shards of `folder`; drawn for `split`, scored by `judges`."""

    workspace: Workspace
    folder: Path
    plan: SynthesisPlan
    split: Split
    judges: Judges
    device: torch.device

    def choose(self) -> Selection:
        """Which of them are kept, by the rules of the configuration."""
        plan, config, folder = self.plan, self.plan.config, self.folder
        rules = rules_of(config)
        names = [*rules.needed_scores, *([COPY_DISTANCE] if config.reject_copies else [])]
        scores = load_scores(folder, plan, names)
        is_copy = None
        if config.reject_copies:
            assert self.judges.detector is not None
            is_copy = scores.pop(COPY_DISTANCE) < self.judges.detector.threshold
        return select(plan.labels, plan.wanted, scores, rules, is_copy=is_copy)

    def kept_counts(self, selection: Selection) -> npt.NDArray[np.int64]:
        """How many of each class are kept, int64 [K]."""
        labels = self.plan.labels[selection.kept]
        return np.bincount(labels, minlength=len(self.plan.classes)).astype(np.int64)

    def shortage(self, selection: Selection) -> str | None:
        """What is missing of what was wanted, in words; None if nothing is.

        Raises: SaukitError if nothing at all is kept.
        """
        plan, kept = self.plan, self.kept_counts(selection)
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
        remedy = "loosen the filters, or allow more candidates an image with --max-tries"
        if not plan.config.rejects:  # only a folder can do that
            remedy = "put more images of these classes into the folder"
        return f"not all that was wanted is there ({', '.join(short)}): {remedy}"

    def save_grid(self, selection: Selection) -> None:
        """Write the picture of real images beside kept ones."""
        plan, train = self.plan, self.split.train
        rows = shown_classes(len(plan.classes))
        wanted = {c: np.flatnonzero(selection.kept & (plan.labels == c))[:COLUMNS] for c in rows}
        shown = load_images(self.folder, plan, np.concatenate([wanted[c] for c in rows]))
        ends = np.cumsum([len(wanted[c]) for c in rows])
        synthetic = {c: shown[end - len(wanted[c]) : end] for c, end in zip(rows, ends.tolist(), strict=True)}
        save_grid(
            self.folder / GRID,
            plan.classes,
            plan.real_counts,
            self.kept_counts(selection),
            lambda c: train.images[np.flatnonzero(train.labels == c)[:COLUMNS]],
            lambda c: synthetic[c],
        )

    def audit(self, selection: Selection) -> None:
        """Look at what is kept; the test images are read here, when nothing can be chosen any more."""
        plan, train, test = self.plan, self.split.train, load_test(self.workspace)
        judges = self.judges
        assert judges.classifier is not None and judges.detector is not None
        rows = np.flatnonzero(selection.kept)
        images = load_images(self.folder, plan, rows)
        nearest = judges.detector.nearest(images)
        extractors: list[FeatureExtractor] = [judges.classifier]
        if plan.config.inception is not None:
            extractors.append(inception_features(Path(plan.config.inception), self.device))
        document = audit_document(
            classes=plan.classes,
            real_images=train.images,
            real_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
            images=images,
            labels=plan.labels[rows],
            generated_counts=plan.generated,
            wanted_counts=plan.wanted,
            rejected=selection.rejected_counts(plan.labels, len(plan.classes)),
            extractors=extractors,
            detector=judges.detector,
            nearest=nearest,
            device=self.device,
        )
        document["classifier_run"] = judges.classifier_run
        document["classifier_also_filters"] = "classifier" in plan.config.filters
        write_json(self.folder / AUDIT, document)
        save_closest_pairs(
            self.folder / CLOSEST,
            closest_pairs(nearest, judges.detector),
            images=images,
            labels=plan.labels[rows],
            real_images=train.images,
            real_labels=train.labels,
            classes=plan.classes,
            threshold=judges.detector.threshold,
        )

    def summary(self, selection: Selection, source: dict[str, Any]) -> dict[str, Any]:
        """What the manifest says of the cache; `source` is what drew the candidates, and how fast."""
        plan = self.plan
        kept = self.kept_counts(selection)
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
            "classifier": self.judges.classifier_run,
            "sample_seconds": source.get("sample_seconds"),
            "images_per_second": source.get("images_per_second"),
            "generator": source["description"],
        }
