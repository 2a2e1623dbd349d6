"""One pass over an epoch, and where the loader stands in it.

    Progress        the position that `state_dict` reports and `iter()` starts from; shared by a loader and its passes
    EpochIterator   what `iter(loader)` returns: batches, counted and timed

A position moves on when a batch is handed out, not when it is made: prefetched batches are not consumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, TypedDict

from loaders.share import Share


class Position(NamedTuple):
    """`consumed` samples of all ranks together in epoch `epoch`."""

    epoch: int
    consumed: int


FIRST = Position(0, 0)


class LoaderStats(TypedDict):
    """Sums over the life of a loader: batches and rows (of this rank) handed out, and the seconds waited for them.

    faults: samples that the policy skipped or substituted.
    restarts: worker processes that died and were started again.
    """

    batches: int
    rows: int
    wait_s: float
    faults: int
    restarts: int


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
    """

    batches: Iterator[Any]
    share: Share
    epoch: int
    progress: Progress
    stats: LoaderStats
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._pass = self.progress.passes
        self._steps, self._full_steps = self.share.steps, self.share.full_steps
        self._rows_full = _size(self.share.part_of(self.share.global_batch))
        self._rows_last = _size(self.share.part_of(self.share.last_rows))

    def __iter__(self) -> EpochIterator:
        return self

    def __len__(self) -> int:
        return self._steps

    def __next__(self) -> Any:
        began = perf_counter()
        try:
            batch = next(self.batches)
        except BaseException:  # the end too
            self.close()
            if not self._steps:
                self._move(None)
            raise
        full = self._step < self._full_steps
        self._step += 1
        if self._step == self._steps:
            self._move(None)
        else:
            self._move(Position(self.epoch, self.share.start + self._step * self.share.global_batch))
        stats = self.stats
        stats["batches"] += 1
        stats["rows"] += self._rows_full if full else self._rows_last
        stats["wait_s"] += perf_counter() - began
        return batch

    def _move(self, position: Position | None) -> None:
        if self.progress.passes == self._pass:
            self.progress.current = position

    def close(self) -> None:
        """End the pass: its threads are joined. The position stays where it is."""
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()
        self.batches = iter(())

    def __del__(self) -> None:
        if "batches" in self.__dict__:
            self.close()


def _size(part: tuple[int, int]) -> int:
    return part[1] - part[0]
