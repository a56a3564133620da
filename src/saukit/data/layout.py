"""How a folder of images is laid out: which folders are its parts, and which are its classes.

    ROOT/CLASS/...                                one tree
    ROOT/train/CLASS/... ROOT/test/CLASS/...      parts, under any of their usual names, perhaps with ROOT/val/CLASS/...
    ROOT/CLASS/... ROOT/test/CLASS/...            classes, and the other parts beside them

What can be read in two ways is refused with the ways out; nothing is guessed from file names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saukit.core.errors import DataError, UsageError
from saukit.core.words import shortened
from saukit.data.class_folders import (
    Members,
    class_name,
    classes_in,
    inner_folder,
    leaf_names,
    look_inside,
    members_of,
)
from saukit.data.image_files import KINDS, Folder, FoundFiles, read_folder
from saukit.data.part_names import FILLERS, PARTS, ROLE_OF, Key, role_of, words_of
from saukit.data.source_config import DEFAULT_TEST_FRACTION, SourceConfig

ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"})
TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Layout:
    """The image files of each part and class, in the order of class names (NFC) and of paths.

    parts: "train", and "test" and "val" where the folder has them; each has every class, and may have no image of it.
    notes, warnings: what a person should know of the folder. passed_over: files that are no images, and links back.
    """

    parts: Mapping[str, Mapping[str, list[Path]]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    passed_over: FoundFiles


def read_layout(root: Path, config: SourceConfig) -> Layout:
    """Look at `root`. Raises: DataError for what cannot be understood, or not in one way only, with the ways out."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder with one subfolder per class as --root")
    return _Reader(read_folder(root), config).layout()


class _Top:
    """A folder with images as it may be a part: what its name says, and the folder in it whose subfolders are classes.

    A doubled folder (seg_train/seg_train, train/images) is looked through. classes: the subfolders that have images.
    """

    part: str | None
    rest: Key

    def __init__(self, folder: Folder, root: Path, inner: Folder | None = None) -> None:
        self.folder, self.inner = folder, inner or inner_folder(folder)
        self.name, self.within = _below(root, folder), _below(root, self.inner)
        role = role_of(folder.path.name)
        self.part, self.rest = (None, ()) if role is None else role
        self.classes = classes_in(self.inner)

    def alike(self, other: _Top) -> bool:
        """Whether the two have a class in common."""
        return bool(self.classes & other.classes)


class _Reader:
    """Reads a folder once; collects notes and warnings."""

    def __init__(self, root: Folder, config: SourceConfig) -> None:
        self.root, self.config = root, config
        self.tops = [_Top(folder, root.path) for folder in root.filled.values()]
        self.named = [top for part in PARTS for top in self.tops if top.part == part]
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def layout(self) -> Layout:
        found = self._parts() or {"train": self._one_tree()}
        leaves = leaf_names(top.inner for top in found.values()) if self.config.class_depth == "leaf" else None
        classes = {part: self._classes(part, top.inner, leaves) for part, top in found.items()}
        names = self._all_names(classes, found)
        if len(found) > 1 or found["train"].folder is not self.root:
            self.notes.append(", ".join(f"{PARTS[part]} images from {top.within}/" for part, top in found.items()))
        passed_over = FoundFiles()
        for top in found.values():
            passed_over += top.inner.everything()
        passed_over.images = []
        parts = {part: {name: members.get(name, []) for name in names} for part, members in classes.items()}
        return Layout(parts, tuple(self.notes), tuple(self.warnings), passed_over)

    # Parts

    def _parts(self) -> dict[str, _Top] | None:
        """The parts; None if the folder is one tree of classes."""
        named = self._named_test()
        if named is None:
            self._refuse_loose()
        train = self._train(named)
        if train is None:
            if named is None:
                self._refuse_without_train()
            return None
        if named is not None and not named.alike(train):
            raise DataError(
                f"--test-dir {named.name}: {named.folder.path} has no class folder of {train.folder.path}; "
                f"it needs one folder per class, named as there"
            )
        test, val = named or self._beside("test", train), self._beside("val", train, named)
        unnamed = [top for top in self.tops if top.part is None]
        if test is None and val is None and unnamed and not any(top.alike(train) for top in unnamed):
            return None  # a class called train
        self._tell_unused([top for top in (train, test, val) if top is not None])
        if val is not None and not val.alike(train):
            self.notes.append(f"{val.name}/ is not used: it has no class folders of {train.name}/")
            val = None
        if test is None or not test.alike(train):
            self._without_test(train, test, val)
            test = None
        return {part: top for part, top in (("train", train), ("test", test), ("val", val)) if top is not None}

    def _named_test(self) -> _Top | None:
        if (name := self.config.test_dir) is None:
            return None
        if same := [top for top in self.tops if class_name(top.name) == class_name(name.rstrip("/"))]:
            return same[0]
        there = shortened(f"{top.name}/" for top in self.tops) or "none"
        raise UsageError(f"--test-dir {name}: {self.root.path} has no such folder with images; it has {there}")

    def _train(self, test: _Top | None) -> _Top | None:
        """The training part: by its name, or all that lies beside a test or validation part with folders of the same
        names; beside the named `test` also the only other folder with classes of it."""
        train = self._only("train", [top for top in self.tops if top.part == "train"])
        if train is not None and train is test:
            raise DataError(f"--test-dir {test.name} is the training part of {self.root.path}: name another folder")
        if train is not None and train.classes:
            return train
        parts = [top for top in self.tops if (top.part in ("test", "val") and not top.rest) or top is test]
        rest = {
            name: folder for name, folder in self.root.folders.items() if all(folder is not p.folder for p in parts)
        }
        folder = Folder(self.root.path, rest, self.root.found)
        beside = _Top(folder, self.root.path, folder)
        if test is None or beside.alike(test):
            return beside if any(part.alike(beside) for part in parts) else None
        others = [top for top in self.tops if top is not test and top.alike(test)]
        return others[0] if len(others) == 1 else beside

    def _beside(self, part: str, train: _Top, other: _Top | None = None) -> _Top | None:
        """The test or validation part that belongs to `train`, by what else its name says or by a class in common."""
        tops = [top for top in self.tops if top.part == part and top is not other]
        return self._only(part, [top for top in tops if top.rest == train.rest or top.alike(train)], train.rest)

    def _only(self, part: str, tops: list[_Top], rest: Key = ()) -> _Top | None:
        """The one folder of a part: the only one, or the only one whose name says `rest` and nothing more."""
        close = [top for top in tops if top.rest == rest] if len(tops) > 1 else tops
        if len(close) > 1 or (tops and not close and part != "train"):
            ways = " or name one with --test-dir" if part == "test" else ""
            raise DataError(
                f"{' and '.join(f'{top.name}/' for top in tops)} of {self.root.path} all look like "
                f"the {PARTS[part]} part: rename or remove all but one{ways}"
            )
        return close[0] if close else None

    def _without_test(self, train: _Top, test: _Top | None, val: _Top | None) -> None:
        """There is no test set: go on if a test part is to be split off `train`. Raises: DataError with the ways."""
        root = self.root.path
        if test is not None and len(test.classes) > 1:
            raise DataError(
                f"{train.name}/ and {test.name}/ of {root} have no class in common "
                f"({_some(train.classes)}; {_some(test.classes)}): name their class folders alike"
            )
        if test is None:
            state = f"{root} has {', '.join(f'{top.name}/' for top in self.tops)} but no test set"
            last = "or add test/"
        else:
            state = f"{test.name}/ of {root} has {test.folder.count} images without class folders"
            predict = f"`saukit predict {test.folder.path}` classifies them once a network is trained"
            last = f"or give them class folders. {predict}"
            if self.config.test_fraction is not None:
                self.notes.append(f"{state}, so the test part is taken from {train.name}/; {predict}")
        if self.config.test_fraction is not None:
            return
        ways = [
            f"--test-dir {top.name} tests on {top.name}/" for top in self.tops if top is not train and top.alike(train)
        ]
        keeps = "" if val is None else f", and {val.name}/ stays the validation part"
        ways.append(f"--test-fraction {DEFAULT_TEST_FRACTION} takes a test part off {train.name}/{keeps}")
        raise DataError(f"{state}: {'; '.join(ways)}; {last}")

    def _refuse_loose(self) -> None:
        """Raises: DataError if images lie loose in what are parts by their names."""
        named, other = self.named, [f"{top.name}/" for top in self.tops if top.part is None]
        if not named or named[0].classes:
            return
        rests = {part: {top.rest for top in named if top.part == part} for part in PARTS}
        there = [found for found in rests.values() if found]
        if len(there) > 1 and len(there[0]) > 1 and all(found == there[0] for found in there):
            some, name = " and ".join(f"{top.name}/" for top in named[:2]), "_".join(named[0].rest)
            raise DataError(
                f"{some} of {self.root.path} name a class and a part: put the parts above the classes, such as "
                f"train/{name}/ and {next(top.part for top in named if top.part != named[0].part)}/{name}/"
            )
        if len(set().union(*there)) > 1:
            return  # train_station/ and test_tube/ are classes
        bare = any(top.folder.path.name.lower() in ROLE_OF for top in named)
        if not rests["train"] and len(there) < 2 and not (bare and other):
            return  # so are dev1/ and dev2/
        if not other:
            self._refuse_unlabelled([top for top in named if top.inner.found.images])
        elif len(there) > 1 or bare:
            names, many = " and ".join(f"{top.name}/" for top in named), len(named) > 1
            as_classes = f"{'are' if many else 'is'} taken as {'classes' if many else 'a class'}"
            self.warnings.append(
                f"{names} {as_classes}, like {shortened(other, limit=5)} beside {'them' if many else 'it'}"
            )

    def _refuse_unlabelled(self, tops: Sequence[_Top]) -> None:
        images = [path for top in tops for path in top.inner.found.images]
        words = list(dict.fromkeys(match[0] for path in images if (match := re.match(r"[^\W\d_]+", path.stem))))
        names = [f"{top.name}/" for top in tops if top.folder is not self.root]
        seems = f" (the classes seem to stand in the file names: {shortened(words, limit=5)})" if len(words) > 1 else ""
        where = f"{' and '.join(names)} of {self.root.path}" if names else f"{self.root.path}"
        example = f"{names[0] if names else ''}{(words or ['cat'])[0]}/"
        raise DataError(
            f"{where} {'hold' if len(names) > 1 else 'holds'} images, such as {images[0].name}, but no class folders"
            f"{seems}: sort them into one folder per class, such as {example}, or {self._by_list()}"
        )

    def _by_list(self) -> str:
        """The way out by a list, with the tables that lie in the root."""
        tables = shortened(sorted(path.name for path in self.root.path.glob("*.*") if path.suffix.lower() in TABLES))
        return (
            f"name their labels in a list (--dataset list{f' --train-list FILE; there is {tables}' if tables else ''})"
        )

    def _refuse_without_train(self) -> None:
        named = self.named
        if len(named) == len(self.tops) > 0 and all(top.classes for top in named):
            names = ", ".join(f"{top.name}/" for top in named)
            raise DataError(
                f"{self.root.path} has {names} but no train/: add or rename one, "
                f"or give {named[0].folder.path} as --root to split that with --test-fraction"
            )

    def _tell_unused(self, used: Sequence[_Top]) -> None:
        if used[0].folder.path != self.root.path:
            unused = [f"{top.name}/ ({top.folder.count} images)" for top in self.tops if top not in used]
            if unused:
                self.notes.append(f"folders that are not part of the data set are left out: {shortened(unused)}")
            self._tell_loose("parts", self.root)

    def _tell_loose(self, beside: str, folder: Folder) -> None:
        if loose := folder.found.images:
            where = "" if folder.path == self.root.path else f" in {_below(self.root.path, folder)}/"
            names = shortened((path.name for path in loose), limit=3)
            self.warnings.append(f"images beside the {beside}{where} are left out: {len(loose)} ({names})")

    # One tree

    def _one_tree(self) -> _Top:
        tree = _Top(self.root, self.root.path, self.root)
        for top in self.tops:
            inside = [_Top(child, self.root.path) for child in top.folder.filled.values()]
            roles = {each.part for each in inside}
            if "train" in roles and len(roles) > 1:
                self._refuse_parts_inside(top, inside)
        if self.config.class_depth == "leaf":
            return tree
        if len(self.tops) == 1 and (better := _wider(self.tops[0].folder)):
            raise DataError(
                f"{self.root.path} has one folder with images, {self.tops[0].name}/: did you mean --root {better.path}?"
            )
        if len(self.tops) <= 1 and self.root.found.images and len(self.root.folders) < 2:
            self._refuse_unlabelled([tree])
        if len(self.tops) == 1 and FILLERS.issuperset(words_of(self.tops[0].name)) and self.tops[0].inner.found.images:
            self._refuse_unlabelled(self.tops)
        return tree

    def _refuse_parts_inside(self, top: _Top, inside: list[_Top]) -> None:
        if next(each for each in inside if each.part == "train").classes:
            raise DataError(f"{self.root.path} has parts in {top.name}/: did you mean --root {top.folder.path}?")
        alike = [other for other in self.tops if any(role_of(name) for name in other.folder.folders)]
        if len(alike) > 1:
            names = ", ".join(f"{each.name}/" for each in inside if each.part)
            raise DataError(
                f"the class folders of {self.root.path} have parts inside ({names}): "
                f"put the parts above the classes, such as train/{top.name}/ and test/{top.name}/"
            )

    # Classes

    def _classes(self, part: str, folder: Folder, leaves: Mapping[Key, str] | None) -> Members:
        members = members_of(folder, leaves, with_empty=part == "train")
        if part == "train" and self.config.class_depth is None:
            self.notes += look_inside(folder, by_list=self._by_list(), is_root=folder.path == self.root.path)
        if len(members) < 2 and part == "train":
            packed = [f"{count} {kind}" for kind, count in folder.found.ignored.items() if kind in ARCHIVES]
            hint = f" and {', '.join(packed)}: unpack what is packed first" if packed else ""
            if not hint and (better := _wider(folder)):
                hint = f": --class-depth leaf takes the folders in {better.path.name}/ as classes"
            raise DataError(f"{folder.path} needs at least two subfolders, one per class; it has {len(members)}{hint}")
        loose, inside = len(folder.found.images), sum(map(len, members.values()))
        if loose > inside:
            raise DataError(
                f"{folder.path} has {loose} images beside its class folders and {inside} inside: "
                "move each to the folder of its class, or away"
            )
        self._tell_loose("class folders", folder)
        return members

    def _all_names(self, classes: Mapping[str, Members], found: Mapping[str, _Top]) -> tuple[str, ...]:
        names = tuple(sorted({name for members in classes.values() for name in members}))
        odd = [repr(name) for name in names if name.encode("utf-8", "ignore").decode() != name]
        if odd:
            raise DataError(f"folder names that are not UTF-8 cannot name classes: {', '.join(odd)}; rename them")
        train = classes["train"]
        spelled = Counter(name.casefold() for name in names)
        if alike := [name for name in names if spelled[name.casefold()] > 1]:
            self.warnings.append(f"classes whose names differ in case alone: {shortened(alike)}")
        empty = [name + self._where(name, classes, found) for name in names if not train.get(name)]
        if empty and not self.config.min_images:
            alone = all(name in train for name in names)
            what = f"class folders of {self.root.path} without an image ({KINDS})"
            raise DataError(
                f"{what if alone else f'classes of {self.root.path} without a training image'}: {shortened(empty)}; "
                "fill or remove them, or leave such classes out with --min-images 1"
            )
        return names

    def _where(self, name: str, classes: Mapping[str, Members], found: Mapping[str, _Top]) -> str:
        if name in classes["train"]:
            return ""
        parts = ", ".join(f"{found[part].within}/" for part in classes if name in classes[part])
        alike = [other for other in classes["train"] if other.strip().casefold() == name.strip().casefold()]
        return f" (only in {parts}{f', where train has {alike[0]}' if alike else ''})"


def _below(root: Path, folder: Folder) -> str:
    """The folder as messages name it, from `root` on."""
    return folder.path.relative_to(root).as_posix() if folder.path != root else root.name


def _wider(folder: Folder) -> Folder | None:
    """The first folder from `folder` downwards, alone on its level, that has at least two folders with images."""
    while len(folder.filled) == 1:
        (folder,) = folder.filled.values()
    return folder if folder.filled else None


def _some(classes: Iterable[str]) -> str:
    return shortened(sorted(classes), limit=3)
