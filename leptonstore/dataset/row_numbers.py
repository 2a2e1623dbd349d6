"""Numbers of rows as people give them: lists, ranges, arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from leptonstore.errors import BadInput

Rows = np.ndarray[Any, np.dtype[np.int64]]


def row_numbers(rows: Iterable[int] | Sequence[int] | Rows) -> Rows:
    """int64, as they were given. Raises BadInput for what is no list of whole numbers: of a mask, true and false would be rows 1 and 0."""
    try:
        found = np.asarray(
            rows if isinstance(rows, (np.ndarray, Sequence)) or hasattr(rows, "__array__") else list(rows)
        )
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        said = "a mask, whose rows np.flatnonzero gives" if found.dtype.kind == "b" else repr(rows)[:80]
        raise BadInput(f"rows are given by their numbers, not by {said}")
    return found.astype(np.int64, copy=False)


def rows_within(rows: Iterable[int] | Sequence[int] | Rows, count: int, whose: str) -> Rows:
    """Each once, ascending. Raises BadInput as `row_numbers` does, and for one that `whose` `count` rows do not have."""
    chosen = np.unique(row_numbers(rows))
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= count):
        raise BadInput(f"row out of range: {whose} has {count} rows")
    return chosen
