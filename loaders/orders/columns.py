"""What an order needs to know of each row: a column of the source, or an array with one number a row. Read once, when the order is bound.

The column is part of the dataset version, which states and receipts name; an array is named by its digest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from loaders.order import BoundOrder, OrderStrategy, Rows

Numbers = npt.NDArray[Any]

READ_ROWS = 1 << 16  # read at a time of a source that has no better way


@dataclass(frozen=True, eq=False)
class PerRow:
    """A number for each row: `column`, or `array` (then `digest` is BLAKE3 of dtype and bytes, 32 hex digits)."""

    column: str | None
    array: Numbers | None
    digest: str = field(default="")

    @classmethod
    def of(cls, given: str | npt.ArrayLike) -> PerRow:
        """A name, or numbers (one dimension; bool, whole or float), of which a copy is kept. Raises ValueError for others."""
        if isinstance(given, str):
            return cls(given, None)
        array = np.array(given)
        if array.ndim != 1 or array.dtype.kind not in "buif":
            raise ValueError(f"numbers for rows must be one-dimensional, not {array.ndim}-dimensional {array.dtype}")
        array = array.astype(array.dtype.newbyteorder("<"))
        array.setflags(write=False)
        return cls(None, array, blake3(array.dtype.str.encode() + b"\0" + array.tobytes()).hexdigest()[:32])

    def spec(self) -> Any:
        """For the spec of a strategy."""
        return self.column if self.array is None else {"rows": len(self.array), "blake3": self.digest}

    @property
    def told(self) -> str:
        """For messages."""
        return "the array" if self.column is None else f"column {self.column!r}"

    def read(self, source: Any, lengths: bool = False) -> Numbers:
        """The numbers of all rows, shape (source.rows,); not to be written. lengths: of a column of strings, bytes or lists their lengths.

        Raises ValueError for an array of another length, a column that is not there or has no single number in each row.
        """
        if self.array is not None:
            if len(self.array) != source.rows:
                raise ValueError(f"the array has {len(self.array)} numbers and {source.name!r} has {source.rows} rows")
            return self.array
        assert self.column is not None
        whole = getattr(source, "column", None)
        return _in_pieces(source, self.column, lengths) if whole is None else whole(self.column, lengths)


def _in_pieces(source: Any, name: str, lengths: bool) -> Numbers:
    """Through `gather`, of a source that reads the column for its batches."""
    names = [spec.name for spec in source.columns]
    if name not in names:
        raise ValueError(f"{source.name!r} reads no column {name!r}; it reads {', '.join(names)}")
    pieces: list[Numbers] = []
    source.fill()
    for first in range(0, source.rows, READ_ROWS):
        values = source.gather(np.arange(first, min(first + READ_ROWS, source.rows), dtype=np.int64))[name]
        if isinstance(values, list) and lengths:
            values = np.array([0 if value is None else len(value) for value in values], np.int64)
        if isinstance(values, list) or values.ndim != 1:
            raise ValueError(f"column {name!r} of {source.name!r} has no single number in each row")
        pieces.append(values)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def narrowed(rows: Rows) -> npt.NDArray[np.uint32] | Rows:
    """Row numbers in 4 bytes each where they fit."""
    return rows.astype(np.uint32) if not len(rows) or int(rows.max()) < 1 << 32 else rows


class Bound:
    """A strategy with what it read of a source. Pickles as the two: whoever gets it reads again."""

    def __init__(self, strategy: OrderStrategy, source: Any) -> None:
        self._made_of = strategy, source

    def __reduce__(self) -> tuple[Any, tuple[OrderStrategy, Any]]:
        return _bind, self._made_of


def _bind(strategy: OrderStrategy, source: Any) -> BoundOrder:
    return strategy.bind(source)
