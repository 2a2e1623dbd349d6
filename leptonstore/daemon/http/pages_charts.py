"""Charts of live figures: what happened in each of the last seconds, as a line with an area below. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leptonstore.process.charts import HEIGHT, WIDTH, Drawn, nice_ticks


@dataclass(frozen=True)
class Series:
    """One line: `path` along its points, `area` down to the axis; tone as in the style sheet. `now` and `most` are written beside it."""

    name: str
    tone: int
    path: Drawn
    area: Drawn
    now: str
    most: str


@dataclass(frozen=True)
class Chart:
    """`ticks` are (percent from the top, label). `summary` is what a screen reader says."""

    id: str
    title: str
    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    first: str
    last: str
    summary: str


def time_chart(
    id: str, title: str, named: Sequence[tuple[str, Sequence[float]]], told: Callable[[float], str], seconds: int
) -> Chart:
    """Series of equal length over the last `seconds`; `told` writes a value."""
    top = nice_ticks(0.0, max([1e-9, *(value for _, values in named for value in values)]))
    if top[-1] < 1e-6:  # nothing happened: an axis all the same
        top = [0.0, 1.0]
    high = top[-1]
    made = []
    for tone, (name, values) in enumerate(named):
        step = WIDTH / max(len(values) - 1, 1)
        points = [(round(at * step, 1), round(HEIGHT - value / high * HEIGHT, 2)) for at, value in enumerate(values)]
        line = "L".join(f"{x} {y}" for x, y in points)
        area = f"M0 {HEIGHT}L{line}L{points[-1][0]} {HEIGHT}Z" if points else ""
        now = sum(values[-5:]) / max(len(values[-5:]), 1)  # of some seconds: single ones jump
        made.append(
            Series(name, tone, Drawn(f"M{line}"), Drawn(area), told(now), told(max(values, default=0.0)))
        )
    shown = [top[0], top[len(top) // 2], high] if len(top) > 3 else top
    ticks = tuple((round((high - mark) / high * 100, 2), told(mark)) for mark in shown if mark)
    said = "; ".join(f"{one.name} {one.now}, at most {one.most}" for one in made)
    return Chart(id, title, tuple(made), ticks, f"{seconds} s ago", "now", f"{title} over the last {seconds} seconds: {said}")
