"""Images that lists name: lists of one's own, and those of ImageNet-LT, Places-LT and iNaturalist 2018.

Paths are relative to the root. Labels are names, or integers from 0, which `--class-names` may name. Where all are
plain integers, classes have their order; else they are text (`01` and `1` are two classes), sorted.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saukit.core.errors import DataError, UsageError
from saukit.core.words import shortened
from saukit.data.image_files import EXTENSIONS, image_files, subfolders
from saukit.data.part_names import part_of
from saukit.data.source import Source
from saukit.data.source_config import SourceConfig
from saukit.data.sources.files import fingerprint_of, part_of_folder, source_of_files
from saukit.data.sources.labels import labels_in_order, named, numbered, refuse_unknown
from saukit.data.sources.lists import Columns, Entry, read_entries

PARTS = ("train", "val", "test")
SHOWN = 5  # names in a message
Parts = dict[str, list[Entry]]


def open_list(config: SourceConfig, root: Path) -> Source:
    """The images of `train_list` and, where they are given, `val_list` and `test_list`.

    Raises: UsageError without a training list; else as `source_of_lists`.
    """
    given = {part: getattr(config, f"{part}_list") for part in PARTS}
    if given["train"] is None:
        raise UsageError("dataset list needs train_list: give --train-list FILE, with 'path label' lines or a table")
    return source_of_lists(config, root, {part: _found(name, root) for part, name in given.items() if name is not None})


@dataclass(frozen=True)
class ListSet:
    """Opens a data set that is defined by list files; `lists` are their names by part, `origin` is who has them."""

    lists: Mapping[str, str]
    origin: str

    def __call__(self, config: SourceConfig, root: Path) -> Source:
        """The data set whose lists are in `root` or a folder in it, their paths relative to `root`."""
        _need_folder(root)
        folders = [root, *subfolders(root)]
        found = {part: [f / name for f in folders if (f / name).is_file()] for part, name in self.lists.items()}
        if missing := [self.lists[part] for part, paths in found.items() if not paths]:
            raise DataError(
                f"{config.dataset} needs {', '.join(missing)} in {root} or a folder in it: they come with "
                f"{self.origin}; lists of another name or place are read with --dataset list --train-list FILE"
            )
        return source_of_lists(config, root, {part: paths[0] for part, paths in found.items()})


def source_of_lists(config: SourceConfig, root: Path, lists: Mapping[str, Path]) -> Source:
    """A source of the images that `lists` name by part.

    Raises: DataError for lists that are not understood, and for images that are not there, unless `skip_bad`.
    """
    _need_folder(root)
    notes: list[str] = []
    parts, columns = _read(lists, config, notes)
    file_of = {part: lists.get(part, lists["train"]) for part in parts}
    parts = {part: _located(entries, root, file_of[part], notes) for part, entries in parts.items()}
    _refuse_shared(parts)
    written = {part: [entry.label for entry in entries] for part, entries in parts.items()}
    labels = labels_in_order(written["train"], str(lists["train"]))
    for part, entries in parts.items():
        refuse_unknown(written[part], set(labels), str(file_of[part]), [entry.line for entry in entries])
    _check_there(parts, root, file_of, skip=config.skip_bad)
    import numpy as np

    everything = [entry for entries in parts.values() for entry in entries]
    return source_of_files(
        named(labels, config.class_names, str(lists["train"]), notes),
        {
            part: part_of_folder(
                root, [entry.path for entry in entries], np.array(numbered(written[part], labels), np.int64)
            )
            for part, entries in parts.items()
        },
        fingerprint=fingerprint_of(root, [entry.path for entry in everything], [entry.label for entry in everything]),
        groups=_groups(parts, columns),
        notes=tuple(notes),
    )


def _found(name: str, root: Path) -> Path:
    """The list called `name`, in the current folder or else in `root`."""
    file = Path(name)
    if found := next((path for path in (file, root / file) if path.exists()), None):
        return found
    raise DataError(f"there is no list {file}, neither in the current folder nor in {root}; check its name")


def _need_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that the paths in the lists start from as --root")


def _read(lists: Mapping[str, Path], config: SourceConfig, notes: list[str]) -> tuple[Parts, Columns | None]:
    """The entries of each part, by its list or by the split column of the only one; columns of the training list."""
    read = {part: read_entries(file, config.columns, config.group_by) for part, file in lists.items()}
    parts, columns, file = {part: entries for part, (entries, _) in read.items()}, read["train"][1], lists["train"]
    if columns is None:
        return parts, None
    if len(lists) > 1 and "split" in columns.names and "split" not in columns.guessed:
        raise UsageError("give a split column, or lists of the parts (val_list, test_list), not both")
    if columns.guessed:
        used = ", ".join(f"{columns.names[role]} as {role}" for role in columns.guessed)
        notes.append(f"columns of {file.name}: {used} (--columns names others)")
    if len(lists) > 1 or "split" not in columns.names:
        return parts, columns
    by_part: Parts = {}
    for entry in parts["train"]:
        by_part.setdefault(part_of(entry.part or "") or entry.part or "", []).append(entry)
    where = f"column {columns.names['split']!r} of {file}"
    if unknown := sorted(by_part.keys() - set(PARTS)):
        raise DataError(
            f"{where} holds {shortened(map(repr, unknown), limit=SHOWN)}: it has to be train, val or test; "
            "name another column with --columns split=NAME, or use none with --columns split="
        )
    if "train" not in by_part:
        raise DataError(f"{where} has no row of train")
    return {part: by_part[part] for part in PARTS if part in by_part}, columns


def _located(entries: Sequence[Entry], root: Path, file: Path, notes: list[str]) -> list[Entry]:
    """The entries with their paths relative to `root`, each image once.

    Raises: DataError for paths that lead out of `root`, and for images with two labels.
    """
    top = str(root.absolute()).rstrip("/") + "/"
    found: dict[str, Entry] = {}
    outside, torn = [], []
    extension, elsewhere = "", 0
    below: dict[str, str] | None = None
    for entry in entries:
        path = os.path.normpath(os.path.join(top, entry.path))  # noqa: PTH118 (names alone: links may lead elsewhere)
        if "\\" in entry.path and not os.path.lexists(path):
            path = os.path.normpath(os.path.join(top, entry.path.replace("\\", "/")))  # noqa: PTH118
        if "/" not in entry.path and not os.path.lexists(path):
            below = _by_name(root) if below is None else below
            if found_below := below.get(entry.path):
                path, elsewhere = top + found_below, elsewhere + 1
        if not path.startswith(top):
            outside.append(f"{entry.path} (line {entry.line})")
            continue
        if os.path.splitext(path)[1].lower() not in EXTENSIONS and not os.path.lexists(path):  # noqa: PTH122
            extension = _extension(path, extension)
            path += extension
        entry = entry._replace(path=path[len(top) :])
        first = found.setdefault(entry.path, entry)
        if first.label != entry.label:
            torn.append(f"{entry.path} ({first.label} in line {first.line}, {entry.label} in line {entry.line})")
    if outside:
        raise DataError(
            f"paths of {file} that are not in {root}: {shortened(outside, limit=SHOWN)}; "
            "give the folder that holds them all as --root"
        )
    if torn:
        raise DataError(f"images of {file} with two labels: {shortened(torn, limit=SHOWN)}; remove the wrong lines")
    if repeated := len(entries) - len(found):
        notes.append(
            f"{repeated} line{'s' if repeated > 1 else ''} of {file.name} repeat an image, which is taken once"
        )
    if elsewhere:
        notes.append(f"{elsewhere} images of {file.name} are in folders of {root}, found by their names")
    return list(found.values())


def _by_name(root: Path) -> dict[str, str]:
    """The images below `root` by their names, with and without extension, each where one image alone is called so."""
    found: dict[str, str] = {}
    for path in image_files(root).images:
        for name in (path.name, path.stem):
            found[name] = "" if name in found else path.relative_to(root).as_posix()
    return found


def _extension(path: str, last: str) -> str:
    """The extension of the image called `path` without it, the one found last first; "" if there is no such file."""
    tries = [last, *sorted(EXTENSIONS), *(extension.upper() for extension in sorted(EXTENSIONS))]
    return next((extension for extension in tries if extension and os.path.exists(path + extension)), "")  # noqa: PTH110


def _refuse_shared(parts: Parts) -> None:
    paths = {part: {entry.path for entry in entries} for part, entries in parts.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if shared := sorted(paths.get(one, set()) & paths.get(other, set())):
            raise DataError(
                f"images in both the {one} and the {other} part ({len(shared)}): {shortened(shared, limit=SHOWN)}; "
                "leave each in one"
            )


def _check_there(parts: Parts, root: Path, file_of: Mapping[str, Path], *, skip: bool) -> None:
    """Raises: DataError if listed images are not files, unless `skip`; always if none is one."""
    listed = [(part, entry) for part, entries in parts.items() for entry in entries]
    missing = [(part, entry) for part, entry in listed if not os.path.isfile(root / entry.path)]  # noqa: PTH113
    if len(missing) == len(listed):
        first = listed[0][1].path
        others = [root.absolute().parent, *subfolders(root)]
        hint = next((f"; did you mean --root {other}?" for other in others if (other / first).is_file()), "")
        raise DataError(f"none of the {len(listed)} listed images is in {root}, such as {root / first}{hint}")
    if missing and not skip:
        some = shortened(
            (f"{e.path} ({file_of[part].name}, line {e.line})" for part, e in missing), "\n  ", limit=SHOWN
        )
        raise DataError(
            f"{len(missing)} of the {len(listed)} listed images are not in {root}; nothing was written. Fix the list, "
            f"or skip them with --skip-bad:\n  {some}"
        )


def _groups(parts: Parts, columns: Columns | None) -> dict[str, list[str]] | None:
    if columns is None or "group" not in columns.names:
        return None
    return {part: [entry.group or "" for entry in entries] for part, entries in parts.items()}
