from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saukit.core.figures import GROUP_COLOURS
from saukit.data.charts import counts_chart, save_counts_chart
from saukit.data.shots import shot_groups


def test_a_line_a_class_with_bars_in_proportion() -> None:
    counts = [80, 40, 1]
    lines = counts_chart(["cat", "elephant", "eel"], counts, shot_groups(counts, "thirds"))
    assert [line.split() for line in lines] == [
        ["cat", "80", "many", "█" * 40],
        ["elephant", "40", "medium", "█" * 20],
        ["eel", "1", "few", "█"],  # never without a bar
    ]


@pytest.mark.parametrize("size", [40, 41, 1000])
def test_many_classes_show_head_and_tail(size: int) -> None:
    counts = list(range(size, 0, -1))
    lines = counts_chart([f"c{index}" for index in range(size)], counts, shot_groups(counts, "thirds"))
    assert len(lines) == 40
    assert lines[0].startswith("c0 ") and lines[-1].startswith(f"c{size - 1} ")
    if size > 40:
        assert lines[20].startswith("...") and lines[20].endswith(f"{size - 39} more classes")


@pytest.mark.parametrize("size", [2, 10, 100, 1000])
def test_the_picture_shows_the_groups_in_their_colours(size: int, tmp_path: Path) -> None:
    counts = [max(1, int(3000 * 0.5**index)) for index in range(size)]
    groups = shot_groups(counts, "thirds")
    path = tmp_path / "counts.png"
    save_counts_chart(path, [f"class $x_{index}" for index in range(size)], counts, groups)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] <= 2100
    for name in groups.members:
        colour = [int(GROUP_COLOURS[name][at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - colour).max(axis=-1) < 3).sum() > 200, name
