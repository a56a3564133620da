"""split/files.csv: the file that each image of a split comes from, where the source has files.

    part,index,label,file       train,0,cat,train/cat/001.jpg

index: the image's row in the part's safetensors file; label: its class's name; file: relative to the source's root.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from saukit.core.documents import REMAKE
from saukit.core.errors import CorruptArtifactError
from saukit.core.writing import csv_text, write_text
from saukit.data.types import Integers

FILES_NAME = "files.csv"
COLUMNS = ("part", "index", "label", "file")


def write_part_files(folder: Path, classes: Sequence[str], parts: Mapping[str, tuple[Integers, Sequence[str]]]) -> None:
    """Write the labels and file names of each part, in its order."""
    rows = (
        (part, row, classes[label], encodable(file))
        for part, (labels, files) in parts.items()
        for row, (label, file) in enumerate(zip(labels.tolist(), files, strict=True))
    )
    write_text(folder / FILES_NAME, csv_text([COLUMNS, *rows]))


def read_part_files(folder: Path, images: Mapping[str, int] | None = None) -> dict[str, list[str]]:
    """The file names of each part, in its order; empty for a split without files.

    Raises: CorruptArtifactError if the file is another one, or has not a line for each of the `images` of some parts.
    """
    path = folder / FILES_NAME
    if not path.exists():
        return {}
    found: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines)
            if tuple(next(reader, ())) != COLUMNS:
                raise ValueError(f"it does not begin with {','.join(COLUMNS)}")
            for part, _, _, file in reader:
                found.setdefault(part, []).append(file)
        for part, count in (images or {}).items():
            if len(found.get(part, ())) != count:
                raise ValueError(f"it has {len(found.get(part, ()))} lines of the {count} images of {part}")
    except (ValueError, csv.Error) as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}; {REMAKE}") from None
    return found


def encodable(name: str) -> str:
    """A file's name with \\xff for a byte that is no UTF-8, which no text file can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
