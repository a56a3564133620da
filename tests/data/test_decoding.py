import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.data import decoding as room
from saukit.data.config import SplitConfig
from saukit.data.decoding import Fitting, common_white_level, decode_image, decode_or_reason
from saukit.data.source_config import Fit, colour_problems, parse_colour
from saukit.data.sources.folder import open_folder

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


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize(("largest", "white"), [(255, 255), (256, 1023), (3000, 4095), (4095, 4095), (9000, 16383)])
def test_a_set_of_16_bit_images_has_one_white(tmp_path: Path, suffix: str, largest: int, white: int) -> None:
    root = tmp_path / "set"
    for name, top in (("cat/dark", 100), ("cat/rgb", None), ("dog/bright", largest), ("dog/damaged", None)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (8, 8), (9, 80, 200))
        if top is not None:
            picture = Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16))
        picture.save((root / name).with_suffix(".png" if top is None else suffix))
    (root / "dog/damaged.png").write_bytes(b"no image")
    source = open_folder(SplitConfig(dataset="folder"), root)
    assert source.originals is not None and common_white_level(source.originals) == white
    for name, top in (("cat/dark", 100), ("dog/bright", largest)):
        values = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
        found = decode_image((root / name).with_suffix(suffix), 8, Fitting(white_level=white))
        assert (found == in_three_channels(np.round(values / white * 255))).all()
    assert decode_image(root / "cat/rgb.png", 8, Fitting(white_level=white)).max() == 200  # 8 bits are as they are


def test_other_sets_have_no_white_level(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 3).save(tmp_path / name / "a.png")
    source = open_folder(SplitConfig(dataset="folder"), tmp_path)
    assert source.originals is not None and common_white_level(source.originals) is None


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


# --- making squares ----------------------------------------------------------------------------------------------


def smooth(width: int, height: int) -> Image.Image:
    """A picture that every filter and every JPEG keeps about as it is."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / (width - 1), 255 * y / (height - 1), 255 * (x + y) / (width + height - 2)]
    return Image.fromarray(np.dstack(planes).round().astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (50, 49), (400, 40), (24, 24)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pad_keeps_all_of_a_picture_on_its_background(tmp_path: Path, width: int, height: int, suffix: str) -> None:
    picture, size = smooth(width, height), 24
    picture.save(tmp_path / f"image{suffix}", quality=100)
    found = decode_image(tmp_path / f"image{suffix}", size, Fitting("pad", "10,200,30"))
    inner = (max(1, round(size * width / max(width, height))), max(1, round(size * height / max(width, height))))
    expected = Image.new("RGB", (size, size), (10, 200, 30))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    expected.paste(picture.resize(inner, Image.Resampling.BICUBIC), (left, top))
    difference = np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(expected))
    assert difference.max() <= (4 if suffix == ".png" else 12)
    outside = np.ones((size, size), bool)
    outside[top : top + inner[1], left : left + inner[0]] = False
    assert not difference[outside].any()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (50, 70), (24, 48)])
def test_stretch_changes_the_proportions(tmp_path: Path, width: int, height: int) -> None:
    picture = smooth(width, height)
    picture.save(tmp_path / "image.png")
    found = decode_image(tmp_path / "image.png", 24, Fitting("stretch"))
    expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(found.transpose(1, 2, 0).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_of_the_size_stays_as_it_is(tmp_path: Path, fit: Fit) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(COLOUR).save(path)
    assert (decode_image(path, 8, Fitting(fit)) == COLOUR.transpose(2, 0, 1)).all()


def test_transparency_is_composited_on_the_background(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(path)
    assert decode_image(path, 8, Fitting("crop", "#ff8000"))[:, 0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    ("text", "colour"), [("white", (255, 255, 255)), ("0,10,255", (0, 10, 255)), ("#ff8000", (255, 128, 0))]
)
def test_colours(text: str, colour: tuple[int, int, int]) -> None:
    assert parse_colour(text) == colour and colour_problems(text) == []


@pytest.mark.parametrize("text", ["", "whitish", "1,2", "1,2,256", "1,2,x", "-1,0,0", "rgb(300,0,0)"])
def test_what_is_no_colour(text: str) -> None:
    assert len(colour_problems(text)) == 1 and repr(text) in colour_problems(text)[0]


# --- files that lack something -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("size", [64, 300])
def test_a_jpeg_without_its_end_marker_is_read(tmp_path: Path, options: dict[str, Any], size: int) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    path, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    picture.save(path, **options)
    content = path.read_bytes()
    assert content.endswith(b"\xff\xd9")
    for missing in (1, 2):
        cut.write_bytes(content[:-missing])
        assert (decode_image(cut, size) == decode_image(path, size)).all()
        assert (decode_image(io.BytesIO(cut.read_bytes()), size) == decode_image(path, size)).all()
    for missing in (200, len(content) // 50, len(content) // 2):
        cut.write_bytes(content[:-missing])
        reason = decode_or_reason(cut, size)
        assert isinstance(reason, str) and "truncated" in reason


def test_half_a_png_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-30])
    assert isinstance(decode_or_reason(tmp_path / "half.png", 8), str)


def test_more_pixels_than_a_thread_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_PIXELS", 1_000_000)
    Image.new("L", (1200, 1000)).save(tmp_path / "large.png")
    reason = decode_or_reason(tmp_path / "large.png", 64)
    assert reason == (
        "1200 x 1000 are 1 million pixels, above the limit of 1 million (3 MB in each decoding thread): make it smaller"
    )
    Image.new("L", (1200, 1000), 90).save(tmp_path / "reduced.jpg")  # a JPEG is decoded at a smaller size
    assert (np.asarray(decode_or_reason(tmp_path / "reduced.jpg", 64)) == 90).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a pointer of Git LFS: fetch it",
        ),
        (b"<html></html>", "unknown image format"),
        (bytes(1000), "unknown image format"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for file in (tmp_path / "a.jpg", io.BytesIO(content)):
        told = decode_or_reason(file, 8)
        assert isinstance(told, str) and told.startswith(reason)
