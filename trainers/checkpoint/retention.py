"""Which checkpoints of a run are kept: the last ones, every so many steps, and the best; one that any rule keeps stays.

Those that no rule keeps lose their ref; their space is freed by the user's next `lepton gc`. A tag of a checkpoint (`lepton tag`) is a
name of its own, which no rule removes; nor a branch of somebody's own (`lepton branch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonstore.dataset import RefInfo, delete_ref
from leptonstore.errors import Conflict, RefMissing
from leptonstore.store import Store
from trainers.checkpoint.saved import by_age, step_of

# A metric whose name contains one of these is better when it is lower.
LOWER_IS_BETTER = ("loss", "perplexity", "error", "mae", "mse", "rmse")


@dataclass(frozen=True)
class Retention:
    """keep_last: the newest ones, at least 1. keep_every: those whose step is a multiple of it. keep_best: those with the best
    `best_metric` that was recorded with them; ties go to the newer one. best_metric: "+name" or "-name" say whether higher or lower is
    better; without a sign it is by name (LOWER_IS_BETTER)."""

    keep_last: int = 3
    keep_every: int | None = None
    keep_best: int = 0
    best_metric: str | None = None

    def kept(self, refs: list[RefInfo]) -> set[str]:
        """Of the checkpoints of a run, oldest first: the branches that stay. Those that no step names are somebody's own: they stay, and
        no rule counts them."""
        out = {ref.branch for ref in refs if step_of(ref.branch) is None}
        refs = [ref for ref in refs if ref.branch not in out]
        out |= {ref.branch for ref in refs[-self.keep_last :]}
        if self.keep_every:
            out |= {ref.branch for ref in refs if (step_of(ref.branch) or 0) % self.keep_every == 0}
        if self.keep_best and self.best_metric:
            name, sign = signed(self.best_metric)
            ranked = [
                (sign * float(value), at, ref.branch)
                for at, ref in enumerate(refs)
                if isinstance(value := ref.metrics.get(name), (int, float)) and math.isfinite(value)
            ]
            out |= {branch for _, _, branch in sorted(ranked, reverse=True)[: self.keep_best]}
        return out


def signed(metric: str) -> tuple[str, int]:
    """(name of the metric, 1 when higher is better and -1 when lower is): by its sign, "-mine", else by its name."""
    if metric[:1] in "+-":
        return metric[1:], 1 if metric[0] == "+" else -1
    return metric, -1 if any(word in metric for word in LOWER_IS_BETTER) else 1


def apply_retention(store: Store, run: str, retention: Retention) -> list[str]:
    """Let go of the checkpoints of `run` that `retention` does not keep; their branches."""
    refs = by_age(store, run)
    kept = retention.kept(refs)
    gone = [ref.branch for ref in refs if ref.branch not in kept]
    for branch in gone:
        try:
            delete_ref(store, "checkpoint", run, branch)
        except (RefMissing, Conflict):
            continue  # somebody else removed or moved it meanwhile
    return gone
