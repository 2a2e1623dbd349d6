"""Every class equally often, however rare it is.

An epoch has `per_class` positions of each class, exactly, in a keyed permutation. The rows of a class come in keyed permutations of
their own, one after another ("epochs of the class") and across epochs of training: no row of a class comes again before all others of
its class have come, and a class that is larger than `per_class` goes on in the next epoch where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.order import ORDER_ROWS_MAX, SEED_MAX, ByPosition, Order, Rows, rows_of_many
from loaders.orders.columns import Bound, PerRow, narrowed
from loaders.orders.keys import require_seed, sub_seed, whole

_CONTEXT = "lepton.orders.balanced.v1"
_CONTEXT_CLASS = "lepton.orders.balanced.v1 class"


@dataclass(frozen=True, eq=False)
class ClassBalanced:
    """Every class of a column equally often.

    column:    the column of classes (or an array with a class for each row): whole numbers or bools. Classes without rows do not count.
    per_class: positions of each class in an epoch; None: rows // classes, so that an epoch is about as long as the dataset.

    Memory: 4 bytes a row (8 from 2^32 rows on), and a sort of the column when bound. Positions asked for together cost 10 us for each of
    their classes and epochs of classes, beside what each costs. Raises ValueError, when bound, for a column that does not fit.
    """

    column: str | npt.ArrayLike
    per_class: int | None = None
    _given: PerRow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.per_class is not None:
            object.__setattr__(self, "per_class", whole("per_class", self.per_class, 1, ORDER_ROWS_MAX))
        object.__setattr__(self, "_given", PerRow.of(self.column))

    def bind(self, source: Any) -> _BoundBalanced:
        """Reads the classes of all rows."""
        return _BoundBalanced(self, source)

    def spec(self) -> dict[str, Any]:
        """Name, version, column or digest of the classes, and `per_class`."""
        return {"name": "class-balanced", "version": 1, "column": self._given.spec(), "per_class": self.per_class}


class _BoundBalanced(Bound):
    """rows:  of all classes, class after class, ascending in each.
    starts, sizes: where in `rows` each class starts, and how many it has.
    """

    def __init__(self, strategy: ClassBalanced, source: Any) -> None:
        super().__init__(strategy, source)
        labels = strategy._given.read(source)
        if labels.dtype.kind not in "bui":
            raise ValueError(
                f"{strategy._given.told} has {labels.dtype} values, and classes are whole numbers or bools"
            )
        rows = np.argsort(labels, kind="stable")
        cuts = np.flatnonzero(np.diff(labels[rows])) + 1
        self.starts = np.concatenate([[0], cuts]) if len(rows) else np.empty(0, np.int64)
        self.sizes = np.diff(self.starts, append=len(rows))
        self.rows = narrowed(rows)
        self.classes = len(self.starts)
        self.per_class = strategy.per_class or len(rows) // max(self.classes, 1)
        if self.classes * self.per_class > ORDER_ROWS_MAX:
            raise ValueError(f"an epoch of {self.classes} classes x {self.per_class} is longer than {ORDER_ROWS_MAX}")

    def epoch(self, seed: int, epoch: int) -> _Balanced:
        """One epoch."""
        require_seed(seed, epoch)
        return _Balanced(self, seed, epoch)


@dataclass(frozen=True)
class _Balanced(ByPosition):
    bound: _BoundBalanced
    seed: int
    epoch: int

    @property
    def length(self) -> int:
        return self.bound.classes * self.bound.per_class

    def _evaluate(self, positions: Rows) -> Rows:
        bound = self.bound
        if not positions.size:
            return np.empty(0, np.int64)
        mixed = Order(self.length, sub_seed(_CONTEXT, self.seed), self.epoch).rows_of(positions)
        draws, classes = np.divmod(mixed, bound.classes)
        firsts, sizes = bound.starts[classes], bound.sizes[classes]
        # Draw `epoch x per_class + draw` of its class, counted from epoch 0 on, in epochs of the class.
        begun = [divmod(self.epoch * bound.per_class, size) for size in bound.sizes.tolist()]
        turns, inside = np.divmod(draws + np.array([at for _, at in begun], np.int64)[classes], sizes)
        # One number for each (class, epoch of it).
        most = int(turns.max()) + 1
        pairs, which = np.unique(classes * most + turns, return_inverse=True)
        orders = []
        for number, turn in zip(*(part.tolist() for part in np.divmod(pairs, most)), strict=True):
            seed = sub_seed(_CONTEXT_CLASS, self.seed, number)
            orders.append(Order(int(bound.sizes[number]), seed, (begun[number][0] + turn) & SEED_MAX))
        return bound.rows[firsts + rows_of_many(orders, which, inside)].astype(np.int64)
