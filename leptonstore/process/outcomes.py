"""What became of some rows in a chain of row operations: as it is kept for later (memo.py), and put together again.

    fates    int16, n    0: the row went on; k: operation k (from 1) of the chain left it out; -k: operation k failed on it
    said     string, n   JSON: the row's findings; of one that failed {"failed": why, "found": findings}; null: nothing
    columns  of the rows that went on, in order: each column that the chain may write; None: it left that as it was

All of it is a function of the values that the chain read and of its recipe; nothing in it says which rows these were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.format.page import canonical_values, fixed_width

Rows = NDArray[np.int64]
Fates = NDArray[np.int16]


@dataclass(frozen=True)
class Outcomes:
    """Of n rows."""

    fates: Fates
    said: pa.StringArray
    columns: tuple[pa.Array | None, ...]

    def __len__(self) -> int:
        return len(self.fates)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows went on."""
        return self.fates == 0


@dataclass(frozen=True)
class Part:
    """Rows of `outcomes` (None: all of them, in order), and where they belong in a whole."""

    outcomes: Outcomes
    rows: Rows | None
    to: Rows


def assembled(
    parts: Sequence[Part], count: int, types: Sequence[pa.DataType | None], original: Callable[[int, Rows], pa.Array]
) -> Outcomes:
    """The whole of `count` rows, each of which is in one part.

    types: of the columns, None: it is not wanted. original(column, rows): the values that a column has where a part left it as it was;
    asked only when another part wrote it.
    """
    if len(parts) == 1 and parts[0].rows is None and bool((parts[0].to == np.arange(count)).all()):
        return parts[0].outcomes
    fates = np.zeros(count, np.int16)
    for part in parts:
        fates[part.to] = part.outcomes.fates if part.rows is None else part.outcomes.fates[part.rows]
    kept = fates == 0
    rank = np.cumsum(kept) - 1
    places: list[
        tuple[Rows, Rows, Rows]
    ] = []  # of the kept rows of each part: in its columns, in the whole's, in the whole
    for part in parts:
        inner = np.cumsum(part.outcomes.kept) - 1
        goes_on = kept[part.to]
        rows = np.arange(len(part.outcomes)) if part.rows is None else part.rows
        to = part.to[goes_on]
        places.append((inner[rows[goes_on]], rank[to], to))
    columns: list[pa.Array | None] = []
    for at, one in enumerate(types):
        arrays = [part.outcomes.columns[at] for part in parts]
        if one is None or all(array is None for array in arrays):
            columns.append(None)
            continue
        sources = []
        for array, (inner_rows, to_kept, to) in zip(arrays, places, strict=True):
            if array is None:
                array, inner_rows = original(at, to), np.arange(len(to))
            sources.append((array, inner_rows, to_kept))
        columns.append(_column(sources, int(kept.sum()), one))
    return Outcomes(fates, _said(parts, count), tuple(columns))


def _said(parts: Sequence[Part], count: int) -> pa.StringArray:
    if all(part.outcomes.said.null_count == len(part.outcomes) for part in parts):
        return pa.nulls(count, pa.string())
    every = (np.arange(len(part.outcomes)) if part.rows is None else part.rows for part in parts)
    sources = [(part.outcomes.said, rows, part.to) for part, rows in zip(parts, every, strict=True)]
    return _gathered(sources, count, pa.string())


def _column(sources: list[tuple[pa.Array, Rows, Rows]], count: int, data_type: pa.DataType) -> pa.Array:
    """sources: (array, its rows, where these belong)."""
    width = fixed_width(data_type)
    if width is None or any(_has_nulls(array) for array, _, _ in sources):
        return _gathered(sources, count, data_type)
    out = np.empty((count, width), np.uint8)
    for array, rows, to in sources:
        values = np.frombuffer(canonical_values(array), np.uint8).reshape(len(array), width)
        # Row for row: values may be large, and picking first would copy them twice.
        if width >= _LARGE_BYTES:
            for row, place in zip(rows.tolist(), to.tolist(), strict=True):
                out[place] = values[row]
        else:
            out[to] = values[rows]
    return _of_bytes(data_type, count, pa.py_buffer(out))


def _gathered(sources: list[tuple[pa.Array, Rows, Rows]], count: int, data_type: pa.DataType) -> pa.Array:
    """As `_column`, of any type. Mostly a few rows have changed among many, so whole runs of rows are copied, once."""
    which, row = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for number, (_, rows, to) in enumerate(sources):
        which[to], row[to] = number, rows
    cuts = (np.flatnonzero((np.diff(which) != 0) | (np.diff(row) != 1)) + 1).tolist()
    if len(cuts) < count / _RUN_ROWS_MIN:
        borders = [0, *cuts, count] if count else []
        runs = (sources[which[start]][0].slice(int(row[start]), end - start) for start, end in pairwise(borders))
        return _joined(list(runs), data_type)
    picked = [_taken(array, rows) for array, rows, _ in sources]
    return _ordered(_joined(picked, data_type), np.concatenate([to for _, _, to in sources]))


_RUN_ROWS_MIN = 4
_LARGE_BYTES = 1024


def _has_nulls(array: pa.Array) -> bool:
    if isinstance(array, pa.ExtensionArray):
        return _has_nulls(array.storage)
    if array.null_count:
        return True
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        return _has_nulls(array.values.slice(array.offset * size, len(array) * size))
    return False


def _of_bytes(data_type: pa.DataType, count: int, data: pa.Buffer) -> pa.Array:
    """An array of a fixed-width type without nulls, over its values."""
    if isinstance(data_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(data_type, _of_bytes(data_type.storage_type, count, data))
    if pa.types.is_fixed_size_list(data_type):
        child = _of_bytes(data_type.value_type, count * data_type.list_size, data)
        return pa.Array.from_buffers(data_type, count, [None], children=[child])
    return pa.Array.from_buffers(data_type, count, [None, data])


def _taken(array: pa.Array, rows: Rows) -> pa.Array:
    if len(rows) == len(array) and bool((rows == np.arange(len(array))).all()):
        return array
    return array.take(pa.array(rows))


def _joined(arrays: list[pa.Array], data_type: pa.DataType) -> pa.Array:
    return pa.concat_arrays(arrays) if arrays else pa.array([], data_type)


def _ordered(array: pa.Array, to: NDArray[Any]) -> pa.Array:
    """Value i of `array` at place to[i]."""
    back = np.empty(len(to), np.int64)
    back[to] = np.arange(len(to))
    return _taken(array, back)
