"""Positions grouped by the part of an order that they fall into, and orders that are made over another one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from loaders.order import ByPosition, EpochOrder, Rows, Windows


class OverInner(ByPosition):
    """One with as many positions as the order `inner`, which it rearranges inside what is read together."""

    inner: EpochOrder

    @property
    def length(self) -> int:
        """That of the order within."""
        return self.inner.length

    @property
    def windows(self) -> Windows | None:
        """Those of the order within."""
        return getattr(self.inner, "windows", None)


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
