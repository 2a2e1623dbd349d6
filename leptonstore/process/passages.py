"""Passages of text to look at: pieces of it, each with how strongly it is marked.

A model of text shows where it was surprised; whoever marks says what the marks mean in the report's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 8  # of marks, so that neighbours of like strength become one piece of the page
PIECES_MAX = 1_000  # of one passage; the rest of it is left out, and that is said


@dataclass(frozen=True)
class Passage:
    """A stretch of text. pieces: (text, strength 0 to 1) one after another; label and caption stand above it."""

    pieces: Sequence[tuple[str, float]]
    label: str = ""
    caption: str = ""


def leveled(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces with strengths in LEVELS steps, neighbours of the same joined; at most PIECES_MAX, then one that says so."""
    found: list[tuple[str, float]] = []
    for text, strength in pieces:
        level = round(min(max(strength, 0.0), 1.0) * LEVELS) / LEVELS
        if found and found[-1][1] == level:
            found[-1] = found[-1][0] + text, level
        elif len(found) == PIECES_MAX:
            return [*found, (" …", 0.0)]
        else:
            found.append((text, level))
    return found
