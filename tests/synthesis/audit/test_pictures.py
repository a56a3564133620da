from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saukit.synthesis.audit.document import Pair
from saukit.synthesis.audit.pictures import PAIR_TILE, SCALE, save_closest_pairs, save_grid, shown_classes


def plain(colour: int, count: int) -> np.ndarray:
    return np.full((count, 3, 8, 8), colour, dtype=np.uint8)


def test_real_images_are_left_and_synthetic_ones_right_of_each_class(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    save_grid(
        path,
        ("first", "second"),
        np.array([9, 3]),
        np.array([0, 6]),
        lambda c: plain(60 + c, 9 if c == 0 else 3),
        lambda c: plain(200 + c, 0 if c == 0 else 6),
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))[..., 0]
    tile = 88 * 88  # 8 px images enlarged eleven times
    counts = {colour: int((pixels == colour).sum()) for colour in (60, 61, 201)}
    assert {colour: round(count / tile) for colour, count in counts.items()} == {60: 8, 61: 3, 201: 6}
    columns = {colour: np.flatnonzero((pixels == colour).sum(axis=0) >= 88) for colour in (60, 61, 201)}
    rows = {colour: np.flatnonzero((pixels == colour).sum(axis=1) >= 88) for colour in (60, 61, 201)}
    assert columns[60].max() < columns[201].min()
    assert columns[60].min() == columns[61].min()
    assert rows[60].max() < rows[61].min()
    assert np.array_equal(rows[61], rows[201])


def test_of_many_classes_twenty_are_spread_from_first_to_last() -> None:
    assert shown_classes(3) == [0, 1, 2]
    shown = shown_classes(100)
    assert len(set(shown)) == 20
    assert (shown[0], shown[-1]) == (0, 99)
    assert max(np.diff(shown)) <= 6


def test_the_picture_has_synthetic_left_and_real_right(tmp_path: Path) -> None:
    real, fake = (np.full((3, 3, 8, 8), colour, dtype=np.uint8) for colour in (60, 200))
    pairs = [Pair(1, 1, 0.05, is_copy=True), Pair(0, 2, 0.3, is_copy=False)]
    path = tmp_path / "closest.png"
    save_closest_pairs(
        path,
        pairs,
        images=fake,
        labels=np.array([0, 1, 0]),
        real_images=real,
        real_labels=np.array([0, 1, 1]),
        classes=("a class of a name that is far too long for the picture", "b"),
        threshold=0.2,
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))
    side = PAIR_TILE // 8 * 8
    for colour in (60, 200):
        assert (pixels == colour).all(axis=2).sum() == pytest.approx(2 * side * side, rel=0.01)
    columns = {colour: np.flatnonzero((pixels[..., 0] == colour).sum(axis=0) >= side) for colour in (60, 200)}
    assert columns[200][0] < columns[60][0] < columns[200][-1] < columns[60][-1]
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90)
    assert 20 < red.sum() < 40 * SCALE * SCALE * 20  # the one copy's distance
    assert red[:, : pixels.shape[1] // 4].sum() == red.sum()


def test_a_picture_of_no_pairs_says_so(tmp_path: Path) -> None:
    real = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    save_closest_pairs(
        tmp_path / "none.png",
        [],
        images=real[:0],
        labels=np.arange(0),
        real_images=real,
        real_labels=np.arange(3),
        classes=("a", "b", "c"),
        threshold=0.2,
    )
    assert Image.open(tmp_path / "none.png").size[0] > 300
