"""A new dataset from what a program has: a table, a data frame, a list of dicts, or columns as arrays and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.importers.tables import conform, identity_columns, storable_schema
from leptonstore.dataset.npy_format import field_of
from leptonstore.dataset.refs import MAIN, writable_ref
from leptonstore.dataset.rows_in import RowsIn, as_table
from leptonstore.dataset.source import Source
from leptonstore.dataset.write import write_dataset
from leptonstore.errors import BadInput, Conflict, SchemaError
from leptonstore.store import Store


def create_dataset(
    store: Store,
    name: str,
    rows: RowsIn,
    key: str | Sequence[str] | None = None,
    message: str = "",
    branch: str = MAIN,
    author: str = "",
) -> Dataset:
    """The first version of `name` on `branch`. See `Dataset.create`."""
    store.refresh()
    if writable_ref(store, "dataset", name, branch)[1] is not None:
        raise Conflict(
            f"there is a dataset {name}@{branch} already: open it and append or upsert, or take another name or branch"
        )
    return write_dataset(store, name, _source(rows, key), message, branch, author=author)


def _source(rows: RowsIn, key: str | Sequence[str] | None) -> Source:
    if isinstance(rows, Source):
        if key is not None:
            raise BadInput("a Source says itself what its key is")
        return rows
    batches: Callable[[], Iterable[pa.RecordBatch]]
    if isinstance(rows, pa.RecordBatchReader):
        found, count, batches = rows.schema, None, rows.__iter__  # once: a version is written in one pass
    else:
        if isinstance(rows, pa.RecordBatch):
            rows = pa.table(rows)
        table = _from_columns(rows) if isinstance(rows, Mapping) else as_table(rows, pa.schema([]))
        found, count, batches = table.schema, table.num_rows, partial(table.to_batches, limits.ROW_GROUP_ROWS_AVG)
    schema = storable_schema(found)
    return Source(
        schema,
        identity_columns(schema, key),
        lambda: (conform(batch, schema) for batch in batches()),
        count,
        {"format": "rows"},
        keyed=key is not None,
    )


def _from_columns(columns: Mapping[str, Any]) -> pa.Table:
    """Arrays of shape (rows, *shape) as tensors, everything else as pyarrow takes it."""
    made: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if hasattr(values, "__array__") and not isinstance(values, (np.ndarray, pa.Array, pa.ChunkedArray)):
            values = np.asarray(values)  # a torch tensor, a pandas series
        try:
            if isinstance(values, np.ndarray) and values.ndim > 1:
                made[name] = tensor_column(field_of(name, values.dtype, values.shape[1:], "the columns"), values)
            else:
                made[name] = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
        except pa.ArrowException as error:
            raise SchemaError(f"column {name!r} cannot be kept: {str(error).splitlines()[0]}") from None
    lengths = {name: len(values) for name, values in made.items()}
    if len(set(lengths.values())) > 1:
        raise SchemaError(f"columns differ in their number of rows: {lengths}")
    return pa.table(made)
