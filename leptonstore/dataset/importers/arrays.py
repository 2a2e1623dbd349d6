"""NumPy arrays as Arrow columns without a Python object per value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def tensor_column(field: pa.Field, values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """`values` of shape (rows, *shape) as a fixed-shape tensor column; zero-copy for a contiguous array. missing: which rows are null."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), field.type.value_type)
    mask = pa.array(missing) if missing is not None and missing.any() else None
    storage = pa.FixedSizeListArray.from_arrays(flat, type=field.type.storage_type, mask=mask)
    return pa.ExtensionArray.from_storage(field.type, storage)


def label_column(field: pa.Field, values: np.ndarray) -> pa.Array:
    """Class indices (rows,) in the integer type of `field`; the caller has checked that they fit."""
    return pa.array(values.astype(str(field.type), copy=False), field.type)
