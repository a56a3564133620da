"""How a folder of images is laid out: which folders are its parts, and which are its classes.

    ROOT/CLASS/...                                one tree
    ROOT/train/CLASS/... ROOT/test/CLASS/...      parts, under any of their usual names, perhaps with ROOT/val/CLASS/...

What can be read in two ways is refused with the ways out; nothing is guessed from file names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from saukit.core.errors import DataError, UsageError
from saukit.core.words import shortened
from saukit.data.image_files import KINDS, Folder, FoundFiles, read_folder
from saukit.data.source_config import DEFAULT_TEST_FRACTION, SourceConfig

PARTS = {"train": "training", "test": "test", "val": "validation"}
ROLES = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "valid", "validation", "validate", "dev"),
}
ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
# What may stand beside such a word and says nothing more: train_images, TestSet, val-split.
FILLERS = frozenset({"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder", "part", "samples"})
WORD = re.compile(rf"({'|'.join(sorted(ROLE_OF, key=len, reverse=True))})({'|'.join(sorted(FILLERS))})?")
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"})
Key = tuple[str, ...]


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


def role_of(name: str) -> tuple[str, Key] | None:
    """The part that a folder's name stands for, and what else the name says: "seg_train2" is train of "seg".

    Any case; None if no word of it names a part, or several do.
    """
    role, rest = None, []
    for word in re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFC", name).lower()):
        if match := WORD.fullmatch(word):
            if role is not None:
                return None
            role = ROLE_OF[match[1]]
        elif word not in FILLERS and not word.isdecimal():
            rest.append(word)
    return None if role is None else (role, tuple(rest))


def part_of(name: str) -> str | None:
    """The part that a name stands for, where it says nothing else."""
    role = role_of(name)
    return role[0] if role is not None and not role[1] else None


class _Reader:
    """One look at a folder; collects what is to be told."""

    def __init__(self, root: Folder, config: SourceConfig) -> None:
        self.root, self.config = root, config
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def layout(self) -> Layout:
        found = self._parts() or self._one_tree()
        classes = {part: self._classes(part, folder, found) for part, folder in found.items()}
        names = self._all_names(classes, found)
        if len(found) > 1 or found["train"] is not self.root:
            self.notes.append(", ".join(f"{PARTS[part]} images from {self._name(of)}/" for part, of in found.items()))
        passed_over = FoundFiles()
        for folder in found.values():
            passed_over += folder.everything()
        passed_over.images = []
        parts = {part: {name: members.get(name, []) for name in names} for part, members in classes.items()}
        return Layout(parts, tuple(self.notes), tuple(self.warnings), passed_over)

    # Parts

    def _parts(self) -> dict[str, Folder] | None:
        """The folders of the parts; None if the folder is one tree of classes."""
        roles = self._roles(self.root)
        train = self._only("train", roles.get("train", []), ())
        if self.config.test_dir is not None:
            return self._with_named_test(self.config.test_dir, roles, train)
        self._refuse_loose(roles, train)
        if train is None or not _classes_in(_inner(train)):
            self._refuse_without_train(roles, train)
            return None
        test, val = (
            self._only(part, self._fitting(roles.get(part, []), train), _key(train)) for part in ("test", "val")
        )
        beside = [f for name, f in self.root.folders.items() if f.count and role_of(name) is None]
        if (
            test is None
            and val is None
            and beside
            and not any(_shares_classes(_inner(f), _inner(train)) for f in beside)
        ):
            return None  # a class called train
        found = {"train": _inner(train)}
        self._tell_unused([folder for folder in (train, test, val) if folder is not None])
        if val is not None and not _shares_classes(_inner(val), found["train"]):
            self.notes.append(f"{self._name(val)}/ is not used: it has no class folders of {self._name(train)}/")
            val = None
        if test is not None and _shares_classes(_inner(test), found["train"]):
            found["test"] = _inner(test)
        else:
            self._without_test(train, test, val)
        if val is not None:
            found["val"] = _inner(val)
        return found

    def _roles(self, parent: Folder) -> dict[str, list[Folder]]:
        named = [(role_of(name), folder) for name, folder in parent.folders.items() if folder.count]
        roles = {part: [folder for role, folder in named if role and role[0] == part] for part in PARTS}
        return {part: folders for part, folders in roles.items() if folders}

    def _fitting(self, folders: Iterable[Folder], train: Folder) -> list[Folder]:
        """Those that belong to `train`: by the rest of their names, or because they have a class in common."""
        return [f for f in folders if _key(f) == _key(train) or _shares_classes(_inner(f), _inner(train))]

    def _only(self, part: str, folders: list[Folder], key: Key) -> Folder | None:
        """The one folder of a part: the only one, or the only one whose name says `key` and nothing more."""
        close = [folder for folder in folders if _key(folder) == key] if len(folders) > 1 else folders
        if len(close) > 1 or (folders and not close and part != "train"):
            ways = " or name one with --test-dir" if part == "test" else ""
            raise DataError(
                f"{' and '.join(f'{self._name(folder)}/' for folder in folders)} of {self.root.path} all look like "
                f"the {PARTS[part]} part: rename or remove all but one{ways}"
            )
        return close[0] if close else None

    def _with_named_test(self, name: str, roles: dict[str, list[Folder]], train: Folder | None) -> dict[str, Folder]:
        same = [folder for other, folder in self.root.folders.items() if _nfc(other) == _nfc(name.rstrip("/"))]
        if not same:
            there = shortened(f"{other}/" for other in self.root.folders) or "no folders"
            raise UsageError(f"--test-dir {name}: {self.root.path} has no such folder; it has {there}")
        test = same[0]
        if train is test:
            raise DataError(f"--test-dir {name} is the training part of {self.root.path}: name another folder")
        if train is not None and _classes_in(_inner(train)):
            found = {"train": _inner(train), "test": _inner(test)}
            vals = [folder for folder in self._fitting(roles.get("val", []), train) if folder is not test]
            val = self._only("val", vals, _key(train))
            if val is not None and _shares_classes(_inner(val), found["train"]):
                found["val"] = _inner(val)
            self._tell_unused([train, test, *([val] if val is not None else [])])
        else:  # classes and the test set side by side
            rest = {other: folder for other, folder in self.root.folders.items() if folder is not test}
            found = {
                "train": Folder(self.root.path, rest, self.root.found),
                "test": _inner(test),
            }
        if not _shares_classes(found["test"], found["train"]):
            raise DataError(
                f"--test-dir {name}: {test.path} has no class folder of {found['train'].path}; "
                f"it needs one folder per class, named as there"
            )
        return found

    def _without_test(self, train: Folder, test: Folder | None, val: Folder | None) -> None:
        """There is no test set: go on if a test part is to be split off `train`. Raises: DataError with the ways."""
        root = self.root.path
        if test is not None and len(_classes_in(_inner(test))) > 1:
            raise DataError(
                f"{self._name(train)}/ and {self._name(test)}/ of {root} have no class in common "
                f"({_some(_inner(train))}; {_some(_inner(test))}): name their class folders alike"
            )
        if test is None:
            there = ", ".join(f"{name}/" for name, folder in self.root.folders.items() if folder.count)
            state, last = f"{root} has {there} but no test set", "or add test/"
        else:
            state = f"{self._name(test)}/ of {root} has {test.count} images without class folders"
            last = f"or give them class folders. `saukit predict {test.path}` classifies them once a network is trained"
        if self.config.test_fraction is not None:
            if test is not None:
                self.notes.append(
                    f"{state}, so the test part is taken from {self._name(train)}/; {last.split('. ')[1]}"
                )
            return
        ways = [
            f"--test-dir {name} tests on {name}/"
            for name, folder in self.root.folders.items()
            if folder is not train and _shares_classes(_inner(folder), _inner(train))
        ]
        keeps = "" if val is None else f", and {self._name(val)}/ stays the validation part"
        ways.append(f"--test-fraction {DEFAULT_TEST_FRACTION} takes a test part off {self._name(train)}/{keeps}")
        raise DataError(f"{state}: {'; '.join(ways)}; {last}")

    def _refuse_loose(self, roles: dict[str, list[Folder]], train: Folder | None) -> None:
        """Raises: DataError if images lie loose in what are parts by their names."""
        named = [folder for folders in roles.values() for folder in folders]
        other = [f"{name}/" for name, folder in self.root.folders.items() if folder.count and role_of(name) is None]
        first = train or (named[0] if named else None)
        if first is None or _classes_in(_inner(first)) or len({_key(folder) for folder in named}) > 1:
            return  # train_station/ and test_tube/ are classes
        bare = any(folder.path.name.lower() in ROLE_OF for folder in named)
        if train is None and len(roles) < 2 and not (bare and other):
            return  # so are dev1/ and dev2/
        if not other:
            self._refuse_unlabelled([folder for folder in named if _inner(folder).found.images])
        elif len(roles) > 1 or bare:
            names = " and ".join(f"{self._name(folder)}/" for folder in named)
            many = len(named) > 1
            as_classes = f"{'are' if many else 'is'} taken as {'classes' if many else 'a class'}"
            self.warnings.append(
                f"{names} {as_classes}, like {shortened(other, limit=5)} beside {'them' if many else 'it'}"
            )

    def _refuse_unlabelled(self, folders: list[Folder]) -> None:
        images = [path for folder in folders for path in _inner(folder).found.images]
        words = list(dict.fromkeys(match[0] for path in images if (match := re.match(r"[^\W\d_]+", path.stem))))
        names = [f"{self._name(folder)}/" for folder in folders if folder is not self.root]
        seems = f" (the classes seem to stand in the file names: {shortened(words, limit=5)})" if len(words) > 1 else ""
        where = f"{' and '.join(names)} of {self.root.path}" if names else f"{self.root.path}"
        example = f"{names[0] if names else ''}{(words or ['cat'])[0]}/"
        raise DataError(
            f"{where} {'hold' if len(names) > 1 else 'holds'} images, such as {images[0].name}, but no class folders"
            f"{seems}: sort them into one folder per class, such as {example}, or name "
            "their labels in a list (--dataset list)"
        )

    def _refuse_without_train(self, roles: dict[str, list[Folder]], train: Folder | None) -> None:
        named = [folder for folders in roles.values() for folder in folders]
        only_parts = len(named) == sum(1 for folder in self.root.folders.values() if folder.count)
        if train is None and named and only_parts and all(_classes_in(_inner(folder)) for folder in named):
            names = ", ".join(f"{self._name(folder)}/" for folder in named)
            raise DataError(
                f"{self.root.path} has {names} but no train/: add or rename one, "
                f"or give {named[0].path} as --root to split that with --test-fraction"
            )

    def _tell_unused(self, used: list[Folder]) -> None:
        unused = [
            f"{name}/ ({folder.count} images)"
            for name, folder in self.root.folders.items()
            if not any(folder is one for one in used)
        ]
        if unused:
            self.notes.append(f"folders that are not part of the data set are left out: {shortened(unused)}")
        self._tell_loose("parts", self.root)

    def _tell_loose(self, beside: str, folder: Folder) -> None:
        if loose := folder.found.images:
            where = "" if folder is self.root else f" in {self._name(folder)}/"
            names = shortened((path.name for path in loose), limit=3)
            self.warnings.append(f"images beside the {beside}{where} are left out: {len(loose)} ({names})")

    # One tree

    def _one_tree(self) -> dict[str, Folder]:
        root = self.root
        filled = [folder for folder in root.folders.values() if folder.count]
        for folder in filled:
            if (inside := self._roles(folder)).get("train") and len(inside) > 1:
                self._refuse_parts_inside(folder, filled)
        if self.config.class_depth == "leaf":
            return {"train": root}
        if len(filled) == 1 and (better := _wider(filled[0])):
            raise DataError(
                f"{root.path} has one folder with images, {filled[0].path.name}/: did you mean --root {better.path}?"
            )
        if len(filled) <= 1 and root.found.images and len(root.folders) < 2:
            self._refuse_unlabelled([root])
        return {"train": root}

    def _refuse_parts_inside(self, folder: Folder, filled: list[Folder]) -> None:
        inside = [f"{folder.path.name}/{name}/" for name in folder.folders if role_of(name)]
        alike = [other for other in filled if "train" in self._roles(other)]
        if _classes_in(_inner(self._roles(folder)["train"][0])):
            raise DataError(f"{self.root.path} has parts in {folder.path.name}/: did you mean --root {folder.path}?")
        if len(alike) > 1:
            name = folder.path.name
            raise DataError(
                f"the class folders of {self.root.path} have parts inside ({', '.join(inside)}): "
                f"put the parts above the classes, such as train/{name}/ and test/{name}/"
            )

    # Classes

    def _classes(self, part: str, folder: Folder, found: Mapping[str, Folder]) -> dict[str, list[Path]]:
        """The images of each class of a part; classes without an image are there too."""
        members: dict[str, list[Path]] = {}
        if self.config.class_depth == "leaf":
            short = _short_names(found.values())
            for names, node in _nodes(folder):
                if node.found.images or (len(names) == 1 and not node.count):
                    members.setdefault(short.get(names, names[-1]), []).extend(node.found.images)
        else:
            for name, child in folder.folders.items():
                members.setdefault(_nfc(name), []).extend(child.everything().images)
            if part == "train":
                self._tell_nested(folder)
        if len(members) < 2 and part == "train":
            packed = [f"{count} {kind}" for kind, count in folder.found.ignored.items() if kind in ARCHIVES]
            unpack = f" and {', '.join(packed)}: unpack what is packed first" if packed else ""
            raise DataError(
                f"{folder.path} needs at least two subfolders, one per class; it has {len(members)}{unpack}"
            )
        loose, inside = len(folder.found.images), sum(map(len, members.values()))
        if loose > inside:
            raise DataError(
                f"{folder.path} has {loose} images beside its class folders and {inside} inside: "
                "move each to the folder of its class, or away"
            )
        self._tell_loose("class folders", folder)
        return {name: sorted(members[name]) for name in sorted(members)}

    def _tell_nested(self, folder: Folder) -> None:
        nested = [
            f"{name}/{inner}"
            for name, child in folder.folders.items()
            for inner, grandchild in child.folders.items()
            if grandchild.count
        ]
        same = [_classes_in(child) for child in folder.folders.values() if child.count]
        if len(same) > 1 and len(same[0]) > 1 and all(inside == same[0] for inside in same):
            first, *others = [name for name, child in folder.folders.items() if child.count]
            self.warnings.append(
                f"{first}/ and {shortened([f'{name}/' for name in others], limit=3)} have the same folders inside "
                f"({shortened(sorted(same[0]), limit=3)}) and are taken as classes: if those inside are the classes, "
                f"give --root {folder.path / first}"
            )
        elif nested:
            self.notes.append(
                f"folders inside class folders count as their class ({shortened(nested, limit=4)}): "
                "--class-depth leaf makes each a class of its own"
            )

    def _all_names(
        self, classes: Mapping[str, Mapping[str, list[Path]]], found: Mapping[str, Folder]
    ) -> tuple[str, ...]:
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

    def _where(self, name: str, classes: Mapping[str, Mapping[str, list[Path]]], found: Mapping[str, Folder]) -> str:
        if name in classes["train"]:
            return ""
        parts = ", ".join(f"{self._name(found[part])}/" for part in classes if name in classes[part])
        alike = [other for other in classes["train"] if other.casefold() == name.casefold()]
        return f" (only in {parts}{f', where train has {alike[0]}' if alike else ''})"

    def _name(self, folder: Folder) -> str:
        """A folder relative to the root, as it is named in messages."""
        return folder.path.relative_to(self.root.path).as_posix() if folder.path != self.root.path else folder.path.name


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _key(folder: Folder) -> Key:
    role = role_of(folder.path.name)
    return () if role is None else role[1]


def _inner(folder: Folder) -> Folder:
    """The folder whose subfolders are classes: a doubled one (seg_train/seg_train, train/images) is looked through."""
    while not folder.found.images:
        filled = [child for child in folder.folders.values() if child.count]
        if len(filled) != 1:
            break
        name, own = filled[0].path.name.lower(), role_of(folder.path.name)
        if not (name == folder.path.name.lower() or name in FILLERS or (own and role_of(name) == own)):
            break
        folder = filled[0]
    return folder


def _classes_in(folder: Folder) -> set[str]:
    """The names of the subfolders that have images."""
    return {_nfc(name) for name, child in folder.folders.items() if child.count}


def _shares_classes(one: Folder, other: Folder) -> bool:
    return bool(_classes_in(one) & _classes_in(other))


def _wider(folder: Folder) -> Folder | None:
    """The first folder from `folder` downwards, alone on its level, that has at least two folders with images."""
    while len(filled := [child for child in folder.folders.values() if child.count]) == 1:
        folder = filled[0]
    return folder if len(filled) > 1 else None


def _nodes(folder: Folder) -> Iterator[tuple[Key, Folder]]:
    """All folders below, with their names from `folder` on."""
    ahead: list[tuple[Key, Folder]] = [((_nfc(name),), child) for name, child in folder.folders.items()]
    while ahead:
        names, node = ahead.pop()
        yield names, node
        ahead += [((*names, _nfc(name)), child) for name, child in node.folders.items()]


def _short_names(folders: Iterable[Folder]) -> dict[Key, str]:
    """The names of leaf classes: their own, or the whole way where two have the same."""
    leaves = {
        names for folder in folders for names, node in _nodes(folder)
        if node.count and not any(child.count for child in node.folders.values())
    }  # fmt: skip
    last = Counter(names[-1] for names in leaves)
    return {names: names[-1] if last[names[-1]] == 1 else "/".join(names) for names in leaves}


def _some(folder: Folder) -> str:
    return shortened(sorted(_classes_in(folder)), limit=3)
