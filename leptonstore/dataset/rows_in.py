"""Rows that a caller hands over, made to fit the schema of a dataset: tables, batches, lists of dicts, pandas frames, sources, readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.schema import class_names
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SchemaError

# A pandas DataFrame too (anything with __arrow_c_stream__, or that pyarrow takes for one).
RowsIn: TypeAlias = "pa.Table | pa.RecordBatch | Source | Sequence[Mapping[str, Any]] | Any"


def batches_in(rows: RowsIn, schema: pa.Schema, partial: bool = False) -> Iterator[pa.RecordBatch]:
    """`rows` as batches of `schema`, at most ROW_GROUP_ROWS_AVG each.

    Columns are found by name. Types are cast where no value is lost; the names of classes become labels; a nullable column that is not
    there is null. partial: only the columns that are there, in the order of `schema`. Raises SchemaError, naming the column; BadInput.
    """
    first = 0
    for batch in _batches(rows, schema):
        fitted = fit_batch(batch, schema, first, partial)
        first += batch.num_rows
        for start in range(0, fitted.num_rows, limits.ROW_GROUP_ROWS_AVG):
            yield fitted.slice(start, limits.ROW_GROUP_ROWS_AVG)


def can_be_read_again(rows: RowsIn) -> bool:
    """False for a RecordBatchReader or another iterator of batches: an edit that loses a race with it cannot be made again."""
    return not isinstance(rows, pa.RecordBatchReader) and not hasattr(rows, "__next__")


def _batches(rows: RowsIn, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    if isinstance(rows, Source):
        if rows.stored is not None:
            raise BadInput("a directory of files cannot be put into a version piece by piece: import it anew")
        yield from rows.batches()
        return
    if isinstance(rows, pa.RecordBatch):
        yield rows
        return
    if not can_be_read_again(rows):
        yield from rows
        return
    yield from as_table(rows, schema).to_batches()


def as_table(rows: Any, schema: pa.Schema) -> pa.Table:
    """A table of anything that is one, a list of dicts too, whose values get the types of `schema` where they can. Raises BadInput."""
    try:
        if isinstance(rows, pa.Table):
            return rows
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
        if isinstance(rows, (list, tuple)):
            # By column, and by the type that it shall have: what is inferred from a few values may not fit the next.
            names = dict.fromkeys(name for row in rows for name in row)
            cells = {name: [row.get(name) for row in rows] for name in names}
            return pa.table({name: _cells(name, values, schema) for name, values in cells.items()})
        return pa.Table.from_pandas(rows, preserve_index=False)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise BadInput(f"these rows are no table: {error}") from None


def _cells(name: str, values: list[Any], schema: pa.Schema) -> pa.Array:
    at = schema.get_field_index(name)
    try:
        return pa.array(values, schema.field(at).type) if at >= 0 else pa.array(values)
    except pa.ArrowException:
        return pa.array(values)  # names of classes; anything else is told by the cast


def fit_batch(batch: pa.RecordBatch, schema: pa.Schema, first_row: int, partial: bool = False) -> pa.RecordBatch:
    """`batch` with exactly `schema`; see `batches_in`."""
    names = batch.schema.names
    unknown = [name for name in names if name not in schema.names]
    twice = [name for name in names if names.count(name) > 1]
    if unknown or twice:
        what = f"column {unknown[0]!r} is not in the dataset" if unknown else f"column {twice[0]!r} is there twice"
        raise SchemaError(f"{what}, which has {', '.join(schema.names)}; rename it, drop it, or add the column first")
    fields = [field for field in schema if field.name in names] if partial else list(schema)
    arrays = [
        _fit(batch.column(names.index(field.name)), field, first_row)
        if field.name in names
        else _missing(field, batch.num_rows)
        for field in fields
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _missing(field: pa.Field, rows: int) -> pa.Array:
    if not field.nullable:
        raise SchemaError(f"column {field.name!r} is missing, and is declared without nulls")
    return pa.nulls(rows, field.type)


def _fit(array: pa.Array, field: pa.Field, first_row: int) -> pa.Array:
    if not field.nullable and array.null_count:
        row = first_row + pc.index(array.is_null(), True).as_py()
        raise SchemaError(f"row {row} has no {field.name!r}, which is declared without nulls")
    if array.type == field.type:
        return array
    names = class_names(field)
    try:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if names is not None and (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            return _labels(array, field, names, first_row)
        if isinstance(field.type, pa.BaseExtensionType):
            storage = array.storage if isinstance(array, pa.ExtensionArray) else array
            return pa.ExtensionArray.from_storage(field.type, storage.cast(field.type.storage_type))
        return array.cast(field.type)
    except pa.ArrowException as error:
        why = str(error).splitlines()[0]
        raise SchemaError(
            f"column {field.name!r} is {field.type}, and values of type {array.type} near row {first_row} do not fit: {why}"
        ) from None


def _labels(array: pa.Array, field: pa.Field, names: list[str], first_row: int) -> pa.Array:
    found = pc.index_in(array, pa.array(names, array.type))
    lost = pc.and_(found.is_null(), array.is_valid())
    if pc.any(lost).as_py():
        row = pc.index(lost, True).as_py()
        raise SchemaError(
            f"row {first_row + row}: {array[row].as_py()!r} is no class of {field.name!r}; it has {', '.join(names)}"
        )
    return found.cast(field.type)
