"""A view as a `tf.data.Dataset`: `Dataset.to_tf`. TensorFlow is imported when it is asked for, and never before.

    column                                     tensor of a batch
    numbers, bools                             (rows,), the same dtype; class labels int64
    tensors, fixed-size lists of them          (rows, *shape)
    text, bytes                                (rows,) of tf.string (text as UTF-8)
    lists of numbers or bools                  tf.RaggedTensor (rows, None)

Rows come in the view's order, read as `iter_batches` reads: one row group, or a slice of one, in memory at a time, some read ahead. A null
is NaN in a float column; elsewhere TensorFlow has no value for it: SchemaError. So are columns of any other type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from leptonstore.dataset.optional import require_module
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import SchemaError

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

_kinds = pa.types


def to_tf(dataset: Dataset, columns: Sequence[str] | None, batch_rows: int | None, drop_remainder: bool) -> Any:
    """See `Dataset.to_tf`."""
    tf = require_module("to_tf", "tf", "tensorflow")
    if batch_rows is not None and batch_rows < 1:
        raise ValueError(f"batch_rows should be a positive integer or None, not {batch_rows}")
    fields = dataset.fields(columns)
    signature = {field.name: _spec(tf, field) for field in fields}

    def batches() -> Iterator[dict[str, Any]]:
        for _, batch in dataset.iter_batches(columns):
            yield {field.name: _values(tf, batch.column(field.name), field) for field in fields}

    rows = len(dataset)
    found = tf.data.Dataset.from_generator(batches, output_signature=signature)
    if batch_rows is None:
        return found.unbatch().apply(tf.data.experimental.assert_cardinality(rows))
    steps = rows // batch_rows if drop_remainder else -(-rows // batch_rows)
    return found.rebatch(batch_rows, drop_remainder).apply(tf.data.experimental.assert_cardinality(steps))


def _spec(tf: Any, field: pa.Field) -> Any:
    data_type, shape = _flat(field.type)
    if _kinds.is_string(data_type) or _kinds.is_large_string(data_type) or _is_bytes(data_type):
        if not shape:
            return tf.TensorSpec((None,), tf.string)
    elif _is_number(data_type):
        return tf.TensorSpec((None, *shape), tf.as_dtype(_dtype(field, data_type)))
    elif (
        not shape
        and (_kinds.is_list(data_type) or _kinds.is_large_list(data_type))
        and _is_number(data_type.value_type)
    ):
        return tf.RaggedTensorSpec((None, None), tf.as_dtype(_dtype(field, data_type.value_type)), 1, tf.int64)
    raise SchemaError(
        f"column {field.name!r} of type {field.type} has no form as a tensor of TensorFlow: leave it out with columns=[…]"
    )


def _values(tf: Any, array: pa.Array, field: pa.Field) -> Any:
    rows = len(array)
    data_type, shape = _flat(field.type)
    if isinstance(array.type, pa.FixedShapeTensorType):
        array = array.storage
    while _kinds.is_fixed_size_list(array.type):
        _require_no_nulls(array, field)
        array = array.flatten()
    if not _kinds.is_floating(data_type):
        _require_no_nulls(array, field)
    if _is_number(data_type):
        values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return values.astype(_dtype(field, data_type), copy=False).reshape(rows, *shape)
    if not _kinds.is_list(data_type) and not _kinds.is_large_list(data_type):
        return array.cast(pa.large_binary()).to_numpy(zero_copy_only=False)
    flat = array.flatten()
    if not _kinds.is_floating(data_type.value_type):
        _require_no_nulls(flat, field)
    splits = np.concatenate([[0], np.cumsum(array.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    return tf.RaggedTensor.from_row_splits(flat.to_numpy(zero_copy_only=False), splits, validate=False)


def _flat(data_type: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]]:
    """The type of the elements of tensors and fixed-size lists, and the shape of one row."""
    shape: list[int] = []
    if isinstance(data_type, pa.FixedShapeTensorType):
        shape, data_type = list(data_type.shape), data_type.value_type
    while _kinds.is_fixed_size_list(data_type):
        shape, data_type = [*shape, data_type.list_size], data_type.value_type
    return data_type, tuple(shape)


def _dtype(field: pa.Field, data_type: pa.DataType) -> np.dtype[Any]:
    if semantic_of(field) == "class_label":
        return np.dtype(np.int64)  # as losses want them, and as the loaders make them
    found: np.dtype[Any] = pa.array([], data_type).to_numpy(zero_copy_only=False).dtype
    return found


def _is_number(data_type: pa.DataType) -> bool:
    return bool(_kinds.is_integer(data_type) or _kinds.is_floating(data_type) or _kinds.is_boolean(data_type))


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(
        _kinds.is_binary(data_type) or _kinds.is_large_binary(data_type) or _kinds.is_fixed_size_binary(data_type)
    )


def _require_no_nulls(array: pa.Array, field: pa.Field) -> None:
    if array.null_count:
        raise SchemaError(
            f"column {field.name!r} has nulls, for which a tensor of {field.type} has no value: "
            "fill them in a new version, or leave the column out with columns=[…]"
        )
