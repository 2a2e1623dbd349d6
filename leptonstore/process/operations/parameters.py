"""What operations ask of their parameters and of the columns that they work on, so that all refuse in the same words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import tensor_shape
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.columns import field_of, is_number

FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}  # what a parameter `type` may be


def texts(operation: str, parameter: str, value: Any) -> tuple[str, ...]:
    """A parameter that is a list of names. Raises BadInput."""
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(one, str) and one for one in found) or len(set(found)) != len(found):
        raise BadInput(f"{operation}: {parameter} is a list of different names, not {value!r}")
    return found


def whole_numbers(
    operation: str, parameter: str, value: Any, counts: tuple[int, ...], least: int = 1
) -> tuple[int, ...]:
    """A parameter that is a list of integers. counts: how many there may be. Raises BadInput."""
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    fits = all(isinstance(one, int) and not isinstance(one, bool) and one >= least for one in found)
    if not fits or len(found) not in counts:
        many = " or ".join(str(count) for count in counts if count)
        wanted = "a whole number" if counts == (1,) else f"a list of {many} whole numbers"
        raise BadInput(f"{operation}: {parameter} is {wanted} from {least} on, not {value!r}")
    return found


def numbers(operation: str, parameter: str, value: Any) -> tuple[float, ...]:
    """A parameter that is a number or a list of numbers. Raises BadInput."""
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in found):
        raise BadInput(f"{operation}: {parameter} is a number or a list of numbers, not {value!r}")
    return tuple(float(one) for one in found)


def one_of(operation: str, parameter: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises BadInput for a word that is not one of these."""
    known = list(allowed)
    if value not in known:
        raise BadInput(f"{operation}: {parameter} is one of {', '.join(known)}, not {value!r}")


def number_field(operation: str, schema: pa.Schema, column: str) -> pa.Field:
    """A column of numbers (booleans among them) or of tensors of them. Raises SchemaError for another, or none."""
    field = field_of(operation, schema, column)
    shape = tensor_shape(field)
    data_type = field.type if shape is None else field.type.value_type
    if isinstance(data_type, pa.BaseExtensionType) or not is_number(data_type):
        raise SchemaError(f"{operation}: column {column!r} holds {field.type}, neither numbers nor tensors of them")
    return field


def replaced(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    """`schema` with `field` in place of the column of its name, or after the others."""
    at = schema.get_field_index(field.name)
    return schema.append(field) if at < 0 else schema.set(at, field)


def made_of(operation: str, schema: pa.Schema, column: str, field: pa.Field) -> pa.Schema:
    """`schema` with what is made of `column`: in its place when it has its name, or else after the others.

    Raises SchemaError when there is another column of that name.
    """
    if field.name != column and field.name in schema.names:
        raise SchemaError(f"{operation}: there is a column {field.name!r} already; give `into` another name")
    return replaced(schema, field)


def require_stored(operation: str, source: Dataset, schema: pa.Schema, column: str, fix: str) -> None:
    """Raises BadInput when a column is not as the version that is read has it, so that nothing can be looked up there."""
    at = source.schema.get_field_index(column)
    if at < 0 or not source.schema.field(at).equals(schema.field(column), check_metadata=True):
        raise BadInput(
            f"{operation}: column {column!r} is made by an operation before, so it cannot be looked up: {fix}"
        )
