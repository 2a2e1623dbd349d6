"""Lines that join the versions of a history to those that they came from, for drawing beside a list. Pure.

A lane is a line of versions; each row of the list says what crosses it. Drawn in SVG without a viewBox, lanes at fixed x, heights in
percent, so that a row may be as high as its text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LANES_MAX = 8  # that are drawn apart; further ones share the last
LANE_WIDTH = 16  # pixels
DOT_Y = 22  # pixels from the top of a row: the middle of its first line


@dataclass(frozen=True)
class Stroke:
    """A straight line: x in pixels, from the top ("0"), the dot or the bottom ("100%") of a row to another of these."""

    x1: int
    y1: str
    x2: int
    y2: str
    tone: int


@dataclass(frozen=True)
class Lanes:
    """What is drawn beside one version: its dot at `x`, strokes, and the width of the drawing in pixels."""

    x: int
    y: int
    tone: int
    strokes: tuple[Stroke, ...]
    width: int


def lanes(versions: Iterable[tuple[str, Sequence[str]]]) -> list[Lanes]:
    """For each (version, its parents), which come none before its children."""
    waiting: list[str | None] = []  # the version that is expected next in each lane
    out: list[tuple[int, list[Stroke]]] = []
    for version, parents in versions:
        known = version in waiting
        at = waiting.index(version) if known else _free(waiting)
        strokes = [Stroke(_x(at), "0", _x(at), str(DOT_Y), _tone(at))] if known else []
        for lane, expected in enumerate(waiting):
            if lane == at or expected is None:
                continue
            if expected == version:  # several lines came from this version
                strokes.append(Stroke(_x(lane), "0", _x(at), str(DOT_Y), _tone(lane)))
                waiting[lane] = None
            else:
                strokes.append(Stroke(_x(lane), "0", _x(lane), "100%", _tone(lane)))
        waiting[at] = None
        for number, parent in enumerate(parents):
            if parent in waiting:
                to = waiting.index(parent)
            else:
                to = at if number == 0 else _free(waiting, at)
                waiting[to] = parent
            strokes.append(Stroke(_x(at), str(DOT_Y), _x(to), "100%", _tone(to if number else at)))
        out.append((at, strokes))
        while waiting and waiting[-1] is None:
            waiting.pop()
    most = max((max([at, *(max(one.x1, one.x2) // LANE_WIDTH for one in strokes)]) for at, strokes in out), default=0)
    width = (min(most, LANES_MAX - 1) + 1) * LANE_WIDTH
    return [Lanes(_x(at), DOT_Y, _tone(at), tuple(dict.fromkeys(strokes)), width) for at, strokes in out]


def _free(waiting: list[str | None], but: int = -1) -> int:
    """A lane that nothing is expected in."""
    for lane, expected in enumerate(waiting):
        if expected is None and lane != but:
            return lane
    waiting.append(None)
    return len(waiting) - 1


def _x(lane: int) -> int:
    return min(lane, LANES_MAX - 1) * LANE_WIDTH + LANE_WIDTH // 2


def _tone(lane: int) -> int:
    return lane % 3
