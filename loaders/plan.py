"""The plan of a loader: what it tells the hot cache of what it will read, so that what is needed soonest stays.

    pass (order, share) ----┐
    the pass after it ------┴-> windows of rows -> keys, in the order of their use -> the cache

The order is a pure function, so the future is known: at the start of a pass, all of it and of the next epoch, as far as PLAN_KEYS_MAX
reaches; and more of it as the pass goes on. A plan is advice: without it the cache goes by last use, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

import numpy as np

from loaders.order import EpochOrder
from loaders.share import Share, row_windows
from loaders.source import Keys, Source

PLAN_KEYS_MAX = 1 << 22  # told at a time: 32 bytes each here, 16 in the cache's directory
Pass: TypeAlias = tuple[EpochOrder, Share]


class Planner:
    """Of one loader. Used by its thread."""

    def __init__(self, source: Source, keys_max: int = PLAN_KEYS_MAX) -> None:
        self._source, self._keys_max = source, keys_max
        self._following: tuple[Pass, list[Keys]] | None = None  # its keys, as far as they are known

    def __reduce__(self) -> tuple[type[Planner], tuple[Source, int]]:
        return Planner, (self._source, self._keys_max)

    def open(self, current: Pass, following: Pass) -> None:
        """`current` begins, and `following` is what comes after it. Replaces what was told before."""
        known = self._following[1] if self._following is not None and self._following[0] == current else []
        self._following = following, []
        self._future = chain(self._windows(current, known, None), self._windows(following, [], self._following[1]))
        self._told = self._passed = 0
        self._tell(restart=True)

    def windows(self, current: Pass) -> Iterator[tuple[np.ndarray, list[int]]]:
        """`row_windows` of the pass that is open; the plan is kept ahead of it."""
        for rows, sizes in row_windows(*current):
            yield rows, sizes
            self._passed += len(rows)
            if 2 * self._passed >= self._told:
                self._tell(restart=False)

    def _windows(self, which: Pass, known: list[Keys], kept: list[Keys] | None) -> Iterator[tuple[int, Keys]]:
        """(rows, keys) of each window of a pass; `known` are those of its first windows, and all are added to `kept`."""
        for number, (rows, sizes) in enumerate(row_windows(*which)):
            keys = known[number] if number < len(known) else self._source.future_keys(rows, sizes)
            if kept is not None:
                kept.append(keys)
            yield len(rows), keys

    def _tell(self, restart: bool) -> None:
        told: list[Keys] = []
        room = self._keys_max if restart else self._keys_max // 2
        for rows, keys in self._future:
            told.append(keys)
            self._told += rows
            room -= len(keys)
            if room <= 0:
                break
        if told or restart:
            self._source.plan(told, restart)
