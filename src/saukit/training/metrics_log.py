"""metrics.jsonl: what a run says of itself, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saukit.core.artifacts import write_text


class MetricsLog:
    """metrics.jsonl: a line every `LOG_EVERY_STEPS` steps. A resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        kept = []
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not text.endswith("\n") or json.loads(text)["step"] > keep_steps:
                    break
                kept.append(text)
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.sync()
        self._file.close()
