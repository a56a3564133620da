"""Image sets that Hugging Face's `datasets` reads: saved ones, folders of images or Parquet files, names on the Hub.

The column of images is the one of that type, and so is that of labels (`ClassLabel`); where there is none, a column of
a usual name has the labels, integers or names. Images are decoded as image files are, not by `datasets`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.extras import fetching, require_extra
from saukit.core.words import first_line, shortened
from saukit.data.part_names import part_of
from saukit.data.source import Source
from saukit.data.sources.files import FilePart, source_of_files
from saukit.data.sources.labels import labels_in_order, need_two, numbered, refuse_unknown, without_unused
from saukit.data.sources.lists import choose_columns, text_of

if TYPE_CHECKING:
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Integers

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
BATCH = 1000  # rows read at once; of what lies in memory-mapped files, only the pages that are looked at
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def open_huggingface(config: SourceConfig, root: Path) -> Source:
    """The set at `root`: a folder, a file, or NAME or NAME:CONFIGURATION on the Hub (in the cache, if offline).

    Raises: EnvironmentFault without the extra `datasets`, and for a set that cannot be fetched; DataError for one that
    cannot be read, and for columns and labels that are not understood.
    """
    require_extra("datasets", purpose="--dataset huggingface")
    import numpy as np

    notes: list[str] = []
    splits = _parts(_load(root), config.test_dir, root, notes)
    columns = _columns(splits["train"].features, config, root)
    written = {part: _labels(split, columns["label"], root, part) for part, split in splits.items()}
    for part in [part for part, labels in written.items() if not labels]:
        notes.append(f"the {part} part has no labels and is left out: `saukit predict` classifies such images")
        del splits[part], written[part]
    known = getattr(splits["train"].features[columns["label"]], "names", None)
    if known is None:
        classes = labels_in_order(written["train"], str(root))
    else:
        classes = without_unused(known, sorted(set(map(known.index, written["train"]))), notes)
        need_two(classes, str(root))
    for part, of_part in written.items():
        refuse_unknown(of_part, set(classes), f"the {part} part of {root}", range(len(of_part)))
    digest = hashlib.sha256(repr(written).encode())
    parts = {}
    for part, split in splits.items():
        labels = np.array(numbered(written[part], classes), np.int64)
        parts[part] = _file_part(split, columns["path"], labels, root, part, digest.update)
    groups = None
    if "group" in columns:
        groups = {part: [text_of(key) for key in split[columns["group"]]] for part, split in splits.items()}
    return source_of_files(classes, parts, fingerprint=digest.hexdigest(), groups=groups, notes=tuple(notes))


def _load(root: Path) -> Any:
    """A `Dataset`, or a `DatasetDict` by split."""
    import datasets

    if not root.exists() and not HUB_NAME.fullmatch(root.as_posix()):
        raise DataError(
            f"{root} is neither a folder nor the name of a data set on the Hub, such as cifar10 or user/name"
        )
    name, _, configuration = root.as_posix().partition(":")
    try:
        if any((root / file).is_file() for file in SAVED):
            return datasets.load_from_disk(str(root))
        if root.is_file():
            return datasets.load_dataset(root.suffix[1:].lower(), data_files=str(root))
        if root.exists():
            return datasets.load_dataset(str(root))
        with fetching():
            return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of datasets, pyarrow, huggingface_hub and its HTTP library
        if root.exists():
            raise DataError(
                f"{root} cannot be read as a data set of Hugging Face: {first_line(error)}; save it again"
            ) from error
        raise EnvironmentFault(
            f"{root} is not a folder here and cannot be fetched from the Hub ({first_line(error)}): give a folder, or "
            "check the name, the network, HF_HUB_OFFLINE and, for a gated one, `hf auth login`"
        ) from error


def _parts(loaded: Any, test_dir: str | None, root: Path, notes: list[str]) -> dict[str, Any]:
    """The splits by part; one that is alone is the training part, whatever its name."""
    splits: dict[str, Any] = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    if test_dir is not None and test_dir not in splits:
        raise DataError(f"{root} has no split {test_dir!r} for --test-dir: it has {shortened(splits)}")
    names: dict[str, str | None] = {name: "train" if len(splits) == 1 else part_of(name) for name in splits}
    if test_dir is not None:
        names = {name: "test" if name == test_dir else None if part == "test" else part for name, part in names.items()}
    parts: dict[str, Any] = {}
    for name, part in names.items():
        if part in parts:
            raise DataError(f"{root} has several splits for {part}: {shortened(splits)}; save those to use, alone")
        if part is not None:
            parts[part] = splits[name]
    if "train" not in parts:
        raise DataError(f"{root} has no split called train: it has {shortened(splits)}")
    if others := [name for name, part in names.items() if part is None]:
        notes.append(f"splits left out: {shortened(others)} (train, validation and test are used)")
    if empty := [part for part, split in parts.items() if not len(split)]:
        raise DataError(f"{root} has no image in {shortened(empty)}")
    return parts


def _columns(features: Mapping[str, Any], config: SourceConfig, root: Path) -> dict[str, str]:
    """The columns of images ("path"), labels, and groups if there are any."""
    import datasets

    wanted = dict(config.columns or {})
    kinds = {
        "path": [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _is_encoded(kind)],
        "label": [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)],
    }
    for role, names in kinds.items():
        if role not in wanted and len(names) == 1:
            wanted[role] = names[0]
    columns = choose_columns(list(features), {**wanted, "split": ""}, config.group_by, where=str(root)).names
    if columns["path"] not in kinds["path"]:
        raise DataError(
            f"column {columns['path']!r} of {root} holds no images ({features[columns['path']]}); "
            "tables with paths are read with --dataset list --train-list FILE"
        )
    if not isinstance(features[columns["label"]], datasets.ClassLabel | datasets.Value):
        raise DataError(
            f"column {columns['label']!r} of {root} is not one label per image: {features[columns['label']]}"
        )
    return columns


def _is_encoded(kind: Any) -> bool:
    """Whether a column has the encoded bytes of images, alone or with a path, as Parquet files from elsewhere do."""
    if isinstance(kind, dict):
        return {"bytes", "path"} <= kind.keys()
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _labels(split: Any, column: str, root: Path, part: str) -> list[str]:
    """The labels as text, empty if there are none at all. Raises: DataError if some are missing."""
    names = getattr(split.features[column], "names", None)
    values = list(split[column])
    if names is not None:
        values = [names[value] if value is not None and value >= 0 else None for value in values]
    labels = [text_of(value) for value in values]
    if part != "train" and not any(labels):
        return []
    if missing := [row for row, label in enumerate(labels) if not label]:
        rows = shortened(missing, limit=5)
        raise DataError(f"{len(missing)} images of the {part} part of {root} have no label (row {rows}); remove them")
    return labels


def _file_part(
    split: Any, column: str, labels: Integers, root: Path, part: str, update: Callable[[bytes], None]
) -> FilePart:
    """The images of a split as encoded files, in it or beside it; `update` gets what tells them from others."""
    import datasets
    from pyarrow import compute

    encoded = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names: list[str] = []
    inside = False
    top = f"{root.absolute()}/"
    for batch in encoded.with_format("arrow").iter(BATCH):
        fields = [compute.struct_field(batch.column(column), name) for name in ("path", "bytes")]
        for path, size in zip(fields[0].to_pylist(), compute.binary_length(fields[1]).to_pylist(), strict=True):
            name = (path or "").removeprefix(top)
            if size is None and path is not None:
                size = Path(path).stat().st_size if Path(path).is_file() else -1
            else:
                name, inside = f"image {len(names)} of {part}{name and f' ({name})'}", True
            update(f"{name}\0{size}\n".encode())
            names.append(name)

    def read(index: int) -> Path | BinaryIO:
        image = encoded[index][column] or {"bytes": b""}
        return Path(image["path"]) if image["bytes"] is None else io.BytesIO(image["bytes"])

    return FilePart(names, labels, read, named=not inside)
