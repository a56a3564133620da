from pathlib import Path

import numpy as np
import pytest

from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.decoding import decode_image
from saukit.data.part_files import encodable, read_part_files, write_part_files
from saukit.data.split import load_split, load_test, make_split

from .conftest import TreeMaker


def test_each_image_is_that_of_its_file(workspace: Workspace, make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 9, "dog": 6, "a, b": 4})
    config = SplitConfig(dataset="folder", image_size=12, val_fraction=0.2)
    make_split(config, workspace, root=root, force=False, reporter=Reporter(quiet=True))
    split, files = load_split(workspace), read_part_files(workspace.split)
    parts = {"train": split.train, "val": split.val, "test": load_test(workspace)}
    assert set(files) == set(parts)
    for part, of in parts.items():
        assert of is not None and len(files[part]) == len(of.labels)
        for name, image, label in zip(files[part], of.images[:], of.labels, strict=True):
            np.testing.assert_array_equal(decode_image(root / name, 12), image)
            assert Path(name).parent.name == split.classes[label]
    assert len({name for names in files.values() for name in names}) == 19
    assert "files.csv" in split.manifest.files


def test_a_source_without_files_has_none(workspace: Workspace) -> None:
    make_split(SplitConfig(), workspace, root=None, force=False, reporter=Reporter(quiet=True))
    assert read_part_files(workspace.split) == {}


def test_odd_names_are_read_back(tmp_path: Path) -> None:
    names = ["a\nb.png", 'q"uote,.png', "\U0001f9ff.png", " lead.png", "\udcff.png"]
    write_part_files(
        tmp_path, ["x\ny", '"'], {"train": (np.array([0, 1, 0, 1, 0]), names), "test": (np.array([1]), ["t"])}
    )
    assert read_part_files(tmp_path) == {"train": [*names[:4], "\\xff.png"], "test": ["t"]}
    assert encodable("été") == "été"


def test_a_line_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "files.csv").write_text("part,index,label,file\ntest,0,cat,a.png\n")
    assert read_part_files(tmp_path, {"test": 1}) == {"test": ["a.png"]}
    for part, count in (("test", 2), ("train", 1)):
        with pytest.raises(CorruptArtifactError, match=rf"files\.csv is damaged: it has . lines of the {count} images"):
            read_part_files(tmp_path, {part: count})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it does not begin with part,index,label,file"),
        (b"a,b\n", "it does not begin with part,index,label,file"),
        (b"part,index,label,file\ntrain,0,cat\n", "not enough values"),
        (b"part,index,label,file\ntrain,0,cat,a.png,b.png\n", "too many values"),
        (b"part,index,label,file\ntrain,0,cat,\xff.png\n", "can't decode byte 0xff"),
        (b"part,index,label,file\ntrain,0,cat," + b"a" * 200_000, "field larger than field limit"),
    ],
)
def test_another_file_is_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "files.csv").write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=rf"^{tmp_path}/files\.csv is damaged: .*{message}.*; remake"):
        read_part_files(tmp_path)
