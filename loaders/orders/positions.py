"""What the orders here are made of: positions, checked once, and grouped by the part of the order that they fall into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from loaders.order import Rows

Windows: TypeAlias = Callable[[int, int], Iterator[tuple[int, int]]]


class ByPosition:
    """An EpochOrder by one function of positions, `_evaluate`, which may trust them."""

    @property
    def length(self) -> int:
        """Positions of the epoch."""
        raise NotImplementedError

    def _evaluate(self, positions: Rows) -> Rows:
        raise NotImplementedError

    @property
    def windows(self) -> Windows | None:
        """A function (start, stop) that gives the windows [first, end) of positions which share what must be read; None without such."""
        return None

    def rows_at(self, start: int, stop: int) -> Rows:
        """The rows at positions [start, stop): int64, fresh memory. Raises ValueError unless 0 <= start <= stop <= length."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"positions {start} to {stop} are outside an epoch of {self.length} positions")
        return self._evaluate(np.arange(start, stop, dtype=np.int64))

    def rows_of(self, positions: Rows) -> Rows:
        """The rows at the given positions (int64, one dimension), in the order asked. Raises ValueError for one outside."""
        if positions.size and not (positions.min() >= 0 and positions.max() < self.length):
            raise ValueError(f"a position is outside an epoch of {self.length} positions")
        return self._evaluate(positions)


def grouped(numbers: Rows) -> Iterator[tuple[int, slice | Rows]]:
    """(number, where it stands in `numbers`) for each distinct number. Slices where equal numbers are neighbours, as in a range."""
    if not numbers.size:
        return
    steps = np.diff(numbers)
    where: Rows | None = None
    if (steps < 0).any():
        where = np.argsort(numbers, kind="stable")
        numbers = numbers[where]
        steps = np.diff(numbers)
    cuts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(numbers)]
    for first, last in pairwise(cuts):
        yield int(numbers[first]), slice(first, last) if where is None else where[first:last]
