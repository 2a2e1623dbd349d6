"""Datasets as Daft DataFrames, and back: for work that is easier said in Daft than as a pipeline.

    frame = read_frame(ds).where(daft.col("label") == 3)
    write_frame(store, "threes", frame, ("id",), schema=ds.schema)

A frame is read lazily, range by range, on whatever runner the user's Daft has. What it gives is written here, by one writer, in the
frame's order; pipelines (pipeline.py) write where the rows are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.refs import MAIN
from leptonstore.errors import SchemaError, SourceError
from leptonstore.process.engine import Runner
from leptonstore.store import Store

if TYPE_CHECKING:
    import daft


def read_frame(ds: Dataset, columns: Sequence[str] | None = None) -> daft.DataFrame:
    """A lazy frame over a version or view, in its order: plain values in the types that Daft has (engine/plain.py says which change).

    columns: None for all. Columns that are not used are not read. Raises MissingExtra, SchemaError; while it is computed, Daft's exceptions
    tell of chunks that are missing or corrupt.
    """
    Runner().require()
    from leptonstore.process.engine.plain import PlainSource

    names = ds.column_names if columns is None else list(columns)
    return PlainSource(ds, names, os.cpu_count() or 1).read()


def write_frame(
    store: Store,
    name: str,
    frame: daft.DataFrame,
    identity: tuple[str, ...],
    schema: pa.Schema | None = None,
    keyed: bool = False,
    message: str = "",
    branch: str = MAIN,
    lineage: dict[str, Any] | None = None,
) -> Dataset:
    """A new version of `name` with the rows of a frame; returns it. Computes the frame, once; memory is some of its batches.

    schema: what the columns are cast to, with its semantic types (`ds.schema` of where they came from); None: as Daft gives them (text is
    large_string). lineage: what should be known of where it came from. Raises MissingExtra, SchemaError (a column that is missing, or does
    not fit), SourceError (a value that cannot be cast), and what `write_dataset` raises.
    """
    Runner().require()
    given = frame.schema().to_pyarrow_schema()
    wanted = given if schema is None else schema
    missing = [field.name for field in wanted if field.name not in given.names]
    if missing:
        raise SchemaError(f"the frame has no column {missing[0]!r}; it has: {', '.join(given.names)}")
    source = Source(wanted, identity, lambda: _batches(frame, wanted), lineage=lineage or {}, keyed=keyed)
    return write_dataset(store, name, source, message=message, branch=branch)


def _batches(frame: daft.DataFrame, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in frame.select(*schema.names).to_arrow_iter():
        arrays = [_cast(batch.column(field.name), field, rows) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        rows += batch.num_rows


def _cast(array: pa.Array, field: pa.Field, first: int) -> pa.Array:
    if array.type == field.type:
        return array
    try:
        return array.cast(field.type)
    except pa.ArrowException as error:
        raise SourceError(
            f"column {field.name!r} of the frame, near row {first}, is no {field.type}: {error}"
        ) from None
