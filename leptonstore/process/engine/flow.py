"""What flows from the step to whoever takes it (apply.py, sink.py, passes.py): a row for each row that was read, in pieces as Daft likes.

    row int64 | keep bool | found large_binary | the step's columns (carrier.py, prefix "o")

Rows that the step leaves out keep their number, without `keep` and with nulls: a UDF of Daft gives as many rows as it takes, and so
whoever gets some knows which rows they stand for. `found` has the findings of a batch, on its first row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.tree import Rows
from leptonstore.process.engine.carrier import Carried

ROW, KEEP, FOUND = "row", "keep", "found"
MADE = "o"  # the prefix of the step's columns


def flow_schema(step_schema: pa.Schema) -> pa.Schema:
    """Of what comes out of a step with this schema."""
    head = [pa.field(ROW, pa.int64()), pa.field(KEEP, pa.bool_()), pa.field(FOUND, pa.large_binary())]
    return pa.schema([*head, *Carried(step_schema, MADE).schema])


def row_ranges(table: pa.Table) -> Iterator[tuple[int, int, pa.Table, tuple[pa.Table, ...]]]:
    """(first, end, the rows of [first, end) that are kept, in row order; findings) for each range of rows that the table stands for."""
    if not len(table):
        return
    rows = table[ROW].to_numpy()
    if (np.diff(rows) <= 0).any():
        table = table.take(pa.array(np.argsort(rows, kind="stable")))
        rows = table[ROW].to_numpy()
    for start, stop in _stretches(rows):
        some = table.slice(start, stop - start)
        kept = some if pc.all(some[KEEP]).as_py() else some.filter(some[KEEP])
        found = tuple(pa.ipc.open_stream(pa.py_buffer(data)).read_all() for data in some[FOUND].drop_null().to_pylist())
        yield int(rows[start]), int(rows[stop - 1]) + 1, kept, found


def _stretches(rows: Rows) -> Iterator[tuple[int, int]]:
    """Where consecutive numbers stand in `rows`, which ascend: [start, stop) of each stretch."""
    start = 0
    for stop in [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]:
        yield start, stop
        start = stop


def on_first_row(found: pa.Table, rows: int) -> pa.Array:
    """The column `found` of some rows."""
    if not len(found):
        return pa.nulls(rows, pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    first = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
    return pa.concat_arrays([first, pa.nulls(rows - 1, pa.large_binary())])
