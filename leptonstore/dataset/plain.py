"""Arrow values as JSON can say them, and back: for JSONL, and for cells of formats that hold JSON.

    bool, integers, float32/64, string     as they are (NaN, Infinity: the words that Python's json, Arrow and pandas read)
    float16                                a float
    date, time, timestamp                  text, ISO 8601: "2026-11-26", "12:30:00.5", "2026-11-26 12:30:00Z" with a zone
    duration                               an integer, in the column's unit
    decimal                                text
    bytes                                  text, base64
    list, tensor                           nested lists
    struct                                 an object

`plain_type` says what a type becomes, `to_plain` and `from_plain` convert arrays, without a Python object per value
except for base64. Every value of a type that a store keeps comes back equal.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.errors import LeptonError, SourceError
from leptonstore.format.schema import schema_from_json, schema_to_json

_kinds = pa.types
SCHEMA_KEY = "lepton.schema"  # where a foreign format has room for a word of ours, it carries the schema


def encode_schema(schema: pa.Schema) -> str:
    """The schema as one line of JSON, for a foreign format to carry."""
    return json.dumps(schema_to_json(schema), ensure_ascii=True, separators=(",", ":"), sort_keys=True)


def decode_schema(text: object, where: str) -> pa.Schema:
    """A schema that a foreign file carries, which anybody may have written. Raises SourceError."""
    try:
        if not isinstance(text, (str, bytes)) or len(text) > limits.COMMIT_BYTES_MAX:
            raise ValueError("not text, or too long")
        schema = schema_from_json(json.loads(text))
        schema_to_json(schema)
        if fixed_row_bytes(schema) > limits.SOURCE_VALUE_BYTES_MAX:
            raise ValueError(f"rows of more than {limits.SOURCE_VALUE_BYTES_MAX} bytes")
        return schema
    except (ValueError, RecursionError, pa.ArrowException, LeptonError) as error:
        raise _no_schema(where, error) from None


def _no_schema(where: str, error: Exception) -> SourceError:
    return SourceError(f"{where} carries a schema that cannot be read ({error}); write it again", where)


def is_bytes(data_type: pa.DataType) -> bool:
    """Whether values are bytes, of any width."""
    return bool(
        _kinds.is_binary(data_type) or _kinds.is_large_binary(data_type) or _kinds.is_fixed_size_binary(data_type)
    ) and not isinstance(data_type, pa.ExtensionType)


def _is_text_of(data_type: pa.DataType) -> bool:
    """Types that become text by Arrow's own casts."""
    return bool(
        _kinds.is_date(data_type)
        or _kinds.is_time(data_type)
        or _kinds.is_timestamp(data_type)
        or _kinds.is_decimal(data_type)
    )


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """What values of `data_type` are in JSON, as an Arrow type that Arrow's JSON reader knows."""
    if isinstance(data_type, pa.FixedShapeTensorType):
        inner = plain_type(data_type.value_type)
        for _ in data_type.shape:
            inner = pa.list_(inner)
        return inner
    if is_bytes(data_type) or _is_text_of(data_type) or _kinds.is_large_string(data_type):
        return pa.string()
    if _kinds.is_duration(data_type):
        return pa.int64()
    if _kinds.is_float16(data_type):
        return pa.float32()
    if _kinds.is_list(data_type) or _kinds.is_large_list(data_type) or _kinds.is_fixed_size_list(data_type):
        return pa.list_(plain_type(data_type.value_type))
    if _kinds.is_struct(data_type):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in data_type])
    return data_type


def fixed_row_bytes(schema: pa.Schema) -> int:
    """Bytes that every row may take, whatever it holds: those of tensors and other values of one width, nulls too."""
    return sum(_width(field.type) for field in schema)


def _width(data_type: pa.DataType) -> int:
    if isinstance(data_type, pa.FixedShapeTensorType):
        data_type = data_type.storage_type
    if _kinds.is_fixed_size_list(data_type):
        return int(data_type.list_size) * _width(data_type.value_type)
    if _kinds.is_list(data_type) or _kinds.is_large_list(data_type):
        return _width(data_type.value_type)  # of one item
    if _kinds.is_struct(data_type):
        return sum(_width(field.type) for field in data_type)
    if _kinds.is_fixed_size_binary(data_type):
        return int(data_type.byte_width)
    return 8


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Every column as it is in JSON."""
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


# -- to JSON -----------------------------------------------------------------------------------------------------


def to_plain(array: pa.Array) -> pa.Array:
    """`array` with `plain_type` of its type."""
    data_type = array.type
    if isinstance(data_type, pa.FixedShapeTensorType):
        return _tensor_to_plain(array, to_plain(array.storage.flatten()))
    if is_bytes(data_type):
        texts = [None if value is None else base64.b64encode(value).decode() for value in array.to_pylist()]
        return pa.array(texts, pa.string())
    if _is_text_of(data_type):
        if _kinds.is_timestamp(data_type) and data_type.tz:
            array = array.cast(pa.timestamp(data_type.unit, "UTC"))
        return array.cast(pa.string())
    if _kinds.is_list(data_type) or _kinds.is_large_list(data_type) or _kinds.is_fixed_size_list(data_type):
        # `flatten` leaves out what null lists hide, and what stands outside of the slice
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return _lists_of(array, lengths, to_plain(array.flatten()))
    if _kinds.is_struct(data_type):
        names = [field.name for field in data_type]
        if not names:
            return array
        children = [to_plain(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, names, mask=array.is_null())
    return array.cast(plain_type(data_type))


def _lists_of(array: pa.Array, lengths: np.ndarray, children: pa.Array) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), children, mask=mask)


def tensor_to_lists(array: pa.Array) -> pa.Array:
    """Tensors as lists of lists of their values."""
    return _tensor_to_plain(array, array.storage.flatten())


def _tensor_to_plain(array: pa.Array, values: pa.Array) -> pa.Array:
    storage, shape = array.storage, list(array.type.shape)
    valid = storage.is_valid().to_numpy(zero_copy_only=False)
    rows = int(valid.sum())
    for at in range(len(shape) - 1, 0, -1):
        count = rows * int(np.prod(shape[:at], dtype=np.int64))
        values = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(shape[at])), values)
    return _lists_of(storage, valid.astype(np.int64) * shape[0], values)


# -- from JSON ---------------------------------------------------------------------------------------------------


def from_plain(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    """The values again. Raises pa.ArrowInvalid (a ValueError) for one that does not fit the type."""
    if array.type == data_type:
        return array
    if isinstance(data_type, pa.FixedShapeTensorType):
        return tensor_from_lists(array, data_type)
    if is_bytes(data_type):
        return pa.array([_bytes_of(value) for value in array.to_pylist()], data_type)
    if _kinds.is_time(data_type):
        return _times(array, data_type)
    if _kinds.is_timestamp(data_type) and data_type.tz:
        return array.cast(pa.timestamp(data_type.unit, "UTC")).cast(data_type)
    if _kinds.is_fixed_size_list(data_type):
        return _fixed_lists(array, data_type)
    if _kinds.is_list(data_type) or _kinds.is_large_list(data_type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        kind, width = (pa.ListArray, np.int32) if _kinds.is_list(data_type) else (pa.LargeListArray, np.int64)
        children = from_plain(array.flatten(), data_type.value_type)
        mask = array.is_null() if array.null_count else None
        return kind.from_arrays(pa.array(offsets.astype(width)), children, type=data_type, mask=mask)
    if _kinds.is_struct(data_type):
        if not len(data_type):
            return array.cast(data_type)
        children = [from_plain(child, field.type) for child, field in zip(array.flatten(), data_type, strict=True)]
        return pa.StructArray.from_arrays(children, fields=list(data_type), mask=array.is_null())
    return array.cast(data_type)


def _bytes_of(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise pa.ArrowInvalid(f"{text[:40]!r} is not base64 ({error})") from None


def _times(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Arrow casts text to timestamps, but not to times of the day."""
    day = pc.binary_join_element_wise(pa.scalar("1970-01-01"), array, " ")
    numbers = day.cast(pa.timestamp(data_type.unit)).cast(pa.int64())
    return numbers.cast(pa.int32() if _kinds.is_time32(data_type) else pa.int64()).cast(data_type)


def _require_lengths(array: pa.Array, length: int) -> None:
    lengths = pc.fill_null(pc.list_value_length(array), length).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != length)
    if len(wrong):
        raise pa.ArrowInvalid(f"a list of {lengths[wrong[0]]} values where there must be {length}")


def _spread(array: pa.Array, children: pa.Array, length: int) -> pa.Array:
    """`children` of the lists that are not null, with `length` nulls for each that is."""
    if not array.null_count:
        return children
    if len(array) * length > limits.SOURCE_NULL_VALUES_MAX:
        raise pa.ArrowInvalid(f"null among lists of {length} values, which would take too much memory")
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    places = np.full((len(array), length), -1, np.int64)
    places[valid] = np.arange(int(valid.sum()) * length, dtype=np.int64).reshape(-1, length)
    flat = places.reshape(-1)
    return children.take(pa.array(flat, mask=flat < 0))


def _fixed_lists(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    _require_lengths(array, data_type.list_size)
    children = from_plain(array.flatten(), data_type.value_type)
    children = _spread(array, children, data_type.list_size)
    mask = array.is_null() if array.null_count else None
    return pa.FixedSizeListArray.from_arrays(children, type=data_type, mask=mask)


def tensor_from_lists(array: pa.Array, data_type: pa.FixedShapeTensorType) -> pa.Array:
    """Lists of lists (of the values, or of what they are in JSON) as tensors. Raises pa.ArrowInvalid."""
    values = array
    for length in data_type.shape:
        _require_lengths(values, length)
        if values is not array and values.null_count:
            raise pa.ArrowInvalid("null inside of a tensor")
        values = values.flatten()
    total = int(np.prod(data_type.shape, dtype=np.int64))
    children = _spread(array, from_plain(values, data_type.value_type), total)
    mask = array.is_null() if array.null_count else None
    storage = pa.FixedSizeListArray.from_arrays(children, type=data_type.storage_type, mask=mask)
    return pa.ExtensionArray.from_storage(data_type, storage)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_cells(array: pa.Array) -> list[str]:
    """Each value as one line of JSON."""
    return [_ENCODER.encode(value) for value in python_values(to_plain(array))]


def json_rows(columns: list[pa.Array], names: list[str]) -> list[str]:
    """Each row as an object, one line of JSON."""
    values = [python_values(to_plain(column)) for column in columns]
    return [_ENCODER.encode(dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def python_values(array: pa.Array) -> list[Any]:
    """`array.to_pylist()` of a plain array, some times faster for lists of numbers."""
    data_type = array.type
    if _kinds.is_list(data_type):
        valid = array.is_valid().to_pylist() if array.null_count else [True] * len(array)
        ends = np.cumsum(
            pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False), dtype=np.int64
        ).tolist()
        items = python_values(array.flatten())
        starts = [0, *ends[:-1]] if ends else []
        return [items[a:b] if is_one else None for a, b, is_one in zip(starts, ends, valid, strict=True)]
    numbers = _kinds.is_integer(data_type) or _kinds.is_floating(data_type)
    if numbers and not array.null_count:
        return list(array.to_numpy(zero_copy_only=False).tolist())
    return list(array.to_pylist())


def parse_cells(texts: list[bytes | None], data_type: pa.DataType) -> pa.Array:
    """Values that `json_cells` wrote. Raises ValueError (pa.ArrowInvalid is one) for a cell that does not fit."""
    values: list[Any] = [None if text is None else parse_json(text) for text in texts]
    try:
        return from_plain(pa.array(values, plain_type(data_type)), data_type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise pa.ArrowInvalid(" ".join(str(error).split())) from None


def parse_json(text: bytes | str) -> Any:
    """JSON that somebody else wrote. Raises ValueError, for what is nested without end, too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
