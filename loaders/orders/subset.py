"""Some of the rows, in an order of their own: a range, a list, or those that a condition is true for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from loaders.order import BoundOrder, EpochOrder, FullOrder, OrderStrategy, Rows
from loaders.orders.columns import Bound, Numbers, narrowed
from loaders.orders.positions import OverInner

WHERE_CHARS_MAX = 120  # of a condition that stands in the spec as text; a longer one is named by its digest


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows, ordered by another strategy, for which they are rows 0, 1, ...

    rows:  a range (takes no memory), row numbers (each as often as it is named), or a condition as text, as in `lepton delete --where`.
    inner: orders them; default: a full shuffle.

    Memory: 4 bytes for each row that is in it (8 from 2^32 rows on), none for a range. A condition reads the columns that it names,
    once, when bound. A view does the same for more than orders: DataLoader(dataset.select(rows)), DataLoader(dataset.filter(condition)).
    Raises, when bound, ValueError for rows outside the dataset, and for a condition where the source has none; BadInput for one that
    does not fit.
    """

    rows: range | str | Sequence[int] | Rows
    inner: OrderStrategy = FullOrder(True)  # noqa: RUF009 - frozen
    _rows: range | str | Numbers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = self.rows
        if not isinstance(rows, range | str):
            rows = np.array(rows)
            if rows.ndim != 1 or (rows.dtype.kind not in "ui" and rows.size):
                raise ValueError("a Subset takes row numbers: whole numbers, in one dimension")
            rows = rows.astype(np.int64)
            rows.setflags(write=False)
        object.__setattr__(self, "_rows", rows)

    def bind(self, source: Any) -> BoundOrder:
        """Finds the rows, and binds `inner` to them."""
        return _BoundSubset(self, source)

    def spec(self) -> dict[str, Any]:
        """Name, version, the range, condition or digest of the rows, and the spec of `inner`."""
        if isinstance(self._rows, range):
            rows: Any = [self._rows.start, self._rows.stop, self._rows.step]
        elif isinstance(self._rows, str):
            rows = self._rows if len(self._rows) <= WHERE_CHARS_MAX else {"blake3": _digest(self._rows.encode())}
        else:
            rows = {"rows": len(self._rows), "blake3": _digest(self._rows.astype("<i8").tobytes())}
        return {"name": "subset", "version": 1, "rows": rows, "inner": self.inner.spec()}


class _BoundSubset(Bound):
    def __init__(self, strategy: Subset, source: Any) -> None:
        super().__init__(strategy, source)
        rows = strategy._rows
        if isinstance(rows, str):
            find = getattr(source, "rows_where", None)
            if find is None:
                raise ValueError(f"{source.name!r} finds no rows by a condition: give Subset their numbers")
            rows = find(rows)
        low, high = _bounds(rows)
        if low < 0 or high >= source.rows:
            raise ValueError(f"a Subset has row {low if low < 0 else high}, and {source.name!r} has {source.rows} rows")
        self.chosen: Numbers | range = rows if isinstance(rows, range) else narrowed(rows)
        self.inner = strategy.inner.bind(_SubsetSource(source, self))

    def numbers(self, at: Rows) -> Rows:
        """Rows of the source."""
        if isinstance(self.chosen, range):
            return self.chosen.start + at * self.chosen.step
        return self.chosen[at].astype(np.int64)

    def epoch(self, seed: int, epoch: int) -> _SubsetEpoch:
        """One epoch of `inner`."""
        return _SubsetEpoch(self, self.inner.epoch(seed, epoch))


class _SubsetSource:
    """What `inner` reads from: the chosen rows of a source."""

    def __init__(self, source: Any, subset: _BoundSubset) -> None:
        self._source, self._subset = source, subset
        self.rows = len(subset.chosen)
        self.columns, self.name = source.columns, source.name

    def fill(self) -> None:
        self._source.fill()

    def gather(self, rows: Rows) -> dict[str, Any]:
        found: dict[str, Any] = self._source.gather(self._subset.numbers(rows))
        return found

    def __getattr__(self, name: str) -> Any:
        # A source may lack these, and then so does the subset of it.
        if name == "column":
            whole = self._source.column
            return lambda column, lengths=False: whole(column, lengths)[self._every]
        if name == "rows_where":
            find = self._source.rows_where
            return lambda condition: np.flatnonzero(np.isin(self._every, find(condition)))
        raise AttributeError(name)

    @property
    def _every(self) -> npt.NDArray[np.int64]:
        return self._subset.numbers(np.arange(self.rows, dtype=np.int64))


@dataclass(frozen=True)
class _SubsetEpoch(OverInner):
    subset: _BoundSubset
    inner: EpochOrder

    def _evaluate(self, positions: Rows) -> Rows:
        return self.subset.numbers(self.inner.rows_of(positions))


def _bounds(rows: range | Numbers) -> tuple[int, int]:
    """(least, greatest)."""
    if not len(rows):
        return 0, -1
    if isinstance(rows, range):
        return min(rows[0], rows[-1]), max(rows[0], rows[-1])
    return int(rows.min()), int(rows.max())


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()[:32]
