"""What a run tells: events for callbacks, and the result of `Trainer.fit`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from trainers.clock import RunTime, StepTime
from trainers.evaluation import Evaluation
from trainers.usage import Usage


class StepEvent(NamedTuple):  # there is one for every step: a tuple is made in a tenth of a dataclass's time
    """What a callback learns after a step. `step` is 1-based, `loss` the mean over the global batch.

    taken: False when the step changed nothing, because loss or gradients were not finite.
    grad_norm: before clipping, where it was asked for.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    lr: float
    rows: int
    time: StepTime
    taken: bool = True
    grad_norm: float | None = None


@dataclass(frozen=True)
class EpochEvent:
    """What a callback learns after an epoch (1-based); `evaluation` is None when the epoch was not evaluated."""

    epoch: int
    epochs: int
    train_loss: float
    evaluation: Evaluation | None


@dataclass(frozen=True)
class EvaluateEvent:
    """What a callback learns after an evaluation. `metrics` as in the history: {"val_loss": …}. best: of early stopping's metric so far;
    None without early stopping."""

    step: int
    epoch: int
    metrics: dict[str, float]
    evaluation: Evaluation
    best: bool | None


@dataclass(frozen=True)
class CheckpointEvent:
    """What a callback learns when a checkpoint is durable: its commit (hex), and `ref`, the name by which it is found."""

    run: str
    ref: str
    step: int
    commit: str


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.fit` gives back. Times are those of this process, since it started or resumed.

    us_per_sample: microseconds of training per row, waiting for data included; checkpoints and evaluation excluded.
    val_accuracy, val_loss: of the last evaluation of this process; NaN when there was none.
    finished: False when `max_steps` ended the run early. stopped_early: whether early stopping ended it.
    checkpoint: commit (hex) of the last one. history: per epoch {epoch, train_loss, val_accuracy, val_loss}.
    skipped: steps that were left out (trainers.progress). warnings: why bits may differ after a resume.
    not_reproducible: keys of the configuration that are objects which could not be written down.
    """

    run: str
    val_accuracy: float
    val_loss: float
    us_per_sample: float
    data_wait_fraction: float
    steps: int
    epochs: int
    train_samples: int
    val_samples: int
    checkpoint: str
    finished: bool
    history: list[dict[str, Any]]
    time: RunTime
    warnings: list[str]
    usage: Usage
    log: str = ""
    profile: dict[str, Any] | None = None
    stopped_early: bool = False
    skipped: list[dict[str, Any]] = field(default_factory=list)
    not_reproducible: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the seconds stand as data_wait_s … wall_s, and what was not measured, or is not finite, is null."""
        body = {key: value for key, value in asdict(self).items() if key != "time"}
        for key in ("val_accuracy", "val_loss"):
            body[key] = body[key] if math.isfinite(body[key]) else None
        return {**body, **self.time.seconds()}
