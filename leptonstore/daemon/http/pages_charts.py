"""Charts of live figures: what happened in each of the last seconds, as a line with an area below. Pure."""

from __future__ import annotations

import math
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
    id: str,
    title: str,
    named: Sequence[tuple[str, Sequence[float]]],
    told: Callable[[float], str],
    seconds: int,
    binary: bool = False,
) -> Chart:
    """Series of equal length over the last `seconds`; `told` writes a value. binary: ticks are round in units of 1,024."""
    most = max((value for _, values in named for value in values), default=0.0)
    unit = 1024.0 ** math.floor(math.log(most, 1024)) if binary and most >= 1024 else 1.0
    # Nothing happened: an axis all the same. Above the highest point there is some room.
    top = [mark * unit for mark in nice_ticks(0.0, max(most * 1.05 / unit, 0.01) if most else 1.0)]
    high = top[-1]
    made = []
    for tone, (name, values) in enumerate(named):
        step = WIDTH / max(len(values) - 1, 1)
        points = [(round(at * step, 1), round(HEIGHT - value / high * HEIGHT, 2)) for at, value in enumerate(values)]
        line = "L".join(f"{x} {y}" for x, y in points)
        area = f"M0 {HEIGHT}L{line}L{points[-1][0]} {HEIGHT}Z" if points else ""
        recent = values[-6:-1]  # whole seconds, and several: single ones jump, and the last one is not over
        now = sum(recent) / max(len(recent), 1)
        made.append(Series(name, tone, Drawn(f"M{line}"), Drawn(area), told(now), told(max(values, default=0.0))))
    shown = [top[0], top[len(top) // 2], high] if len(top) > 3 else top
    ticks = tuple((round((high - mark) / high * 100, 2), told(mark)) for mark in shown if mark)
    said = "; ".join(f"{one.name} {one.now}, at most {one.most}" for one in made)
    return Chart(
        id, title, tuple(made), ticks, f"{seconds} s ago", "now", f"{title} over the last {seconds} seconds: {said}"
    )
