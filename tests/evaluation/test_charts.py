"""What the figures of results show, read back from their artists."""

from typing import Any

import numpy as np
import pytest

from saukit.core.plots import colour
from saukit.evaluation.charts import (
    Row,
    calibration_figure,
    comparison_figure,
    confusion_figure,
    interval_figure,
    losses_figure,
    mean_intervals,
    per_class_figure,
)

CLASSES, COUNTS = ("a", "b", "c"), (5, 80, 20)
MEMBERS = {"many": (1,), "medium": (2,), "few": (0,)}


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_one_method_has_bars_in_the_colours_of_the_groups() -> None:
    axes: Any = per_class_figure({"ce": [0.25, 1.0, None]}, classes=CLASSES, counts=COUNTS, members=MEMBERS).axes[0]
    assert ticks(axes.yaxis) == ["b (80)", "c (20)", "a (5)"]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axes.patches}
    assert [bars[row].get_width() for row in range(3)] == [100, 0, 25]
    expected = [tuple(int(colour(name)[at : at + 2], 16) / 255 for at in (1, 3, 5)) for name in MEMBERS]
    assert [bars[row].get_facecolor()[:3] for row in range(3)] == expected
    assert texts(axes) == ["100", "-", "25"]


def test_several_methods_have_a_dot_each() -> None:
    accuracies = {"x+synth": [0.5, 0.75, 1.0], "y": [0.25, 1.0, 0.75]}
    axes: Any = per_class_figure(accuracies, classes=CLASSES, counts=COUNTS, members=MEMBERS).axes[0]
    dots = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert dots == {"x+synth": [75, 100, 50], "y": [100, 75, 25]}
    assert axes.get_xlim()[0] == 20  # below the lowest


@pytest.mark.parametrize("size", [3, 30, 60])
def test_the_confusion_matrix_has_true_rows_and_predicted_columns_by_falling_count(size: int) -> None:
    counts = [5, 80, 20, *range(4, 4 - size + 3, -1)][:size]
    confusion = np.diag(np.full(size, 10))
    confusion[0] = 0
    confusion[0, :2] = 1, 3  # of the first class one image in four is recognised, the others are taken for the second
    axes: Any = confusion_figure(confusion, classes=[f"c{c}" for c in range(size)], counts=counts).axes[0]
    opacity = axes.images[0].get_array()[..., 3]
    assert opacity.shape == (size, size)
    np.testing.assert_allclose(np.diag(opacity), np.where(np.arange(size) == 2, 0.5, 1.0))  # square roots
    assert opacity[2, 0] == pytest.approx(np.sqrt(0.75))  # classes come as c1, c2, c0
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert ticks(axes.yaxis)[:3] == (["c1", "c2", "c0"] if size <= 30 else [])
    assert texts(axes)[:4] == (["100", "100", "75", "25"] if size <= 20 else [])


@pytest.mark.parametrize("name", ["ce", "balanced-softmax", "sau+synth-prior1-finish0.5-seed2", "n" * 200])
def test_titles_stay_within_their_pictures(name: str) -> None:
    classes, counts = ["t-shirt", "longsleeve", "shoes"], [30, 20, 10]
    title = f"{name}: confusion matrix, % of the true class"
    members = {"many": [0], "medium": [1], "few": [2]}
    confusion = np.diag([3, 2, 1])
    for figure in (
        confusion_figure(confusion, classes=classes, counts=counts, title=title),
        per_class_figure({"x": [1.0, 0.5, 0.1]}, classes=classes, counts=counts, members=members, title=title),
    ):
        figure.canvas.draw()
        words = [legend.get_title() for legend in figure.legends]
        assert "".join("".join(word.get_text().split()) for word in words) == "".join(title.split())
        for word in words:
            box, paper = word.get_window_extent(), figure.bbox
            assert paper.x0 <= box.x0 and box.x1 <= paper.x1 and box.y1 <= paper.y1


def test_calibration_bars_are_the_smaller_of_accuracy_and_confidence_and_the_gap() -> None:
    bins: list[Any] = [
        {"low": 0.0, "high": 0.5, "images": 4, "confidence": 0.4, "accuracy": 0.25},
        {"low": 0.5, "high": 1.0, "images": 8, "confidence": 0.7, "accuracy": 0.9},
        {"low": 1.0, "high": 1.5, "images": 0, "confidence": None, "accuracy": None},
    ]
    axes: Any = calibration_figure(bins).axes[0]
    found = {bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars] for bars in axes.containers}
    assert {name: np.round(bars, 9).tolist() for name, bars in found.items()} == {
        "both agree": [[0, 25], [0, 70]],
        "too sure": [[25, 15], [70, 0]],
        "not sure enough": [[25, 0], [70, 20]],
    }


def test_losses_have_a_line_per_seed_and_their_mean() -> None:
    logs = [
        [{"step": 10, "losses": {"ce": 2.0}}, {"step": 20, "losses": {"ce": 1.0}, "val_balanced_accuracy": 0.5}],
        [{"step": 10, "losses": {"ce": 4.0}}, {"step": 20, "losses": {"ce": 2.0}, "val_balanced_accuracy": 0.7}],
    ]
    axes: Any
    right: Any
    axes, right = losses_figure(logs).axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines][:3]
    assert lines == [([10, 20], [2.0, 1.0]), ([10, 20], [4.0, 2.0]), ([10, 20], [3.0, 1.5])]
    assert right.lines[-1].get_ydata() == pytest.approx([60])
    assert len(losses_figure([logs[0][:1]]).axes) == 1  # no validation part, one seed


def test_rows_have_their_mean_interval_and_seeds() -> None:
    rows = [
        Row("long " * 20, "9.0", "synthetic", 9.0, 8.0, 10.0, (8.5, 9.5)),
        Row("b", "-1.0 (too few seeds)", "soft", -1.0),
    ]
    axes: Any = interval_figure(rows, zero=True).axes[0]
    (interval, seeds, mean, none, lonely) = axes.lines
    places = [list(line.get_xdata()) for line in (interval, seeds, mean, none, lonely)]
    assert places == [[8.0, 10.0], [8.5, 9.5], [9.0], [], [-1.0]]
    (zero,) = axes.collections  # a piece beside each row's dots
    assert [list(piece[:, 0]) for piece in zero.get_segments()] == [[0, 0], [0, 0]]
    assert interval.get_ydata()[0] < lonely.get_ydata()[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert texts(axes)[1:] == ["9.0", "b", "-1.0 (too few seeds)"] and "…" in texts(axes)[0]


def test_a_comparison_has_a_panel_per_measure_that_is_there() -> None:
    method = {
        "label": "ce", "synthetic_images": 0, "mean": {"balanced_accuracy": 0.5, "few": None},
        "std": {"balanced_accuracy": 0.1, "few": None},
        "runs": [{"balanced_accuracy": 0.4}, {"balanced_accuracy": 0.6}],
    }  # fmt: skip
    axes: Any
    (axes,) = comparison_figure({"methods": [method]}).axes
    assert axes.get_title("left") == "balanced accuracy, %"
    (row,) = mean_intervals([method], "balanced_accuracy")
    assert row.singles == (40, 60) and (row.low, row.value, row.high) == pytest.approx((40, 50, 60))
    assert (row.text, row.colour) == ("50.0 ± 10.0", "real") and mean_intervals([method], "few") == []
