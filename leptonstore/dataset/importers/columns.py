"""Columns of numbers (numpy, safetensors) as the table that they were exported from, where the file carries its schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from leptonstore.dataset.npy_format import column_of
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import decode_schema
from leptonstore.errors import SchemaError, SourceError


@dataclass(frozen=True)
class Restored:
    """fields: of the arrays in the file. schema: of the table, which is the carried one where there is one."""

    path: Place
    fields: tuple[pa.Field, ...]
    schema: pa.Schema
    order: tuple[int, ...]

    @classmethod
    def of(cls, fields: Sequence[pa.Field], carried: object, path: Place) -> Restored:
        """Raises SourceError for a carried schema that is not that of the arrays."""
        plain = pa.schema(list(fields))
        if carried is None:
            if len(set(plain.names)) < len(plain.names) or "" in plain.names:
                raise SchemaError(f"{path}: arrays need names, each its own")
            return cls(path, tuple(fields), plain, tuple(range(len(fields))))
        schema = decode_schema(carried, str(path))
        if sorted(schema.names) != sorted(plain.names):
            raise SourceError(f"{path} carries the schema of other arrays; write it again", str(path))
        return cls(path, tuple(fields), schema, tuple(plain.get_field_index(name) for name in schema.names))

    def batch(self, values: Sequence[np.ndarray], first: int) -> pa.RecordBatch:
        """Rows from `first` on; `values` in the order of the file. Raises SourceError for values that do not fit."""
        columns = []
        for at, field in zip(self.order, self.schema, strict=True):
            try:
                array = column_of(self.fields[at], values[at])
                columns.append(array if array.type == field.type else _cast(array, field.type))
                columns[-1].validate(full=True)
            except (pa.ArrowException, ValueError, NotImplementedError) as error:
                raise SourceError(
                    f"{self.path}: column {field.name!r}, rows from {first} on: {' '.join(str(error).split())}",
                    str(self.path),
                ) from None
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _cast(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Numbers as the type that they stood for (times are integers in a file of tensors)."""
    if isinstance(array, pa.ExtensionArray):
        if isinstance(data_type, pa.FixedShapeTensorType):
            return pa.ExtensionArray.from_storage(data_type, array.storage.cast(data_type.storage_type))
        return array.storage.cast(data_type)
    width = getattr(data_type, "bit_width", 0)
    if pa.types.is_temporal(data_type) and pa.types.is_integer(array.type) and width == array.type.bit_width:
        return array.view(data_type)
    return array.cast(data_type)
