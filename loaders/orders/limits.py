"""`limit_batches` and `overfit_batches`: an epoch that is only the first batches of one.

limit     the first batches of each epoch
overfit   the first batches of epoch 0, in every epoch: a model that cannot learn them by heart is broken
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from loaders.order import BoundOrder, ByPosition, EpochOrder, Rows, Windows
from loaders.share import Share

Limit: TypeAlias = int | float | None


@dataclass(frozen=True)
class Prefix(ByPosition):
    """The first `positions` positions of an epoch; all, when it has fewer."""

    order: EpochOrder
    positions: int

    @property
    def length(self) -> int:
        """At most that of the whole epoch."""
        return min(self.positions, self.order.length)

    @property
    def windows(self) -> Windows | None:
        """Those of the whole epoch."""
        return getattr(self.order, "windows", None)

    def _evaluate(self, positions: Rows) -> Rows:
        return self.order.rows_of(positions)


@dataclass(frozen=True)
class Limits:
    """limit_batches, overfit_batches: a number of global batches, or a float in (0, 1]: a share of an epoch's, rounded down.

    Raises ValueError for anything else, and for both.
    """

    limit_batches: Limit = None
    overfit_batches: Limit = None

    def __post_init__(self) -> None:
        for name, limit in (("limit_batches", self.limit_batches), ("overfit_batches", self.overfit_batches)):
            whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
            if limit is not None and not whole and not (isinstance(limit, float) and 0 < limit <= 1):
                raise ValueError(
                    f"{name} must be a whole number of at least 1, or a share: a float in (0, 1]; not {limit!r}"
                )
        if self.limit_batches is not None and self.overfit_batches is not None:
            raise ValueError("limit_batches and overfit_batches exclude each other")

    def epoch(self, bound: BoundOrder, seed: int, epoch: int, share_of: Callable[[EpochOrder], Share]) -> EpochOrder:
        """The epoch of a bound strategy, within these limits; `share_of` says how an epoch is cut into batches.

        Raises ValueError for a share that is less than one batch.
        """
        overfit = self.overfit_batches is not None
        order = bound.epoch(seed, 0 if overfit else epoch)
        limit = self.overfit_batches if overfit else self.limit_batches
        if limit is None:
            return order
        share = share_of(order)
        batches = limit if isinstance(limit, int) else int(limit * share.steps)
        if share.steps and not batches:
            name = "overfit_batches" if overfit else "limit_batches"
            raise ValueError(f"{name}={limit} of {share.steps} batches is no batch: give a larger share")
        return Prefix(order, batches * share.global_batch)

    def inner(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The mirror image of `spec`, of whatever comes."""
        inner = spec.get("inner")
        return inner if spec.get("name") == "overfit" and isinstance(inner, dict) else spec

    def spec(self, inner: dict[str, Any]) -> dict[str, Any]:
        """The spec of an order within these limits. `limit_batches` only ends an epoch: it changes no order."""
        if self.overfit_batches is None:
            return inner
        return {"name": "overfit", "version": 1, "batches": self.overfit_batches, "inner": inner}
