"""Charts as inline SVG, coloured by the page's style sheet. Every text is escaped.

Charts of rows have widths in per cent and text in pixels, so that they are legible on a phone and on a wide screen;
charts with lines have a fixed view of 340 units, and the page shows several beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

ROW, AXIS = 46, 24
INSET = 2.0  # per cent left and right of the scale
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 24
SIDE = 240
LONGEST_LABEL = 36

Format = Callable[[float], str]
PLAIN: Format = "{:g}".format


@dataclass(frozen=True)
class Dot:
    """A row of `interval_chart`: a mean, its interval if there is one, and the single values behind it."""

    label: str
    kind: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    singles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of `curves`: `strong` for a mean over seeds, else thin."""

    kind: str
    points: tuple[tuple[float, float], ...]
    strong: bool


def bar(share: float, kind: str, more: float = 0.0) -> Markup:
    """A horizontal bar of `share` of the width, and `more` on top of it; the text beside it says the number."""
    extra = Markup('<rect class="more" x="{:.2f}%" width="{:.2f}%" height="100%"/>').format(100 * share, 100 * more)
    return Markup(
        '<svg class="bar {}" aria-hidden="true" focusable="false"><rect class="fill" width="{:.2f}%" height="100%"/>'
        "{}</svg>"
    ).format(kind, 100 * share, extra if more else "")


def interval_chart(title: str, dots: Sequence[Dot], *, form: Format, zero: bool = False) -> Markup:
    """A row a method: its mean as a dot, its interval as a line, its seeds as small dots; `zero` marks 0."""
    values = [value for dot in dots for value in (dot.value, dot.low, dot.high, *dot.singles) if value is not None]
    ticks = nice_ticks(min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> float:
        return INSET + (100 - 2 * INSET) * (value - low) / (high - low)

    height = ROW * len(dots) + AXIS
    parts = []
    for index, tick in enumerate(ticks):
        anchor = "start" if index == 0 else "end" if index == len(ticks) - 1 else "middle"
        kind = "zero" if zero and tick == 0 else "grid"
        parts.append(
            Markup(
                '<line class="{}" x1="{x:.2f}%" x2="{x:.2f}%" y1="4" y2="{}"/>'
                '<text class="tick" x="{x:.2f}%" y="{}" text-anchor="{}">{}</text>'
            ).format(kind, height - AXIS, height - 7, anchor, form(tick), x=at(tick))
        )
    for row, dot in enumerate(dots):
        name, middle = shortened(dot.label), row * ROW + 33
        parts.append(
            Markup('<text class="name" x="{}%" y="{y}">{}</text><text class="value" x="{}%" y="{y}">{}</text>').format(
                INSET, name, 100 - INSET, dot.text, y=row * ROW + 18
            )
        )
        if dot.low is not None and dot.high is not None:
            parts.append(
                Markup('<line class="interval {}" x1="{:.2f}%" x2="{:.2f}%" y1="{y}" y2="{y}"/>').format(
                    dot.kind, at(dot.low), at(dot.high), y=middle
                )
            )
        parts += [
            Markup('<circle class="single {}" cx="{:.2f}%" cy="{}" r="2.5"/>').format(dot.kind, at(single), middle)
            for single in dot.singles
        ]
        parts.append(
            Markup('<circle class="mean {}" cx="{:.2f}%" cy="{}" r="5.5"/>').format(dot.kind, at(dot.value), middle)
        )
    return Markup('<svg class="rows" role="img" height="{}"><title>{}</title>{}</svg>').format(
        height, title, Markup("").join(parts)
    )


def columns(title: str, heights: Sequence[tuple[float, float, str]]) -> Markup:
    """Thin columns for many classes: (share, more on top, kind), shares of the height."""
    step = 100 / len(heights)
    parts = [
        Markup(
            '<rect class="fill {kind}" x="{x:.3f}%" y="{:.2f}%" width="{w:.3f}%" height="{:.2f}%"/>'
            '<rect class="more {kind}" x="{x:.3f}%" y="{:.2f}%" width="{w:.3f}%" height="{:.2f}%"/>'
        ).format(
            100 * (1 - share),
            100 * share,
            100 * (1 - share - more),
            100 * more,
            kind=kind,
            x=index * step,
            w=0.8 * step,
        )
        for index, (share, more, kind) in enumerate(heights)
    ]
    return Markup('<svg class="columns" role="img"><title>{}</title>{}</svg>').format(title, Markup("").join(parts))


def curves(title: str, lines: Sequence[Line], *, form: Format, bounds: tuple[float, float] | None = None) -> Markup:
    """Lines over the training steps; `bounds` of the vertical axis, else from 0 or the smallest value on."""
    xs: tuple[float, ...]
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    ticks = nice_ticks(*(bounds or (min(0.0, *ys), max(ys))))
    low, high, last = ticks[0], ticks[-1], max(xs)

    def x_at(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y_at(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
            '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, LEFT - 6, y_at(tick) + 4, form(tick), y=y_at(tick))
        for tick in ticks
    ]
    for step, anchor in ((0, "start"), (last, "end")):
        label = f"{step:,.0f} steps" if step else "0"
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                x_at(step), HEIGHT - 6, anchor, label
            )
        )
    for line in sorted(lines, key=lambda line: line.strong):
        points = " ".join(f"{x_at(step):.1f},{y_at(value):.1f}" for step, value in line.points)
        weight = "strong" if line.strong else "thin"
        parts.append(Markup('<polyline class="{} {}" points="{}"/>').format(weight, line.kind, points))
    return _framed(title, parts, WIDTH, HEIGHT)


def reliability(title: str, bins: Sequence[dict[str, Any]]) -> Markup:
    """A reliability diagram: what accuracy and confidence share in each bin, the gap between them, and the diagonal."""
    inner = SIDE - LEFT - RIGHT

    def x_at(share: float) -> float:
        return LEFT + inner * share

    def y_at(share: float) -> float:
        return TOP + inner * (1 - share)

    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{text}</text>'
                '<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{text}</text>'
            ).format(
                LEFT,
                SIDE - RIGHT,
                LEFT - 6,
                y_at(tick) + 4,
                x_at(tick),
                TOP + inner + 17,
                {0.0: "start", 1.0: "end"}.get(tick, "middle"),
                y=y_at(tick),
                text=f"{100 * tick:.0f}",
            )
        )
    for row in bins:
        if row["accuracy"] is None:
            continue
        x, width = x_at(row["low"]) + 0.5, inner * (row["high"] - row["low"]) - 1
        bottom, top = sorted((row["accuracy"], row["confidence"]))
        kind = "over" if row["confidence"] > row["accuracy"] else "under"
        parts.append(
            Markup(
                '<rect class="accuracy" x="{x:.1f}" y="{:.1f}" width="{w:.1f}" height="{:.1f}"/>'
                '<rect class="gap {}" x="{x:.1f}" y="{:.1f}" width="{w:.1f}" height="{:.1f}"/>'
            ).format(
                y_at(bottom),
                inner * bottom,
                kind,
                y_at(top),
                inner * (top - bottom),
                x=x,
                w=width,
            )
        )
    parts.append(
        Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x_at(0), y_at(0), x_at(1), y_at(1))
    )
    return _framed(title, parts, SIDE, TOP + inner + BOTTOM)


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at least two of them, in equal steps."""
    span = high - low or abs(high) or 1.0
    raw = span / (most - 1)
    power: float = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def shortened(text: str) -> str:
    """`text` in the room of a label."""
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _framed(title: str, parts: Sequence[Markup], width: float, height: float) -> Markup:
    return Markup('<svg class="plot" role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )
