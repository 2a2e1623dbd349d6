"""Columns as Daft carries them. Daft knows fewer types than Arrow, and gives back others than it was given: what it would change travels as
something that it does not.

    bool, integers, float32, float64, bytes of one length     as they are
    float16, dates, times, durations                           the integers that they are stored as
    decimals                                                   their 16 bytes
    strings and bytes                                          large_binary; and which of them are references, as a column of bools
    lists, structs                                             large lists and structs of the above; members are called by number
    tensors                                                    their storage

Back and forth is exact (tests/property/test_engine_columns.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.values import Column
from leptonstore.format.page import as_binary, is_variable

_INTEGERS = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


def carrier_type(data_type: pa.DataType) -> pa.DataType:
    """As what values of a type travel."""
    kinds = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return carrier_type(data_type.storage_type)
    if is_variable(data_type):
        return pa.large_binary()
    if kinds.is_decimal(data_type):
        return pa.binary(data_type.byte_width)
    if kinds.is_temporal(data_type) or kinds.is_float16(data_type):
        return _INTEGERS[data_type.bit_width]
    if kinds.is_list(data_type) or kinds.is_large_list(data_type):
        return pa.large_list(carrier_type(data_type.value_type))
    if kinds.is_fixed_size_list(data_type):
        return pa.list_(carrier_type(data_type.value_type), data_type.list_size)
    if kinds.is_struct(data_type):
        return pa.struct([pa.field(f"m{at}", carrier_type(field.type)) for at, field in enumerate(data_type)])
    return data_type


def to_carrier(array: pa.Array) -> pa.Array:
    """The values as they travel."""
    data_type, carried = array.type, carrier_type(array.type)
    if isinstance(data_type, pa.BaseExtensionType):
        return to_carrier(array.storage)
    if data_type == carried:
        return array
    if is_variable(data_type):
        return array.cast(carried)
    if pa.types.is_nested(data_type):
        return _nested(array, carried, to_carrier)
    return array.view(carried)


def from_carrier(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    """The values of a type that travelled as `array`."""
    if isinstance(data_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(data_type, from_carrier(array, data_type.storage_type))
    if array.type == data_type:
        return array
    if is_variable(data_type):
        return array.cast(data_type)
    if pa.types.is_nested(data_type):
        return _nested(array, data_type, from_carrier)
    return array.view(data_type)


def _nested(array: pa.Array, data_type: pa.DataType, convert: Any) -> pa.Array:
    """Lists and structs of another type, with members converted. `convert` takes the type when it makes what was carried."""
    back = convert is from_carrier
    mask = array.is_null() if array.null_count else None
    if pa.types.is_struct(data_type):
        members = [
            convert(child, field.type) if back else convert(child)
            for child, field in zip(array.flatten(), data_type, strict=True)
        ]
        if not members:
            return pa.array([None if null else {} for null in array.is_null().to_pylist()], data_type)
        return pa.StructArray.from_arrays(members, fields=list(data_type), mask=mask)
    if pa.types.is_fixed_size_list(data_type):
        size = data_type.list_size
        child = array.values.slice(array.offset * size, len(array) * size)
        made = convert(child, data_type.value_type) if back else convert(child)
        return pa.FixedSizeListArray.from_arrays(made, type=data_type, mask=mask)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    child = array.flatten()
    made = convert(child, data_type.value_type) if back else convert(child)
    if pa.types.is_list(data_type):
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), made, type=data_type, mask=mask)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), made, type=data_type, mask=mask)


class Carried:
    """The columns of a schema side by side, under names of their own: `v0`, `r0`, `v1`, …; `prefix` comes before."""

    def __init__(self, schema: pa.Schema, prefix: str = "") -> None:
        self.fields = list(schema)
        self._names = [f"{prefix}v{at}" for at in range(len(self.fields))]
        self._bits = [f"{prefix}r{at}" if is_variable(field.type) else "" for at, field in enumerate(self.fields)]

    @property
    def schema(self) -> pa.Schema:
        """Of what travels."""
        out = []
        for field, name, bits in zip(self.fields, self._names, self._bits, strict=True):
            out.append(pa.field(name, carrier_type(field.type)))
            if bits:
                out.append(pa.field(bits, pa.bool_()))
        return pa.schema(out)

    def pack(self, columns: list[Column]) -> list[pa.Array]:
        """The arrays of `schema`."""
        out = []
        for column, bits in zip(columns, self._bits, strict=True):
            out.append(to_carrier(column.values))
            if bits:
                references = np.zeros(len(column.values), np.bool_) if column.references is None else column.references
                out.append(pa.array(references))
        return out

    def unpack(self, arrays: list[pa.Array]) -> list[Column]:
        """The columns again. Null bits are no references: they belong to rows that were left out."""
        out = []
        some = iter(arrays)
        for field, bits in zip(self.fields, self._bits, strict=True):
            values = next(some)
            references = bools(next(some)) if bits else None
            if references is None or not references.any():
                out.append(Column(from_carrier(values, field.type)))
            else:
                out.append(Column(values.cast(as_binary(field.type)), references))
        return out


def bools(array: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Null counts as false."""
    filled = pc.fill_null(array, False) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False), np.bool_)
