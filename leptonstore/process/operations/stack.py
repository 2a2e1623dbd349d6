"""numbers.stack: several columns of numbers become one of vectors, as a model takes them.

width  height  image (2, 2)          features
3.0    4       [[0, 1], [2, 3]]      [3.0, 4.0, 0.0, 1.0, 2.0, 3.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field, tensor_shape
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process import columns as column_values
from leptonstore.process.operation import Made, RowOperation
from leptonstore.process.operations.parameters import FLOATS, number_field, one_of, texts


@dataclass(frozen=True)
class Stack(RowOperation):
    """Puts numbers of a row beside each other: a tensor column (n,) of floats, in the order of `columns`. These stay.

    columns: of numbers, true and false (1 and 0), or tensors, which count with all their values in row-major order. into: name of the new
    column. type: "float16", "float32" or "float64", to which values are rounded. Where one of the values is null, so is the vector.
    """

    name: ClassVar[str] = "numbers.stack"
    columns: Sequence[str]
    into: str = "features"
    type: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", texts(self.name, "columns", self.columns))
        if not self.columns:
            raise BadInput(f"{self.name}: columns is a list of names, and empty")
        one_of(self.name, "type", self.type, FLOATS)

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns of numbers. Raises SchemaError for others."""
        return tuple(number_field(self.name, schema, name).name for name in self.columns)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the vectors after the others. Raises SchemaError when there is a column of their name."""
        fields = [schema.field(name) for name in self.reads(schema)]
        if self.into in schema.names:
            raise SchemaError(f"{self.name}: there is a column {self.into!r} already; choose another name with into")
        size = sum(_values_in(field) for field in fields)
        made = tensor_field(self.into, FLOATS[self.type], (size,))
        return schema.append(made.with_nullable(any(field.nullable for field in fields)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The vectors."""
        return (self.into,)

    def apply(self, batch: pa.RecordBatch) -> Made:
        """The vectors of all rows."""
        made = self.output(batch.schema).field(self.into)
        vectors = np.empty((batch.num_rows, *made.type.shape), self.type)
        missing, at = np.zeros(batch.num_rows, np.bool_), 0
        with np.errstate(over="ignore"):  # beyond the type's range is infinite
            for name in self.columns:
                field, column = batch.schema.field(name), batch.column(name)
                end = at + _values_in(field)
                vectors[:, at:end] = column_values.row_values(column).reshape(batch.num_rows, end - at)
                missing |= column_values.null_mask(column)
                at = end
        vectors[missing] = 0
        return Made({self.into: tensor_column(made, vectors, missing)})


def _values_in(field: pa.Field) -> int:
    """How many numbers a row has in a column."""
    return math.prod(tensor_shape(field) or ())
