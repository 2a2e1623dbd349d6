"""From easy to hard, over epochs and inside an epoch.

Rows are ranked by a score, equal scores by row. Epoch e takes the easiest

    share(e) = min(1, start + (1 - start) * e / epochs)

of them, rounded up, each once. Inside the epoch they come in a keyed permutation of all (noise = 1), or by rank, shuffled within windows of
`noise` of the epoch: 0.1 keeps a row within a tenth of its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.order import SEED_MAX, ByPosition, Order, Rows
from loaders.orders.columns import Bound, PerRow, narrowed
from loaders.orders.keys import require_seed, sub_seed, whole
from loaders.orders.positions import grouped

_CONTEXT_WINDOW = "lepton.orders.curriculum.v1 window"


@dataclass(frozen=True, eq=False)
class Curriculum:
    """The easiest rows first; each epoch more of them.

    column: scores, the easiest lowest (or an array with a score for each row). No NaN.
    start:  share of the rows that epoch 0 takes, in (0, 1]. 1: all rows in every epoch.
    epochs: the epoch from which on all rows are taken, >= 1.
    noise:  how far rows are shuffled within an epoch, as a share of it, in [0, 1]. 1: wholly. 0: exactly by score.

    Epochs differ in length. Memory: 4 bytes a row (8 from 2^32 rows on), and a sort of the column when bound.
    Raises ValueError for parameters out of range and, when bound, for scores that do not fit.
    """

    column: str | npt.ArrayLike
    start: float = 0.2
    epochs: int = 10
    noise: float = 1.0
    _given: PerRow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("start", "noise"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "epochs", whole("epochs", self.epochs, 1, SEED_MAX))
        if not 0 < self.start <= 1 or not 0 <= self.noise <= 1:
            raise ValueError(
                f"a Curriculum has start in (0, 1] and noise in [0, 1], not start={self.start}, noise={self.noise}"
            )
        object.__setattr__(self, "_given", PerRow.of(self.column))

    def bind(self, source: Any) -> _BoundCurriculum:
        """Reads and sorts the scores of all rows."""
        return _BoundCurriculum(self, source)

    def spec(self) -> dict[str, Any]:
        """Name, version, column or digest of the scores, and parameters."""
        return {
            "name": "curriculum",
            "version": 1,
            "column": self._given.spec(),
            "start": self.start,
            "epochs": self.epochs,
            "noise": self.noise,
        }


class _BoundCurriculum(Bound):
    """ranked: rows, the easiest first."""

    def __init__(self, strategy: Curriculum, source: Any) -> None:
        super().__init__(strategy, source)
        scores = strategy._given.read(source)
        unknown = np.isnan(scores) if scores.dtype.kind == "f" else np.zeros(0, np.bool_)
        if unknown.any():
            raise ValueError(f"{strategy._given.told} has no score at row {int(np.argmax(unknown))}: it is NaN")
        self.ranked = narrowed(np.argsort(scores, kind="stable"))
        self._strategy = strategy

    def epoch(self, seed: int, epoch: int) -> _CurriculumEpoch:
        """As many rows as the schedule says."""
        require_seed(seed, epoch)
        wanted, rows = self._strategy, len(self.ranked)
        share = min(1.0, wanted.start + (1 - wanted.start) * min(epoch, wanted.epochs) / wanted.epochs)
        length = rows if epoch >= wanted.epochs else min(rows, math.ceil(share * rows))
        return _CurriculumEpoch(self, length, max(1, math.ceil(wanted.noise * length)), seed, epoch)


@dataclass(frozen=True)
class _CurriculumEpoch(ByPosition):
    bound: _BoundCurriculum
    positions: int
    window: int
    seed: int
    epoch: int

    @property
    def length(self) -> int:
        return self.positions

    def _evaluate(self, positions: Rows) -> Rows:
        if self.window == 1:
            return self.bound.ranked[positions].astype(np.int64)
        out = np.empty(positions.shape, np.int64)
        for window, where in grouped(positions // self.window):
            first = window * self.window
            size = min(self.window, self.positions - first)
            order = Order(size, sub_seed(_CONTEXT_WINDOW, self.seed, self.window, window), self.epoch)
            out[where] = self.bound.ranked[first + order.rows_of(positions[where] - first)]
        return out
