"""Arrow values without a fixed width as Python and numpy values, one for each row. No value refers to Arrow's memory.

    list of numbers (or of tensors)     an array of shape (n, *item), of the type that is stored
    list of anything else               a list of values
    struct                              {field: value}
    number, inside a struct             a numpy scalar of the type that is stored; null: NaN for floats, else None
    everything else                     what Arrow makes of it: str, bytes, datetime, Decimal, dict, …
    null                                None

A list of integers with a null inside is a list of Python values, as there is no integer for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def row_values(array: pa.Array) -> list[Any]:
    """The values of an array, as the module's docstring says."""
    import pyarrow as pa

    kinds, kind = pa.types, array.type
    if isinstance(kind, pa.BaseExtensionType):
        return row_values(array.storage)
    if kinds.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        fields = [row_values(field) for field in array.flatten()]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)] or [{} for _ in array]
        return _with_nulls(rows, array)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return _lists(array)
    numbers = _numbers(array)
    return array.to_pylist() if numbers is None else _with_nulls(list(numbers), array, keep_nan=True)


def _lists(array: pa.Array) -> list[Any]:
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    items = array.flatten()
    numbers = _numbers(items)
    whole: Any = row_values(items) if numbers is None else numbers
    if numbers is not None and items.null_count and numbers.dtype.kind != "f":
        return list(array.to_pylist())
    bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    return _with_nulls([whole[start:end] for start, end in bounds], array)


def _numbers(array: pa.Array) -> np.ndarray[Any, Any] | None:
    """Fresh memory of shape (len(array), *shape of a fixed-size list); None where values are no numbers. Nulls of integers are 0."""
    import pyarrow as pa

    kinds, shape, rows = pa.types, [], len(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        shape, array = list(array.type.shape), array.storage.flatten()
    while kinds.is_fixed_size_list(array.type):
        if array.null_count:
            return None
        shape, array = [*shape, array.type.list_size], array.flatten()
    kind = array.type
    if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
        return None
    if array.null_count and not kinds.is_floating(kind):
        array = array.fill_null(pa.scalar(0).cast(kind) if not kinds.is_boolean(kind) else pa.scalar(False))
    return np.array(array.to_numpy(zero_copy_only=False)).reshape(rows, *shape)


def _with_nulls(rows: list[Any], array: pa.Array, keep_nan: bool = False) -> list[Any]:
    import pyarrow as pa

    if array.null_count and not (keep_nan and pa.types.is_floating(array.type)):
        for row in array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
            rows[row] = None
    return rows
