"""One optimizer step: forward, backward, agreement of the ranks, update.

weighting   a rank's loss is the sum over its rows x data ranks / count of the global batch, so that the mean over data ranks
            is the gradient of the whole batch, whatever the shares are; an empty share takes part with zero weight.
agreement   ranks decide together, before anything is changed: whether to stop, and whether the loss is finite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainers.config import LossConfig
from trainers.metrics import StepClock
from trainers.parallel import World
from trainers.reference import require_takes, resolve, told
from trainers.tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(config: LossConfig) -> Loss:
    """The function that a configuration names, with its parameters. Raises BadInput when there is none, or it does not take them."""
    function = resolve(config.reference)
    require_takes(function, f"loss {told(config.reference)}", None, None, **config.params)
    return functools.partial(function, **config.params) if config.params else function


class StepOutcome(NamedTuple):
    """loss: mean over the global batch, not finite when the step changed nothing. stop: whether any rank wants to stop."""

    loss: float
    stop: bool


class TrainStep:
    """Holds what a step needs. One thread; every rank calls it with its share of the same global batch.

    module: what is called (the model, wrapped by trainers.parallel.wrap). loss: see trainers.losses.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        world: World,
        clock: StepClock,
    ) -> None:
        self._module = module
        self._task = task
        self._loss = loss
        self._optimizer = optimizer
        self._world = world
        self._clock = clock

    def __call__(self, batch: Any, rows: int, lr: float, stop: bool) -> StepOutcome:
        """`batch` of the task's loader; `rows` of the global batch; stop: whether this rank wants to stop after it."""
        clock, world = self._clock, self._world
        inputs, targets = self._task.split_batch(batch, world.device)
        clock.lap("h2d")
        count = self._task.count_of(rows)
        if count is None:
            count = round(world.sum([self._task.count(targets)])[0])
        loss = self._loss(self._module(inputs), targets)
        (loss * (world.data_size / max(1, count))).backward()
        share = float(loss.detach())
        clock.lap("compute")
        total, stops = world.sum([share], votes=[float(stop)])
        clock.lap("sync")
        mean = total / max(1, count)
        if math.isfinite(mean):
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        clock.lap("compute")
        return StepOutcome(mean, stops > 0)
