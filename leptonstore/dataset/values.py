"""Large values become chunks of their own; the page keeps a reference (digest and length) in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.large_values import LargeValues, references_of
from leptonstore.dataset.recycle import Recycler
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, ChunkMissing
from leptonstore.format.page import REFERENCE, as_binary, is_variable
from leptonstore.store import Store
from leptonstore.store.references import Spot
from leptonstore.tiers.chunks import ChunkFinder

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Told: TypeAlias = Callable[["Column", pa.Field], None]


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

    def referenced_sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Bytes of each value that stands elsewhere, as its page says; 0 of the others."""
        sizes = np.zeros(len(self.values), np.int64)
        if self.references is not None:
            sizes[self.references] = references_of(self.values, self.references)[1]
        return sizes

    def referenced_bytes(self) -> int:
        """Bytes of the values that stand elsewhere."""
        return int(self.referenced_sizes().sum())


@dataclass(frozen=True)
class Spots:
    """Where the values of some columns stand outside of the store: below `root` (a number), for each row of a batch, or None."""

    root: int
    columns: dict[str, list[Spot | None]]

    def of(self, column: str) -> Spots | None:
        """Of one column alone."""
        return Spots(self.root, {"": self.columns[column]}) if column in self.columns else None

    def put(self, store: Store, row: int, data: memoryview) -> Digest:
        """The value of that row, of the one column."""
        spot = self.columns[""][row]
        return store.put(data) if spot is None else store.put_reference(data, self.root, spot)


def intern(
    store: Store,
    array: pa.Array,
    inline: int = limits.VALUE_INLINE_BYTES_MAX,
    spots: Spots | None = None,
    plane_width: int = 0,
) -> Column:
    """Put every value over `inline` bytes into the store (with `spots`, of one column: where it stands) and keep its reference.

    plane_width: bytes of a number, where values are arrays of numbers (Store.put). Raises StoreFull.
    """
    if not is_variable(array.type):
        return Column(array)
    large = pc.fill_null(pc.greater(pc.binary_length(array), inline), False)
    references = np.asarray(large.to_numpy(zero_copy_only=False), np.bool_)
    if not references.any():
        return Column(array)
    binary = array.cast(as_binary(array.type))
    out: list[bytes | None] = []
    for row, (value, is_large) in enumerate(zip(binary, references.tolist(), strict=True)):
        if is_large:
            data = value.as_buffer()
            view = memoryview(data)
            digest = store.put(view, plane_width=plane_width) if spots is None else spots.put(store, row, view)
            out.append(REFERENCE.pack(digest, data.size))
        else:
            out.append(value.as_py())
    return Column(pa.array(out, binary.type), references)


def concat(columns: list[Column]) -> Column:
    """One column of several, in order."""
    if len(columns) == 1:
        return columns[0]
    arrays = [column.values for column in columns]
    if all(column.references is None for column in columns):
        return Column(pa.concat_arrays(arrays))
    binary = as_binary(arrays[0].type)
    bits = [
        np.zeros(len(column.values), np.bool_) if column.references is None else column.references for column in columns
    ]
    return Column(pa.concat_arrays([array.cast(binary) for array in arrays]), np.concatenate(bits))


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of a table as one array, without a copy where it is one already."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def take(column: Column, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Column:
    """The values of `rows`, in that order."""
    values = column.values.take(pa.array(rows))
    return Column(values, None if column.references is None else column.references[rows])


class Asked:
    """Rows whose large values are looked for, and of which `batch` makes a record batch, once. One thread at a time."""

    def __init__(self, reader: ChunkFinder, columns: list[Column], fields: list[pa.Field], told: Told) -> None:
        """told(column, field): raises the error of the row of `column` whose value cannot be had."""
        self._reader, self._columns, self._fields, self._told = reader, columns, fields, told
        self._large = [
            None if column.references is None else LargeValues(reader, column.values, column.references, field.type)
            for column, field in zip(columns, fields, strict=True)
        ]

    @property
    def light(self) -> bool:
        """Whether `batch` is hardly more than checking and copying."""
        return all(large is None or large.light for large in self._large)

    def begin(self) -> None:
        """Have large values on their way while other work is done. Once."""
        for large in self._large:
            if large is not None:
                large.begin()

    def batch(self, memory: Recycler | None = None) -> pa.RecordBatch:
        """The rows; large values in memory of `memory`'s. Raises ChunkMissing or ChunkCorrupt."""
        arrays = []
        for column, large, field in zip(self._columns, self._large, self._fields, strict=True):
            try:
                whole = large is not None and large.fits
                arrays.append(large.array(memory) if large and whole else resolve(self._reader, column, field.type))
            except (ChunkCorrupt, ChunkMissing):
                self._told(column, field)
                raise
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(self._fields))


def resolve(reader: ChunkFinder, column: Column, data_type: pa.DataType) -> pa.Array:
    """The plain values, one by one: each reference is read and checked. Raises ChunkMissing or ChunkCorrupt."""
    if column.references is None:
        return column.values
    digests, _ = references_of(column.values, column.references)
    large = reader.get_many(digests)
    values, references = column.values.to_pylist(), column.references.tolist()
    out = [next(large) if is_one else value for value, is_one in zip(values, references, strict=True)]
    return pa.array(out, as_binary(data_type)).cast(data_type)
