"""A table with a column of every kind, and ways to say what came out of a loader: for the tests of loaders."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_label_field

ROWS = 2_603


def make_table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, rows * 12, np.uint8)), 12)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 2).astype(np.float32)), 2)
    columns = {
        "id": pa.array(np.arange(rows)),
        "image": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [3, 4]), pixels),
        "label": pa.array((np.arange(rows) % 7).astype(np.uint8)),
        "score": pa.array([None if at % 5 == 0 else at / 4 for at in range(rows)], pa.float32()),
        "flag": pa.array(np.arange(rows) % 3 == 0),
        "code": pa.array((np.arange(rows) * 17 % 65_536).astype(np.uint16)),
        "pair": pairs,
        "text": pa.array([None if at % 11 == 0 else f"row {at}" for at in range(rows)], pa.string()),
        "blob": pa.array([b"%d" % at * 30 for at in range(rows)], pa.large_binary()),
    }
    fields = [pa.field(name, column.type, name in ("score", "text")) for name, column in columns.items()]
    fields[2] = class_label_field("label", [f"class {at}" for at in range(7)])
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def joined(parts: Any) -> list[int]:
    return list(chain.from_iterable(parts))


def ids(batches: Any) -> list[list[int]]:
    """The rows of each batch."""
    return [batch["id"].tolist() for batch in batches]
