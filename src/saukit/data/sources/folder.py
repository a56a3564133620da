"""A folder of images as a source: one subfolder per class, in `train/`, `test/` and perhaps `val/`, or in one tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saukit.core.errors import DataError
from saukit.data.image_files import EXTENSIONS, KINDS, image_files, subfolders
from saukit.data.source import Source
from saukit.data.sources.files import fingerprint_of, part_of_folder, source_of_files

if TYPE_CHECKING:
    from saukit.data.source_config import SourceConfig
    from saukit.data.types import Integers

PARTS = {"train": "training", "test": "test", "val": "validation"}

VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev"})


@dataclass(frozen=True)
class Tree:
    """The image files of one folder of class subfolders, in the order of classes and of their paths.

    ignored: how many files of each other extension lie in it.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: Integers
    classes: tuple[str, ...]
    ignored: Counter[str]


def open_folder(config: SourceConfig, root: Path) -> Source:
    """The images in `root` as a source; reads names and image sizes, decodes nothing yet.

    Raises: DataError for a folder that is not there, has fewer than two classes, or has empty
    ones, and for train and test parts with different classes.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder with one subfolder per class as --root")
    trees = _layout(root, config.test_dir)
    names = {part: [path.relative_to(root).as_posix() for path in tree.files] for part, tree in trees.items()}
    taken = [f"{PARTS[part]} images from {tree.folder.name}/" for part, tree in trees.items()]
    return source_of_files(
        trees["train"].classes,
        {part: part_of_folder(root, names[part], tree.labels) for part, tree in trees.items()},
        fingerprint=fingerprint_of(root, [name for part in names.values() for name in part]),
        ignored=sum((tree.ignored for tree in trees.values()), Counter[str]()),
        notes=(", ".join(taken),) if len(taken) > 1 else (),
    )


def _layout(root: Path, test_dir: str | None) -> dict[str, Tree]:
    """The trees of the parts: training, test and validation images, or training images alone if it is one tree."""
    folders = {path.name: path for path in subfolders(root)}
    if test_dir is not None:
        if test_dir not in folders or "train" not in folders:
            raise DataError(
                f"{root} needs train/ and {test_dir}/ for --test-dir {test_dir}; it has {', '.join(folders)}"
            )
        folders["test"] = folders.pop(test_dir)
    split = {name for name in ("train", "test") if name in folders and _holds_classes(folders[name])}
    if split == {"train", "test"}:
        train, test = _scan(folders["train"], root), _scan(folders["test"], root)
        trees = {"train": train, "test": test}
        for name in sorted(VALIDATION_NAMES.intersection(folders)):
            if _holds_classes(folders[name]):
                trees["val"] = _scan(folders[name], root)
        problems = [
            f"{', '.join(sorted(set(one.classes) - set(other.classes)))} only in {name}/"
            for name, one, other in (
                ("train", train, test),
                ("test", test, train),
                *(("val", tree, train) for part, tree in trees.items() if part == "val"),
            )
            if set(one.classes) - set(other.classes)
        ]
        if problems:
            raise DataError(f"train and test of {root} must have the same classes: {'; '.join(problems)}")
        if "val" in trees:
            trees["val"] = _relabelled(trees["val"], train.classes)
        return trees
    if split and set(folders) <= {"train", "test"} | VALIDATION_NAMES:
        missing = "test" if "train" in split else "train"
        raise DataError(
            f"{root} has {', '.join(f'{name}/' for name in sorted(folders))} but no {missing}/ with class folders: "
            f"add or rename one, or give {root / next(iter(split))} as --root to split that with --test-fraction"
        )
    return {"train": _scan(root, root)}


def _relabelled(tree: Tree, classes: tuple[str, ...]) -> Tree:
    """`tree` with the labels of `classes`, which it may not have all of."""
    import numpy as np

    order = np.array([classes.index(name) for name in tree.classes], np.int64)
    return replace(tree, labels=order[tree.labels], classes=classes)


def _scan(folder: Path, root: Path) -> Tree:
    class_folders = subfolders(folder)
    if len(class_folders) < 2:
        raise DataError(f"{folder} needs at least two subfolders, one per class; it has {len(class_folders)}")
    odd = [repr(path.name) for path in class_folders if path.name.encode("utf-8", "ignore").decode() != path.name]
    if odd:
        raise DataError(f"folder names that are not UTF-8 cannot name classes: {', '.join(odd)}; rename them")
    import numpy as np

    files: list[Path] = []
    labels: list[int] = []
    empty, ignored = [], Counter[str]()
    for label, class_folder in enumerate(class_folders):
        images, others = image_files(class_folder)
        ignored += others
        if not images:
            empty.append(class_folder.relative_to(root).as_posix())
        files += images
        labels += [label] * len(images)
    if empty:
        raise DataError(f"class folders of {root} without an image ({KINDS}): {', '.join(empty)}; fill or remove them")
    return Tree(folder, tuple(files), np.array(labels, np.int64), tuple(path.name for path in class_folders), ignored)


def _holds_classes(folder: Path) -> bool:
    """Whether `folder` has subfolders and no image of its own; a class may well be called `train`."""
    own = any(path.suffix.lower() in EXTENSIONS and path.is_file() for path in folder.iterdir())
    return not own and bool(subfolders(folder))
