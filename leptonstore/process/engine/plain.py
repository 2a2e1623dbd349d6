"""A dataset version as a Daft DataSource for people: plain values, large ones looked up, in the types that Daft has.

What Daft lacks is cast: times of seconds and milliseconds become those of microseconds, date64 a timestamp, a decimal of negative scale
one of scale 0. Columns that a query does not use are not read. Tasks are ranges as in source.py, with large values counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

import daft
import numpy as np
import pyarrow as pa
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

from leptonstore.dataset import Dataset
from leptonstore.errors import SchemaError
from leptonstore.process.engine.source import ranges

if TYPE_CHECKING:
    from daft.io.pushdowns import Pushdowns

_DIGITS_MAX = 38  # of a decimal


def frame_type(field: pa.Field) -> pa.DataType:
    """The type that a column has in a frame. Raises SchemaError for one that Daft cannot have."""
    kinds, data_type = pa.types, field.type
    if kinds.is_time32(data_type):
        return pa.time64("us")
    if kinds.is_date64(data_type):
        return pa.timestamp("ms")
    if kinds.is_decimal(data_type) and data_type.scale < 0:
        digits = data_type.precision - data_type.scale
        if digits > _DIGITS_MAX:
            raise SchemaError(
                f"column {field.name!r} is {data_type}, which Daft does not have; leave it out of `columns`"
            )
        return pa.decimal128(digits, 0)
    return data_type


class PlainSource(DataSource):
    """Some columns of a dataset or view, in its order."""

    def __init__(self, ds: Dataset, columns: Sequence[str], workers: int) -> None:
        self._ds, self._columns, self._workers = ds, tuple(columns), workers
        self._schema = _schema(ds, self._columns)

    @property
    def name(self) -> str:
        """For people: NAME@REF."""
        return self._ds.label

    @property
    def schema(self) -> daft.Schema:
        """Of all columns."""
        return daft.Schema.from_pyarrow_schema(self._schema)

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        """One for each range of rows."""
        used = pushdowns.columns
        # Of a query that uses no column, the number of rows still counts.
        columns = self._columns if used is None else tuple(name for name in self._columns if name in used)
        columns = columns or self._columns[:1]
        for first, end in ranges(self._ds, columns, self._workers, referenced=True):
            yield PlainTask(self._ds.select(np.arange(first, end)), columns)


def _schema(ds: Dataset, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(field.name, frame_type(field)) for field in ds.fields(columns)])


class PlainTask(DataSourceTask):
    """All rows of a view. Pickles: it opens the store again, as datasets do."""

    def __init__(self, view: Dataset, columns: tuple[str, ...]) -> None:
        self._view, self._columns = view, columns

    @property
    def schema(self) -> daft.Schema:
        """Of the batches."""
        return daft.Schema.from_pyarrow_schema(_schema(self._view, self._columns))

    async def read(self) -> AsyncIterator[RecordBatch]:
        """Batches that refer to a bounded number of bytes. Raises ChunkMissing or ChunkCorrupt."""
        loop, batches = asyncio.get_running_loop(), self._batches()
        while (batch := await loop.run_in_executor(None, next, batches, None)) is not None:
            yield batch

    def _batches(self) -> Iterator[RecordBatch]:
        schema = _schema(self._view, self._columns)
        for _, batch in self._view.iter_batches(self._columns, keep=False):
            arrays = [
                array if array.type == field.type else array.cast(field.type)
                for array, field in zip(batch.columns, schema, strict=True)
            ]
            yield RecordBatch.from_arrow_table(pa.Table.from_arrays(arrays, schema=schema))
