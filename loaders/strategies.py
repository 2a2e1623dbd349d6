"""From the spec of an order back to the order: what a receipt or a state names can be computed again where only the store is.

A strategy whose spec does not say all of it (weights given as an array are named by their digest) has to be given by whoever has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from loaders.order import FullOrder, OrderStrategy
from loaders.source import BadInput

# Name in a spec -> class in loaders.orders, whose parameters have the names of the spec's fields.
_CLASSES = {
    "block-shuffle": "BlockShuffle",
    "weighted": "Weighted",
    "class-balanced": "ClassBalanced",
    "subset": "Subset",
    "curriculum": "Curriculum",
    "bucketed": "Bucketed",
}


def strategy_of(spec: Mapping[str, Any]) -> OrderStrategy:
    """The strategy with this spec. Raises BadInput, naming the order, when this code has none."""
    strategy = _built(spec)
    if strategy is None or strategy.spec() != spec:
        raise BadInput(
            f"an order cannot be made of {_told(spec)} alone: check it from Python, where its parts are "
            "(loaders.verify.Replay takes order=…), or with the LeptonStore that wrote it"
        )
    return strategy


def _built(spec: Mapping[str, Any]) -> OrderStrategy | None:
    for full in (FullOrder(True), FullOrder(False)):
        if full.spec() == spec:
            return full
    name = spec.get("name")
    if name not in _CLASSES:
        return None
    arguments = {key: _argument(key, value) for key, value in spec.items() if key not in ("name", "version")}
    try:
        kind = getattr(import_module("loaders.orders"), _CLASSES[str(name)])
        built: OrderStrategy = kind(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return built


def _argument(key: str, value: Any) -> Any:
    if key == "inner" and isinstance(value, Mapping):
        return strategy_of(value)
    if key == "rows" and isinstance(value, list):
        return range(*value)
    return value


def _told(spec: Mapping[str, Any]) -> str:
    return f"the spec {str(dict(spec))[:120]}"
