"""Keys of rows as bytes whose order, byte by byte, is that of the values: for sorting, searching and comparing.

    bool, unsigned integers          big-endian
    signed integers, dates, times,   big-endian, with the sign bit flipped
    durations, decimals
    fixed_size_binary                as it is
    strings, bytes                   last column of the key: as they are; else 00 becomes 00 FF, and 00 01 ends the value

The columns follow one another. Strings are ordered by their UTF-8 bytes, which is the order of code points. Floats (NaN, -0.0), lists and
structs are no keys, and neither is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.errors import SchemaError
from leptonstore.format.page import as_binary, canonical_values, is_variable

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def check_key(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise SchemaError when a column is missing, or of a type that has no order here."""
    for name in names:
        if schema.get_field_index(name) < 0:
            raise SchemaError(f"no column {name!r} to use as key; there are {', '.join(schema.names)}")
        data_type = schema.field(name).type
        if not (is_variable(data_type) or _is_fixed(data_type)):
            raise SchemaError(
                f"column {name!r} of type {data_type} cannot be a key; use integers, strings, bytes, dates or decimals"
            )


def _is_fixed(data_type: pa.DataType) -> bool:
    kinds = pa.types
    return bool(
        kinds.is_boolean(data_type)
        or kinds.is_integer(data_type)
        or kinds.is_temporal(data_type)
        or kinds.is_decimal128(data_type)
        or kinds.is_fixed_size_binary(data_type)
    )


def encode_keys(columns: Sequence[pa.Array], names: Sequence[str]) -> pa.Array:
    """One key a row, as a large_binary array without nulls.

    Raises SchemaError for a null and for a key over KEY_BYTES_MAX; the row is named, counted from 0 in these arrays.
    """
    for name, column in zip(names, columns, strict=True):
        if column.null_count:
            row = pc.index(column.is_null(), True).as_py()
            raise SchemaError(f"row {row} has no {name!r}, which is the key of the table; fill it in, or drop the row")
    parts = [_encode(column, last=at == len(columns) - 1) for at, column in enumerate(columns)]
    if len(parts) == 1 and isinstance(parts[0], pa.Array):
        keys = parts[0].cast(pa.large_binary())
    elif all(isinstance(part, np.ndarray) for part in parts):
        table = np.ascontiguousarray(np.hstack(parts))
        ends = np.arange(len(table) + 1, dtype=np.int64) * table.shape[1]
        keys = pa.Array.from_buffers(
            pa.large_binary(), len(table), [None, pa.py_buffer(ends), pa.py_buffer(table.reshape(-1))]
        )
    else:
        cells = [part.to_pylist() if isinstance(part, pa.Array) else [row.tobytes() for row in part] for part in parts]
        keys = pa.array([b"".join(row) for row in zip(*cells, strict=True)], pa.large_binary())
    longest = pc.max(pc.binary_length(keys)).as_py() or 0
    if longest > limits.KEY_BYTES_MAX:
        row = pc.index(pc.binary_length(keys), longest).as_py()
        raise SchemaError(f"the key of row {row} has {longest} bytes; {limits.KEY_BYTES_MAX} are the most")
    return keys


def _encode(column: pa.Array, last: bool) -> pa.Array | Bytes:
    kinds, data_type = pa.types, column.type
    if is_variable(data_type):
        values = column.cast(as_binary(data_type))
        if last:
            return values
        return pa.array(
            [value.replace(b"\0", b"\0\xff") + b"\0\x01" for value in values.to_pylist()], pa.large_binary()
        )
    if kinds.is_boolean(data_type):
        return column.cast(pa.uint8()).to_numpy().reshape(-1, 1)
    width = data_type.byte_width
    cells = np.frombuffer(canonical_values(column), np.uint8).reshape(len(column), width)
    if kinds.is_fixed_size_binary(data_type) and not kinds.is_decimal(data_type):
        return cells
    cells = np.ascontiguousarray(cells[:, ::-1])
    if not kinds.is_unsigned_integer(data_type):
        cells[:, 0] ^= 0x80
    return cells
