"""From the spec of an order back to the order: what a receipt or a state names can be computed again where only the store is.

A strategy whose spec does not say all of it (weights given as an array are named by their digest) has to be given by whoever has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import loaders.orders as orders
from loaders.order import BoundOrder, EpochOrder, FullOrder, OrderStrategy
from loaders.source import BadInput
from loaders.windows import RandomOffset

NESTED_MAX = 8  # orders within orders
# Name in a spec -> its class, whose parameters have the names of the spec's fields.
_CLASSES: dict[str, Callable[..., OrderStrategy]] = {
    "block-shuffle": orders.BlockShuffle,
    "weighted": orders.Weighted,
    "class-balanced": orders.ClassBalanced,
    "subset": orders.Subset,
    "curriculum": orders.Curriculum,
    "bucketed": orders.Bucketed,
    "random-offset": RandomOffset,
}


def strategy_of(spec: Mapping[str, Any], given: OrderStrategy | None = None) -> OrderStrategy:
    """The strategy with this spec, which anybody may have written.

    given: what holds where the spec does not say all of it: an order over an array, or that of a mixture, whose changes in mid-run are
    then those of the spec. Raises BadInput, naming the order, when neither is an order with this spec.
    """
    strategy = _built(spec, 0)
    if strategy is None and given is not None:
        if spec.get("name") == "overfit" and isinstance(spec.get("inner"), Mapping):
            return _Overfit(dict(spec), strategy_of(spec["inner"], given))
        restored: Callable[[Mapping[str, Any]], OrderStrategy] | None = getattr(given, "restored", None)
        strategy = given if restored is None else restored(spec)
    if strategy is None or strategy.spec() != spec:
        what = "alone" if given is None else f"and of the one that is given, {str(given.spec())[:120]}"
        raise BadInput(
            f"an order cannot be made of the spec {str(dict(spec))[:120]} {what}: check it from Python, where its parts are "
            "(loaders.verify.replay_of takes order=…), or with the LeptonStore that wrote it"
        )
    return strategy


def _built(spec: Any, depth: int) -> OrderStrategy | None:
    if not isinstance(spec, Mapping) or depth > NESTED_MAX:
        return None
    for full in (FullOrder(True), FullOrder(False)):
        if full.spec() == spec:
            return full
    given = {key: value for key, value in spec.items() if key not in ("name", "version")}
    if "inner" in given:
        given["inner"] = _built(given["inner"], depth + 1)
        if given["inner"] is None:
            return None
    if spec.get("name") == "overfit":
        return _Overfit(dict(spec), given["inner"]) if "inner" in given else None
    kind = _CLASSES.get(str(spec.get("name")))
    if kind is None:
        return None
    try:
        if isinstance(given.get("rows"), list):
            given["rows"] = range(*given["rows"])
        return kind(**given)
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Overfit:
    """Epoch 0 in every epoch (loaders.orders.limits). How many of its batches, segments say."""

    told: dict[str, Any]
    inner: OrderStrategy

    def bind(self, source: Any) -> BoundOrder:
        return _BoundOverfit(self.inner.bind(source))

    def spec(self) -> dict[str, Any]:
        return self.told


@dataclass(frozen=True)
class _BoundOverfit:
    inner: BoundOrder

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        return self.inner.epoch(seed, 0)
