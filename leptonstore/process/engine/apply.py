"""The Step as a Daft UDF: stored columns of some rows -> a struct for each row, with what the step made of it.

    row i64 | keep bool | found large_binary | the step's columns (carrier.py, prefix MADE)

A UDF of Daft gives as many rows as it takes: those that the step leaves out keep their number, without `keep` and with nulls. So whoever
gets the rows knows of all of them, in whatever pieces Daft hands them on. `found` has the findings of a batch, on its first row.

Threads: Daft calls it from one thread for each core, in this process and in each worker of Ray's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import daft
import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.dataset.scan import slice_ends
from leptonstore.dataset.values import Column, concat, one_array, resolve, take
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.engine.carrier import Carried, bools
from leptonstore.process.engine.ended import working
from leptonstore.process.engine.failures import told
from leptonstore.process.engine.flow import MADE, flow_schema, on_first_row
from leptonstore.process.engine.pieces import Piece, Rows, Step
from leptonstore.process.engine.unread import Bits, Unread
from leptonstore.process.engine.workers import Lent
from leptonstore.process.findings import joined
from leptonstore.store import Store


@dataclass(frozen=True)
class ReadBy:
    """What a VersionSource reads: its columns, and which of them for their digests (unread.py): then of `ds`. Pickles."""

    ds: Dataset | None
    schema: pa.Schema
    unread: Mapping[str, bytes]


def applied(frame: daft.DataFrame, schema: pa.Schema, read: ReadBy, lent: Lent, plain: bool) -> daft.DataFrame:
    """`frame` (of a VersionSource that reads `read`) with the run's step applied, which has `schema`.

    plain: large values that it gives are looked up.
    """
    made = flow_schema(schema)
    function = _Applied(schema, read, lent, plain)
    wrapped: Any = daft.func.batch(
        return_dtype=daft.DataType.from_arrow_type(pa.struct(list(made))), unnest=True, use_process=False
    )(function.__call__)
    return frame.select(wrapped(*(frame[name] for name in frame.column_names)))


class _Applied:
    """What Daft calls, with a Series for each column. Pickles."""

    def __init__(self, schema: pa.Schema, read: ReadBy, lent: Lent, plain: bool) -> None:
        self._schema, self._read, self._lent, self._plain = schema, read, lent, plain

    def __call__(self, *series: Any) -> pa.Array:
        with working(self._lent.run), told(self._lent):
            arrays = [one_array(one.to_arrow()) for one in series]
            rows = arrays[0].to_numpy()
            names, carried = self._read.schema.names, Carried(self._read.schema)
            count = len(carried.schema)
            columns = dict(zip(names, carried.unpack(arrays[1 : 1 + count]), strict=True))
            marks = iter(arrays[1 + count :])
            unread = {
                name: self._unread(name, columns.pop(name), bools(next(marks)), next(marks), rows)
                for name in self._read.unread
            }
            return self._struct(rows, columns, unread)

    def _unread(self, name: str, values: Column, there: Bits, digests: pa.Array, rows: Rows) -> Unread:
        def read(numbers: Rows) -> Column:
            assert self._read.ds is not None
            ds = self._lent.dataset(self._read.ds)
            return ds.pages.gather(numbers, [self._read.schema.field(name)], keep=False)[0]

        return Unread(values, there, digests, rows, read)

    def _struct(self, rows: Rows, columns: dict[str, Column], unread: dict[str, Unread]) -> pa.Array:
        if (np.diff(rows) <= 0).any():  # Daft may join batches
            order = np.argsort(rows)
            rows, columns = rows[order], {name: take(column, order) for name, column in columns.items()}
            unread = {name: column.take(order) for name, column in unread.items()}
        store, step = self._lent.store(), self._lent.step()
        pieces = []
        start = 0
        bounded = getattr(step, "bounded", False)
        for end in [len(rows)] if bounded else slice_ends(list(columns.values()), len(rows)):
            some = {name: column.slice(start, end) for name, column in columns.items()}
            waiting = {name: column.slice(start, end) for name, column in unread.items()}
            pieces.append(self._stepped(step, Piece(rows[start:end], some, unread=waiting), store))
            start = end
        kept = np.concatenate([piece.rows for piece in pieces])
        made = [concat([piece.columns[name] for piece in pieces]) for name in self._schema.names]
        arrays = Carried(self._schema, MADE).pack(made)
        keep = np.ones(len(rows), np.bool_)
        if len(kept) < len(rows):
            keep = np.isin(rows, kept, assume_unique=True)
            places = pa.array(np.cumsum(keep) - 1, mask=~keep)
            arrays = [array.take(places) for array in arrays]
        found = joined(piece.findings for piece in pieces)
        head = [pa.array(rows), pa.array(keep), on_first_row(found, len(rows))]
        return pa.StructArray.from_arrays([*head, *arrays], fields=list(flow_schema(self._schema)))

    def _stepped(self, step: Step, piece: Piece, store: Store) -> Piece:
        made = step(piece, store)
        if not len(made.rows) <= len(piece.rows) or not np.isin(made.rows, piece.rows).all():
            raise BadInput("a step gave rows that it was not given")
        if (np.diff(made.rows) <= 0).any():
            raise BadInput("a step gave rows out of order")
        columns = {}
        for field in self._schema:
            column = made.columns[field.name]
            if len(column.values) != len(made.rows):
                raise BadInput(
                    f"a step gave {len(column.values)} values of column {field.name!r} for {len(made.rows)} rows"
                )
            if not field.nullable and column.values.null_count:
                row = made.rows[int(column.values.is_null().to_numpy(zero_copy_only=False).argmax())]
                raise SchemaError(f"column {field.name!r} is null in row {row}, but is declared without")
            columns[field.name] = Column(resolve(store, column, field.type)) if self._plain else column
        return Piece(made.rows, columns, made.findings)
