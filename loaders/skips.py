"""Steps of an epoch that are left out: what a training restarts without, after they made its loss jump.

A range is asked for in steps and kept in positions, so that it means the same rows at any world size. A step is left out when any of its
positions lies in a range: under the global batch that the range was asked for, exactly the steps named; under another, those that share
rows with them. What is left out is not read, and not in a receipt's chain; states and receipts name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from loaders.order import ORDER_ROWS_MAX, SEED_MAX
from loaders.share import Share
from loaders.step import Step

SKIPS_MAX = 64  # ranges of one loader: some 60 bytes each in its state
Skip = tuple[int, int, int]  # epoch, first position, position after the last


class Skips:
    """The ranges of one loader, each asked for as (epoch, first step, step after the last)."""

    def __init__(self) -> None:
        self._asked: list[Skip] = []  # in steps, until the global batch is known: the world size is found at `iter()`
        self._ranges: list[Skip] = []

    def ask(self, epoch: int, first: int, stop: int) -> None:
        """Leave out steps [first, stop) of `epoch`, counted from its start. Raises ValueError for what is no such range."""
        if not 0 <= epoch <= SEED_MAX:
            raise ValueError(f"epoch must be between 0 and {SEED_MAX}, not {epoch}")
        if not 0 <= first < stop <= ORDER_ROWS_MAX:
            raise ValueError(f"skip takes steps [first, stop) with 0 <= first < stop, not [{first}, {stop})")
        if len(self._asked) + len(self._ranges) >= SKIPS_MAX:
            raise ValueError(f"a loader leaves out at most {SKIPS_MAX} ranges of steps: join neighbouring ones")
        self._asked.append((epoch, first, stop))

    def ranges(self, global_batch: int) -> list[Skip]:
        """All of them in positions, sorted; neighbouring ones are one. What was asked for counts in batches of `global_batch` rows."""
        for epoch, first, stop in self._asked:
            start = min(first * global_batch, ORDER_ROWS_MAX)
            self._ranges.append((epoch, start, min(stop * global_batch, ORDER_ROWS_MAX)))
        self._asked, self._ranges = [], joined(self._ranges)
        return self._ranges

    def add(self, ranges: Iterable[Skip]) -> None:
        """Those of a state too. Raises ValueError when they are too many."""
        together = joined([*self._ranges, *ranges])
        if len(together) + len(self._asked) > SKIPS_MAX:
            raise ValueError(f"the state and this loader leave out more than {SKIPS_MAX} ranges of steps together")
        self._ranges = together


def joined(ranges: Iterable[Skip]) -> list[Skip]:
    """Sorted, without overlaps: ranges of one epoch that meet are one."""
    out: list[Skip] = []
    for epoch, start, stop in sorted(ranges):
        if out and out[-1][0] == epoch and start <= out[-1][2]:
            out[-1] = (epoch, out[-1][1], max(stop, out[-1][2]))
        else:
            out.append((epoch, start, stop))
    return out


def gaps_of(share: Share, epoch: int, ranges: Sequence[Skip]) -> list[tuple[int, int]]:
    """[first, stop) of the steps of a pass that are left out: sorted, apart from each other, within [0, share.steps)."""
    gaps: list[tuple[int, int]] = []
    for of_epoch, start, stop in ranges:
        stop = min(stop, share.length)  # beyond it are positions of a last, short batch that it does not have
        if of_epoch != epoch or stop <= max(start, share.start):
            continue
        first = max(start - share.start, 0) // share.global_batch
        last = min(-(-(stop - share.start) // share.global_batch), share.steps)
        if gaps and first <= gaps[-1][1]:
            first = gaps.pop()[0]
        if first < last:
            gaps.append((first, last))
    return gaps


def without(steps: Iterator[Step], gaps: Sequence[tuple[int, int]]) -> Iterator[Step]:
    """The steps of a pass, numbered from 0, that are in no gap."""
    if not gaps:
        return steps
    return _without(steps, list(gaps))


def _without(steps: Iterator[Step], gaps: list[tuple[int, int]]) -> Iterator[Step]:
    for number, step in enumerate(steps):
        while gaps and number >= gaps[0][1]:
            gaps.pop(0)
        if not gaps or number < gaps[0][0]:
            yield step
