"""Which of several byte ranges of packs are read together, and by which requests: a request costs as much as the bytes of a small gap.

wanted ranges -> runs (near ranges of one pack) -> pieces (one request each): a whole window where enough of it is wanted, or a long
run goes on in it; exactly what is wanted elsewhere
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from leptonstore import limits


@dataclass
class Run:
    """Bytes of a pack that are wanted, with small gaps; which of the ranges they are for, and how much is wanted of each window."""

    pack: str
    offset: int
    end: int
    members: list[int] = field(default_factory=list)
    wanted: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Piece:
    """One request. `window` is the number of a whole window, None for exactly [offset, end)."""

    offset: int
    end: int
    window: int | None = None


def runs_of(wanted: Sequence[tuple[str, int, int]]) -> list[Run]:
    """The runs for (pack, offset, length) triples: gaps up to RANGE_GAP_BYTES are read with what is around them. Empty ranges need none."""
    runs: list[Run] = []
    run = Run("", 0, 0)
    size = limits.WINDOW_BYTES
    for number in sorted(range(len(wanted)), key=wanted.__getitem__):
        pack, offset, length = wanted[number]
        if not length:
            continue
        if run.pack != pack or offset > run.end + limits.RANGE_GAP_BYTES:
            run = Run(pack, offset, offset)
            runs.append(run)
        end = offset + length
        run.members.append(number)
        if end > run.end:
            run.end = end
        first, last = offset // size, (end - 1) // size
        if first == last:
            run.wanted[first] += length
        else:
            for window in range(first, last + 1):
                run.wanted[window] += min(end, (window + 1) * size) - max(offset, window * size)
    return runs


def pieces_of(run: Run, known: Callable[[str, int], bool], whole: bool = False, alone: bool = False) -> list[Piece]:
    """The requests that have all of a run, in order and without overlap; known(pack, number): such a window is here already.
    whole: it is known to be part of a longer read. alone: it is known to be all that is wanted.

    A run that comes from far enough is taken for a part of a longer read: the window that it ends in is fetched whole, and whoever goes
    on finds it.
    """
    size, pieces = limits.WINDOW_BYTES, list[Piece]()
    for number in range(run.offset // size, -(-run.end // size)):
        start, end = max(run.offset, number * size), min(run.end, (number + 1) * size)
        goes_on = start - run.offset >= size // 2 and not alone
        enough = run.wanted[number] >= size * (1 if alone else limits.WINDOW_WANTED_SHARE)
        if whole or enough or goes_on or known(run.pack, number):
            pieces.append(Piece(start, end, number))
        elif pieces and pieces[-1].window is None:
            pieces[-1] = Piece(pieces[-1].offset, end)
        else:
            pieces.append(Piece(start, end))
    return pieces
