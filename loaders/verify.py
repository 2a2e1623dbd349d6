"""Receipts held against the data: the chain computed again, and any batch given again with its row numbers.

    Replay.verify     every step of every segment from commit, seed and order: the chain is the receipt's, or the first steps that
                      differ are named. 20 ns a row under a full shuffle; nothing of the data is read
    Replay.read_data  also reads every row that was handed out: each byte is checked against its digest, which the commit binds
    Replay.step       the rows of one step

Neither torch nor a loader is needed: a store, or any sources and orders that the caller has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from loaders.chain import key_of, next_head
from loaders.order import BoundOrder, EpochOrder, OrderStrategy, Rows
from loaders.receipt import MARK_DIGITS, Origin, Receipt, Segment
from loaders.share import Share, row_windows, steps_of
from loaders.source import BadInput, Damaged, Source, source_of
from loaders.step import Step
from loaders.strategies import strategy_of

DATA_ROWS = 4_096  # rows that `read_data` reads at a time


class ReceiptDiffers(Damaged):
    """What is computed from data and order is not what the receipt says. Fields: `segment` (its number), `first` and `last`: between these
    steps of the epoch the first difference stands."""

    def __init__(self, message: str, segment: int, first: int, last: int) -> None:
        super().__init__(message)
        self.segment, self.first, self.last = segment, first, last


class Checked(NamedTuple):
    """What `verify` has computed again."""

    steps: int
    rows: int


class Replay:
    """A receipt, and where its data is. Not for use by several threads.

    open:  gives the source of an origin; it is called once for each, and what it raises passes through.
    order: the strategy, where an origin's spec does not say all of it (loaders.strategies).
    """

    def __init__(self, receipt: Receipt, open: Callable[[Origin], Source], order: OrderStrategy | None = None) -> None:
        self.receipt = receipt
        self._open, self._strategy = open, order
        self._sources: dict[tuple[object, ...], Source] = {}
        self._bound: dict[tuple[object, ...], BoundOrder] = {}

    def source(self, origin: Origin) -> Source:
        """Where the rows of a segment are. Raises BadInput when the numbers in the receipt are not rows of it."""
        if origin.key not in self._sources:
            source = self._open(origin)
            if source.fingerprint != origin.fingerprint or source.rows != origin.rows:
                raise BadInput(
                    f"the receipt is of {origin.rows:,} rows of {origin}, fingerprint {origin.fingerprint[:24]}…, and this is "
                    f"{source.rows:,} rows of dataset {source.name!r}, fingerprint {source.fingerprint[:24]}…: "
                    "give the same version, and take the same rows of it (--split, --where)"
                )
            self._sources[origin.key] = source
        return self._sources[origin.key]

    def order(self, segment: Segment) -> EpochOrder:
        """The order of a segment's epoch. Raises BadInput when the spec gives none, ReceiptDiffers when it has fewer positions."""
        origin = segment.origin
        try:
            if origin.key not in self._bound:
                self._bound[origin.key] = strategy_of(origin.order, self._strategy).bind(self.source(origin))
            order = self._bound[origin.key].epoch(origin.seed, segment.epoch)
        except ValueError as error:
            raise BadInput(f"the order of the receipt does not fit {origin}: {error}") from None
        if order.length < segment.length:  # it may have more: `limit_batches` ends epochs early
            raise self._differs(
                segment, 1, segment.steps, f"the epoch has {order.length:,} positions and not {segment.length:,}"
            )
        return order

    def verify(self, progress: Callable[[int], None] = lambda steps: None) -> Checked:
        """Compute the chain again. Raises ReceiptDiffers, naming the first steps that are others.

        progress: told the number of steps done so far.
        """
        head, steps, rows = self.receipt.base_head, 0, 0
        for segment in self.receipt.segments:
            key, marks, agreed = key_of(segment.epoch, segment.origin.fingerprint), dict(segment.marks), 0
            for number, step in enumerate(self._steps(segment), 1):
                head = next_head(head, key, step.start, step.rows)
                if number in marks:
                    if marks[number] != head.hex()[:MARK_DIGITS]:
                        raise self._differs(segment, agreed + 1, number)
                    agreed = number
                if number % 1_024 == 0:
                    progress(steps + number)
            if head != segment.head:
                raise self._differs(segment, min(agreed + 1, segment.steps), segment.steps)
            steps += segment.steps
            rows += segment.stop - segment.start
            progress(steps)
        return Checked(steps, rows)

    def read_data(
        self, read: Callable[[Origin, Rows], object], progress: Callable[[int], None] = lambda rows: None
    ) -> int:
        """Read every row that was handed out, once: the number of them.

        read:     reads all columns of some rows, ascending, of an origin; what it raises (ChunkCorrupt, ChunkMissing) passes through.
        progress: told the number of rows so far.
        Memory: a byte for each row of a dataset, and DATA_ROWS rows.
        """
        done = 0
        for origin in self.receipt.origins:
            wanted = np.zeros(origin.rows, np.bool_)
            for segment in self.receipt.segments:
                if segment.origin.key == origin.key:
                    for rows in self._windows(segment):
                        wanted[rows] = True
            every = np.flatnonzero(wanted)
            for first in range(0, len(every), DATA_ROWS):
                part = every[first : first + DATA_ROWS]
                read(origin, part)
                done += len(part)
                progress(done)
        return done

    def step(self, epoch: int, number: int) -> tuple[Segment, Step]:
        """Step `number` of an epoch, counted from the epoch's start (position / global batch), whole: of all ranks.

        Raises BadInput, naming the steps that there are. Where an epoch went on with another global batch, the later counts.
        """
        there = [segment for segment in self.receipt.segments if segment.epoch == epoch]
        for segment in reversed(there):
            inside = number - segment.first_step
            if 0 <= inside < segment.steps:
                start, stop = segment.positions(inside)
                return segment, Step(epoch, start, self.order(segment).rows_at(start, stop))
        ranges = ", ".join(f"{one.first_step}-{one.first_step + one.steps - 1}" for one in there)
        if there:
            raise BadInput(f"step {number} of epoch {epoch} is not in the receipt, which has steps {ranges} of it")
        epochs = sorted({segment.epoch for segment in self.receipt.segments})
        named = f"{epochs[0]}-{epochs[-1]}" if epochs else "none"
        raise BadInput(f"epoch {epoch} is not in the receipt, which has epochs {named}")

    def _steps(self, segment: Segment) -> Iterator[Step]:
        share = _whole(segment)
        return steps_of(segment.epoch, share, row_windows(self.order(segment), share))

    def _windows(self, segment: Segment) -> Iterator[Rows]:
        return (rows for rows, _ in row_windows(self.order(segment), _whole(segment)))

    def _differs(self, segment: Segment, first: int, last: int, why: str = "") -> ReceiptDiffers:
        number = next(at for at, one in enumerate(self.receipt.segments) if one is segment)
        first, last = segment.first_step + first - 1, segment.first_step + last - 1
        steps = f"step {first}" if first == last else f"steps {first}-{last}"
        return ReceiptDiffers(
            f"the receipt does not hold: segment {number}, epoch {segment.epoch}, {steps}: {why or 'other rows'} in {segment.origin}, "
            f"seed {segment.origin.seed}; it was changed, or is of another run",
            number,
            first,
            last,
        )


def replay_of(receipt: Receipt, dataset: Any, order: OrderStrategy | None = None) -> Replay:
    """Of a receipt over what a loader was given: a dataset version, a view, a mixture, packs of tokens.

    order: that of the loader, where the receipt does not say all of it (weights in an array); default: the dataset's own, if it has one.
    """
    own = getattr(dataset, "__lepton_order__", None)
    given = own() if order is None and own is not None else order
    return Replay(receipt, lambda origin: source_of(dataset, None, 0), given)


def _whole(segment: Segment) -> Share:
    return Share(segment.stop, segment.global_batch, start=segment.start)
