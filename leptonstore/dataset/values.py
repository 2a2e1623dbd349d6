"""Large values become chunks of their own; the page keeps a reference (digest and length) in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.large_values import read_into_array
from leptonstore.format.page import REFERENCE, as_binary, is_variable
from leptonstore.store import Store

Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Column:
    """Values as a page keeps them. `references` marks rows whose value is a 40-byte reference (then values are binary)."""

    values: pa.Array
    references: Bits | None = None

    def slice(self, start: int, stop: int) -> Column:
        """Rows [start, stop)."""
        references = None if self.references is None else self.references[start:stop]
        return Column(self.values.slice(start, stop - start), references)

    @cached_property
    def tensors(self) -> np.ndarray[Any, Any] | None:
        """All rows of a fixed-shape tensor column as one array (nulls are zeros), None for other types and elements that are null."""
        if not isinstance(self.values.type, pa.FixedShapeTensorType):
            return None
        storage, shape = self.values.storage, self.values.type.shape
        length = storage.type.list_size
        elements = storage.values.slice(storage.offset * length, len(storage) * length)
        if elements.null_count > storage.null_count * length or not pa.types.is_primitive(elements.type):
            return None
        if elements.null_count:
            elements = pc.fill_null(elements, 0)
        return elements.to_numpy(zero_copy_only=False).reshape(len(storage), *shape)

    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Bytes of each value in the page (variable-width columns only)."""
        return pc.fill_null(pc.binary_length(self.values), 0).to_numpy(zero_copy_only=False).astype(np.int64)

    def referenced_bytes(self) -> int:
        """Bytes of the values that stand elsewhere."""
        if self.references is None:
            return 0
        rows = self.references.nonzero()[0].tolist()
        return sum(REFERENCE.unpack(self.values[row].as_py())[1] for row in rows)


def intern(store: Store, array: pa.Array, inline: int = limits.VALUE_INLINE_BYTES_MAX) -> Column:
    """Put every value over `inline` bytes into the store and keep its reference. Raises StoreFull."""
    if not is_variable(array.type):
        return Column(array)
    large = pc.fill_null(pc.greater(pc.binary_length(array), inline), False)
    references = np.asarray(large.to_numpy(zero_copy_only=False), np.bool_)
    if not references.any():
        return Column(array)
    binary = array.cast(as_binary(array.type))
    out: list[bytes | None] = []
    for value, is_large in zip(binary, references.tolist(), strict=True):
        if is_large:
            data = value.as_buffer()
            out.append(REFERENCE.pack(store.put(memoryview(data)), data.size))
        else:
            out.append(value.as_py())
    return Column(pa.array(out, binary.type), references)


def concat(columns: list[Column]) -> Column:
    """One column of several, in order."""
    if len(columns) == 1:
        return columns[0]
    arrays = [column.values for column in columns]
    if all(column.references is None for column in columns):
        return Column(_concat_arrays(arrays))
    binary = as_binary(arrays[0].type)
    bits = [
        np.zeros(len(column.values), np.bool_) if column.references is None else column.references for column in columns
    ]
    return Column(pa.concat_arrays([array.cast(binary) for array in arrays]), np.concatenate(bits))


def _concat_arrays(arrays: list[pa.Array]) -> pa.Array:
    data_type = arrays[0].type
    if isinstance(data_type, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(data_type, pa.concat_arrays([array.storage for array in arrays]))
    return pa.concat_arrays(arrays)


def take(column: Column, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Column:
    """The values of `rows`, in that order."""
    indices = pa.array(rows)
    values = column.values
    if isinstance(values.type, pa.ExtensionType):
        values = pa.ExtensionArray.from_storage(values.type, values.storage.take(indices))
    else:
        values = values.take(indices)
    return Column(values, None if column.references is None else column.references[rows])


def resolve(store: Store, column: Column, data_type: pa.DataType) -> pa.Array:
    """The plain values: each reference is read and checked. Raises ChunkMissing or ChunkCorrupt."""
    if column.references is None:
        return column.values
    whole = read_into_array(store, column.values, column.references, data_type)
    if whole is not None:
        return whole
    values, references = column.values.to_pylist(), column.references.tolist()
    large = store.get_many(
        [REFERENCE.unpack(value)[0] for value, is_one in zip(values, references, strict=True) if is_one]
    )
    out = [next(large) if is_one else value for value, is_one in zip(values, references, strict=True)]
    return pa.array(out, as_binary(data_type)).cast(data_type)
