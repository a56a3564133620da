"""The classes of a part: the folders in it, or with `--class-depth leaf` the innermost ones."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from saukit.core.errors import DataError
from saukit.core.words import shortened
from saukit.data.image_files import Folder
from saukit.data.part_names import FILLERS, Key, role_of, words_of

PIECES = FILLERS | {"batch", "chunk", "fold", "piece", "section", "shard"}
TOP = "--class-depth top takes {} as classes"
Members = Mapping[str, list[Path]]  # the images of each class, in the order of the names


def class_name(name: str) -> str:
    """The class that a folder's name stands for: NFC and NFD are one name."""
    return unicodedata.normalize("NFC", name)


def classes_in(folder: Folder) -> set[str]:
    """The classes of the subfolders that have images."""
    return set(map(class_name, folder.filled))


def inner_folder(folder: Folder) -> Folder:
    """The folder whose subfolders are classes: a doubled one (seg_train/seg_train, train/images) is looked through."""
    while not folder.found.images and len(folder.filled) == 1:
        (child,), own = folder.filled.values(), role_of(folder.path.name)
        name = child.path.name.lower()
        if not (name == folder.path.name.lower() or name in FILLERS or (own and role_of(name) == own)):
            break
        folder = child
    return folder


def members_of(folder: Folder, leaves: Mapping[Key, str] | None, *, with_empty: bool) -> Members:
    """The images of each class; of those without any only `with_empty`. `leaves`: as `leaf_names`, if they count."""
    members: dict[str, list[Path]] = {}
    if leaves is None:
        for name, child in folder.folders.items():
            if child.count or with_empty:
                members.setdefault(class_name(name), []).extend(child.everything().images)
    else:
        for names, node in _below(folder):
            if node.found.images or (len(names) == 1 and not node.count and with_empty):
                members.setdefault(leaves.get(names, names[-1]), []).extend(node.found.images)
    return {name: sorted(members[name]) for name in sorted(members)}


def leaf_names(folders: Iterable[Folder]) -> dict[Key, str]:
    """The names of leaf classes: their own, or the whole way where two have the same."""
    below = [entry for folder in folders for entry in _below(folder)]
    leaves = {names for names, node in below if node.count and not node.filled}
    last = Counter(names[-1] for names in leaves)
    return {names: names[-1] if last[names[-1]] == 1 else "/".join(names) for names in leaves}


def _below(folder: Folder) -> Iterator[tuple[Key, Folder]]:
    """All folders below, with their names from `folder` on."""
    for node in folder.walk():
        if names := node.path.relative_to(folder.path).parts:
            yield tuple(map(class_name, names)), node


def look_inside(folder: Folder, *, by_list: str, is_root: bool) -> list[str]:
    """Notes on folders inside the class folders of `folder`, which may be the root; `by_list`: the way out.

    Raises: DataError where those may be the classes, or these may be none.
    """
    filled = folder.filled
    inside = {name: classes_in(inner_folder(child)) for name, child in filled.items()}
    names, words = shortened((f"{name}/" for name in filled), limit=3), [words_of(name) for name in filled]
    same = set.intersection(*inside.values()) if len(filled) > 1 else set()
    if len(same) > 1 and 2 * len(same) >= max(map(len, inside.values())):
        first, *others = filled
        test = f"; if one is the test set, --test-dir {others[0]}" if is_root and len(filled) == 2 else ""
        raise DataError(
            f"{names} of {folder.path} have the same folders inside ({shortened(sorted(same), limit=3)}): if those are "
            f"the classes, give --root {filled[first].path}{test}; {TOP.format(names)}"
        )
    if len(filled) > 1 and all(of == words[0] for of in words) and PIECES.intersection(words[0]):
        raise DataError(
            f"{names} of {folder.path} differ in a number alone and seem to be pieces of one set: "
            f"{by_list}; {TOP.format('them')}"
        )
    for name, of in inside.items():
        if among := of.intersection(map(class_name, filled.keys() - {name})):
            out = f"--test-dir {name} tests on it" if is_root else f"move it out of {folder.path.name}/"
            raise DataError(
                f"{name}/ lies among the classes of {folder.path} and has folders of their names inside "
                f"({shortened(sorted(among), limit=3)}): {out}; --class-depth top takes it as a class"
            )
    if nested := [f"{name}/{inner}" for name, child in filled.items() for inner in child.filled]:
        return [
            f"folders inside class folders count as their class ({shortened(nested, limit=4)}): "
            "--class-depth leaf makes each a class of its own"
        ]
    return []
