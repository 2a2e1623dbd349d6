"""Arrow schemas <-> JSON, so that a commit's bytes do not depend on a version of Arrow.

A type is a string for the simple ones ("uint8", "string", "date32") and a list for the others:

    ["fixed_size_binary", bytes]   ["timestamp", unit, zone]   ["time32" | "time64" | "duration", unit]
    ["decimal128", precision, scale]   ["list" | "large_list", field]   ["fixed_size_list", field, length]
    ["struct", [field, …]]   ["tensor", value type, [dimension, …]]          (arrow.fixed_shape_tensor)

A field is {"name", "type", "nullable", "metadata"}; metadata is {string: string} and left out when empty.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.errors import FormatDamaged, SchemaError

SIMPLE: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "date32": pa.date32(),
    "date64": pa.date64(),
}
_SIMPLE_NAMES = {data_type: name for name, data_type in SIMPLE.items()}
_UNITS = {"time32": ("s", "ms"), "time64": ("us", "ns"), "duration": ("s", "ms", "us", "ns")}
_MAKE_UNIT = {"time32": pa.time32, "time64": pa.time64, "duration": pa.duration}
_MAKE_LIST = {"list": pa.list_, "large_list": pa.large_list}
_ELEMENTS_MAX = 1 << 31


def type_to_json(data_type: pa.DataType, column: str = "", depth: int = 0) -> Any:
    """An Arrow type as JSON. Raises SchemaError, naming `column`, for types that a store does not keep: just those that
    `type_from_json` does not give back."""
    if depth > limits.TYPE_DEPTH_MAX:
        raise SchemaError(f"column {column!r}: types are nested more than {limits.TYPE_DEPTH_MAX} deep; flatten them")
    if data_type in _SIMPLE_NAMES:
        return _SIMPLE_NAMES[data_type]
    if isinstance(data_type, pa.FixedShapeTensorType):
        if data_type.dim_names is not None or data_type.permutation is not None:
            raise SchemaError(f"column {column!r}: tensors with dimension names or a permutation are not kept")
        shape = [_kept_size(size, data_type, column) for size in data_type.shape]
        return ["tensor", type_to_json(data_type.value_type, column, depth + 1), shape]
    kinds = pa.types
    if kinds.is_fixed_size_binary(data_type):
        return ["fixed_size_binary", _kept_size(data_type.byte_width, data_type, column)]
    if kinds.is_timestamp(data_type):
        return ["timestamp", data_type.unit, data_type.tz or ""]
    for name, test in (("time32", kinds.is_time32), ("time64", kinds.is_time64), ("duration", kinds.is_duration)):
        if test(data_type):
            return [name, data_type.unit]
    if kinds.is_decimal128(data_type):
        return ["decimal128", data_type.precision, data_type.scale]
    for name, test in (("list", kinds.is_list), ("large_list", kinds.is_large_list)):
        if test(data_type):
            return [name, field_to_json(data_type.value_field, column, depth + 1)]
    if kinds.is_fixed_size_list(data_type):
        size = _kept_size(data_type.list_size, data_type, column)
        return ["fixed_size_list", field_to_json(data_type.value_field, column, depth + 1), size]
    if kinds.is_struct(data_type):
        return ["struct", [field_to_json(field, column, depth + 1) for field in data_type]]
    raise SchemaError(f"column {column!r} has type {data_type}, which a store does not keep; cast or drop the column")


def _kept_size(size: int, data_type: pa.DataType, column: str) -> int:
    if size == 0:
        raise SchemaError(f"column {column!r} has type {data_type}, whose values are all empty; drop the column")
    return size


def field_to_json(field: pa.Field, column: str = "", depth: int = 0) -> dict[str, Any]:
    """A field as JSON; metadata must be UTF-8."""
    out: dict[str, Any] = {
        "name": field.name,
        "nullable": field.nullable,
        "type": type_to_json(field.type, column or field.name, depth),
    }
    if field.metadata:
        try:
            out["metadata"] = {key.decode(): value.decode() for key, value in field.metadata.items()}
        except UnicodeDecodeError:
            raise SchemaError(f"column {field.name!r} has metadata that is not UTF-8") from None
    return out


def schema_to_json(schema: pa.Schema) -> list[dict[str, Any]]:
    """A schema as a list of fields. Raises SchemaError: no columns, too many, two of one name, unsupported types."""
    names = schema.names
    if not names or len(names) > limits.COLUMNS_MAX:
        raise SchemaError(f"a table needs 1 to {limits.COLUMNS_MAX} columns, this one has {len(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise SchemaError(f"column names must be unique and not empty: {twice or ['']}")
    return [field_to_json(field) for field in schema]


def type_from_json(value: Any, depth: int = 0) -> pa.DataType:
    """JSON -> Arrow type. Raises FormatDamaged for anything that `type_to_json` does not write."""
    if depth > limits.TYPE_DEPTH_MAX:
        raise FormatDamaged("schema is damaged: types are nested too deeply")
    if isinstance(value, str) and value in SIMPLE:
        return SIMPLE[value]
    try:
        name, *rest = value
        return _compound(name, rest, depth)
    except (TypeError, ValueError, KeyError, OverflowError, pa.ArrowException) as error:
        raise FormatDamaged(f"schema is damaged: no type {value!r} ({error})") from None


def _compound(name: str, rest: list[Any], depth: int) -> pa.DataType:
    if name in _MAKE_UNIT:
        (unit,) = rest
        if unit not in _UNITS[name]:
            raise ValueError(f"unit {unit!r}")
        return _MAKE_UNIT[name](unit)
    if name in _MAKE_LIST:
        (item,) = rest
        return _MAKE_LIST[name](field_from_json(item, depth + 1))
    if name == "fixed_size_binary":
        (width,) = rest
        return pa.binary(_size(width))
    if name == "timestamp":
        unit, zone = rest
        return pa.timestamp(unit, zone or None)
    if name == "decimal128":
        precision, scale = rest
        return pa.decimal128(precision, scale)
    if name == "fixed_size_list":
        item, length = rest
        return pa.list_(field_from_json(item, depth + 1), _size(length))
    if name == "struct":
        (fields,) = rest
        return pa.struct([field_from_json(field, depth + 1) for field in fields])
    if name == "tensor":
        value_type, shape = rest
        return pa.fixed_shape_tensor(type_from_json(value_type, depth + 1), [_size(size) for size in shape])
    raise ValueError(f"unknown type {name!r}")


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _ELEMENTS_MAX:
        raise ValueError(f"size {value!r}")
    return value


def field_from_json(value: Any, depth: int = 0) -> pa.Field:
    """JSON -> field. Raises FormatDamaged."""
    try:
        metadata = {str(key): str(text) for key, text in value.get("metadata", {}).items()} or None
        name, nullable = value["name"], value["nullable"]
        if not isinstance(name, str) or not isinstance(nullable, bool):
            raise TypeError("name and nullable")
        return pa.field(name, type_from_json(value["type"], depth), nullable=nullable, metadata=metadata)
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatDamaged(f"schema is damaged: no field {value!r} ({error})") from None


def schema_from_json(value: Any) -> pa.Schema:
    """A list of fields -> schema. Raises FormatDamaged."""
    if not isinstance(value, list) or not 0 < len(value) <= limits.COLUMNS_MAX:
        raise FormatDamaged("schema is damaged: not a list of fields")
    return pa.schema([field_from_json(field) for field in value])
