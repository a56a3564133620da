"""Predictions of files against the run's own probabilities, and against the classifier on pixels read by hand."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saukit.core.console import Reporter
from saukit.core.errors import DataError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.decoding import decode_image
from saukit.data.split import load_test
from saukit.deploy import predict as room
from saukit.deploy.config import PredictConfig
from saukit.deploy.predict import PredictResult, find_images, most_probable, predict
from saukit.models import inference
from saukit.models.classifier import load_classifier
from saukit.models.model_file import load_model, save_model

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


def predicted(root: Path, *images: Path, model: str = "sau", config: PredictConfig | None = None) -> PredictResult:
    return predict(config or PredictConfig(), model, images, Workspace(root), device=CPU, reporter=QUIET)


@pytest.fixture
def digits(shared_work: Path, tmp_path: Path) -> Path:
    """Twenty test images as PNGs."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for index, pixels in enumerate(load_test(Workspace(shared_work)).images[:20]):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index:02}.png")
    return folder


def test_files_of_test_images_get_the_runs_own_probabilities(shared_work: Path, digits: Path) -> None:
    network, spec = load_model(shared_work / "runs" / "sau" / "model.safetensors")
    images = load_test(Workspace(shared_work)).images[:20]
    expected = inference.predict(network, spec, images, device=CPU).probabilities
    result = predicted(shared_work, digits, config=PredictConfig(top=10, batch_size=7))
    assert [path.name for path in result.images] == [f"{index:02}.png" for index in range(20)]
    assert (result.labels[:, 0] == expected.argmax(1)).all()
    assert np.ptp(expected, axis=0).max() > 0.01
    for labels, shares, row in zip(result.labels, result.probabilities, expected, strict=True):
        assert sorted(labels.tolist()) == list(range(10))
        assert shares.tolist() == sorted(shares.tolist(), reverse=True)
        np.testing.assert_allclose(shares, row[labels], rtol=0, atol=1e-5)


def test_a_prediction_sees_the_pixels_that_training_on_a_folder_sees(shared_work: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    colour.save(tmp_path / "a.jpg", exif=rotated)
    colour.convert("RGBA").save(tmp_path / "b.png")
    colour.convert("L").save(tmp_path / "c.png")
    colour.convert("P").save(tmp_path / "d.gif")
    colour.convert("CMYK").save(tmp_path / "e.tif")
    Image.fromarray(draw.integers(0, 65536, (9, 5), dtype=np.uint16)).save(tmp_path / "f.png")
    files = sorted(tmp_path.iterdir())
    result = predicted(shared_work, tmp_path)
    classifier = load_classifier(shared_work / "runs" / "sau")
    with torch.no_grad():
        for file, label, share in zip(files, result.labels[:, 0], result.probabilities[:, 0], strict=True):
            pixels = torch.from_numpy(decode_image(file, 8).astype(np.float32) / 255)
            expected = classifier(pixels[None]).softmax(1)[0]
            assert int(label) == int(expected.argmax())
            assert share == pytest.approx(float(expected.max()), abs=1e-5)


def test_the_lines_and_the_document_say_the_same(shared_work: Path, digits: Path) -> None:
    result = predicted(shared_work, digits, config=PredictConfig(top=3))
    lines = list(csv.DictReader(io.StringIO(result.csv())))
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert list(lines[0]) == [
        "image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"
    ]  # fmt: skip
    assert len(lines) == len(document["predictions"]) == 20
    assert (document["model"]["method"], document["model"]["classes"]) == ("sau", [str(digit) for digit in range(10)])
    for line, entry, path, labels in zip(lines, document["predictions"], result.images, result.labels, strict=True):
        assert line["image"] == entry["image"] == str(path)
        assert [line["class"], line["class_2"], line["class_3"]] == [str(label) for label in labels]
        assert [best["class"] for best in entry["top"]] == [str(label) for label in labels]
        assert (entry["class"], entry["probability"]) == (entry["top"][0]["class"], entry["top"][0]["probability"])
        assert float(line["probability_3"]) == pytest.approx(entry["top"][2]["probability"], abs=1e-9)
    assert document["skipped"] == []


def test_one_class_is_told_by_default(shared_work: Path, digits: Path) -> None:
    result = predicted(shared_work, digits / "03.png")
    assert result.labels.shape == result.probabilities.shape == (1, 1)
    assert result.csv().splitlines()[0] == "image,class,probability"


def test_no_more_than_a_batch_of_images_is_held(
    shared_work: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    read, judge = room.decode_or_reason, inference.predict

    def reading(*arguments: Any) -> Any:
        events.append("read")
        return read(*arguments)

    def judging(*arguments: Any, **options: Any) -> inference.Predictions:
        events.append(f"judged {len(arguments[2])}")
        return judge(*arguments, **options)

    monkeypatch.setattr(room, "decode_or_reason", reading)
    monkeypatch.setattr(inference, "predict", judging)
    predicted(shared_work, digits, config=PredictConfig(batch_size=8))
    assert events == ["read"] * 8 + ["judged 8"] + ["read"] * 8 + ["judged 8"] + ["read"] * 4 + ["judged 4"]


def test_equal_probabilities_come_in_the_order_of_classes() -> None:
    labels, shares = most_probable(np.array([[0.25, 0.25, 0.4, 0.1], [0.0, 0.5, 0.0, 0.5]], np.float32), 3)
    assert labels.tolist() == [[2, 0, 1], [1, 3, 0]]
    assert shares.tolist() == [[pytest.approx(0.4), 0.25, 0.25], [0.5, 0.5, 0.0]]


# --- files --------------------------------------------------------------------------------------------------------


def test_files_keep_their_order_and_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a/deep/x.jpg", "a/y.txt", "a/.hidden.png", ".cache/z.png", "odd.data"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [tmp_path / "odd.data", tmp_path / "b" / "2.png", tmp_path / "b" / "2.png", tmp_path]
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(given, QUIET)]
    assert found == ["odd.data", "b/2.png", "a/deep/x.jpg", "b/10.PNG"]


def test_other_files_of_a_folder_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.txt", "c.txt", "README"):
        (tmp_path / name).touch()
    find_images([tmp_path], Reporter())
    assert " without an image extension are ignored: 2 .txt, 1 without extension" in capsys.readouterr().err


def test_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^no such file or folder: .*nix, .*nada; give image files, or folders"):
        find_images([tmp_path / "nix", tmp_path / "empty", tmp_path / "nada"], QUIET)
    with pytest.raises(DataError, match=r"^no images \(bmp .* webp \.\.\.\) in .*empty: give files, or a folder"):
        find_images([tmp_path / "empty"], QUIET)


def test_unreadable_files_are_all_listed(shared_work: Path, digits: Path) -> None:
    (digits / "05.png").write_bytes((digits / "05.png").read_bytes()[:60])
    (digits / "17.png").write_text("no image")
    with pytest.raises(DataError, match=r"^2 images cannot be read; nothing was written\. .* --skip-bad:\n") as caught:
        predicted(shared_work, digits, config=PredictConfig(batch_size=4))
    assert [line.split("/")[-1].split(" ")[0] for line in str(caught.value).splitlines()[1:]] == ["05.png", "17.png"]
    assert "17.png (unknown image format)" in str(caught.value)


def test_unreadable_files_can_be_left_out(shared_work: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = predicted(shared_work, digits)
    (digits / "17.png").write_text("no image")
    result = predicted(shared_work, digits, config=PredictConfig(skip_bad=True, batch_size=1))
    assert "1 image cannot be read, skipped" in capsys.readouterr().err
    assert [path.name for path, _ in result.skipped] == ["17.png"]
    assert result.document()["skipped"] == [{"image": str(digits / "17.png"), "reason": "unknown image format"}]
    kept = [index for index in range(20) if index != 17]
    assert result.images == tuple(whole.images[index] for index in kept)
    assert (result.labels == whole.labels[kept]).all()
    np.testing.assert_allclose(result.probabilities, whole.probabilities[kept], rtol=0, atol=1e-5)


def test_nothing_is_left_if_no_file_can_be_read(shared_work: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"^none of 1 images can be read: .*a.png \(unknown image format\)"):
        predicted(shared_work, tmp_path, config=PredictConfig(skip_bad=True))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes there")
def test_a_name_that_is_no_text_can_be_written(shared_work: Path, digits: Path) -> None:
    odd = digits / os.fsdecode(b"\xff.png")
    try:
        (digits / "00.png").rename(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    result = predicted(shared_work, odd)
    assert result.csv().encode().decode().splitlines()[1].split(",")[0].endswith("\N{REPLACEMENT CHARACTER}.png")
    assert json.dumps(result.document(), ensure_ascii=False).encode()


# --- bad values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "limit"), [(0, "at least 1"), (-1, "at least 1"), (11, "at most 10, the classes of .*sau")]
)
def test_top_is_a_number_of_classes(shared_work: Path, digits: Path, top: int, limit: str) -> None:
    with pytest.raises(UsageError, match=rf"^top must be {limit}, got {top}$"):
        predicted(shared_work, digits, config=PredictConfig(top=top))


def test_a_batch_has_an_image(shared_work: Path, digits: Path) -> None:
    with pytest.raises(UsageError, match=r"^batch_size must be at least 1, got 0$"):
        predicted(shared_work, digits, config=PredictConfig(batch_size=0))


def test_files_are_made_square_as_the_splits_were(shared_work: Path, tmp_path: Path) -> None:
    network, spec = load_model(shared_work / "runs" / "sau" / "model.safetensors")
    padded = replace(spec, fit="pad", background="0,0,0")
    save_model(tmp_path / "model.safetensors", network.state_dict(), padded)
    picture = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    result = predicted(shared_work, tmp_path / "wide.png", model=str(tmp_path / "model.safetensors"))
    by_hand = Image.new("RGB", spec.image_size)
    inner = Image.fromarray(picture).resize((8, 3), Image.Resampling.BICUBIC, reducing_gap=2.0)
    by_hand.paste(inner, (0, (8 - 3) // 2))
    pixels = np.array(by_hand).transpose(2, 0, 1)[None]
    expected = inference.predict(network, spec, pixels, device=CPU).probabilities[0]
    np.testing.assert_allclose(result.probabilities[0], expected[result.labels[0]], atol=1e-5)
