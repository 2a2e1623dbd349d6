"""Where a run stands between two steps, beside weights and generators: the part of its state that is numbers and lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leptonstore.errors import FormatDamaged
from trainers.config import TrainConfig

# Evaluations within epochs of which a run remembers the numbers: the newest. About 100 bytes each in every manifest.
EVALUATIONS_MAX = 10_000
# Steps that may be left out (on_bad_loss = "skip") before a run gives up, in a row and in all: a run that has broken leaves out all.
SKIPPED_IN_A_ROW_MAX = 10
SKIPPED_MAX = 1_000
ROWS_KEPT_MAX = 10  # of a step that was left out; `rows_at(epoch, step_in_epoch)` of the loader has them all


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON cannot hold: r² where all labels held out are equal, the loss of a model that overflows."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


@dataclass
class Progress:
    """`step`, `epoch` and `step_in_epoch` count finished ones, so they name the next. An epoch is finished when it has been evaluated
    and recorded: between its last step and that, `step_in_epoch` is the number of its steps.

    loss_sum, count: over the steps of the unfinished epoch; rows or tokens. evaluated: step of the last evaluation, -1 before the first.
    history: of finished epochs {epoch, train_loss, val_…}. evaluations: within epochs {step, val_…}. Both without what is not finite.
    skipped: steps that were left out {step, epoch, step_in_epoch, loss, rows}, the numbers of the first rows.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    count: int = 0
    evaluated: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def train_loss(self) -> float:
        """Mean over the unfinished epoch; 0 where every step was left out."""
        return self.loss_sum / max(1, self.count)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the run stands: between the last step of an epoch and the next epoch there are two places."""
        return self.step, self.epoch, self.evaluated

    def evaluation_due(self, config: TrainConfig, ended: bool) -> bool:
        """Whether an evaluation is asked for after the last step and not done yet. ended: whether it was the last of its epoch."""
        epoch, every = self.epoch + 1, config.evaluate_every_steps
        due = ended and (epoch == config.epochs or epoch % config.evaluate_every_epochs == 0)
        due = due or (every is not None and self.step > 0 and self.step % every == 0)
        return due and self.evaluated != self.step

    def metrics_here(self) -> dict[str, float]:
        """Of the evaluation at this very step, and of the epoch that ended with it, if there are any: what a checkpoint is chosen by.

        Without those that are not finite, which JSON cannot hold.
        """
        found: dict[str, Any] = {}
        if self.step_in_epoch == 0 and self.history:
            found = {key: value for key, value in self.history[-1].items() if key != "epoch"}
        elif self.evaluations and self.evaluations[-1]["step"] == self.step:
            found = {key: value for key, value in self.evaluations[-1].items() if key != "step"}
        return finite(found)

    def leave_out(self, loss: float, rows: list[int]) -> str:
        """Record that the step at hand changed nothing. Returns why the run should give up, or ""."""
        self.skipped.append(
            {
                "step": self.step + 1,
                "epoch": self.epoch + 1,
                "step_in_epoch": self.step_in_epoch,
                "loss": str(loss),
                "rows": rows[:ROWS_KEPT_MAX],
            }
        )
        steps = [record["step"] for record in self.skipped[-SKIPPED_IN_A_ROW_MAX:]]
        if len(steps) == SKIPPED_IN_A_ROW_MAX and steps[0] == self.step + 2 - SKIPPED_IN_A_ROW_MAX:
            return f"{SKIPPED_IN_A_ROW_MAX} steps in a row were left out"
        return f"{SKIPPED_MAX} steps were left out" if len(self.skipped) >= SKIPPED_MAX else ""

    def to_manifest(self) -> dict[str, Any]:
        """The keys of a checkpoint's manifest that say it; JSON-able."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "progress": {"loss_sum": self.loss_sum, "count": self.count, "evaluated": self.evaluated},
            "history": list(self.history),
            "evaluations": list(self.evaluations),
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_manifest(cls, body: Mapping[str, Any]) -> Progress:
        """The inverse; keys that older checkpoints lack take their defaults. Raises FormatDamaged."""
        sums = body["progress"]
        try:
            batch = int(body["config"]["data"]["global_batch_size"])  # older checkpoints counted rows alone
            made = cls(
                step=body["step"],
                epoch=body["epoch"],
                step_in_epoch=body["step_in_epoch"],
                loss_sum=float(sums["loss_sum"]),
                count=int(sums.get("count", body["step_in_epoch"] * batch)),
                evaluated=int(sums.get("evaluated", -1)),
                history=[dict(record) for record in body["history"]],
                evaluations=[dict(record) for record in body.get("evaluations", [])],
                skipped=[dict(record) for record in body.get("skipped", [])],
            )
            _ = [int(record["step"]) for record in (*made.skipped, *made.evaluations)]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"the progress of the run is damaged: {error!r:.200}") from None
        return made
