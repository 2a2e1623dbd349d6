"""Reading whole windows of a block-wise order ahead, in the order in which their rows are stored.

    window n + 1    this rank's positions -> rows, sorted -> the host's hot cache, or a WindowBuffer    by two threads, while
    window n        is trained on

A batch of a window has rows of all its blocks: read by batch, a window is as many small reads as it has values. Its rows sorted are a few
long runs, which a request each can bring. So a step is handed on when its window has been read: its batch would else ask for the same bytes
in small pieces. Where a window cannot be read (an error, a cache that is too small) batches read for themselves, and meet the error again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from loaders.order import EpochOrder, Rows
from loaders.pipeline import rows_bytes
from loaders.share import Share
from loaders.source import ColumnSource, Source
from loaders.step import Step
from loaders.window_buffer import BUFFER_BYTES_MAX, WindowBuffer

READ_BYTES = 32 << 20  # of values that are read at a time: four requests of an object store
READ_ROWS_FIRST = 64  # read at a time until it is known how large rows are
READ_ROWS_MAX = 1 << 13
READ_THREADS = 2  # one waits for the network while the other checks and stores what came


def read_ahead(
    source: Source, order: EpochOrder, share: Share, steps: Iterator[Step], threads: bool = False
) -> Iterator[Step]:
    """`steps` of a pass, with threads that read its windows, where the order has any: into the host's hot cache, or into memory of this
    process where there is none (and what is read is far away, or the loader has threads anyway)."""
    windows, reader = getattr(order, "windows", None), getattr(source, "reader_ahead", None)
    if windows is None or reader is None:
        return steps
    spans = windows(share.start, share.length)
    read = reader()
    if read is not None:
        return WindowReader(read, getattr(source, "cache_bytes", 0), order, spans, share).steps(steps)
    if not isinstance(source, ColumnSource) or not source.buffers(threads):
        return steps
    source.buffer = WindowBuffer(source.read_cold, rows_bytes)
    reader_of = WindowReader(source.buffer.fetch, BUFFER_BYTES_MAX, order, spans, share)
    return _left_empty(source.buffer, reader_of.steps(steps))


def _left_empty(buffer: WindowBuffer, steps: Iterator[Step]) -> Iterator[Step]:
    """`steps`; a pass that is left early leaves nothing in the buffer. (One that ends has batches under way that it is for.)"""
    try:
        yield from steps
    except GeneratorExit:
        buffer.clear()
        raise


@dataclass(eq=False)
class _Window:
    """One that is being read: where it ends, and how many of its pieces are not there yet (one more as long as not all are begun)."""

    end: int
    missing: int = 1


class WindowReader:
    """Of one pass: `order` and `share`. `read(rows)` brings rows to a place of `cache_bytes` and gives their bytes.

    windows: positions [first, end) of the windows of the pass, one after another.

    Reads at most one window ahead of the steps, and no further where two windows are more than the cache has room for.
    """

    def __init__(
        self,
        read: Callable[[Rows], int],
        cache_bytes: int,
        order: EpochOrder,
        windows: Iterator[tuple[int, int]],
        share: Share,
    ) -> None:
        self._read, self._cache_bytes, self._order, self._share = read, cache_bytes, order, share
        self._windows = windows
        self._reached, self._closed = share.start, False
        self._begun: deque[_Window] = deque()
        self._complete = share.start  # all windows up to here were read
        self._moved = threading.Condition()
        self._taking = threading.Lock()
        self._rows_read = self._bytes_read = 0

    def steps(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; the threads run while they are taken."""
        work = self._pieces()
        threads = [threading.Thread(target=self._run, args=(work,), name="lepton-windows") for _ in range(READ_THREADS)]
        for thread in threads:
            thread.daemon = True
            thread.start()
        try:
            for step in steps:
                with self._moved:
                    self._reached, end = step.start, step.start + len(step.rows)
                    self._moved.notify_all()
                    self._moved.wait_for(lambda end=end: self._closed or self._complete >= end)  # type: ignore[misc]
                yield step
        finally:
            with self._moved:
                self._closed = True
                self._moved.notify_all()
            for thread in threads:
                thread.join()

    def _run(self, work: Iterator[tuple[_Window, Rows]]) -> None:
        while True:
            with self._taking:
                piece = next(work, None)
            if piece is None:
                return
            window, rows = piece
            try:
                size = self._read(rows)
            except Exception:
                self._give_up()
                return
            with self._moved:
                self._bytes_read += size
                self._rows_read += len(rows)
                window.missing -= 1
                self._count()

    def _give_up(self) -> None:
        with self._moved:
            self._closed = True
            self._moved.notify_all()

    def _count(self) -> None:
        """Under the lock: `_complete`, after a piece has come or the last of a window was begun."""
        while self._begun and not self._begun[0].missing:
            self._complete = self._begun.popleft().end
        self._moved.notify_all()

    def _pieces(self) -> Iterator[tuple[_Window, Rows]]:
        """What to read, piece by piece; waits until it is time."""
        before = self._share.start
        for first, last in self._windows:
            end = min(last, self._share.length)
            with self._moved:
                # When the window before it is trained on; the first two at once.
                self._moved.wait_for(lambda before=before: self._closed or self._reached >= before)  # type: ignore[misc]
            rows = np.sort(self._order.rows_of(self._own(max(first, self._share.start), end)))
            window = _Window(end)
            with self._moved:
                self._begun.append(window)
            while len(rows):
                row_bytes = self._bytes_read / self._rows_read if self._rows_read else 0
                if self._closed or 2 * (end - first) * row_bytes > self._cache_bytes:
                    self._give_up()
                    return
                at_once = min(max(int(READ_BYTES / row_bytes), 1), READ_ROWS_MAX) if row_bytes else READ_ROWS_FIRST
                with self._moved:
                    window.missing += 1
                yield window, rows[:at_once]
                rows = rows[at_once:]
            with self._moved:
                window.missing -= 1  # the one that stood for what was not begun
                self._count()
            before = max(first, self._share.start)

    def _own(self, start: int, stop: int) -> Rows:
        """The positions of this rank in [start, stop)."""
        share = self._share
        positions = np.arange(start, stop, dtype=np.int64)
        steps, inside = np.divmod(positions - share.start, share.global_batch)
        low, high = share.part_of(share.global_batch)
        own = (inside >= low) & (inside < high)
        last = steps >= share.full_steps  # a short batch, or what is left out
        low, high = share.part_of(share.last_rows)
        own[last] = (inside[last] >= low) & (inside[last] < high)
        return positions[own]
