import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from saukit.core.console import Reporter
from saukit.core.errors import DataError, EnvironmentFault
from saukit.data import folder
from saukit.data.folder import decode_image, open_folder

from .conftest import TreeMaker

GREY = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def decoded(tmp_path: Path, image: Image.Image, suffix: str = ".png", size: int = 8, **options: Any) -> Any:
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return decode_image(path, size)


def in_three_channels(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([grey] * 3)


def on_white(colour: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    share = alpha[..., None] / 255
    return (colour * share + 255 * (1 - share)).transpose(2, 0, 1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_colour_is_taken_as_it_is(tmp_path: Path, suffix: str) -> None:
    assert (decoded(tmp_path, Image.fromarray(COLOUR), suffix) == COLOUR.transpose(2, 0, 1)).all()


def test_grey_fills_three_channels(tmp_path: Path) -> None:
    assert (decoded(tmp_path, Image.fromarray(GREY)) == in_three_channels(GREY)).all()


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = GREY > 100
    assert (decoded(tmp_path, Image.fromarray(bits)) == in_three_channels(bits * 255)).all()


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    layered = Image.fromarray(np.dstack([COLOUR, GREY]))
    assert np.abs(decoded(tmp_path, layered) - on_white(COLOUR, GREY)).max() <= 1
    grey = Image.fromarray(GREY)
    grey.putalpha(Image.fromarray(GREY.T.copy()))
    expected = on_white(np.dstack([GREY] * 3), GREY.T)
    assert np.abs(decoded(tmp_path, grey) - expected).max() <= 1


def test_a_palette_gives_its_colours_and_its_transparent_entry_is_white(tmp_path: Path) -> None:
    palette = Image.fromarray((GREY // 64).astype(np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])
    assert (decoded(tmp_path, palette) == colours[GREY // 64].transpose(2, 0, 1)).all()
    colours[1] = 255
    assert (decoded(tmp_path, palette, transparency=1) == colours[GREY // 64].transpose(2, 0, 1)).all()


def test_a_transparent_colour_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    image.putpixel((0, 0), (1, 2, 3))
    pixels = decoded(tmp_path, image, transparency=(1, 2, 3))
    assert pixels[:, 0, 0].tolist() == [255, 255, 255] and pixels[:, 1, 1].tolist() == [10, 20, 30]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    pixels = decoded(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), ".tif")
    assert pixels[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    expected = np.round(values / 257)
    assert (decoded(tmp_path, Image.fromarray(values), suffix) == in_three_channels(expected)).all()
    dark = np.full((8, 8), 200, np.uint16)  # a dark 16-bit image stays dark
    assert (decoded(tmp_path, Image.fromarray(dark), suffix) == 1).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), np.round(np.linspace(0, 1, 64, dtype=np.float32) * 255.0)),
        (np.linspace(0, 255, 64, dtype=np.float32), np.round(np.linspace(0, 255, 64, dtype=np.float32))),
        (np.linspace(0, 65535, 64, dtype=np.float32), np.round(np.linspace(0, 65535, 64, dtype=np.float32) / 257.0)),
        (np.arange(64, dtype=np.int32), np.arange(64)),
        (np.arange(64, dtype=np.int32) * 1000, np.round(np.arange(64) * 1000 / 257)),
    ],
)
def test_32_bit_images_are_scaled_by_their_range(
    tmp_path: Path, values: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]
) -> None:
    pixels = decoded(tmp_path, Image.fromarray(values.reshape(8, 8)), ".tif")
    assert (pixels == in_three_channels(expected.reshape(8, 8))).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (-1, "from -1 to 0, expected 0..1"), (1e6, "to 1e.06")],
)
def test_floats_without_a_meaning_are_unreadable(tmp_path: Path, value: float, message: str) -> None:
    values = np.zeros((8, 8), np.float32)
    values[2, 2] = value
    with pytest.raises(ValueError, match=message):
        decoded(tmp_path, Image.fromarray(values), ".tif")


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(tmp_path, Image.fromarray(COLOUR), exif=exif)
    assert (pixels == turn(COLOUR).transpose(2, 0, 1)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(COLOUR).save(path, quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(path, 8).shape == (3, 8, 8)


def test_the_first_of_several_frames_counts(tmp_path: Path) -> None:
    first, second = Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)
    assert (decoded(tmp_path, first, ".gif", save_all=True, append_images=[second]) == 255).all()


def test_resizing_takes_the_centre_square(tmp_path: Path) -> None:
    """A picture with one colour in its centre square and another beside it."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = (200, 100, 50)
    assert (decoded(tmp_path, Image.fromarray(pixels)) == np.array([200, 100, 50])[:, None, None]).all()
    assert (decoded(tmp_path, Image.fromarray(pixels.transpose(1, 0, 2).copy()))[0] == 200).all()


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    """Fine stripes of 0 and 200 become their mean, where picking pixels would keep stripes."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    for suffix in (".png", ".jpg"):
        pixels = decoded(tmp_path, Image.fromarray(stripes), suffix)
        assert np.abs(pixels.astype(int) - 100).max() <= 6


def test_a_large_jpeg_is_nearly_the_plain_bicubic_result(tmp_path: Path) -> None:
    y, x = np.mgrid[0:600, 0:800]
    smooth = np.stack([127 + 100 * np.sin(x / 90), 127 + 100 * np.cos(y / 70), x / 4], axis=-1).astype(np.uint8)
    path = tmp_path / "large.jpg"
    Image.fromarray(smooth).save(path, quality=95)
    with Image.open(path) as image:
        plain = image.convert("RGB").crop((100, 0, 700, 600)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(decode_image(path, 64).astype(int) - np.asarray(plain).transpose(2, 0, 1)).max() <= 6


def test_one_tree_is_read_in_the_order_of_names(make_tree: TreeMaker) -> None:
    root = make_tree({"dog": 2, "cat": 3, ".hidden": 1})
    nested = root / "cat" / "a" / "b"
    nested.mkdir(parents=True)
    Image.fromarray(COLOUR).save(nested / "deep.PNG")
    (root / "cat" / ".trash").mkdir()
    Image.fromarray(COLOUR).save(root / "cat" / ".trash" / "no.png")
    (root / "cat" / ".no.png").write_bytes(b"no")
    (root / "dog" / "notes.txt").write_text("no image")
    source = open_folder(root)
    assert source.classes == ("cat", "dog") and source.train_labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert source.test_labels is None and source.image_size == 8 and source.size_reason is None
    pixels = source.load(8, Reporter(quiet=True))
    assert pixels.train_ok.all() and len(pixels.test_ok) == 0 and not pixels.bad
    first = np.asarray(Image.open(root / "dog" / "001.png")).transpose(2, 0, 1)
    assert (pixels.read("train", np.array([5]), 8)[0] == first).all()
    assert (pixels.read("train", np.array([3]), 8)[0] == COLOUR.transpose(2, 0, 1)).all()  # 000 001 002 a/b/deep


def test_ignored_files_are_counted(make_tree: TreeMaker, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    for name in ("a.heic", "b.heic", "c.txt"):
        (root / "cat" / name).write_text("x")
    open_folder(root).load(8, Reporter())
    assert "files that are no images by their names are ignored: 2 .heic, 1 .txt" in capsys.readouterr().err


def test_train_and_test_folders_are_two_parts(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2}, under="train")
    root = make_tree({"cat": 1, "dog": 1}, under="test")
    source = open_folder(root)
    assert source.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert source.test_labels is not None and source.test_labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(root / "test" / "dog" / "000.png")).transpose(2, 0, 1)
    assert (source.load(8, Reporter(quiet=True)).read("test", np.array([1]), 8)[0] == expected).all()


def test_a_class_may_be_called_train(make_tree: TreeMaker) -> None:
    assert open_folder(make_tree({"bus": 2, "test": 2, "train": 2})).classes == ("bus", "test", "train")


def test_train_without_test_is_told(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2}, under="train")
    root = make_tree({"cat": 3, "dog": 2}, under="val")
    with pytest.raises(DataError, match=r"has train/, val/ but no test/ .*or give .*/train as --root"):
        open_folder(root)


def test_parts_with_different_classes_are_told(make_tree: TreeMaker) -> None:
    make_tree({"cat": 3, "dog": 2, "eel": 2}, under="train")
    root = make_tree({"cat": 3, "dog": 2, "fox": 2}, under="test")
    with pytest.raises(DataError, match="must have the same classes: eel only in train/; fox only in test/"):
        open_folder(root)


def test_empty_class_folders_are_all_listed(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    (root / "eel").mkdir()
    (root / "fox").mkdir()
    (root / "fox" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"class folders of .* without an image .*png.*: eel, fox; fill or remove them"):
        open_folder(root)


def test_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder: give the folder with one subfolder a class as --root"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs at least two subfolders, one a class; it has 0"):
        open_folder(tmp_path)


def test_a_name_that_is_no_text_is_told(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 1, "dog": 1})
    try:
        (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/d\xffg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match="no UTF-8 cannot name classes"):
        open_folder(root)


@pytest.mark.parametrize(
    ("sizes", "size", "reason"),
    [
        ([(224, 224), (224, 224)], 224, None),
        ([(225, 225), (225, 225)], 64, "the images are 225 x 225"),
        ([(30, 40), (30, 40)], 64, "the images are 30 x 40"),
        ([(32, 32), (48, 48)], 64, "the images differ in size (32 x 32, 48 x 48 ...)"),
        ([(2, 2), (2, 2)], 64, "the images are 2 x 2"),
    ],
)
def test_the_size_is_the_images_own_where_they_share_one(
    make_tree: TreeMaker, sizes: list[tuple[int, int]], size: int, reason: str | None
) -> None:
    for name, own in zip(("cat", "dog"), sizes, strict=True):
        root = make_tree({name: 1}, size=own)
    source = open_folder(root)
    assert source.image_size == size
    assert source.size_reason == reason


def test_unreadable_images_are_all_found(make_tree: TreeMaker) -> None:
    root = make_tree({"cat": 3, "dog": 3}, size=(32, 32))
    (root / "cat" / "000.png").write_bytes(b"no image at all")
    (root / "cat" / "zero.png").touch()
    half = root / "dog" / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    torn = root / "dog" / "001.png"
    torn.write_bytes(torn.read_bytes()[:-200])
    pixels = open_folder(root).load(32, Reporter(quiet=True))
    reasons = dict(pixels.bad)
    assert list(reasons) == ["cat/000.png", "cat/zero.png", "dog/001.png", "dog/half.jpg"]
    assert reasons["cat/000.png"] == "no image that Pillow knows" and "truncated" in reasons["dog/half.jpg"]
    assert pixels.train_ok.tolist() == [False, True, True, False, True, False, True, False]


def test_a_decompression_bomb_is_unreadable(make_tree: TreeMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree({"cat": 1, "dog": 1}, size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert [name for name, _ in open_folder(root).load(8, Reporter(quiet=True)).bad] == ["cat/000.png", "dog/000.png"]


def test_more_than_fits_into_memory_is_told_before_decoding(
    make_tree: TreeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_folder(make_tree({"cat": 2, "dog": 2}))
    monkeypatch.setattr(folder, "available_memory", lambda: 1000)
    with pytest.raises(
        EnvironmentFault, match=r"4 images of 64 x 64 need about 144 KiB of memory, but 1000 B are free"
    ):
        source.load(64, Reporter(quiet=True))


def test_available_memory_is_plausible() -> None:
    available = folder.available_memory()
    assert available is not None and 2**20 < available < 2**46


def test_the_fingerprint_follows_names_and_sizes_not_the_place(make_tree: TreeMaker) -> None:
    first = open_folder(make_tree({"cat": 2, "dog": 2}, name="one")).fingerprint
    copy = make_tree({"cat": 2, "dog": 2}, name="two")
    assert open_folder(copy).fingerprint == first
    (copy / "cat" / "000.png").rename(copy / "cat" / "0.png")
    renamed = open_folder(copy).fingerprint
    comment = PngInfo()
    comment.add_text("note", "longer")
    Image.fromarray(COLOUR).save(copy / "cat" / "0.png", pnginfo=comment)
    assert len({first, renamed, open_folder(copy).fingerprint}) == 3
