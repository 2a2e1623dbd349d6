"""One pass over an epoch, and where the loader stands in it.

    Progress        the position that `state_dict` reports and `iter()` starts from; shared by a loader and its passes
    EpochIterator   what `iter(loader)` returns: batches, counted and timed

A position moves on when a batch is handed out, not when it is made: prefetched batches are not consumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

from loaders.ledger import Entries
from loaders.share import Share
from loaders.stall import LoaderStats


class Position(NamedTuple):
    """`consumed` samples of all ranks together in epoch `epoch`."""

    epoch: int
    consumed: int


FIRST = Position(0, 0)


@dataclass
class Progress:
    """next:   where the next pass starts.
    current: where the newest pass stands; None before the first, after the last batch, and after `start_at`.
    passes:  counts passes and restores; only the pass that began last, and after any restore, moves `current`.
    """

    next: Position = FIRST
    current: Position | None = None
    passes: int = 0

    @property
    def position(self) -> Position:
        """What a state says: where training would continue."""
        return self.next if self.current is None else self.current

    def start_at(self, position: Position) -> None:
        """The next pass starts there."""
        self.next, self.current = position, None

    def restore(self, position: Position) -> None:
        """The next pass starts there, and a pass that still runs has no say any more."""
        self.start_at(position)
        self.passes += 1

    def open(self) -> None:
        """A pass begins where `next` says; the one after it is the following epoch."""
        self.next, self.current = Position(self.next.epoch + 1, 0), self.next
        self.passes += 1


@dataclass(eq=False)
class EpochIterator:
    """The batches of one pass. Used by one thread; dropping it stops its threads or workers.

    batches: makes them, in order; its `close()`, when it has one, is called at the end.
    share:   what this rank takes of the pass.
    stats:   what the loader adds up; the time inside `next()` is what it waits.
    gaps:    [first, stop) of the steps that are left out (loaders.skips): `batches` has none of them.
    entries: of the loader's ledger; None without receipts.
    row_bytes: of the columns with a fixed width, for the sum of bytes.
    check:   called before each step; raises when the pass cannot go on.
    """

    batches: Iterator[Any]
    share: Share
    epoch: int
    progress: Progress
    stats: LoaderStats
    gaps: Sequence[tuple[int, int]] = ()
    entries: Entries | None = None
    row_bytes: int = 0
    check: Callable[[], None] | None = None
    _step: int = field(default=0, init=False)  # number, in the pass, of the next batch

    def __post_init__(self) -> None:
        self._pass = self.progress.passes
        self._before = 0
        self._closed = False
        self._count()

    def _count(self) -> None:
        self._step = 0
        self._steps, self._full_steps = self.share.steps, self.share.full_steps
        self._left_out = deque(self.gaps)
        self._skip_gaps()
        self._rows_full = _size(self.share.part_of(self.share.global_batch))
        self._rows_last = _size(self.share.part_of(self.share.last_rows))

    def __iter__(self) -> EpochIterator:
        return self

    def __len__(self) -> int:
        return self._before + self._steps - _steps_in(self.gaps)

    @property
    def running(self) -> bool:
        """Whether it is the newest pass of its loader and has batches left to hand out."""
        return self.progress.passes == self._pass and not self._closed and self._step < self._steps

    def go_on_with(
        self, batches: Iterator[Any], share: Share, gaps: Sequence[tuple[int, int]], entries: Entries | None
    ) -> None:
        """Hand out these batches after those so far, which `share` goes on from. What was made ahead of them is dropped."""
        self.close()
        self._closed = False
        self._before += self._step - _steps_in([gap for gap in self.gaps if gap[1] <= self._step])
        self.batches, self.share, self.gaps, self.entries = batches, share, gaps, entries
        self._count()

    def __next__(self) -> Any:
        began = perf_counter()
        try:
            if self.check is not None:
                self.check()
            batch = next(self.batches)
        except BaseException:  # the end too
            self.close()
            if self._step >= self._steps:
                self._move(None)
            raise
        step = self._step
        rows = self._rows_full if step < self._full_steps else self._rows_last
        self._step = step + 1
        if self._left_out:
            self._skip_gaps()
        if self.progress.passes == self._pass:  # else a newer pass, or a restore, has the say
            if self._step >= self._steps:
                self.progress.current = None
            else:
                self.progress.current = Position(self.epoch, self.share.start + self._step * self.share.global_batch)
            if self.entries is not None:
                self.entries.handed_out()
        stats = self.stats
        stats["batches"] += 1
        stats["rows"] += rows
        stats["bytes"] += rows * self.row_bytes
        waited = perf_counter() - began
        stats["wait_s"] += waited
        stats.waits[int(waited * 1e6).bit_length()] += 1
        if waited > stats.worst[0]:
            stats.worst = waited, self.epoch, step
        return batch

    def _skip_gaps(self) -> None:
        while self._left_out and self._left_out[0][0] <= self._step:
            self._step = max(self._step, self._left_out.popleft()[1])

    def _move(self, position: Position | None) -> None:
        if self.progress.passes == self._pass:
            self.progress.current = position

    def close(self) -> None:
        """End the pass: its threads are joined. The position stays where it is."""
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()
        self.batches = iter(())
        self._closed = True

    def __del__(self) -> None:
        if "batches" in self.__dict__:
            self.close()


def _steps_in(gaps: Sequence[tuple[int, int]]) -> int:
    return sum(stop - first for first, stop in gaps)


def _size(part: tuple[int, int]) -> int:
    return part[1] - part[0]
