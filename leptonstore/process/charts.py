"""Geometry and number formats of the report's charts. Pure: numbers in, drawing coordinates and short texts out.

Bars and lines live in a box of 320 x 100 units, y downwards, that the page stretches to whatever width it has; labels
stand outside of the drawing, so that they are never stretched. Strings that become SVG attributes are made here from
numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leptonstore.process.statistics.results import Histogram, NumberStats

WIDTH = 320
HEIGHT = 100
POINTS_MAX = 400  # of one line; more are thinned out evenly: no screen shows them
# One bin that holds most values (the paper of a scan) would flatten all others: from this ratio of the fullest bin to
# the middle one on, heights are logarithmic, and the chart says so.
LOGARITHMIC_FROM = 40


class Drawn(str):
    """Text made here from numbers alone: as long as it needs to be, where text from the data is cut short."""


class LongText(str):
    """Text from the data that is there to be read: it is cut at REPORT_PASSAGE_CHARS_MAX, where names are cut sooner."""


@dataclass(frozen=True)
class Bar:
    """One bar in chart units; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class BarChart:
    """Bars on a common baseline; `summary` is what a screen reader says."""

    bars: tuple[Bar, ...]
    low: str
    high: str
    logarithmic: bool
    summary: str


@dataclass(frozen=True)
class Line:
    """One series: `path` joins its points, `dots` marks them; tone 0 is training, 1 what is held out."""

    name: str
    tone: int
    path: Drawn
    dots: Drawn
    last: str


@dataclass(frozen=True)
class LineChart:
    """Series over a common axis; ticks are (distance from the top in percent, label)."""

    title: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    first: str
    last: str
    summary: str


@dataclass(frozen=True)
class Box:
    """Where quantiles lie on the axis of a histogram, in chart units; `summary` says them."""

    low: float
    lower: float
    middle: float
    upper: float
    high: float
    summary: str


def box_of(stats: NumberStats) -> Box | None:
    """5, 25, 50, 75 and 95 % of the values, on the axis from min to max; None where they are not known."""
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    values = [stats.quantile(share) for share in shares]
    if stats.histogram is None or any(value is None for value in values):
        return None
    low, high = stats.histogram.edges[0], stats.histogram.edges[-1]
    if not high > low:
        return None
    numbers = [float(value) for value in values if value is not None]
    places = [round(min(max((value - low) / (high - low), 0.0), 1.0) * WIDTH, 2) for value in numbers]
    said = ", ".join(f"{share:.0%} are at most {short(value)}" for share, value in zip(shares, numbers, strict=True))
    return Box(places[0], places[1], places[2], places[3], places[4], said)


def histogram_chart(histogram: Histogram, what: str, first: str | None = None, last: str | None = None) -> BarChart:
    """A histogram as bars; `what` names the values in the summary. first, last: how the ends are written, where numbers say little."""
    edges, counts = histogram.edges, histogram.counts
    titles = [
        f"{short(low)} to {short(high)}: {whole(count)}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    if first is not None and last is not None:
        titles = [f"{whole(count)} values" for count in counts]
    return _bar_chart(counts, titles, first or short(edges[0]), last or short(edges[-1]), what)


def counts_chart(counts: Sequence[int], names: Sequence[str], what: str) -> BarChart:
    """One bar for each named count."""
    titles = [f"{name}: {whole(count)}" for name, count in zip(names, counts, strict=True)]
    return _bar_chart(counts, titles, names[0] if names else "", names[-1] if names else "", what)


def _bar_chart(counts: Sequence[int], titles: Sequence[str], low: str, high: str, what: str) -> BarChart:
    peak = max(counts, default=0)
    filled = sorted(count for count in counts if count)
    logarithmic = bool(filled) and peak > LOGARITHMIC_FROM * filled[len(filled) // 2]
    step = WIDTH / max(len(counts), 1)
    gap = min(2.0, step * 0.15)
    bars = []
    for place, (count, title) in enumerate(zip(counts, titles, strict=True)):
        if count:
            share = math.log1p(count) / math.log1p(peak) if logarithmic else count / peak
            height = max(1.0, share * HEIGHT)
            left, top = round(place * step + gap / 2, 2), round(HEIGHT - height, 2)
            bars.append(Bar(left, top, round(step - gap, 2), round(height, 2), title))
    tallest = titles[list(counts).index(peak)] if peak else ""
    summary = f"{what}, from {low} to {high}; the tallest bar is {tallest}" if tallest else f"{what}: no values"
    return BarChart(tuple(bars), low, high, logarithmic, summary)


def line_charts(rows: Sequence[Mapping[str, Any]]) -> list[LineChart]:
    """Charts of the losses and of the accuracies in `rows` (one mapping per epoch or step), where there are any."""
    axis = next((key for key in ("epoch", "step") if rows and all(key in row for row in rows)), "")
    xs = [float(row[axis]) if axis and is_number(row[axis]) else float(at) for at, row in enumerate(rows, 1)]
    charts = []
    for ending, percent in (("loss", False), ("accuracy", True)):
        keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key.endswith(ending)]
        series = {key: _points(xs, rows, key) for key in keys}
        series = {key: points for key, points in series.items() if points}
        if series:
            charts.append(_line_chart(ending, axis or "point", xs, series, percent))
    return charts


def _points(xs: Sequence[float], rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The finite points of one series, thinned out to POINTS_MAX, the last one kept."""
    points = [(x, float(row[key])) for x, row in zip(xs, rows, strict=True) if is_number(row.get(key))]
    every = -(-len(points) // POINTS_MAX)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _line_chart(
    ending: str, axis: str, xs: Sequence[float], series: dict[str, list[tuple[float, float]]], percent: bool
) -> LineChart:
    values = [value for points in series.values() for _, value in points]
    marks = nice_ticks(min(values) if percent else min(0.0, *values), max(values), 1.0 if percent else None)
    low, high = marks[0], marks[-1]
    span = (max(xs) - min(xs)) or 1.0
    said = as_percent if percent else short
    lines = []
    for key, points in series.items():
        drawn = [
            (round((x - min(xs)) / span * WIDTH, 2), round((high - y) / (high - low) * HEIGHT, 2)) for x, y in points
        ]
        path = "M" + "L".join(f"{x} {y}" for x, y in drawn)
        dots = "".join(f"M{x} {y}h0" for x, y in drawn) if len(drawn) <= 30 else ""
        tone = 0 if key.startswith("train") or key == ending else 1
        name = key.replace("_", " ")
        lines.append(Line(name, tone, Drawn(path), Drawn(dots), said(points[-1][1])))
    digits = max(0, -math.floor(math.log10((marks[1] - marks[0]) * (100 if percent else 1)) + 1e-9))
    label = (lambda v: f"{v * 100:.{digits}f} %") if percent else (lambda v: f"{v:.{digits}f}")
    ticks = tuple((round((high - mark) / (high - low) * 100, 2), label(mark)) for mark in marks)
    summary = f"{ending} over {len(xs)} {axis}s: " + ", ".join(f"{line.name} ends at {line.last}" for line in lines)
    first, last = (f"{axis} {short(edge)}" for edge in (min(xs), max(xs)))
    return LineChart(ending.capitalize(), tuple(lines), ticks, first, last if len(xs) > 1 else "", summary)


def nice_ticks(low: float, high: float, ceiling: float | None = None) -> list[float]:
    """Three to six round numbers that enclose [low, high]; none above `ceiling` unless the values are."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
        if ceiling is not None and high > ceiling >= low:
            low, high = ceiling - (ceiling - low or 0.1), ceiling
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(start, max(stop, start + 1) + 1)]


def is_number(value: object) -> bool:
    """Whether `value` is a finite number (numpy's included; booleans are none)."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        return False
    return math.isfinite(float(value))


def whole(value: float) -> str:
    """70000 -> "70,000"."""
    return f"{int(value):,}"


def short(value: float | None) -> str:
    """At most four significant digits; whole numbers with separators; an en dash for None. What is not finite: "∞", "-∞", "NaN"."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e15:
        return whole(value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.{decimals_for(abs(value))}f}"


def decimals_for(value: float) -> int:
    """Decimals that show four significant digits of a positive number, and at most six."""
    return min(6, max(0, 3 - math.floor(math.log10(value)))) if value > 0 else 0


def as_percent(share: float) -> str:
    """0.98374 -> "98.37 %"."""
    return f"{share * 100:.2f} %" if 0 < share < 1 else f"{share * 100:.0f} %"


def as_bytes(count: float) -> str:
    """Bytes with a binary unit and three significant digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    place = 0
    while count >= 1000 and place < len(units) - 1:
        count, place = count / 1024, place + 1
    return (
        f"{count:.0f} B" if place == 0 else f"{count:.{0 if count >= 100 else 1 if count >= 10 else 2}f} {units[place]}"
    )


def as_ratio(value: float) -> str:
    """5.4321 -> "5.4×"."""
    return f"{value:.2f}×" if value < 10 else f"{value:,.0f}×"


def as_seconds(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
