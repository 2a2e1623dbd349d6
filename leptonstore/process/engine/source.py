"""A dataset version as a Daft DataSource: each task reads a range of row groups and gives one record batch of stored columns.

Daft takes whatever a task gives into a queue without bounds, so a range is what fits into memory: ENGINE_TASK_ROWS rows or
ENGINE_TASK_BYTES of what their nodes say that their pages have, but at least one row group. Tasks that run ahead are bounded by the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import daft
import numpy as np
import pyarrow as pa
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.process.engine.carrier import Carried
from leptonstore.process.engine.ended import working
from leptonstore.process.engine.failures import told
from leptonstore.process.engine.flow import ROW
from leptonstore.process.engine.unread import looked_up, travelling
from leptonstore.process.engine.workers import Lent
from leptonstore.process.memo import Memo

if TYPE_CHECKING:
    from daft.io.pushdowns import Pushdowns

Range = tuple[int, int]  # rows [first, end) of the dataset or view


def ranges(
    ds: Dataset, columns: Sequence[str], workers: int, referenced: bool = False, made_bytes: int = 0
) -> Iterator[Range]:
    """All rows of `ds` in ranges for tasks, in row order; where there are enough rows, several for each worker.

    referenced: large values count, too: they are looked up, or something as large is made of them. made_bytes: what a row has after the
    step, as far as its types tell. Raises ChunkMissing, ChunkCorrupt or FormatDamaged.
    """
    indices = [ds.schema.get_field_index(name) for name in columns]
    rows_most = max(limits.ROW_GROUP_ROWS_MIN, min(limits.ENGINE_TASK_ROWS, len(ds) // (4 * workers)))
    start = end = held = 0
    spans = ds.spans()
    while window := list(islice(spans, limits.SCAN_GROUPS_BATCH)):
        groups = ds.leaves.read_each([leaf for _, leaf, _ in window])
        for (position, leaf, rows), group in zip(window, groups, strict=True):
            count = leaf.end - leaf.first if rows is None else len(rows)
            parts = [part for at in indices for part in group.columns[at]]
            size = sum(part.page_bytes + referenced * part.referenced_bytes for part in parts) * count // group.rows
            size += made_bytes * count
            if position > start and (end - start + count > rows_most or held + size > limits.ENGINE_TASK_BYTES):
                yield start, end
                start, held = end, 0
            end, held = position + count, held + size
    if end > start:
        yield start, end


class VersionSource(DataSource):
    """Rows `todo` of a dataset or view: their numbers in it (int64, "row"), and columns as pages keep them (carrier.py)."""

    def __init__(
        self, ds: Dataset, lent: Lent, read: pa.Schema, todo: Sequence[Range], unread: Mapping[str, bytes]
    ) -> None:
        """read: the columns, as fields of `ds`: which is not looked into here. unread: as steps say it, of some of them; none of a view."""
        self._ds, self._lent, self._read, self._todo, self._unread = ds, lent, read, list(todo), dict(unread)

    @property
    def name(self) -> str:
        """For people: NAME@REF."""
        return self._ds.label

    @property
    def schema(self) -> daft.Schema:
        """Of the batches."""
        return daft.Schema.from_pyarrow_schema(_schema(self._read, self._unread))

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        """One for each range."""
        for first, end in self._todo:
            yield RangeTask(self._ds, self._lent, self._read, first, end, self._unread)


def _schema(read: pa.Schema, unread: Mapping[str, bytes]) -> pa.Schema:
    return pa.schema([pa.field(ROW, pa.int64()), *Carried(read).schema, *travelling(unread)])


class RangeTask(DataSourceTask):
    """Rows [first, end). Pickles: a worker reads through a store of its own (workers.py)."""

    def __init__(
        self, ds: Dataset, lent: Lent, read: pa.Schema, first: int, end: int, unread: Mapping[str, bytes]
    ) -> None:
        # A view's rows travel with the tasks that need them, not with each task all of them.
        self._ds = ds if ds.selection is None else ds.select(np.arange(first, end))
        self._lent, self._fields, self._first, self._end, self._unread = lent, read, first, end, unread

    @property
    def schema(self) -> daft.Schema:
        """Of the batch."""
        return daft.Schema.from_pyarrow_schema(_schema(self._fields, self._unread))

    async def read(self) -> AsyncIterator[RecordBatch]:
        """The one batch. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        # Daft's event loop is one thread: what reads and decodes does so in others.
        yield await asyncio.get_running_loop().run_in_executor(None, self._read)

    def _read(self) -> RecordBatch:
        with working(self._lent.run), told(self._lent):
            return self._batch()

    def _batch(self) -> RecordBatch:
        ds = self._lent.dataset(self._ds)
        fields = list(self._fields)
        numbers = np.arange(self._first, self._end, dtype=np.int64)
        base = numbers if ds.selection is None else ds.selection
        whole = [field for field in fields if field.name not in self._unread]
        columns = dict(
            zip((one.name for one in whole), ds.pages.gather(base, whole, keep=False) if whole else (), strict=True)
        )
        marks: list[pa.Array] = []
        if self._unread:
            found = looked_up(ds, self._unread, self._first, self._end, Memo.of(self._lent.store()))
            for name, (values, there, digests) in zip(self._unread, found, strict=True):
                columns[name] = values
                marks += [pa.array(there), digests]
        carried = Carried(pa.schema(fields)).pack([columns[field.name] for field in fields])
        names = _schema(self._fields, self._unread).names
        return RecordBatch.from_arrow_table(pa.Table.from_arrays([pa.array(numbers), *carried, *marks], names=names))
