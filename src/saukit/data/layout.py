"""How a folder of images is laid out: parts (train, test, val) of class folders, or one tree of them.

Read before anything is decoded; what cannot be told apart with certainty is refused, with the ways on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saukit.core.errors import DataError, UsageError
from saukit.core.words import shortened
from saukit.data.image_files import KINDS, FoundFiles, image_files, loose_images, subfolders

if TYPE_CHECKING:
    from saukit.data.source_config import SourceConfig

PartName = Literal["train", "test", "val"]
ClassFiles = Mapping[str, Sequence[Path]]

# train, Training, seg_train, train_images, train-set ...; "trainer" and "steam train engine" are not.
_PART = re.compile(
    r"(?:[a-z0-9]+[ _-])?(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<val>val|valid|validation|dev))"
    r"(?:[ _-]?(?:set|data|images|imgs|split))?"
)


@dataclass(frozen=True)
class Layout:
    """The image files of each part and class, in the order of class names and of paths.

    parts: train, and test and val where the folder has them. notes: what a person should know of the folder.
    passed_over: files that are no images, and links that lead in a circle.
    """

    parts: Mapping[PartName, ClassFiles]
    notes: tuple[str, ...]
    passed_over: FoundFiles


def part_of(name: str) -> PartName | None:
    """The part of a data set that a folder is by its name, in any case: `seg_train` is train, `valid` is val."""
    match = _PART.fullmatch(name.lower())
    return match.lastgroup if match else None  # type: ignore[return-value]


def read_layout(root: Path, config: SourceConfig) -> Layout:
    """The layout of the folder `root`.

    Raises: DataError for a layout that is none of those above or has too few classes, each with the ways on;
    UsageError for a --test-dir that is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder with one subfolder per class as --root")
    folders = subfolders(root)
    notes: list[str] = []
    parts = _parts(root, folders, config.test_dir, notes)
    found = FoundFiles()
    read: dict[PartName, dict[str, list[Path]]] = {}
    for name, folder in parts.items():
        read[name] = _classes(folder, config.class_depth, found, notes, where=_relative(folder, root))
    _check_classes(root, read, config.min_images, parts, notes)
    return Layout(read, tuple(notes), found)


def _parts(root: Path, folders: Sequence[Path], test_dir: str | None, notes: list[str]) -> dict[PartName, Path]:
    """The folder of each part; {"train": root} where the folder is one tree of classes."""
    if len(folders) == 1 and not loose_images(root):
        inner = folders[0]
        if len(subfolders(inner)) >= 2:
            raise DataError(f"{root} holds one folder, {inner.name}/: did you mean --root {inner}?")
    named: dict[PartName, list[Path]] = {}
    for folder in folders:
        if (part := part_of(folder.name)) is not None and folder.name != test_dir:
            named.setdefault(part, []).append(folder)
    others = [folder for folder in folders if part_of(folder.name) is None and folder.name != test_dir]
    if test_dir is not None:
        named["test"] = [_test_folder(root, folders, test_dir), *named.get("test", [])]
        if "train" not in named:
            raise DataError(f"--test-dir {test_dir} needs a train/ beside it in {root}: rename the folder to train on")
    labelled = {part: kept for part, found in named.items() if (kept := [f for f in found if _holds_classes(f)])}
    if not _is_divided(named, labelled, others):
        return {"train": root}
    if test_dir is not None:
        labelled["test"] = labelled["test"][:1]
    if twice := [found for found in labelled.values() if len(found) > 1]:
        raise DataError(f"{root} has {_listed(twice[0])}: keep one of them, or give one as --root")
    if "train" not in labelled:
        _refuse_unlabelled(root, named)
    divided = {folder for found in labelled.values() for folder in found}
    flat = [folder for found in named.values() for folder in found if folder not in divided and loose_images(folder)]
    train = labelled["train"][0]
    if "test" not in labelled:
        _refuse_without_test(root, train, labelled, flat)
    if flat:
        notes.append(
            f"{_listed(flat)} without class folders {'are' if len(flat) > 1 else 'is'} left out: "
            f"classify such images with `saukit predict RUN {flat[0]}`"
        )
    if others:
        notes.append(f"folders that are no part of the data set are left out: {_listed(others)}")
    order: tuple[PartName, ...] = ("train", "test", "val")
    parts = {part: _without_double(labelled[part][0], part) for part in order if part in labelled}
    notes.append(", ".join(f"{_SAID[part]} images from {_relative(folder, root)}/" for part, folder in parts.items()))
    return parts


_SAID = {"train": "training", "test": "test", "val": "validation"}


def _is_divided(
    named: Mapping[PartName, Sequence[Path]], labelled: Mapping[PartName, Sequence[Path]], others: Sequence[Path]
) -> bool:
    """Whether the folders are parts. A class may well be called train: then others lie beside it."""
    if len(labelled) >= 2 and "train" in labelled:
        return True
    return bool(named) and not others


def _test_folder(root: Path, folders: Sequence[Path], test_dir: str) -> Path:
    for folder in folders:
        if folder.name == test_dir.rstrip("/"):
            if not _holds_classes(folder):
                raise DataError(f"--test-dir {test_dir}: {folder} has no class folders")
            return folder
    raise UsageError(f"--test-dir {test_dir}: {root} has no such folder; it has {_listed(folders)}")


def _refuse_unlabelled(root: Path, named: Mapping[PartName, Sequence[Path]]) -> None:
    every = [folder for found in named.values() for folder in found]
    loose = [folder for folder in every if loose_images(folder)]
    if loose:
        raise DataError(
            f"{_listed(loose)} of {root} hold{'s' if len(loose) == 1 else ''} images but no class folders: sort the "
            "images into one folder per class, or name their labels in a list (--dataset list)"
        )
    raise DataError(f"{root} has {_listed(every)} but no train/ with class folders: add or rename one")


def _refuse_without_test(
    root: Path, train: Path, labelled: Mapping[PartName, Sequence[Path]], flat: Sequence[Path]
) -> None:
    ways = [f"give {train} as --root to split a test part off with --test-fraction"]
    if "val" in labelled:
        ways.insert(0, f"use the validation part with --test-dir {labelled['val'][0].name}")
    told = f"{root} has {_listed([found[0] for found in labelled.values()])} but no test/ with class folders"
    if flat:
        told += f" ({_listed(flat)} has no labels: classify it with `saukit predict RUN {flat[0]}`)"
    raise DataError(f"{told}: {', or '.join(ways)}")


def _without_double(folder: Path, part: PartName) -> Path:
    """`folder`, or the one in it where that alone lies there under the part's name: seg_train/seg_train."""
    inner = subfolders(folder)
    if len(inner) == 1 and part_of(inner[0].name) == part and not loose_images(folder):
        return _without_double(inner[0], part)
    return folder


def _holds_classes(folder: Path) -> bool:
    """Whether `folder` has subfolders with something in them; a loose image beside them does not undo that."""
    inner = subfolders(folder)
    return bool(inner) and len(loose_images(folder)) <= sum(1 for sub in inner if any(sub.iterdir()))


def _classes(
    folder: Path, depth: Literal["top", "leaf"], found: FoundFiles, notes: list[str], *, where: str
) -> dict[str, list[Path]]:
    """The images of each class of one part; composed and decomposed accents are one name (NFC)."""
    class_folders = subfolders(folder)
    loose, at = loose_images(folder), "" if where == "." else f" in {where}/"
    if len(class_folders) < 2:
        raise DataError(
            f"{folder} needs at least two subfolders, one per class; it has {len(class_folders)}"
            + (f", and {len(loose)} images beside them: sort the images into one folder per class" if loose else "")
        )
    odd = [repr(path.name) for path in class_folders if path.name.encode("utf-8", "ignore").decode() != path.name]
    if odd:
        raise DataError(f"folder names that are not UTF-8 cannot name classes: {', '.join(odd)}; rename them")
    if loose:
        names = shortened((path.name for path in loose), limit=3)
        notes.append(f"{len(loose)} images beside the class folders{at} are left out: {names}")
    classes: dict[str, list[Path]] = {}
    nested = []
    for class_folder in class_folders:
        files = image_files(class_folder)
        deeper = any(path.parent != class_folder for path in files.images)
        nested += [class_folder.name] if deeper else []
        for path in files.images:
            key = class_folder.name if depth == "top" else path.parent.relative_to(folder).as_posix()
            classes.setdefault(unicodedata.normalize("NFC", key), []).append(path)
        if not files.images and depth == "top":
            classes.setdefault(unicodedata.normalize("NFC", class_folder.name), [])
        files.images = []
        found += files
    if nested and depth == "top":
        notes.append(
            f"images in folders below a class folder{at} count as its class ({shortened(nested, limit=3)}); "
            "with --class-depth leaf each innermost folder is a class"
        )
    return classes if depth == "top" else _leaf_names(classes)


def _leaf_names(classes: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Innermost folders by their own names where these differ, else by their paths."""
    last = {path: path.rsplit("/", 1)[-1] for path in classes}
    names = last if len(set(last.values())) == len(last) else {path: path for path in classes}
    return {names[path]: files for path, files in classes.items()}


def _check_classes(
    root: Path,
    read: dict[PartName, dict[str, list[Path]]],
    least: int,
    folders: Mapping[PartName, Path],
    notes: list[str],
) -> None:
    """Sort the classes, and give each part all of them. Raises: DataError."""
    train = read["train"]
    strange = {part: sorted(set(classes) - set(train)) for part, classes in read.items() if set(classes) - set(train)}
    if least:
        small = sorted(name for name, files in train.items() if len(files) < least)
        if small:
            counts = shortened(f"{name} ({len(train[name])})" for name in small)
            notes.append(f"classes with fewer than {least} images are left out: {counts}")
        gone = {*small, *(name for names in strange.values() for name in names)}
        for classes in read.values():
            for name in gone:
                classes.pop(name, None)
    elif strange:
        told = "; ".join(f"{shortened(names)} only in {folders[part].name}/" for part, names in strange.items())
        raise DataError(
            f"the parts of {root} must have the classes of {folders['train'].name}/: {told}; "
            "add images to train on, or leave such classes out with --min-images 1"
        )
    if len(train) < 2:
        raise DataError(f"{root} has {len(train)} classes with at least {least} images: at least two are needed")
    if empty := sorted(name for name, files in train.items() if not files):
        raise DataError(
            f"class folders of {root} without an image ({KINDS}): {shortened(empty)}; "
            "fill or remove them, or leave them out with --min-images 1"
        )
    for part, classes in read.items():
        read[part] = {name: classes.get(name, []) for name in sorted(train)}


def _listed(folders: Iterable[Path]) -> str:
    return ", ".join(f"{folder.name}/" for folder in folders)


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()
