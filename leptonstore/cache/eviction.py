"""Eviction: which values are worth their bytes, and which segments go.

    all values of the index -> distance to their next use -> the nearest that fit 85 % of the budget are wanted
    -> the segments with the least wanted bytes go, after what is wanted in them was copied together ("reinsertion")

Without a plan the distance is the time since the last use, which is LRU. With plans it is the furthest next use (Belady, 1966: "A study of
replacement algorithms for virtual storage computers"), and a new value is admitted only if its next use is nearer than the horizon: that
of nearly the farthest which are kept. One segment of the budget is kept free to copy into, so the budget holds at every moment.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leptonstore import limits
from leptonstore.cache.plans import Plans
from leptonstore.cache.segments import RECORD_BYTES, Segments
from leptonstore.cache.table import (
    BUDGET,
    CLOCK,
    COUNTERS,
    DEAD,
    HORIZON,
    HORIZON_NONE,
    LIVE,
    OPEN,
    PLANS,
    RANK_DUE,
    UNIT_BYTES,
    Entries,
    Table,
)

_PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True)
class Ranking:
    """What is wanted of all that is there, at one moment."""

    entries: Entries
    wanted: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]
    horizon: int

    def victims(self, segments: Iterator[tuple[int, int, int]], opened: int) -> list[tuple[float, int]]:
        """(share of its bytes that is wanted, ordinal) of the live segments, ascending."""
        live = [(ordinal, size) for ordinal, state, size in segments if state == LIVE and ordinal != opened]
        slots = limits.CACHE_SEGMENTS_MAX
        wanted = np.bincount(
            self.entries.ordinals[self.wanted] % slots, weights=self.sizes[self.wanted], minlength=slots
        )
        # Of a value's own segment all is wanted, or nothing: what rounding up to pages adds does not count.
        return sorted((wanted[ordinal % slots] / max(1, size - _PAGE_BYTES), ordinal) for ordinal, size in live)

    def of(self, ordinal: int) -> npt.NDArray[np.intp]:
        """The wanted values of a segment, nearest in the segment first."""
        mine = np.flatnonzero(self.wanted & (self.entries.ordinals == ordinal))
        return mine[np.argsort(self.entries.offsets[mine])]


def rank(table: Table, plans: Plans, wanted_bytes: float) -> Ranking:
    """Locked. The nearest values that fit `wanted_bytes` are wanted."""
    entries = table.entries()
    sizes = -(-(RECORD_BYTES + entries.lengths) // UNIT_BYTES) * UNIT_BYTES
    ages = np.maximum(0, np.int64(table.words[CLOCK]) - entries.used)
    distances = plans.distances(entries.fingerprints, ages)
    order = np.argsort(distances, kind="stable")
    held = np.cumsum(sizes[order])
    fit = int(np.searchsorted(held, wanted_bytes, side="right"))
    wanted = np.zeros(len(order), bool)
    wanted[order[:fit]] = True
    horizon = HORIZON_NONE
    if fit < len(order):
        horizon = int(distances[order[np.searchsorted(held, held[-1] * limits.CACHE_HORIZON_SHARE)]])
    return Ranking(entries, wanted, sizes, horizon)


class Space:
    """Gives out room in segments, and makes it. All of it locked: the host's lock is held."""

    def __init__(self, table: Table, segments: Segments, plans: Plans) -> None:
        self._table, self._segments, self._plans = table, segments, plans
        self._plans_seen = -1
        self._ranking: Ranking | None = None
        self._victims: deque[tuple[float, int]] = deque()  # of the ranking, in turn

    def _refresh(self) -> None:
        self._plans_seen = self._table.words[PLANS]
        self._plans.refresh()

    def admits(self, key_print: int) -> bool:
        """Whether a value is wanted more than the least wanted that is kept. Without plans everything is."""
        if self._table.words[PLANS] != self._plans_seen:
            self._refresh()
        if not len(self._plans):
            return True
        if self._table.words[CLOCK] >= self._table.words[RANK_DUE]:  # what was used since is farther away now
            self._rank(0)
        distance = self._plans.distances(np.array([key_print], np.uint64), np.zeros(1, np.int64))
        return bool(distance[0] < self._table.words[HORIZON])

    def give(self, size: int) -> tuple[int, int] | None:
        """(ordinal, offset) of `size` bytes; None when there is no room. Raises OSError when the device is full."""
        table = self._table
        if size > table.segment_bytes // 4:  # a segment of its own: nothing is lost at the end of another
            whole = -(-size // _PAGE_BYTES) * _PAGE_BYTES
            if whole > self._limit() - 2 * table.segment_bytes or not self._make_room(whole, lambda: False):
                return None
            ordinal = self._segments.make(whole)
            return None if ordinal is None or table.take(ordinal, size) is None else (ordinal, 0)
        found = self._take(size)
        if found is not None:
            return found
        taken: list[tuple[int, int]] = []

        def enough() -> bool:
            found = self._take(size)  # moving values together may have opened a segment with room left
            if found is not None:
                taken.append(found)
            return found is not None

        room = self._make_room(table.segment_bytes, enough)
        if taken or not room:
            return taken[0] if taken else None
        return self._take(size) if self._open_segment() else None

    def _take(self, size: int) -> tuple[int, int] | None:
        opened = self._table.words[OPEN]
        offset = self._table.take(opened, size)
        return None if offset is None else (opened, offset)

    def _open_segment(self) -> bool:
        ordinal = self._segments.make(self._table.segment_bytes)
        if ordinal is None:
            return False
        self._table.words[OPEN] = ordinal
        return True

    def _limit(self) -> int:
        limit: int = self._table.words[BUDGET] - self._table.bytes
        return limit

    def _total(self) -> int:
        return sum(size for _, _, size in self._table.segments())

    def _make_room(self, need: int, enough: Callable[[], bool]) -> bool:
        """Evict until `need` bytes are free beside the segment that is kept free, or it is `enough`."""
        self._segments.reclaim()
        limit = self._limit() - self._table.segment_bytes
        if self._total() + need <= limit:
            return True
        arena = max(0, need - self._table.segment_bytes)  # it displaces as much as it takes
        if (
            arena
            or self._table.words[CLOCK] >= self._table.words[RANK_DUE]
            or not self._evict_some(need, limit, enough)
        ):
            self._rank(arena)
            # Where few values fit a segment, moving them together may gain nothing: then what is wanted goes, too.
            if not self._evict_some(need, limit, enough):
                self._rank(arena)
                self._evict_some(need, limit, enough, move=False)
        return self._total() + need <= limit

    def _evict_some(self, need: int, limit: int, enough: Callable[[], bool], move: bool = True) -> bool:
        """Evict in the order of the ranking until there is room; False when that gave none."""
        while self._victims and self._ranking is not None:
            share, ordinal = self._victims[0]
            if move and share > limits.CACHE_MOVE_SHARE_MAX:
                break
            self._victims.popleft()
            self._evict(ordinal, self._ranking, move)
            if enough() or self._total() + need <= limit:
                return True
        return False

    def _rank(self, reserved: int) -> None:
        self._refresh()
        table, words = self._table, self._table.words
        limit = self._limit() - table.segment_bytes
        self._ranking = rank(table, self._plans, limits.CACHE_WANTED_SHARE * (limit - reserved))
        self._victims = deque(self._ranking.victims(table.segments(), words[OPEN]))
        values = len(self._ranking.sizes)
        words[HORIZON] = min(self._ranking.horizon, HORIZON_NONE)
        words[RANK_DUE] = words[CLOCK] + max(limits.CACHE_RANK_REQUESTS_MIN, values // limits.CACHE_RANK_SHARE)

    def shrink(self) -> None:
        """Evict until the budget holds: it was made smaller."""
        self._make_room(0, lambda: False)

    def _evict(self, ordinal: int, ranking: Ranking, move: bool) -> None:
        """Copy what is wanted, then let the segment die; one that somebody has pinned is left, as that would free nothing."""
        with self._segments.unpinned(ordinal) as file:
            if file is None or ordinal == self._table.words[OPEN]:
                if not os.path.exists(self._segments.path(ordinal)):  # somebody deleted it
                    self._table.set_state(ordinal, DEAD)
                return
            freed = os.fstat(file).st_size
            for index in ranking.of(ordinal).tolist() if move else ():
                self._move(file, ranking.entries, index, int(ranking.sizes[index]))
            self._table.set_state(ordinal, DEAD)
        self._segments.remove(ordinal)
        self._table.words[COUNTERS["evicted_bytes"]] += freed

    def _move(self, file: int, entries: Entries, index: int, size: int) -> None:
        """Copy one value to the open segment. Without room it is lost with its segment."""
        before = int(entries.ordinals[index]), int(entries.offsets[index])
        if size > self._table.segment_bytes:
            return
        after = self._take(size)
        if after is None and self._total() + self._table.segment_bytes <= self._limit() and self._open_segment():
            after = self._take(size)
        if after is None:
            return
        data = os.pread(file, size, before[1])
        target = self._segments.open_pinned(after[0], os.O_RDWR)
        if target is None:
            return
        try:
            os.pwrite(target, data, after[1])
        finally:
            os.close(target)
        self._table.move(int(entries.at[index]), int(entries.fingerprints[index]), before, after)
        self._table.words[COUNTERS["moved_bytes"]] += size
