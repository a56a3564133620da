from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saukit.core.plots import colour, save_figure
from saukit.data.charts import counts_chart, counts_figure
from saukit.data.shots import shot_groups


def test_one_line_per_class_with_bars_in_proportion() -> None:
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
def test_the_figure_shows_the_groups_in_their_colours(size: int, tmp_path: Path) -> None:
    counts = [int(3000 * 0.05 ** (index / size)) for index in range(size)]
    groups = shot_groups(counts, "thirds")
    path = tmp_path / "counts.png"
    save_figure(counts_figure([f"class $x_{index}" for index in range(size)], counts, groups, title="rule"), path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] <= 900
    for name in groups.members:
        ink = [int(colour(name)[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - ink).max(axis=-1) < 3).sum() > 100, name


def test_bars_are_as_long_as_the_counts_the_most_frequent_first() -> None:
    counts, synthetic = [5, 80, 20], [75, 0, 60]
    figure = counts_figure(["a", "b", "c"], counts, shot_groups(counts, "thirds"), synthetic)
    axes: Any = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "c", "a"]
    widths: dict[int, list[float]] = {round(bar.get_y() + bar.get_height() / 2): [] for bar in axes.patches}
    for bar in axes.patches:
        widths[round(bar.get_y() + bar.get_height() / 2)].append(bar.get_width())
    assert widths == {0: [80, 80], 1: [80, 20], 2: [80, 5]}  # all of them, and the real ones over them
    assert [text.get_text() for text in axes.texts] == ["80", "20 + 60", "5 + 75"]


def test_many_classes_are_steps_whose_area_is_their_images() -> None:
    counts = list(range(100, 0, -1))
    axes: Any = counts_figure([f"c{index}" for index in range(100)], counts, shot_groups(counts, "thirds")).axes[0]
    area = 0.0
    for steps in axes.collections:
        x, y = steps.get_paths()[0].vertices.T
        area += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(sum(counts))
