"""Columns of a record batch as numpy arrays and memory views, for code that streams a dataset. Nothing is copied
unless Arrow has no flat buffer for it (bit-packed booleans, columns with nulls).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.errors import SchemaError, listed

SPLIT = "split"


@dataclass(frozen=True)
class ImageColumn:
    """A column of images: `shape` of one row when they are decoded (uint8 tensor), None when they are encoded files."""

    name: str
    shape: tuple[int, ...] | None


def field_of(who: str, schema: pa.Schema, column: str) -> pa.Field:
    """The field of a column that `who` (an operation) asks for. Raises SchemaError, naming the columns that there are."""
    if schema.names.count(column) != 1:
        raise SchemaError(f"{who}: there is no column {column!r}; there are {listed(schema.names)}")
    return schema.field(column)


def as_images(field: pa.Field) -> ImageColumn | None:
    """A column whose type images can have, whatever it says that it means; None for any other."""
    shape = tensor_shape(field)
    if shape is not None and field.type.value_type == pa.uint8() and len(shape) in (2, 3):
        return ImageColumn(field.name, shape)
    return ImageColumn(field.name, None) if is_binary(field.type) else None


def image_columns(schema: pa.Schema) -> list[ImageColumn]:
    """The columns with semantic "image" that this package can look into, in schema order."""
    return [found for field in schema if semantic_of(field) == "image" and (found := as_images(field)) is not None]


def label_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """Class-label columns other than `split`, with the names of their classes."""
    found = {field.name: class_names(field) for field in schema if field.name != SPLIT}
    return {name: names for name, names in found.items() if names is not None}


def split_names(schema: pa.Schema) -> list[str]:
    """The names of the splits; empty when there is no `split` class-label column."""
    index = schema.get_field_index(SPLIT)
    return (class_names(schema.field(index)) or []) if index >= 0 else []


def is_binary(value_type: pa.DataType) -> bool:
    """Whether values are byte strings of varying length."""
    return bool(pa.types.is_binary(value_type) or pa.types.is_large_binary(value_type))


def tensor_values(array: pa.Array) -> NDArray[Any]:
    """A fixed-shape tensor column as an (n, *shape) array, not copied where nothing is null; null rows hold whatever the buffer does."""
    shape = tuple(array.type.shape)
    size = int(np.prod(shape, dtype=np.int64))
    storage = array.storage
    flat = storage.values.slice(storage.offset * size, len(array) * size)
    if flat.null_count:  # below null rows, as Arrow's own functions leave them; with nulls, numpy would get floats
        flat = flat.fill_null(0)
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), *shape)


def byte_values(array: pa.Array) -> list[memoryview | None]:
    """A binary or string column as one memory view per row, None for nulls."""
    if len(array) == 0:
        return []
    offsets = _offsets(array)
    data = array.buffers()[2]
    view = memoryview(data) if data is not None else memoryview(b"")
    values: list[memoryview | None] = [
        view[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    if array.null_count:
        for row in np.flatnonzero(null_mask(array)).tolist():
            values[row] = None
    return values


def value_lengths(array: pa.Array) -> NDArray[np.int64]:
    """Lengths of the non-null values of a binary, string or list column (bytes, or list elements)."""
    lengths = np.diff(_offsets(array)).astype(np.int64)
    return lengths[~null_mask(array)] if array.null_count else lengths


def has_lengths(value_type: pa.DataType) -> bool:
    """Whether values vary in length (and `value_lengths` applies)."""
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_list, pa.types.is_large_list)
    return is_binary(value_type) or any(kind(value_type) for kind in kinds)


def is_number(value_type: pa.DataType) -> bool:
    """Whether values are booleans, integers or floats."""
    kinds = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    return any(kind(value_type) for kind in kinds)


def numbers(array: pa.Array) -> NDArray[Any]:
    """The non-null values of a boolean, integer, float or tensor column, flat; booleans become uint8."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        values = tensor_values(array)
        return (values[~null_mask(array)] if array.null_count else values).reshape(-1)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return (array.drop_null() if array.null_count else array).to_numpy(zero_copy_only=False)


def row_values(array: pa.Array) -> NDArray[Any]:
    """Of all rows of a boolean, integer, float or tensor column, (n,) or (n, *shape); null rows hold whatever. Booleans become uint8."""
    if isinstance(array.type, pa.FixedShapeTensorType):
        return tensor_values(array)
    if pa.types.is_boolean(array.type):  # whose nulls Arrow does not fill with a number
        array = array.cast(pa.uint8())
    return numbers(array.fill_null(0) if array.null_count else array)


def null_mask(array: pa.Array) -> NDArray[np.bool_]:
    """True where a row is null."""
    if array.null_count == 0:
        return np.zeros(len(array), dtype=bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def indices(array: pa.Array, missing: int = -1) -> NDArray[np.int64]:
    """A class-label column as int64 indices, `missing` where it is null."""
    filled = array.fill_null(0) if array.null_count else array
    values = filled.to_numpy(zero_copy_only=False).astype(np.int64)
    if array.null_count:
        values[null_mask(array)] = missing
    return values


def _offsets(array: pa.Array) -> NDArray[Any]:
    """Offsets of the n + 1 value borders, in bytes of the data buffer (or elements of a list's child)."""
    wide = array.type in (pa.large_binary(), pa.large_string()) or pa.types.is_large_list(array.type)
    if len(array) == 0:
        return np.zeros(1, dtype=np.int64)
    raw = np.frombuffer(array.buffers()[1], dtype=np.int64 if wide else np.int32)
    return raw[array.offset : array.offset + len(array) + 1]
