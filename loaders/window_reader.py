"""Reading whole windows of a block-wise order ahead, in the order in which their rows are stored.

    window n + 1    this rank's positions -> rows, sorted -> the host's hot cache       by two threads, while
    window n        is trained on

A batch of a window has rows of all its blocks: read by batch, a window is as many small reads as it has values. Its rows sorted are a few
long runs, which a request each can bring. Nothing depends on these threads: a batch whose values are not there yet reads them itself (and
waits for those that a thread is just reading), and an error is met again there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from loaders.order import EpochOrder, Rows
from loaders.share import Share
from loaders.source import Source
from loaders.step import Step

READ_BYTES = 16 << 20  # of values that are read at a time: two requests of an object store
READ_ROWS_FIRST = 64  # read at a time until it is known how large rows are
READ_ROWS_MAX = 1 << 13
READ_THREADS = 2  # one waits for the network while the other checks and stores what came


def read_ahead(source: Source, order: EpochOrder, share: Share, steps: Iterator[Step]) -> Iterator[Step]:
    """`steps` of a pass, with threads that read its windows, where the order has any and the source a cache to read them into."""
    windows, reader = getattr(order, "windows", None), getattr(source, "reader_ahead", None)
    if windows is None or reader is None or (read := reader()) is None:
        return steps
    spans = windows(share.start, share.length)
    return WindowReader(read, getattr(source, "cache_bytes", 0), order, spans, share).steps(steps)


class WindowReader:
    """Of one pass: `order` and `share`. `read(rows)` brings rows into a cache of `cache_bytes` and gives their bytes.

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
                    self._reached = step.start
                    self._moved.notify_all()
                yield step
        finally:
            with self._moved:
                self._closed = True
                self._moved.notify_all()
            for thread in threads:
                thread.join()

    def _run(self, work: Iterator[Rows]) -> None:
        while True:
            with self._taking:
                rows = next(work, None)
            if rows is None:
                return
            try:
                size = self._read(rows)
            except Exception:
                self._closed = True
                return
            with self._taking:
                self._bytes_read += size
                self._rows_read += len(rows)

    def _pieces(self) -> Iterator[Rows]:
        """What to read, piece by piece; waits until it is time."""
        before = self._share.start
        for first, last in self._windows:
            end = min(last, self._share.length)
            with self._moved:
                # When the window before it is trained on; the first two at once.
                self._moved.wait_for(lambda before=before: self._closed or self._reached >= before)  # type: ignore[misc]
            rows = np.sort(self._order.rows_of(self._own(max(first, self._share.start), end)))
            while len(rows) and self._reached < end:
                row_bytes = self._bytes_read / self._rows_read if self._rows_read else 0
                if self._closed or 2 * (end - first) * row_bytes > self._cache_bytes:
                    return
                at_once = min(max(int(READ_BYTES / row_bytes), 1), READ_ROWS_MAX) if row_bytes else READ_ROWS_FIRST
                yield rows[:at_once]
                rows = rows[at_once:]
            before = max(first, self._share.start)

    def _own(self, start: int, stop: int) -> Rows:
        """The positions of this rank in [start, stop), in whole global batches."""
        share = self._share
        positions = np.arange(start, stop, dtype=np.int64)
        low, high = share.part_of(share.global_batch)
        inside = (positions - share.start) % share.global_batch
        return positions[(inside >= low) & (inside < high)]
