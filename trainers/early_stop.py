"""Stop when a metric of the evaluations no longer gets better: a small state machine, part of a run's checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leptonstore.errors import BadInput, FormatDamaged
from trainers.checkpoint.retention import signed
from trainers.config import EarlyStopConfig


@dataclass
class EarlyStop:
    """best: of the metric so far; None before the first evaluation. waited: evaluations since then that were not better."""

    config: EarlyStopConfig
    best: float | None = None
    waited: int = 0

    def see(self, metrics: Mapping[str, float]) -> bool:
        """Take in an evaluation; whether it is the best so far. What is not a number is never better.

        Raises BadInput when the evaluation has no such metric.
        """
        name, sign = signed(self.config.metric)
        if name not in metrics:
            raise BadInput(f"early_stop.metric is {name!r}; evaluations of this task have {', '.join(sorted(metrics))}")
        value = float(metrics[name])
        if self._better(value, sign):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def due(self) -> bool:
        """Whether the run should stop now."""
        return self.waited >= self.config.patience

    def _better(self, value: float, sign: int) -> bool:
        if math.isnan(value):
            return False
        return self.best is None or sign * (value - self.best) > self.config.min_delta

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The mirror image of `state_dict`. Raises FormatDamaged."""
        best, waited = state.get("best"), state.get("waited")
        if not isinstance(best, float | int | None) or type(waited) is not int or waited < 0:
            raise FormatDamaged(f"the state of early_stop is damaged: {dict(state)!r:.200}")
        self.best, self.waited = best if best is None else float(best), waited
