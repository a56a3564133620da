import codecs
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.errors import DataError, UsageError
from saukit.data.config import SplitConfig
from saukit.data.source import Source
from saukit.data.sources.table import TABLE, open_source

from ..conftest import loaded

FILES = ("a/cat 1.png", "a/cat 2.png", "a/cat 3.png", "b/dog 1.png", "b/dog 2.png", "b/dog 3.png")
LINES = "a/cat 1.png 0\na/cat 2.png 0\na/cat 3.png 0\nb/dog 1.png 1\nb/dog 2.png 1\nb/dog 3.png 1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in two folders, with blanks in their names."""
    random = np.random.default_rng(0)
    for name in FILES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def opened(
    root: Path, content: str | bytes | Mapping[str, str | bytes], name: str = "list.txt", **options: Any
) -> Source:
    """The source of a list (or of several, by part) with this content, written beside the images."""
    contents = content if isinstance(content, Mapping) else {"train": content}
    lists: dict[str, Any] = {}
    for part, text in contents.items():
        file = root.parent / f"{part}_{name}"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        lists[f"{part}_list"] = str(file)
    return open_source(SplitConfig(dataset="list", **lists, **options), root)


def pixels_of(root: Path, name: str) -> Any:
    return np.asarray(Image.open(root / name)).transpose(2, 0, 1)


def test_a_list_is_read_in_its_order(root: Path) -> None:
    source = opened(root, LINES)
    assert source.classes == ("0", "1") and source.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test_labels is None and source.val_labels is None and source.image_size == 8 and not source.notes
    assert source.files is not None and list(source.files()["train"]) == list(FILES)
    images = loaded(source, 8).read("train", np.array([4, 0]), 8)
    assert (images[0] == pixels_of(root, FILES[4])).all() and (images[1] == pixels_of(root, FILES[0])).all()


@pytest.mark.parametrize(
    "text",
    [
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        codecs.BOM_UTF8 + LINES.encode(),
        LINES.rstrip(),
        "\n\n" + LINES.replace("\n", "  \n\n"),
        LINES.replace("png ", "png\t"),
        LINES.replace("png ", "png \t  "),
        LINES.replace("a/", "./a/").replace("b/", "a/../b//"),
        LINES.replace("/", "\\"),  # written on Windows
        LINES.replace(".png", ""),  # names without an extension
    ],
    ids=["crlf", "cr", "bom", "no-end", "blank-lines", "tab", "blanks", "dots", "backslashes", "stems"],
)
def test_the_same_list_written_another_way(root: Path, text: str | bytes) -> None:
    source, expected = opened(root, text), opened(root, LINES)
    assert source.files is not None and expected.files is not None and source.files() == expected.files()
    assert source.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and source.fingerprint == expected.fingerprint


def test_labels_behind_the_only_tab_may_have_blanks(root: Path) -> None:
    source = opened(root, LINES.replace("png 0", "png\tlarge cat").replace("png 1", "png \t small dog"))
    assert source.classes == ("large cat", "small dog") and source.train_labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("stems", [False, True])
def test_names_without_a_folder_are_found_below_the_root(root: Path, stems: bool) -> None:
    for name in FILES:
        (root / name).rename(root / name.replace(" ", "_"))
    text = "".join(f"{name.replace(' ', '_')[2:]} {name[2:5]}\n" for name in FILES)
    source = opened(root, text.replace(".png", "") if stems else text)
    assert source.files is not None and list(source.files()["train"]) == [name.replace(" ", "_") for name in FILES]
    assert f"6 images of train_list.txt are in folders of {root}, found by their names" in source.notes
    (root / "b" / "cat_1.png").write_bytes((root / "a" / "cat_1.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of the 6 listed images are not in .*\n  cat_1"):  # which one is not clear
        opened(root, text.replace(".png", "") if stems else text)


def test_absolute_paths_within_the_root_are_relative_ones(root: Path) -> None:
    source = opened(root, "".join(f"{root}/{line}\n" for line in LINES.splitlines()))
    assert source.files is not None and list(source.files()["train"]) == list(FILES)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ("0 0 1 1 10 2", ("0", "1", "2", "10"), [0, 0, 1, 1, 3, 2]),  # by value, not as text
        ("3 3 3 7 7 7", ("3", "7"), [0, 0, 0, 1, 1, 1]),  # gaps are no classes
        ("01 1 01 1 01 1", ("01", "1"), [0, 1, 0, 1, 0, 1]),  # as text: two classes
        ("00 01 02 09 10 10", ("00", "01", "02", "09", "10"), [0, 1, 2, 3, 4, 4]),
        ("dog cat dog cat 7 7", ("7", "cat", "dog"), [2, 1, 2, 1, 0, 0]),
        ("Katze Hündin 猫 猫 $_[red] Katze", ("$_[red]", "Hündin", "Katze", "猫"), [2, 1, 3, 3, 0, 2]),
    ],
)
def test_classes_are_integers_by_value_or_text(
    root: Path, labels: str, classes: tuple[str, ...], expected: list[int]
) -> None:
    source = opened(root, "".join(f"{name} {label}\n" for name, label in zip(FILES, labels.split(), strict=True)))
    assert source.classes == classes and source.train_labels.tolist() == expected


def test_a_file_names_integer_labels(root: Path) -> None:
    names = root.parent / "names.txt"
    names.write_text("black cat\nred dog\nblue eel\n\n")
    source = opened(root, LINES, class_names=str(names))
    assert source.classes == ("black cat", "red dog")
    assert source.notes == ("classes without a training image are left out: blue eel",)


@pytest.mark.parametrize(
    ("names", "lines", "kind", "message"),
    [
        ("cat\n", LINES, DataError, r"names.txt names 1 classes, 0 to 0, but labels of .*out of that range: 1"),
        ("cat\ncat\n", LINES, DataError, "one name per line, each once; not so in line 2: 'cat'"),
        ("cat\n\ndog\n", LINES, DataError, "not so in line 2: ''"),
        ("", LINES, DataError, "not so in line 1: ''"),
        ("cat\ndog\n", LINES.replace(" 0\n", " x\n"), UsageError, "class_names names integer labels, but .* has 'x'"),
        (None, LINES, DataError, r"cannot read .*names.txt: No such file"),
    ],
)
def test_a_file_of_names_that_does_not_fit_is_told(
    root: Path, names: str | None, lines: str, kind: type[Exception], message: str
) -> None:
    if names is not None:
        (root.parent / "names.txt").write_text(names)
    with pytest.raises(kind, match=message):
        opened(root, lines, class_names=str(root.parent / "names.txt"))


def test_parts_have_lists_of_their_own(root: Path) -> None:
    lines = LINES.splitlines()
    parts = {
        "train": "\n".join(lines[:1] + lines[3:4]),
        "val": lines[1],
        "test": "\n".join((lines[5], lines[4], lines[2])),
    }
    source = opened(root, parts)
    assert source.train_labels.tolist() == [0, 1]
    assert source.val_labels is not None and source.val_labels.tolist() == [0]
    assert source.test_labels is not None and source.test_labels.tolist() == [1, 1, 0]
    read = loaded(source, 8).read
    assert (read("test", np.array([2]), 8)[0] == pixels_of(root, FILES[2])).all()
    assert (read("val", np.array([0]), 8)[0] == pixels_of(root, FILES[1])).all()


def test_a_list_may_lie_in_the_root(root: Path) -> None:
    (root / "train.txt").write_text(LINES)
    assert len(open_source(SplitConfig(dataset="list", train_list="train.txt"), root).train_labels) == 6


def test_lines_that_repeat_are_taken_once_and_told(root: Path) -> None:
    source = opened(root, LINES + "a/cat 1.png 0\n./a/cat 1.png 0\n")
    assert len(source.train_labels) == 6
    assert source.notes == ("2 lines of train_list.txt repeat an image, which is taken once",)


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"lists no image: write 'path label' on each line"),
    "blank": (" \n\t\n", "lists no image"),
    "no-label": (LINES + "a/cat.png\n", r"line 7: 'a/cat.png' is not a path, a blank and a label"),
    "no-label-but-blank": (LINES + "a/cat 9.png\n", r"line 7: 'a/cat 9.png' is not a path"),
    "comma": ("a.png,0\n", r"line 1: 'a.png,0' is not .*tables are read from files called .csv or .tsv"),
    "not-utf8": (LINES.encode() + "a/Hündin.png 0\n".encode("latin-1"), "line 7: byte 0xfc is not UTF-8; save it as"),
    "utf16": (codecs.BOM_UTF16_LE + LINES.encode("utf-16-le"), "is UTF-16: save it as UTF-8"),
    "binary": (LINES.encode() + b"a\0b 0\n", "is not a text file: it holds NUL"),
    "outside": (LINES + "../b.png 0\n", r"paths of .* not in .*images: \.\./b.png \(line 7\); give the folder"),
    "outside-deep": (LINES + "a/../../b.png 0\n", r"that are not in .*images"),
    "absolute": (LINES + "/etc/b.png 0\n", r"that are not in .*images: /etc/b.png \(line 7\)"),
    "beside": (LINES + "../images2/b.png 0\n", r"that are not in .*images: \.\./images2/b.png"),
    "two-labels": (LINES + "a/cat 1.png 1\n", r"with two labels: a/cat 1.png \(0 in line 1, 1 in line 7\); remove"),
    "negative": (LINES + "b/x.png -1\n", "labels such as -1: labels are integers from 0, or names"),
    "nan": (LINES + "b/x.png nan\n", "labels such as nan: labels are integers"),
    "fraction": (LINES.replace(" 1\n", " 0.5\n"), "labels such as 0.5: labels are integers"),
    "one-class": (LINES.replace(" 1\n", " 0\n"), "needs training images of at least two classes; it has 0"),
    "missing": (LINES + "b/x.png 1\na/y.png 0\n", r"2 of the 8 listed images are not in .*\n  b/x.png \(.*line 7"),
    "folder": (LINES + "b 1\n", r"1 of the 7 listed images are not in .*\n  b \(train_list.txt, line 7\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_list_is_told_with_its_line(root: Path, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(DataError, match=message):
        opened(root, content)


def test_what_cannot_be_opened_is_told(root: Path) -> None:
    with pytest.raises(DataError, match=r"there is no list none.txt, neither in the current folder nor in"):
        open_source(SplitConfig(dataset="list", train_list="none.txt"), root)
    with pytest.raises(DataError, match=r"cannot read .*images: it is a folder, not a file; give another file"):
        open_source(SplitConfig(dataset="list", train_list=str(root)), root)
    with pytest.raises(DataError, match=r"is not a folder: give the folder that the paths in the lists start from"):
        open_source(SplitConfig(dataset="list", train_list=str(root / FILES[0])), root / "none")
    with pytest.raises(UsageError, match="dataset list needs train_list: give --train-list FILE"):
        open_source(SplitConfig(dataset="list"), root)


def test_another_root_is_suggested(root: Path) -> None:
    (root / "list.txt").write_text(LINES)
    for other in (root.parent, root / "a"):
        with pytest.raises(DataError, match=r"none of the 6 listed images is in .*did you mean --root .*images\?"):
            open_source(SplitConfig(dataset="list", train_list=str(root / "list.txt")), other)
    with pytest.raises(DataError, match=r"none of the 6 listed images is in .*skip_this/"):
        opened(root, "".join(f"skip_this/{line}\n" for line in LINES.splitlines()), skip_bad=True)


def test_missing_images_are_skipped_where_asked(root: Path) -> None:
    source = opened(root, LINES + "b/x.png 1\n", skip_bad=True)
    pixels = loaded(source, 8)
    assert pixels.ok["train"].tolist() == [True] * 6 + [False]
    assert [file for file, _ in pixels.bad] == ["b/x.png"] and "No such file" in pixels.bad[0][1]


def test_parts_that_do_not_fit_are_told(root: Path) -> None:
    lines = LINES.splitlines()
    with pytest.raises(
        DataError, match=r"images in both the train and the test part \(1\): b/dog 3.png; leave each in one"
    ):
        opened(root, {"train": LINES, "test": lines[5]})
    with pytest.raises(DataError, match=r"test_list.txt has classes without a training image: eel \(line 2\); remove"):
        opened(root, {"train": "\n".join(lines[:4]), "test": f"{lines[4]}\nb/dog 3.png eel"})


def test_the_fingerprint_is_of_names_labels_and_sizes(root: Path) -> None:
    first = opened(root, LINES).fingerprint
    assert opened(root, LINES.replace("2.png 0", "2.png 1")).fingerprint != first
    os.truncate(root / FILES[0], 10)
    assert opened(root, LINES).fingerprint != first


WELL_KNOWN = {
    "imagenet-lt": ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"),
    "places-lt": ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"),
    "inat2018": ("iNaturalist18_train.txt", "iNaturalist18_val.txt"),
}


@pytest.mark.parametrize("dataset", WELL_KNOWN)
@pytest.mark.parametrize("under", ["", "lists"])
def test_well_known_sets_find_their_lists(root: Path, dataset: str, under: str) -> None:
    lines, names = LINES.splitlines(), WELL_KNOWN[dataset]
    (root / under).mkdir(exist_ok=True)
    for name, content in zip(names, ([lines[0], lines[3]], [lines[1], lines[4]], [lines[2], lines[5]]), strict=False):
        (root / under / name).write_text("\n".join(content))
    source = open_source(SplitConfig(dataset=dataset), root)
    assert source.files is not None and source.test_labels is not None
    files = source.files()
    assert list(files["train"]) == [FILES[0], FILES[3]]
    if dataset == "inat2018":  # evaluated on its validation images
        assert list(files["test"]) == [FILES[1], FILES[4]] and source.val_labels is None
    else:
        assert list(files["val"]) == [FILES[1], FILES[4]] and list(files["test"]) == [FILES[2], FILES[5]]
    assert TABLE[dataset].flip and TABLE[dataset].imbalanced


@pytest.mark.parametrize("dataset", WELL_KNOWN)
def test_well_known_lists_that_are_missing_are_named(root: Path, dataset: str) -> None:
    names = WELL_KNOWN[dataset]
    (root / names[0]).write_text(LINES)
    message = rf"{dataset} needs {', '.join(names[1:])} in .*facebookresearch/classifier-balancing"
    with pytest.raises(DataError, match=message):
        open_source(SplitConfig(dataset=dataset), root)
