"""Bars of ratios on a logarithmic scale, as pure geometry: for the HTML page and for its PNG plots.

Each figure that has a peer is a bar that begins at 1 (as good as the peer) and goes right when LeptonStore is better, by whatever
direction is better for the figure, left when the peer is. What was wanted is a mark on the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness import Figure
from leptonstore.process.charts import as_ratio

WIDTH = 320.0  # units from end to end, as of charts.py
TIMES_MAX = 10_000.0  # more is drawn as this; the text says what it is
STEPS = (1.0, 2.0, 5.0)
APART = 13.0  # percent between labels of the scale

HOLDS, SHORT, AHEAD, BEHIND = "holds", "short", "no bound", "peer better"


@dataclass(frozen=True)
class Bar:
    """One figure. x, width, mark: in units; mark: where its bound is, None without one."""

    name: str
    ours: str
    theirs: str
    ratio: str
    verdict: str
    said: str
    x: float
    width: float
    mark: float | None
    times: float
    times_wanted: float | None


@dataclass(frozen=True)
class Chart:
    """Bars on one scale. ticks: (place in percent, times); one: where 1 is, in units."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, float], ...]
    one: float


def verdict_of(figure: Figure) -> str:
    """Of a bound: holds or short. Without one: whether the peer is better, where there is a peer; else ""."""
    if figure.holds is not None:
        return HOLDS if figure.holds else SHORT
    if figure.advantage is None:
        return ""
    return BEHIND if figure.advantage < 1 else AHEAD


def said_of(figure: Figure) -> str:
    """The verdict as a reader wants it: "holds (wanted >= 2)", "short of >= 3", "the peer is better"; "" when there is nothing to say."""
    verdict, bound = verdict_of(figure), bound_text(figure.bound)
    if verdict == SHORT:
        return f"short: wanted {bound}"
    if verdict == HOLDS:
        behind = figure.advantage is not None and figure.advantage < 1 and bound[0] in "≥≤<>"
        return f"holds: wanted {bound}{', the peer is better' if behind else ''}"
    return "the peer is better" if verdict == BEHIND else ""


def bound_text(bound: str) -> str:
    """ ">= 2" -> "≥ 2"."""
    return bound.replace(">=", "≥").replace("<=", "≤").replace("==", "=")


def number(value: float, digits: int = 4) -> str:
    """With so many significant digits, separators, and no zeros at the end."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:g}"


def value_text(value: float, unit: str, digits: int = 4) -> str:
    """A value with its unit."""
    return f"{number(value, digits)} {unit}".strip()


def chart(figures: Sequence[Figure]) -> Chart | None:
    """Of those with a peer; None when there is none."""
    drawn = [(figure, _bounded(figure.advantage)) for figure in figures if figure.advantage is not None]
    if not drawn:
        return None
    wanted = [_wanted(figure) for figure, _ in drawn]
    ends = [times for _, times in drawn] + [times for times in wanted if times is not None]
    ticks = ticks_of(min(0.5, *ends), max(2.0, *ends))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def place(times: float) -> float:
        return round((math.log(times) - low) / (high - low) * WIDTH, 2)

    one, bars = place(1.0), []
    for (figure, times), bound in zip(drawn, wanted, strict=True):
        at = place(times)
        bars.append(
            Bar(
                name=figure.name,
                ours=value_text(figure.value, figure.unit),
                theirs=f"{figure.peer} {number(figure.peer_value or 0.0)}",
                ratio=as_ratio(figure.ratio or 0.0),
                verdict=verdict_of(figure),
                said=said_of(figure),
                x=min(one, at),
                width=max(1.0, abs(at - one)),
                mark=None if bound is None else place(bound),
                times=times,
                times_wanted=bound,
            )
        )
    places = [(round(place(tick) / WIDTH * 100, 2), tick) for tick in ticks]
    return Chart(tuple(bars), _apart(places), one)


def ticks_of(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from the last one at or below `low` to the first at or above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**power for power in powers for step in STEPS]
    first = max(tick for tick in every if tick <= low * (1 + 1e-9))
    last = min(tick for tick in every if tick >= high * (1 - 1e-9))
    return [tick for tick in every if first <= tick <= last]


def _apart(ticks: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """1, the ends, powers of ten and what else has room, in that order, so that labels stay apart on a phone."""
    ends = (ticks[0][1], ticks[-1][1])

    def rank(tick: tuple[float, float]) -> int:
        times = tick[1]
        return 0 if times == 1 else 1 if times in ends else 2 if math.log10(times).is_integer() else 3

    kept: list[tuple[float, float]] = []
    for tick in sorted(ticks, key=rank):
        if all(abs(tick[0] - other[0]) >= APART for other in kept):
            kept.append(tick)
    return tuple(sorted(kept))


def _wanted(figure: Figure) -> float | None:
    """The bound as times better than the peer."""
    if not figure.bound:
        return None
    limit = float(figure.bound.split()[1])
    if figure.higher_is_better:
        return _bounded(limit)
    return _bounded(1 / limit if limit else math.inf)


def _bounded(times: float) -> float:
    return min(max(times, 1 / TIMES_MAX), TIMES_MAX)
