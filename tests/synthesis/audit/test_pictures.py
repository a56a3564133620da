from pathlib import Path

import numpy as np
from PIL import Image

from saukit.synthesis.audit.pictures import save_grid, shown_classes


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
    pixels = np.asarray(Image.open(path))[..., 0]
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
