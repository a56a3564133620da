"""The mistakes of a run against a loop, and what their picture says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.plots import Canvas, colour
from saukit.evaluation.errors import MOST_SHOWN, mistakes, save_errors, write_errors

CLASSES = ("cat", "dog, or\nwolf", "$x_1$")


def drawn(images: int = 200) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.5] * 3, images).astype(np.float32)
    return probabilities, generator.integers(0, 3, images)


def test_the_mistakes_come_by_falling_confidence() -> None:
    probabilities, labels = drawn()
    probabilities[10] = probabilities[20] = [0.5, 0.25, 0.25]
    labels[[10, 20]] = 1
    found = mistakes(probabilities, labels)
    expected = sorted(
        (-max(row), place, int(np.argmax(row)), row[label])
        for place, (row, label) in enumerate(zip(probabilities.tolist(), labels.tolist(), strict=True))
        if np.argmax(row) != label
    )
    columns = (-found.confidence, found.rows, found.predicted, found.probability_of_true)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert (found.true == labels[found.rows]).all() and 50 < len(expected) < 200


def test_the_csv_has_a_row_per_mistake(tmp_path: Path) -> None:
    probabilities, labels = drawn()
    found = mistakes(probabilities, labels)
    files = [f"test/{place}\n.png" for place in range(200)]
    write_errors(tmp_path / "a.csv", found, CLASSES, files)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["index"]) for row in rows] == found.rows.tolist()
    for row, at in zip(rows, found.rows, strict=True):
        assert (row["file"], row["true"]) == (files[at], CLASSES[labels[at]])
        assert row["predicted"] == CLASSES[probabilities[at].argmax()]
        assert float(row["confidence"]) == pytest.approx(probabilities[at].max(), abs=1e-6)
        assert float(row["probability_of_true"]) == pytest.approx(probabilities[at, labels[at]], abs=1e-6)
    write_errors(tmp_path / "b.csv", found, CLASSES, None)
    assert next(csv.DictReader((tmp_path / "b.csv").open()))["file"] == ""


@pytest.mark.parametrize(("size", "shown"), [(8, 296), (40, 280), (400, 300)])
def test_the_picture_shows_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, shown: int
) -> None:
    written: list[str] = []
    write = Canvas.write

    def listen(self: Canvas, x: float, y: float, text: str, *rest: Any, **look: Any) -> None:
        written.append(text)
        write(self, x, y, text, *rest, **look)

    monkeypatch.setattr(Canvas, "write", listen)
    probabilities, labels = drawn()
    found = mistakes(probabilities, labels)
    assert len(found.shown) == MOST_SHOWN
    images = np.full((MOST_SHOWN, 3, size, size), 255, np.uint8)
    images[:, 1:] = 0  # red
    files = [f"some/{'x' * 30}{place}.png" for place in range(200)]
    save_errors(tmp_path / "a.png", found, images, CLASSES, files, title="r: 2 of 3")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert ((pixels == [255, 0, 0]).all(-1)).sum() == MOST_SHOWN * shown**2
    first, confidence = found.rows[0], f"{100 * found.confidence[0]:.0f} %"
    assert written[0] == "r: 2 of 3"
    assert written[2].endswith(f": {confidence}") and written[3].startswith("true ")
    assert "…" in written[4] and written[4].endswith(f"{first}.png") and "some" not in written[4]
    assert len(written) == 2 + 3 * MOST_SHOWN
    save_errors(tmp_path / "b.png", found, images, CLASSES, None, title="")
    assert written[-1] == f"test image {found.shown[-1]}"


def test_without_a_mistake_the_picture_says_so(tmp_path: Path) -> None:
    found = mistakes(np.eye(3, dtype=np.float32), np.arange(3))
    save_errors(tmp_path / "a.png", found, np.empty((0, 3, 8, 8), np.uint8), CLASSES, None, title="none")
    write_errors(tmp_path / "a.csv", found, CLASSES, None)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 0 and colour("ink")
