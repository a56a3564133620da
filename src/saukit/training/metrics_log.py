"""metrics.jsonl: what a run says of itself, one JSON object a line; and the same figures for TensorBoard."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saukit.core.documents import START_OVER, parse_json, read_text
from saukit.core.errors import CorruptArtifactError
from saukit.core.extras import require_extra
from saukit.core.writing import write_text

TENSORBOARD_NAME = "tensorboard"  # the folder beside metrics.jsonl; no manifest vouches for it


class MetricsLog:
    """metrics.jsonl: a line every `LOG_EVERY_STEPS` steps. A resumed run drops the lines after its checkpoint.

    `digest`: the SHA-256 that these lines have to have.
    `tensorboard` writes each line's figures as TensorBoard events too; a resumed run has TensorBoard drop those after
    its checkpoint.
    Raises: EnvironmentFault without the extra `tensorboard`, before anything is written; CorruptArtifactError for a log
    that is not as it was.
    """

    def __init__(self, path: Path, *, keep_steps: int, digest: str | None = None, tensorboard: bool = False) -> None:
        if tensorboard:
            require_extra("tensorboard", purpose="--tensorboard")
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
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # its import takes seconds

            self._events = SummaryWriter(str(path.parent / TENSORBOARD_NAME), purge_step=keep_steps + 1)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        text = json.dumps(line, allow_nan=False) + "\n"
        self._file.write(text)
        self._sha.update(text.encode())
        self._file.flush()
        if self._events is not None:
            for tag, value in scalars(line):
                self._events.add_scalar(tag, value, line["step"])

    @property
    def digest(self) -> str:
        """SHA-256 of the log so far."""
        return self._sha.hexdigest()

    def sync(self) -> None:
        """Flush to disk."""
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self.sync()
        self._file.close()
        if self._events is not None:
            self._events.close()


def _step_of(text: str, path: Path) -> int:
    step = parse_json(text, where=str(path), remedy=START_OVER).get("step")
    if not isinstance(step, int):
        raise CorruptArtifactError(f"{path} is damaged: a line has no step; {START_OVER}")
    return step


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a line that TensorBoard draws, by their tags; one that is absent or null is left out."""
    figures = {
        **{f"losses/{name}": value for name, value in line["losses"].items()},
        "lr": line["lr"],
        "images_per_second": line.get("images_per_second"),
        "val/balanced_accuracy": line.get("val_balanced_accuracy"),
        "trusted_share": line.get("trusted_share"),
    }
    yield from ((tag, value) for tag, value in figures.items() if value is not None)


def describe_line(line: dict[str, Any]) -> str:
    """The figures of a line: losses, share of trusted synthetic images, validation accuracy."""
    parts = [f"{name} {value:.3f}" for name, value in line["losses"].items()]
    if line.get("trusted_share") is not None:
        parts.append(f"trusted {100 * line['trusted_share']:.0f}%")
    if "val_balanced_accuracy" in line:
        parts.append(f"val {100 * line['val_balanced_accuracy']:.1f}")
    return "  ".join(parts)
