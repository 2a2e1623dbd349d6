"""What a sink is: something that draws curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Takes the numbers of one run, in the order of its steps. Called by one thread at a time; any method may raise anything.

    Names of values are those of `trainers.reporting`: "train/loss", "train/lr", "val/accuracy" and so on.
    """

    @property
    def name(self) -> str:
        """What warnings call it."""
        ...

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        """First. facts: JSON-able: configuration, data, environment. step: 0, or that from which the run is resumed:
        what the sink has of later steps will come again."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values at `step`, all of them finite."""
        ...

    def end(self, status: str) -> None:
        """Last. status: "finished", "stopped" or "failed"."""
        ...


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, for sinks that know no trees."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
