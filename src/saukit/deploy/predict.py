"""The stage `predict`: a trained classifier's opinion of image files, read and predicted a batch at a time.

Files are read as `make-lt` reads a folder, and above 64 pixels a side they go through the JPEG that a split stores: a
prediction sees the pixels that training and evaluation see of the same file, so it is the evaluation's.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, UsageError
from saukit.core.machine import in_threads
from saukit.core.options import check
from saukit.core.words import shortened
from saukit.core.workspace import Workspace
from saukit.core.writing import csv_text
from saukit.data.decoding import decode_or_reason, refuse_or_warn
from saukit.data.image_files import KINDS, image_files, say_ignored
from saukit.data.images import as_stored
from saukit.data.types import Flags, Floats, Images, Integers
from saukit.deploy.config import PredictConfig
from saukit.deploy.rejection import PROBABILITY_DIGITS, Rejection, choose_rejection, confidences
from saukit.models import inference
from saukit.models.classifier import ImageClassifier, load_classifier, locate_model
from saukit.training.distributed import from_all, rank, size


@dataclass(frozen=True)
class PredictResult:
    """The most probable classes of n images, the best first.

    Shapes: labels int64 [n, top], probabilities float32 [n, top]. skipped: unreadable files, and why. rejection: below
    which confidence an image gets no class.
    """

    model: Path
    classifier: ImageClassifier
    images: tuple[Path, ...]
    labels: Integers
    probabilities: Floats
    skipped: tuple[tuple[Path, str], ...]
    rejection: Rejection | None = None

    @property
    def rejected(self) -> Flags:
        """Which images get no class; bool [n]."""
        limit = -1.0 if self.rejection is None else self.rejection.min_confidence
        return confidences(self.probabilities) < limit

    def csv(self) -> str:
        """A line an image: image, class, probability, class_2, probability_2 and so on; no class if it is rejected."""
        ranks = ["", *(f"_{rank + 1}" for rank in range(1, self.labels.shape[1]))]
        rows = [["image", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]]
        for image, best, given in self._rows():
            pairs = ((name if given else "", f"{share:.{PROBABILITY_DIGITS}f}") for name, share in best)
            rows.append([image, *itertools.chain.from_iterable(pairs)])
        return csv_text(rows)

    def document(self) -> dict[str, Any]:
        """The JSON document: the model, a prediction an image, and what was skipped."""
        spec = self.classifier.spec
        return {
            "model": {
                "path": _text(self.model),
                "method": spec.method,
                "backbone": spec.backbone,
                "image_size": list(spec.image_size),
                "classes": list(spec.classes),
            },
            "predictions": [
                {
                    "image": image,
                    "class": best[0][0] if given else None,
                    "probability": round(best[0][1], PROBABILITY_DIGITS),
                    "top": [{"class": name, "probability": round(share, PROBABILITY_DIGITS)} for name, share in best],
                }
                for image, best, given in self._rows()
            ],
            **(
                {}
                if self.rejection is None
                else {"rejection": vars(self.rejection), "rejected": int(self.rejected.sum())}
            ),
            "skipped": [{"image": _text(path), "reason": reason} for path, reason in self.skipped],
        }

    def _rows(self) -> Iterator[tuple[str, list[tuple[str, float]], bool]]:
        """Of each image its name, its most probable classes, and whether it is given one."""
        classes, given = self.classifier.classes, (~self.rejected).tolist()
        found = zip(self.images, self.labels.tolist(), self.probabilities.tolist(), given, strict=True)
        for path, labels, shares, is_given in found:
            yield _text(path), [(classes[label], share) for label, share in zip(labels, shares, strict=True)], is_given


@dataclass
class _Batch:
    """Files that cannot be read, with the reason; those that can; and what they show, where that was asked for."""

    skipped: list[tuple[Path, str]] = field(default_factory=list)
    named: list[Path] = field(default_factory=list)
    found: list[tuple[Integers, Floats]] = field(default_factory=list)


def predict(
    config: PredictConfig,
    model: str | Path,
    images: Sequence[Path],
    workspace: Workspace,
    *,
    device: torch.device,
    reporter: Reporter,
) -> PredictResult:
    """Classify image files, and those in folders and below, in the order given; a folder's in that of their paths.

    `model` is what `locate_model` finds. Of several processes each takes whole batches, and all return the whole.
    Raises: UsageError for a bad value; DataError without a model or an image, as `choose_rejection`, or if files cannot
    be read and `skip_bad` is not set: then it lists them.
    """
    check(config)
    path = locate_model(model, workspace)
    classifier = load_classifier(path)
    if config.top > len(classifier.classes):
        raise UsageError(f"top must be at most {len(classifier.classes)}, the classes of {path}, got {config.top}")
    height, width = classifier.image_size
    if height != width:
        raise DataError(f"{path} takes images of {height} x {width} pixels, and saukit reads files as squares only")
    files = find_images(images, reporter)
    rejection = choose_rejection(config, path, classifier, device=device, reporter=reporter)

    def decode(file: Path) -> Images | str:
        image = decode_or_reason(file, height, classifier.spec.fitting)
        return image if isinstance(image, str) else as_stored(image)

    batches: dict[int, _Batch] = {}
    with reporter.progress("predict", len(files)) as progress:
        for start in range(0, len(files), config.batch_size)[rank() :: size()]:
            part = files[start : start + config.batch_size]
            batch, pixels = batches.setdefault(start, _Batch()), []
            for file, content in zip(part, in_threads(decode, part), strict=True):
                if isinstance(content, str):
                    batch.skipped.append((file, content))
                else:
                    batch.named.append(file)
                    pixels.append(content)
            is_bad = any(each.skipped for each in batches.values()) and not config.skip_bad
            if pixels and not is_bad:  # with a bad file there will be no result
                made = inference.predict(classifier.network, classifier.spec, np.stack(pixels), device=device)
                batch.found = [most_probable(made.probabilities, config.top)]
            progress.update(min(start + size() * config.batch_size, len(files)))
    every = {start: batch for mine in from_all(batches) for start, batch in mine.items()}
    in_order = [every[start] for start in sorted(every)]
    named = [file for batch in in_order for file in batch.named]
    skipped = [each for batch in in_order for each in batch.skipped]
    bad = [f"{file} ({reason})" for file, reason in skipped]
    if config.skip_bad and len(bad) == len(files):
        raise DataError(f"none of {len(files)} images can be read: " + shortened(bad))
    refuse_or_warn(bad, skip=config.skip_bad, reporter=reporter)
    found = [each for batch in in_order for each in batch.found]
    labels, probabilities = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not np.isfinite(probabilities).all():
        raise CorruptArtifactError(f"the model {path} gives NaN: its weights are damaged; train or export it again")
    result = PredictResult(path, classifier, tuple(named), labels, probabilities, tuple(skipped), rejection)
    if rejection is not None:
        reporter.say(f"{int(result.rejected.sum()):,} of {len(named):,} images get no class")
    return result


def find_images(paths: Sequence[Path], reporter: Reporter) -> list[Path]:
    """The image files among `paths` and in the folders among them, each once; a file counts whatever its name.

    Raises: DataError for a path that is not there, or if there is no image at all.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}; give image files, or folders of them")
    files: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            files[path] = None
            continue
        found = image_files(path)
        files |= dict.fromkeys(found.images)
        say_ignored(found, reporter, where=f" in {path}")
    if not files:
        raise DataError(f"no images ({KINDS}) in {', '.join(map(str, paths))}: give files, or a folder that has some")
    return list(files)


def most_probable(probabilities: Floats, top: int) -> tuple[Integers, Floats]:
    """Labels int64 [b, top] and probabilities float32 [b, top], the best first; equal ones in the order of classes."""
    labels = np.argsort(-probabilities, axis=1, kind="stable")[:, :top].astype(np.int64)
    return labels, np.take_along_axis(probabilities, labels, axis=1)


def _text(path: Path) -> str:
    """A path as text that can be written as UTF-8, whatever bytes its name has."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")
