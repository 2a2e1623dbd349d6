"""Rows of like length in one batch, so that padding falls.

    inner order    | pool 0: pool_rows positions | pool 1 | ... | last, short |
    in a pool      rows sorted by length, and cut into groups of batch_rows
    groups         in a keyed permutation; the rows of a group as `inner` has them
    the last pool  may leave a short group: which lengths it gets is keyed, and it stands last, so that groups stay aligned with batches

A group is a global batch when the loader's global batch has `batch_rows` rows. Every row stands as often in an epoch as in `inner`.
A larger pool leaves less padding, and mixes less: batches of one pool have near lengths each, but any pool has batches of all lengths.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.order import BoundOrder, EpochOrder, FullOrder, Order, OrderStrategy, Rows
from loaders.orders.columns import Bound, Numbers, PerRow
from loaders.orders.keys import sub_seed, whole
from loaders.orders.positions import OverInner, grouped

POOL_ROWS_MAX = 1 << 24  # a pool is sorted whole: 40 bytes a row while that is done, 8 kept
POOLS_KEPT = 4  # of an epoch: one that a window of positions ends in, one that the next begins with, and the same of a plan that runs ahead

_CONTEXT_GROUPS = "lepton.orders.bucketed.v1 groups"
_CONTEXT_SHORT = "lepton.orders.bucketed.v1 short group"


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Batches of rows of like length.

    column:     lengths; of a column of strings, bytes or lists their own (bytes, bytes, elements); or an array with a length for each row.
    batch_rows: rows of a group: the global batch (batch_size x world size).
    pool_rows:  positions that are sorted at a time, a multiple of batch_rows; default: 64 groups.
    inner:      the order that pools are cut from; default: a full shuffle.

    Memory: 1 to 8 bytes a row, as the longest length needs, and POOLS_KEPT pools. Seeking sorts one pool.
    Raises ValueError for parameters that do not fit and, when bound, for lengths that do not.
    """

    column: str | npt.ArrayLike
    batch_rows: int
    pool_rows: int | None = None
    inner: OrderStrategy = FullOrder(True)  # noqa: RUF009 - frozen
    _given: PerRow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        batch_rows = whole("batch_rows", self.batch_rows, 1, POOL_ROWS_MAX)
        pool_rows = min(64 * batch_rows, POOL_ROWS_MAX // batch_rows * batch_rows)
        if self.pool_rows is not None:
            pool_rows = whole("pool_rows", self.pool_rows, 1, POOL_ROWS_MAX)
        if pool_rows % batch_rows:
            raise ValueError(f"pool_rows must be a multiple of batch_rows={batch_rows}, not {pool_rows}")
        object.__setattr__(self, "batch_rows", batch_rows)
        object.__setattr__(self, "pool_rows", pool_rows)
        object.__setattr__(self, "_given", PerRow.of(self.column))

    def bind(self, source: Any) -> BoundOrder:
        """Reads the lengths of all rows."""
        return _BoundBucketed(self, source)

    def spec(self) -> dict[str, Any]:
        """Name, version, column or digest of the lengths, sizes, and the spec of `inner`."""
        return {
            "name": "bucketed",
            "version": 1,
            "column": self._given.spec(),
            "batch_rows": self.batch_rows,
            "pool_rows": self.pool_rows,
            "inner": self.inner.spec(),
        }


class _BoundBucketed(Bound):
    def __init__(self, strategy: Bucketed, source: Any) -> None:
        super().__init__(strategy, source)
        lengths = strategy._given.read(source, lengths=True)
        if lengths.dtype.kind not in "bui":
            raise ValueError(f"{strategy._given.told} has {lengths.dtype} values, and lengths are whole numbers")
        if len(lengths) and int(lengths.min()) < 0:
            at = int(np.argmin(lengths))
            raise ValueError(f"{strategy._given.told} has a negative length at row {at}: {lengths[at]}")
        fits: npt.DTypeLike = np.min_scalar_type(int(lengths.max())) if len(lengths) else np.uint8
        self.lengths: Numbers = lengths.astype(fits)
        assert strategy.pool_rows is not None
        self.batch_rows, self.pool_rows = strategy.batch_rows, strategy.pool_rows
        self.inner = strategy.inner.bind(source)

    def epoch(self, seed: int, epoch: int) -> _BucketedEpoch:
        """One epoch of `inner`, pool by pool."""
        return _BucketedEpoch(self, self.inner.epoch(seed, epoch), seed, epoch)


@dataclass(frozen=True)
class _BucketedEpoch(OverInner):
    bound: _BoundBucketed
    inner: EpochOrder
    seed: int
    epoch: int
    _pools: dict[int, Rows] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _BucketedEpoch, (self.bound, self.inner, self.seed, self.epoch)

    def _evaluate(self, positions: Rows) -> Rows:
        out = np.empty(positions.shape, np.int64)
        for pool, where in grouped(positions // self.bound.pool_rows):
            out[where] = self._pool(pool)[positions[where] - pool * self.bound.pool_rows]
        return out

    def _pool(self, pool: int) -> Rows:
        """The rows at all positions of a pool; the latest ones asked for are kept."""
        with self._lock:
            found = self._pools.pop(pool, None)
            if found is None:
                found = self._sorted(pool)
            self._pools[pool] = found
            while len(self._pools) > POOLS_KEPT:
                del self._pools[next(iter(self._pools))]
            return found

    def _sorted(self, pool: int) -> Rows:
        batch_rows, first = self.bound.batch_rows, pool * self.bound.pool_rows
        rows = self.inner.rows_at(first, min(first + self.bound.pool_rows, self.inner.length))
        by_length = np.argsort(self.bound.lengths[rows], kind="stable")
        groups, short = divmod(len(rows), batch_rows)
        keyed = self.seed, batch_rows, self.bound.pool_rows, pool
        # The short group takes the place of any group of the sorted rows, so that no length is left to the end of every epoch.
        at = sub_seed(_CONTEXT_SHORT, *keyed, self.epoch) % (groups + 1) * batch_rows if short else 0
        whole = np.concatenate([by_length[:at], by_length[at + short :]]).reshape(groups, batch_rows)
        turned = whole[Order(groups, sub_seed(_CONTEXT_GROUPS, *keyed), self.epoch).rows_at(0, groups)]
        # Ascending places in the pool: as `inner` has them.
        return rows[np.concatenate([np.sort(turned, axis=1).reshape(-1), np.sort(by_length[at : at + short])])]
