import errno
import hashlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Begun
from sklearn.datasets import load_digits

from saukit.core import artifacts
from saukit.core.config import load_config
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, UsageError
from saukit.core.workspace import Workspace
from saukit.data.config import ResolvedSplitConfig, SplitConfig
from saukit.data.split import STORE_NAME, SplitResult, load_split, load_test, make_split

from .conftest import TreeMaker

FILES = ["config.yaml", "counts.png", "manifest.json", "test.safetensors", "train.safetensors", "val.safetensors"]
CONFIG = SplitConfig(imb=20, val_fraction=0.1)
GOLDEN = {
    10: (20431, "a17d69f192b1cf6d"),
    50: (13996, "d7edcfaf02772bee"),
    100: (12406, "4bf45bff8878d278"),
    200: (11203, "a88004a1d1361093"),
}


def make(config: SplitConfig, workspace: Workspace, root: Path | None = None, force: bool = False) -> SplitResult:
    return make_split(config, workspace, root=root, force=force, reporter=Reporter())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_split_holds_the_images_of_its_source(workspace: Workspace) -> None:
    result = make(CONFIG, workspace)
    split, test = load_split(workspace), load_test(workspace)
    assert result.state == "new" and sorted(contents(workspace.split)) == FILES
    assert [path.name for path in workspace.root.iterdir()] == ["split"]  # no lock, no staging folder
    bunch = load_digits()
    assert split.val is not None
    for part in (split.train, split.val, test):
        assert np.asarray(part.images).dtype == np.uint8 and part.labels.dtype == part.source_indices.dtype == np.int64
        assert (part.labels == bunch.target[part.source_indices]).all()
        grey = np.round(bunch.images[part.source_indices] * 255 / 16)
        assert (part.images == grey[:, None]).all() and part.images.shape[1:] == (3, 8, 8)
    assert split.image_size == (8, 8) and split.num_classes == 10 and not split.flip and split.source == "digits"
    assert split.class_counts.tolist() == np.bincount(split.train.labels).tolist() == result.summary["counts"]
    assert split.groups == result.groups and list(split.groups.members) == ["many", "medium", "few"]
    assert split.manifest == result.manifest


def test_mean_and_deviation_are_those_of_the_training_part(workspace: Workspace) -> None:
    make(CONFIG, workspace)
    split = load_split(workspace)
    pixels = np.asarray(split.train.images).astype(np.float64) / 255
    np.testing.assert_allclose(split.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(split.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_the_same_command_twice_does_nothing(workspace: Workspace) -> None:
    first = make(CONFIG, workspace)
    before = contents(workspace.split)
    again = make(replace(CONFIG, imb=0.05), workspace)
    assert again.state == "complete" and again.manifest == first.manifest
    assert contents(workspace.split) == before


def test_the_saved_configuration_makes_the_same_split(workspace: Workspace, tmp_path: Path) -> None:
    first = make(CONFIG, workspace)
    saved = load_config(ResolvedSplitConfig, workspace.split / "config.yaml")
    assert saved == first.config
    assert make(saved, Workspace(tmp_path / "other")).manifest.digest == first.manifest.digest
    assert make(replace(CONFIG, seed=1), Workspace(tmp_path / "third")).manifest.digest != first.manifest.digest


def test_another_configuration_lists_the_fields_and_the_ways_on(workspace: Workspace) -> None:
    make(CONFIG, workspace)
    before = contents(workspace.split)
    with pytest.raises(
        UsageError, match=r"\(imb: 20.0 -> 10.0; seed: 0 -> 3\): replace it with --force, or give another --w"
    ):
        make(replace(CONFIG, imb=10, seed=3), workspace)
    assert contents(workspace.split) == before
    assert make(replace(CONFIG, imb=10, seed=3), workspace, force=True).state == "new"
    assert load_split(workspace).manifest.summary["counts"][0] > 0


def test_a_folder_that_saukit_did_not_write_stays(workspace: Workspace) -> None:
    workspace.split.mkdir(parents=True)
    (workspace.split / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="saukit did not write it"):
            make(CONFIG, workspace, force=force)
    assert (workspace.split / "thesis.tex").read_text() == "mine"


def test_a_missing_split_names_the_command(workspace: Workspace) -> None:
    for load in (load_split, load_test):
        with pytest.raises(DataError, match=r"split in .* is not there: run `saukit make-lt -w .*work` first"):
            load(workspace)


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors", "config.yaml", "counts.png"])
def test_one_flipped_byte_is_noticed_and_mended_by_force(workspace: Workspace, name: str) -> None:
    make(CONFIG, workspace)
    path = workspace.split / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=rf"{name} was changed after it was written; .*--force"):
        load_split(workspace)
    if name != "config.yaml":  # there the configuration itself may differ
        with pytest.raises(CorruptArtifactError, match=name):
            make(CONFIG, workspace)
    make(CONFIG, workspace, force=True)
    load_split(workspace)


def test_a_full_disk_leaves_the_earlier_split_untouched(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    make(CONFIG, workspace)
    before, calls = contents(workspace.root), []
    real = artifacts.save_with_images

    def full(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            with artifacts.atomic_path(path) as temporary:
                temporary.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *arguments)

    monkeypatch.setattr("saukit.data.split_writing.save_with_images", full)
    with pytest.raises(EnvironmentFault, match="no space left to write"):
        make(replace(CONFIG, imb=5), workspace, force=True)
    assert contents(workspace.root) == before and len(calls) == 2
    assert sorted(path.name for path in workspace.root.iterdir()) == ["split"]


def test_a_disk_that_is_too_small_is_told_before_writing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match=r"needs about 1.* MiB but 1000 B are free"):
        make(CONFIG, workspace)
    assert not workspace.root.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from saukit.core import writing
from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data import split, split_writing
from saukit.data.config import SplitConfig
where, calls = sys.argv[2], []
def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "write":
    split_writing.save_figure = kill
elif where == "swap":
    real = Path.rename
    def rename(path, target):
        real(path, target)
        kill()
    Path.rename = rename
else:
    writing.sync_folder = lambda folder: kill() if folder == Path(sys.argv[1]) else None
split.make_split(SplitConfig(imb=5), Workspace(Path(sys.argv[1])), root=None, force=True, reporter=Reporter())
"""


@pytest.mark.parametrize("where", ["write", "swap", "end"])
def test_a_kill_loses_no_split_and_leaves_no_stray_file(workspace: Workspace, where: str) -> None:
    """Killed while writing, between the two renames, and before the old split is gone."""
    first = make(CONFIG, workspace)
    code = Begun("-c", KILLED, workspace.root, where).wait().returncode
    assert code == -signal.SIGKILL
    assert len(list(workspace.root.iterdir())) > 1  # something is left over
    config = CONFIG if where != "end" else SplitConfig(imb=5)
    result = make(config, workspace)
    assert result.state == "complete" and (result.manifest == first.manifest) == (where != "end")
    assert [path.name for path in workspace.root.iterdir()] == ["split"]
    load_split(workspace)


def test_permissions_follow_the_umask(workspace: Workspace) -> None:
    before = os.umask(0o027)
    try:
        make(CONFIG, workspace)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in workspace.split.iterdir()} == {0o640}
    assert workspace.split.stat().st_mode & 0o777 == 0o750


def test_a_second_writer_stops(workspace: Workspace) -> None:
    with workspace.lock(workspace.split), pytest.raises(Exception, match=rf"being written by process {os.getpid()}"):
        make(CONFIG, workspace)


def test_a_workspace_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match=r"cannot write to .*file: .*; check the folder, or give another one"):
        make(CONFIG, Workspace(tmp_path / "file"))


def test_a_failed_command_leaves_no_workspace(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"imb 5000 leaves the smallest class without .* imb can be 1\d\d at most"):
        make(SplitConfig(imb=5000), workspace)
    assert not workspace.root.exists()


def test_a_folder_goes_in_as_it_is(workspace: Workspace, make_tree: TreeMaker, tmp_path: Path) -> None:
    root = make_tree({"cat": 12, "dog": 6, "eel": 2})
    result = make(SplitConfig(dataset="folder", test_fraction=0.25), workspace, root)
    split, test = load_split(workspace), load_test(workspace)
    assert split.class_counts.tolist() == [9, 4, 1] and np.bincount(test.labels).tolist() == [3, 2, 1]
    assert split.flip and split.classes == ("cat", "dog", "eel") and result.summary["root"] == str(root)
    files = sorted(root.rglob("*.png"))
    for part in (split.train, test):
        for image, index in zip(np.asarray(part.images), part.source_indices, strict=True):
            assert (image == np.asarray(Image.open(files[index])).transpose(2, 0, 1)).all()
    config = (workspace.split / "config.yaml").read_text()
    assert str(root) not in config and "image_size: 8" in config and "profile: none" in config
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert make(SplitConfig(dataset="folder", test_fraction=0.25), workspace, copy).state == "complete"
    (copy / "cat" / "000.png").unlink()
    with pytest.raises(
        UsageError, match=rf"made from other files \({root}, or they have changed since\): replace it with"
    ):
        make(SplitConfig(dataset="folder", test_fraction=0.25), workspace, copy)


def test_unreadable_images_stop_the_split_or_are_counted(
    workspace: Workspace, make_tree: TreeMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree({"cat": 30, "dog": 30})
    for index in range(23):
        (root / "cat" / f"{index:03}.png").write_bytes(b"bad")
    with pytest.raises(
        DataError,
        match=rf"(?s)23 images cannot be read; no split was written; .*{STORE_NAME} keeps .*--skip-bad.*cat/000.png",
    ) as told:
        make(SplitConfig(dataset="folder"), workspace, root)
    assert str(told.value).count("unknown image format") == 20 and str(told.value).endswith("and 3 more")
    assert [path.name for path in workspace.root.iterdir()] == [STORE_NAME]  # what was decoded is not decoded again
    result = make(SplitConfig(dataset="folder", skip_bad=True), workspace, root)
    assert result.summary["skipped"] == 23 and "23 images cannot be read, skipped" in capsys.readouterr().err
    split, test = load_split(workspace), load_test(workspace)
    assert split.class_counts.tolist() == [6, 24] and np.bincount(test.labels).tolist() == [1, 6]
    assert min(part.source_indices.min() for part in (split.train, test)) >= 23  # positions in the whole folder


def test_the_chosen_size_of_a_folder_is_told(
    workspace: Workspace, make_tree: TreeMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree({"cat": 3}, size=(30, 20))
    root = make_tree({"dog": 3}, size=(16, 16))
    make(SplitConfig(dataset="folder"), workspace, root)
    assert "image size 64: the images differ in size (30 x 20, 16 x 16 ...)" in capsys.readouterr().err
    assert load_split(workspace).image_size == (64, 64)


def test_an_image_size_applies_to_embedded_data(workspace: Workspace) -> None:
    make(SplitConfig(image_size=12), workspace)
    assert load_split(workspace).image_size == (12, 12) and load_test(workspace).images.shape[1:] == (3, 12, 12)


@pytest.mark.cifar10
@pytest.mark.parametrize("imb", GOLDEN)
def test_golden_choice_of_cifar10(workspace: Workspace, imb: int) -> None:
    root = os.environ.get("SAUKIT_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("SAUKIT_DATA holds no CIFAR-10")
    make(SplitConfig(dataset="cifar10", imb=imb), workspace, Path(root))
    split = load_split(workspace)
    digest = hashlib.sha256(split.train.source_indices.astype("<i8").tobytes()).hexdigest()
    assert (len(split.train.labels), digest[:16]) == GOLDEN[imb]
    assert split.mean == (0.4914, 0.4822, 0.4465) and len(load_test(workspace).labels) == 10000
    # carried to another machine, the same command needs no source
    assert make(SplitConfig(dataset="cifar10", imb=imb), workspace, None).state == "complete"
