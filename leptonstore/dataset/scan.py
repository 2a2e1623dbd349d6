"""Going through a version from one end to the other: what comes next is asked for while what came before is decoded.

    plan     one thread     of a row group with large values: its pages (small then) -> slices of rows -> the values are asked for
    finish   READ_THREADS   decode and check each slice's values into memory that is used again; pages, where all values are in them
    yield    in order       the caller has one slice, PLANNED_MAX more are on their way

A slice is a row group, or as many of its rows as refer to SCAN_SLICE_BYTES: memory does not grow with the values of a row group. Each is
four requests of an object store, so with three slices under way there are twelve: 50 ms a request are not noticed.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.recycle import Recycler
from leptonstore.dataset.values import Asked, Column

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

Rows = np.ndarray[Any, np.dtype[np.int64]]
READ_THREADS = 2  # slices decoded at once
PLANNED_MAX = 3  # slices whose values are asked for and not decoded yet

_Batch = Callable[[Recycler], pa.RecordBatch]
_Slice = tuple[int, _Batch]  # position of its first row in the view, and what makes it


def scan(
    dataset: Dataset, fields: list[pa.Field], rows: Rows, keep: bool = True, lend: bool = False
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(position of the first row in `rows`, batch), in the order of `rows`, which are rows of the version.

    keep: whether the dataset keeps decoded pages for what is read next, up to PAGE_CACHE_BYTES. lend: whoever reads lets go of each batch
    before it asks for many more; then it may be views of the host's cache.
    """
    if not len(rows) or not fields:
        return
    cuts = _cuts(dataset.leaves.starts, rows)
    slices = _planned(dataset, fields, rows, cuts, keep, lend)
    memory = Recycler(limits.SCAN_SLAB_BYTES, READ_THREADS + 1)
    if len(cuts) == 2:
        yield from ((first, batch(memory)) for first, batch in slices)
        return
    with (
        ThreadPoolExecutor(1, "lepton-plan") as planner,
        ThreadPoolExecutor(READ_THREADS, "lepton-read") as readers,
    ):
        try:
            # Values that were found in the host's cache stay pinned there until they are copied.
            yield from _Ahead(slices, 1 if dataset.cache else PLANNED_MAX, planner, readers, memory)
        finally:
            planner.shutdown(wait=True, cancel_futures=True)
            readers.shutdown(wait=True, cancel_futures=True)


def _cuts(starts: Rows, rows: Rows) -> list[int]:
    """Where the rows of a row group end, or as many as one may have (a view may have a row several times)."""
    groups = np.searchsorted(starts, rows, side="right") - 1
    ends = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(rows)]
    step = limits.ROW_GROUP_ROWS_MAX
    return [at for start, end in itertools.pairwise(ends) for at in range(start, end, step)] + [len(rows)]


class _Ahead:
    """Slices planned and finished ahead of whoever iterates. Used by one thread."""

    def __init__(
        self,
        slices: Iterator[_Slice],
        planned_max: int,
        planner: ThreadPoolExecutor,
        readers: ThreadPoolExecutor,
        memory: Recycler,
    ) -> None:
        self._slices, self._planned_max = slices, planned_max
        self._planner, self._readers, self._memory = planner, readers, memory
        self._plans: deque[Future[_Slice | None]] = deque()
        self._batches: deque[tuple[int, Future[pa.RecordBatch]]] = deque()
        self._more = True

    def __iter__(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        while True:
            self._advance()
            if not self._batches:
                return
            first, batch = self._batches.popleft()
            yield first, batch.result()

    def _advance(self) -> None:
        """Plan and begin as much as is allowed; wait for a plan only when there is nothing else to hand out."""
        while True:
            while self._more and len(self._plans) < self._planned_max:
                self._plans.append(self._planner.submit(next, self._slices, None))
            if not self._plans or len(self._batches) > READ_THREADS:
                return
            if self._batches and not self._plans[0].done():
                return
            planned = self._plans.popleft().result()
            if planned is None:
                self._more = False
                self._plans.clear()
                return
            first, batch = planned
            self._batches.append((first, self._readers.submit(batch, self._memory)))


def _planned(
    dataset: Dataset, fields: list[pa.Field], rows: Rows, cuts: list[int], keep: bool, lend: bool
) -> Iterator[_Slice]:
    alone = threading.Lock()
    for start, end in itertools.pairwise(cuts):
        base = rows[start:end]
        if not dataset.pages.refers(int(base[0]), fields):
            yield start, functools.partial(_in_pages, dataset, fields, base, keep, lend)
            continue
        columns = dataset.pages.gather(base, fields, keep, lend)
        at = 0
        for stop in slice_ends(columns, len(base)):
            asked = dataset.ask([column.slice(at, stop) for column in columns], fields, base[at:stop])
            asked.begin()
            yield start + at, functools.partial(_alone, alone, asked) if asked.light else asked.batch
            at = stop


def _alone(lock: threading.Lock, asked: Asked, memory: Recycler) -> pa.RecordBatch:
    """What is only copied and digested holds the interpreter's lock for half of its time: two threads took a fifth longer than one."""
    with lock:
        return asked.batch(memory)


def _in_pages(
    dataset: Dataset, fields: list[pa.Field], base: Rows, keep: bool, lend: bool, memory: Recycler
) -> pa.RecordBatch:
    return dataset.ask(dataset.pages.gather(base, fields, keep, lend), fields, base).batch(memory)


def slice_ends(columns: list[Column], rows: int) -> list[int]:
    """Where a row group is sliced, so that each slice but one of a single row refers to at most SCAN_SLICE_BYTES."""
    sizes = np.zeros(rows, np.int64)
    for column in columns:
        if column.references is not None:
            sizes += column.referenced_sizes()
    ends: list[int] = []
    total, start = np.cumsum(sizes), 0
    while start < rows:
        before = int(total[start - 1]) if start else 0
        end = int(np.searchsorted(total, before + limits.SCAN_SLICE_BYTES, side="right"))
        start = min(max(end, start + 1), rows)
        ends.append(start)
    return ends
