"""Arrow tables from elsewhere as tables that a store keeps: dictionaries and views decoded, other types refused."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from leptonstore import limits
from leptonstore.errors import SchemaError
from leptonstore.format.schema import schema_to_json

# Such as PARQUET:field_id, where a column stood in a file, or the name of a type that another library registered.
_FOREIGN_METADATA = (b"PARQUET:", b"ARROW:extension:")
_ITEM = "item"  # Parquet calls the child of a list "element": one name, so that equal tables have equal schemas


def storable_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` with every type as a store keeps it, without metadata of its own (that of its fields is kept).

    Raises SchemaError: no columns, too many, two of one name, or a type that is not kept (the column is named).
    """
    fields = [_storable_field(field) for field in schema]
    schema_to_json(pa.schema(fields))
    return pa.schema(fields)


def _storable_field(field: pa.Field) -> pa.Field:
    metadata = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(_FOREIGN_METADATA)}
    return pa.field(field.name, _storable_type(field.type), nullable=field.nullable, metadata=metadata or None)


def _storable_type(data_type: pa.DataType, depth: int = 0) -> pa.DataType:
    """The type without dictionaries and views at any depth; types that are not kept stay as they are."""
    kinds = pa.types
    if depth > limits.TYPE_DEPTH_MAX:
        raise SchemaError(f"types are nested more than {limits.TYPE_DEPTH_MAX} deep; flatten them")
    if isinstance(data_type, pa.ExtensionType) and not isinstance(data_type, pa.FixedShapeTensorType):
        return _storable_type(data_type.storage_type, depth + 1)  # what another library registered for itself
    if kinds.is_dictionary(data_type):
        return _storable_type(data_type.value_type, depth + 1)
    if kinds.is_string_view(data_type):
        return pa.large_string()
    if kinds.is_binary_view(data_type):
        return pa.large_binary()
    if kinds.is_list(data_type):
        return pa.list_(_storable_item(data_type.value_field, depth))
    if kinds.is_large_list(data_type):
        return pa.large_list(_storable_item(data_type.value_field, depth))
    if kinds.is_fixed_size_list(data_type):
        return pa.list_(_storable_item(data_type.value_field, depth), data_type.list_size)
    if kinds.is_struct(data_type):
        return pa.struct([pa.field(f.name, _storable_type(f.type, depth + 1), f.nullable) for f in data_type])
    return data_type


def _storable_item(field: pa.Field, depth: int) -> pa.Field:
    return pa.field(_ITEM, _storable_type(field.type, depth + 1), field.nullable)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` with exactly `schema`, which `storable_schema` made from the batch's own."""
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        if isinstance(column, pa.ExtensionArray) and column.type != field.type:
            column = column.storage
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def identity_columns(schema: pa.Schema, key: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns that identify a row: `key`, or all. Raises SchemaError for a name that is no column, or one twice."""
    if key is None:
        return tuple(schema.names)
    names = (key,) if isinstance(key, str) else tuple(key)
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise SchemaError(f"no column {missing[0]!r} to use as key; there are {', '.join(schema.names)}")
    if not names or len(set(names)) != len(names):
        raise SchemaError("a key needs one column or more, each of them once")
    return names
