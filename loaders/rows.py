"""Batches of a `collate_fn`: row dicts of a step, all of them at once, and what the function makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loaders.pipeline import Made, Tell
from loaders.source import Source
from loaders.stall import StageClock
from loaders.step import Step


@dataclass(frozen=True)
class RowsMaker:
    """What a worker process makes batches with (loaders.worker.Maker) when the loader has a `collate_fn`."""

    dataset: Any
    source: Source
    collate_fn: Callable[[list[Any]], Any]
    seed: int
    clock: StageClock = field(default_factory=StageClock)

    def prepare(self) -> None:
        """Nothing: rows are read when they are asked for."""

    def seeded_columns(self) -> frozenset[str]:
        """None: the function sees a batch, for which the global generators are seeded."""
        return frozenset()

    def make(self, step: Step, tell: Tell | None = None, left_out: dict[int, Exception] | None = None) -> Made:
        """`collate_fn` of the step's rows."""
        numbers = step.rows.tolist()
        many = getattr(self.dataset, "__getitems__", None)
        with self.clock.stage("fetch"):
            rows = [self.dataset[row] for row in numbers] if many is None else many(numbers)
        if tell is not None:
            tell(-1, "")
        with self.clock.stage("collate"):
            return Made(self.collate_fn(rows), [])
