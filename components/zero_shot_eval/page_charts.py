"""Charts as HTML and inline SVG. Words are HTML, so that they keep their size when a chart gets narrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from components.zero_shot_eval.page_markup import Html, el, join, number

PLOT_WIDTH, PLOT_HEIGHT = 1000, 300
MAX_POINTS = 160  # of a line: more cannot be told apart at this size


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover low to high, about `count` steps of them."""
    if not high > low:
        margin = 0.1 * abs(low) or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Span:
    """A figure with its interval on an interval chart. kind: the colour's name; text: said on pointing at it."""

    label: str
    value: float
    low: float
    high: float
    kind: str
    text: str
    strong: bool = False


def interval_chart(spans: Sequence[Span], *, title: str, unit: str) -> Html:
    """Dots with their intervals, one row each, over a common axis, in `unit`, that need not begin at 0."""
    marks = ticks(min(span.low for span in spans), max(span.high for span in spans))
    first, last = marks[0], marks[-1]

    def at(value: float) -> str:
        return f"{100 * (value - first) / (last - first):.2f}%"

    grid = join(el("i", class_="grid", style=f"left:{at(mark)}") for mark in marks)
    rows = []
    for span in spans:
        width = f"{100 * (span.high - span.low) / (last - first):.2f}%"
        bar = el("i", class_="bar", style=f"left:{at(span.low)};width:{width}")
        track = el("span", grid, bar, el("i", class_="dot", style=f"left:{at(span.value)}"), class_="track")
        rows.append(
            el(
                "li",
                el("span", span.label, class_="who"),
                track,
                class_=f"k-{span.kind} strong" if span.strong else f"k-{span.kind}",
                title=span.text,
            )
        )
    axis = el("span", *(el("i", number(mark), style=f"left:{at(mark)}") for mark in marks), class_="axis")
    foot = el("li", el("span", unit, class_="who"), axis, class_="feet", aria_hidden="true")
    return el("figure", el("figcaption", title), el("ul", *rows, foot, class_="intervals"))


@dataclass(frozen=True)
class Bar:
    """A bar with what is written beside it."""

    label: str
    value: float
    text: str
    kind: str


def bars(items: Sequence[Bar], *, title: str) -> Html:
    """Bars from 0, one row each."""
    longest = max(item.value for item in items) or 1.0
    rows = [
        el(
            "li",
            el("span", item.label, class_="who"),
            el("span", el("i", style=f"width:{100 * item.value / longest:.2f}%"), class_="track"),
            el("span", item.text, class_="what"),
            class_=f"k-{item.kind}",
        )
        for item in items
    ]
    return el("figure", el("figcaption", title), el("ul", *rows, class_="bars"))


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y) in order; kind: its colour; faint: drawn thin; note: said in the legend."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str
    faint: bool = False
    note: str = ""


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return list(points)
    chosen = np.unique(np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int))
    return [points[i] for i in chosen]


def _path(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> Html:
    def place(point: tuple[float, float]) -> str:
        x = PLOT_WIDTH * (point[0] - x_range[0]) / (x_range[1] - x_range[0])
        y = PLOT_HEIGHT * (1 - (point[1] - y_range[0]) / (y_range[1] - y_range[0]))
        return f"{x:.0f} {y:.1f}"

    places = [place(point) for point in _thin(line.points)]
    drawn = f"M{places[0]}h0" if len(places) == 1 else "M" + "L".join(places)
    style = "dot" if len(places) == 1 else "faint" if line.faint else None
    return el("path", d=drawn, class_=join([f"k-{line.kind}", *([style] if style else [])], " "))


def line_chart(lines: Sequence[Line], *, title: str, x_name: str, percent: bool = False) -> Html:
    """Curves over a common x that begins at 0. percent: y are shares, written in per cent."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [100 * y if percent else y for line in lines for _, y in line.points]
    marks = ticks(min(ys), max(ys), 3)
    x_range, y_range = (0.0, max(xs) or 1.0), (marks[0], marks[-1])
    scaled = [
        Line(line.label, [(x, 100 * y if percent else y) for x, y in line.points], line.kind, line.faint)
        for line in lines
    ]
    levels = [PLOT_HEIGHT * (1 - (mark - marks[0]) / (marks[-1] - marks[0])) for mark in marks]
    grid = el("path", d="".join(f"M0 {level:.1f}H{PLOT_WIDTH}" for level in levels), class_="grid")
    drawing = el(
        "svg",
        grid,
        *(_path(line, x_range, y_range) for line in sorted(scaled, key=lambda line: not line.faint)),
        view_box=f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: " + "; ".join(_told(line, percent) for line in scaled),
    )
    unit = " %" if percent else ""
    heights = [f"bottom:{100 * i / (len(marks) - 1):.1f}%" for i in range(len(marks))]
    y_axis = el("span", *(el("i", f"{number(m)}{unit}", style=h) for m, h in zip(marks, heights, strict=True)))
    x_axis = el("span", el("i", "0"), el("i", f"{number(x_range[1])} {x_name}"))
    plot = el("div", y_axis, drawing, x_axis, class_="plot", aria_hidden=None)
    legend = el(
        "ul",
        *(
            el("li", el("i", class_="faint" if line.faint else None), join([line.label, el("small", line.note)], " "),
               class_=f"k-{line.kind}")
            for line in lines
            if line.label or line.note
        ),
        class_="legend",
    )  # fmt: skip
    return el("figure", el("figcaption", title), plot, legend if any(line.label or line.note for line in lines) else "")


def _told(line: Line, percent: bool) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    unit = " %" if percent else ""
    return f"{line.label} from {number(first)} to {number(last)}{unit}".strip()


def histogram(values: ArrayLike, *, title: str, unit: str, others: ArrayLike | None = None) -> Html:
    """How many pictures have which value; others: a second set over the same bins, drawn as a second colour."""
    one = np.asarray(values, np.float64)
    two = None if others is None else np.asarray(others, np.float64)
    everything = one if two is None else np.concatenate([one, two])
    edges = np.histogram_bin_edges(everything, bins=min(40, max(5, round(math.sqrt(len(one))))))
    groups = [("splats" if two is None else "a", one), *([("b", two)] if two is not None else [])]
    counts = [(kind, np.histogram(group, edges)[0]) for kind, group in groups]
    tallest = max(int(count.max()) for _, count in counts) or 1
    width = PLOT_WIDTH / (len(edges) - 1)
    shapes = []
    for kind, count in counts:
        d = "".join(
            f"M{i * width:.1f} {PLOT_HEIGHT}V{PLOT_HEIGHT * (1 - c / tallest):.1f}h{width * 0.94:.1f}V{PLOT_HEIGHT}z"
            for i, c in enumerate(count.tolist())
            if c
        )
        shapes.append(el("path", d=d, class_=f"fill k-{kind}"))
    told = f"{title}: from {one.min():.1f} to {one.max():.1f} {unit}, mean {one.mean():.1f} {unit}"
    drawing = el(
        "svg",
        *shapes,
        view_box=f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=told,
    )
    y_axis = el("span", el("i", "0", style="bottom:0%"), el("i", f"{tallest:,}", style="bottom:100%"))
    x_axis = el("span", el("i", f"{edges[0]:.1f}"), el("i", f"{edges[-1]:.1f} {unit}"))
    plot = el("div", y_axis, drawing, x_axis, class_="plot")
    keys = (el("li", el("i"), kind.upper(), class_=f"k-{kind}") for kind, _ in groups)
    legend = "" if two is None else el("ul", *keys, class_="legend")
    return el("figure", el("figcaption", title), plot, legend)
