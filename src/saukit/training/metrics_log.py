"""metrics.jsonl: what a run says of itself, one JSON object a line; and the same figures for a tracker."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saukit.core.artifacts import CONFIG_NAME, check_document
from saukit.core.documents import START_OVER, parse_json, read_json_lines, read_text
from saukit.core.errors import CorruptArtifactError
from saukit.core.shapes import COUNT, NUMBER, SHARE, Rows
from saukit.core.workspace import command_for
from saukit.core.writing import write_text
from saukit.training.trackers import TrackerName, open_tracker

SHAPE = {"step": COUNT, "losses": {str: NUMBER}, "val_balanced_accuracy?": SHARE}  # what of a line somebody reads


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a complete run's log. Raises: CorruptArtifactError for what `MetricsLog` does not write."""
    again = f"saukit train --force --config {path.with_name(CONFIG_NAME)} --name {path.parent.name}"
    remedy = f"train it again with `{command_for(path.parent, again)}`"
    lines: list[dict[str, Any]] = read_json_lines(path, remedy=remedy)
    check_document({"lines": lines}, {"lines": Rows("lines", SHAPE)}, path, remedy=remedy)
    return lines


class MetricsLog:
    """metrics.jsonl: a line every `LOG_EVERY_STEPS` steps. A resumed run drops the lines after its checkpoint.

    `digest`: the SHA-256 that these lines have to have.
    `tracker` gets each line's figures too, and `config`, what the run is trained with.
    Raises: as `open_tracker`; CorruptArtifactError for a log that is not as it was.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_steps: int,
        digest: str | None = None,
        tracker: TrackerName | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        kept = []
        if path.exists():
            for text in read_text(path, remedy=START_OVER).splitlines(keepends=True):
                if not text.endswith("\n") or _step_of(text, path) > keep_steps:
                    break
                kept.append(text)
        self._sha = hashlib.sha256("".join(kept).encode())
        if digest not in (None, self.digest):
            raise CorruptArtifactError(f"{path} was changed after it was written: {START_OVER}")
        write_text(path, "".join(kept), hashed=False)
        self._file = path.open("a", encoding="utf-8")
        self._tracker = None
        if tracker is not None:
            self._tracker = open_tracker(tracker, path.parent, config or {}, keep_steps=keep_steps)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        text = json.dumps(line, allow_nan=False) + "\n"
        self._file.write(text)
        self._sha.update(text.encode())
        self._file.flush()
        if self._tracker is not None:
            self._tracker.log(scalars(line), line["step"])

    @property
    def digest(self) -> str:
        """SHA-256 of the log so far."""
        return self._sha.hexdigest()

    def sync(self) -> None:
        """Flush to disk."""
        os.fsync(self._file.fileno())
        if self._tracker is not None:
            self._tracker.flush()

    def close(self) -> None:
        """Flush and close."""
        self.sync()
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def _step_of(text: str, path: Path) -> int:
    step = parse_json(text, where=str(path), remedy=START_OVER).get("step")
    if not isinstance(step, int):
        raise CorruptArtifactError(f"{path} is damaged: a line has no step; {START_OVER}")
    return step


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a line that a tracker draws, by their tags; one that is absent or null is left out."""
    figures = {
        **{f"losses/{name}": value for name, value in line["losses"].items()},
        "lr": line["lr"],
        "images_per_second": line.get("images_per_second"),
        "val/balanced_accuracy": line.get("val_balanced_accuracy"),
        "trusted_share": line.get("trusted_share"),
    }
    return {tag: value for tag, value in figures.items() if value is not None}


def describe_line(line: dict[str, Any]) -> str:
    """The figures of a line: losses, share of trusted synthetic images, validation accuracy."""
    parts = [f"{name} {value:.3f}" for name, value in line["losses"].items()]
    if line.get("trusted_share") is not None:
        parts.append(f"trusted {100 * line['trusted_share']:.0f}%")
    if "val_balanced_accuracy" in line:
        parts.append(f"val {100 * line['val_balanced_accuracy']:.1f}")
    return "  ".join(parts)
