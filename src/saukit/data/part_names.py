"""What a name says of the part of a data set that it stands for: train, test or val, under all their usual names."""

import re
import unicodedata

PARTS = {"train": "training", "test": "test", "val": "validation"}
ROLES = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "valid", "validation", "validate", "dev"),
}
ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
# What may stand beside such a word and says nothing more: train_images, TestSet, val-split.
# fmt: off
FILLERS = frozenset({
    "set", "data", "dataset", "split", "folder", "part", "samples",
    "image", "images", "img", "imgs", "jpg", "jpeg", "jpegimages", "png", "photos", "pictures",
})
# fmt: on
WORD = re.compile(rf"({'|'.join(sorted(ROLE_OF, key=len, reverse=True))})({'|'.join(sorted(FILLERS))})?")
Key = tuple[str, ...]


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case and without numbers: "TrainSet_02" is "train", "set"."""
    parted = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    return re.findall(r"[^\W\d_]+", parted.lower().replace("trainval", "train val"))


def role_of(name: str) -> tuple[str, Key] | None:
    """The part that a folder's name stands for, and what else the name says: "seg_train2" is train of "seg".

    Any case; None if no word of it names a part, or several do, but for trainval, which is train of "val".
    """
    roles, rest = [], []
    for word in words_of(name):
        if match := WORD.fullmatch(word):
            roles.append(ROLE_OF[match[1]])
        elif word not in FILLERS:
            rest.append(word)
    if roles == ["train", "val"]:
        return "train", (*rest, "val")
    return (roles[0], tuple(rest)) if len(roles) == 1 else None


def part_of(name: str) -> str | None:
    """The part that a name stands for, where it says nothing else."""
    role = role_of(name)
    return role[0] if role is not None and not role[1] else None
