"""Images made elsewhere as a generator: what is listed, in which order, and what is said when something is wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError
from saukit.core.machine import CHUNK
from saukit.data.decoding import decode_image
from saukit.synthesis.generators.folder import FolderGenerator

CLASSES = ("cat", "dog", "eel")
QUIET = Reporter(quiet=True)


def save(path: Path, value: int, *, size: tuple[int, int] = (8, 8)) -> Path:
    """A picture of noise about `value`, which tells it from the others."""
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def opened(folder: Path, *, side: int = 8, skip_bad: bool = False, reporter: Reporter = QUIET) -> FolderGenerator:
    return FolderGenerator(folder, CLASSES, (side, side), reporter=reporter, skip_bad=skip_bad)


def drawn(generator: FolderGenerator, labels: list[int], ordinals: list[int]) -> np.ndarray:
    return generator.sample(np.array(labels), np.zeros(len(labels), np.int64), np.array(ordinals))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Three cats, one of them in a folder further down, and two dogs, of several sizes and kinds; no eel."""
    root = tmp_path / "made"
    save(root / "cat" / "img10.png", 1)
    save(root / "cat" / "img2.png", 2, size=(20, 12))
    save(root / "cat" / "more" / "img1.bmp", 3)
    save(root / "dog" / "a.png", 4)
    Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)).save(root / "dog" / "deep.png")
    return root


def test_images_are_those_of_the_splits_own_decoding_in_natural_order(made: Path) -> None:
    generator = opened(made)
    assert generator.capacity.tolist() == [3, 2, 0] and generator.capacity.dtype == np.int64
    images = drawn(generator, [0, 0, 0, 1, 1], [0, 1, 2, 0, 1])
    files = ["cat/img2.png", "cat/img10.png", "cat/more/img1.bmp", "dog/a.png", "dog/deep.png"]
    assert (images == np.stack([decode_image(made / file, 8) for file in files])).all()
    assert images.dtype == np.uint8 and images.shape == (5, 3, 8, 8)
    assert (images[1] == np.asarray(Image.open(made / files[1])).transpose(2, 0, 1)).all()
    assert images[4][0].ravel().tolist() == [round(v / 257) for v in np.linspace(0, 65535, 64).astype(int)]


def test_images_come_in_the_order_asked_for_at_the_size_asked_for(made: Path) -> None:
    generator = opened(made, side=16)
    images = drawn(generator, [1, 0, 1, 0], [1, 2, 1, 0])
    files = ["dog/deep.png", "cat/more/img1.bmp", "dog/deep.png", "cat/img2.png"]
    assert (images == np.stack([decode_image(made / file, 16) for file in files])).all()
    assert drawn(generator, [], []).shape == (0, 3, 16, 16)


def test_more_images_than_a_thread_takes_at_once(tmp_path: Path) -> None:
    count = 2 * CHUNK + 3
    for index in range(count):
        save(tmp_path / "cat" / f"{index}.png", index)
    images = drawn(opened(tmp_path), [0] * count, list(range(count)))
    for index, image in enumerate(images):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        assert (image == pixels.transpose(2, 0, 1)).all()


def test_natural_order_goes_by_the_value_of_numbers(tmp_path: Path) -> None:
    order = ["01.png", "1.png", "2.png", "10.png", "a-9-b.png", "a-10-a.png", "b.png", "b1.png", "b1c.png", "b1c2.png"]
    for value in np.random.default_rng(0).permutation(len(order)):
        save(tmp_path / "cat" / order[value], int(value))
    images = drawn(opened(tmp_path), [0] * len(order), list(range(len(order))))
    assert (images == np.stack([decode_image(tmp_path / "cat" / name, 8) for name in order])).all()


def test_the_description_says_what_there_is(made: Path) -> None:
    generator = opened(made)
    assert generator.description == {
        "generator": "folder",
        "folder": str(made),
        "images": 5,
        "images_per_class": {"cat": 3, "dog": 2, "eel": 0},
        "skipped": 0,
        "digest": generator.digest,
    }


def test_the_digest_is_of_names_and_contents(made: Path, tmp_path: Path) -> None:
    first = opened(made).digest
    copy = shutil.copytree(made, tmp_path / "copy")
    assert opened(copy).digest == first and len(first) == 64
    save(copy / "dog" / "a.png", 99)
    changed = opened(copy).digest
    shutil.copy(made / "dog" / "a.png", copy / "dog" / "a.png")
    (copy / "dog" / "a.png").rename(copy / "dog" / "b.png")
    renamed = opened(copy).digest
    (copy / "dog" / "b.png").rename(copy / "cat" / "a.png")
    assert len({first, changed, renamed, opened(copy).digest}) == 4


def test_folders_of_no_class_are_listed_with_the_classes(made: Path) -> None:
    save(made / "Cat2" / "x.png", 1)
    (made / "train").mkdir()
    (made / ".hidden").mkdir()
    with pytest.raises(
        DataError,
        match=r"made has folders that are not classes of the split: Cat2, train; rename or remove them\. "
        r"Folders of the split's classes: cat, dog, eel$",
    ):
        opened(made)


def test_a_folder_name_that_is_not_text_can_be_shown(made: Path) -> None:
    Path(os.fsdecode(os.fsencode(made) + b"/\xff\xfe")).mkdir()
    with pytest.raises(DataError, match=r"not classes of the split: \\udcff\\udcfe;"):
        opened(made)


def test_a_slash_in_a_class_name_is_an_underscore_in_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "T-shirt_top" / "x.png", 1)
    classes = ("Bag", "T-shirt/top")
    generator = FolderGenerator(tmp_path, classes, (8, 8), reporter=QUIET, skip_bad=False)
    assert generator.capacity.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"two classes of the split have one folder name: a/b, a_b"):
        FolderGenerator(tmp_path, ("a/b", "a_b"), (8, 8), reporter=QUIET, skip_bad=False)


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: give one with a subfolder for each class$"):
        opened(tmp_path / "nowhere")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").touch()
    save(tmp_path / "loose.png", 1)
    with pytest.raises(
        DataError, match=r"holds no image \(bmp .*\) in a folder of a class; .* classes: cat, dog, eel$"
    ):
        opened(tmp_path)


def test_what_is_ignored_is_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat/notes.txt", "cat/more/prompts.json", "dog/README", "dog/b.txt", "dog/.DS_Store", "log.txt"):
        (made / name).touch()
    save(made / "grid.png", 1)
    assert opened(made, reporter=Reporter()).capacity.tolist() == [3, 2, 0]
    told = capsys.readouterr().err
    assert "files without an image extension are ignored: 2 .txt, 1 .json, 1 without extension\n" in told
    assert f"images outside the class folders are ignored: 1 in {made}\n" in told


def damage(made: Path) -> None:
    half = save(made / "dog" / "b.png", 5, size=(40, 40))
    half.write_bytes(half.read_bytes()[:-2000])
    (made / "cat" / "img3.png").write_bytes(b"no image at all")
    (made / "cat" / "gone.png").symlink_to(made / "nowhere.png")


def test_images_that_cannot_be_read_are_all_listed(made: Path) -> None:
    damage(made)
    with pytest.raises(DataError) as caught:
        opened(made)
    first, *listed = str(caught.value).splitlines()
    assert (
        first
        == f"3 images in {made} cannot be read; nothing was written. Fix or remove them, or skip them with --skip-bad:"
    )
    assert listed[:2] == [
        "  cat/gone.png (No such file or directory)",
        "  cat/img3.png (unknown image format)",
    ]
    assert listed[2].startswith("  dog/b.png (") and len(listed) == 3


def test_images_that_cannot_be_read_can_be_left_out(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = opened(made)
    damage(made)
    generator = opened(made, skip_bad=True)
    assert "3 images in" in (told := capsys.readouterr().err) and "cat/img3.png (unknown image format)" in told
    assert (generator.capacity == whole.capacity).all() and generator.digest == whole.digest
    assert generator.description["skipped"] == 3
    assert (drawn(generator, [0, 1], [2, 1]) == drawn(whole, [0, 1], [2, 1])).all()
    for path in (made / "cat" / "img2.png", made / "cat" / "img10.png", made / "cat" / "more" / "img1.bmp"):
        path.write_bytes(b"")
    shutil.rmtree(made / "dog")
    with pytest.raises(DataError, match=r"no image in .*made can be read: give a folder of whole images"):
        opened(made, skip_bad=True)


def test_a_file_that_changes_between_reading_and_drawing_is_noticed(made: Path) -> None:
    generator = opened(made)
    save(made / "cat" / "img2.png", 77)
    (made / "dog" / "a.png").unlink()
    assert drawn(generator, [0], [1]).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"img2\.png has changed since saukit first read it: leave the folder alone"):
        drawn(generator, [0, 0], [1, 0])
    with pytest.raises(DataError, match=r"a\.png cannot be read any more: No such file or directory"):
        drawn(generator, [1], [0])
