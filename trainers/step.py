"""One optimizer step: forward, backward, agreement of the ranks, update.

weighting    a rank's loss is the sum over its rows x data ranks / count of the global batch, so that the mean over data ranks
             is the gradient of the whole batch, whatever the shares are; an empty share takes part with zero weight.
accumulation this rank's share is split by rows into micro-batches, forward and backward one after another; gradients add up,
             and only the last backward pass adds them up over ranks. Nothing else differs: counts are those of the whole batch.
precision    weights and their gradients are float32. bf16 and fp16 are the forward pass's (torch.autocast); losses are float32.
             fp16's small gradients are scaled up before the backward pass and down after it (torch.amp.GradScaler).
agreement    ranks decide together, before anything is changed, in one small all-reduce that is under way during the last
             backward pass: the loss of the whole batch, and whether any rank wants to stop.
bad steps    a loss, or a norm of the gradients, that is not finite changes nothing: no weights, no optimizer state, and under
             on_bad_loss = "skip" no buffers. Every rank sees the same numbers, so every rank leaves the step out.
             The norm is looked at when it is there anyhow (clip_norm) or when the run is to go on (skip).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from leptonstore.errors import BadInput, FormatDamaged
from trainers.clock import StepClock
from trainers.config import LossConfig, TrainConfig
from trainers.devices import CPU
from trainers.exposed_sync import exposed_s, watch
from trainers.parallel import World
from trainers.reference import require_takes, resolve, told
from trainers.tasks import Task
from trainers.wrap import accumulating, forwards_together

Loss = Callable[[Tensor, Tensor], Tensor]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_loss(config: LossConfig) -> Loss:
    """The function that a configuration names, with its parameters. Raises BadInput when there is none, or it does not take them."""
    function = resolve(config.reference)
    require_takes(function, f"loss {told(config.reference)}", None, None, **config.params)
    return functools.partial(function, **config.params) if config.params else function


class StepOutcome(NamedTuple):
    """loss: mean over the global batch, of `counted` rows or tokens. stop: whether any rank wants to stop.

    taken: False when the step changed nothing, because the loss or the gradients were not finite.
    norm: of all gradients, before clipping; None when it was not asked for.
    """

    loss: float
    counted: int
    stop: bool
    taken: bool = True
    norm: float | None = None


class TrainStep:
    """Holds what a step needs. One thread; every rank calls it with its share of the same global batch.

    module: what is called (the model, wrapped by trainers.wrap). optimizer: over its weights.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        world: World,
        clock: StepClock,
    ) -> None:
        self._module = module
        watch(module)
        self._task = task
        self._loss = build_loss(config.loss)
        self._optimizer = optimizer
        self._world = world
        self._clock = clock
        self._accumulate = config.accumulate
        self._in_step = forwards_together(module)  # ranks make equally many passes, also over nothing
        self._dtype = DTYPES.get(config.precision)
        self._clip_norm = config.clip_norm
        self._skip = config.on_bad_loss == "skip"
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._graded = [weight for weight in module.parameters() if weight.requires_grad]
        self._lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._buffers = list(module.buffers())
        self._scaler = torch.amp.GradScaler(world.device.type) if config.precision == "fp16" else None
        self._seed: tuple[float, Tensor | None] = (
            math.nan,
            None,
        )  # of backward passes: the weight of the loss, as a tensor

    @property
    def lr(self) -> float:
        """The learning rate of the last step, of the optimizer's first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def __call__(self, batch: Any, rows: int, factor: float, stop: Callable[[], bool]) -> StepOutcome:
        """`batch` of the task's loader; `rows` of the global batch; factor: share of the peak learning rate; stop: says
        whether this rank wants to stop after it, asked as late as can be. Raises BadInput when the loss function returns no sum."""
        clock, world = self._clock, self._world
        inputs, targets = self._task.split_batch(batch, world.device)
        clock.lap("h2d")
        count = self._task.count_of(rows)
        if count is None:
            count = round(world.sum([self._task.count(targets)])[0])
            clock.lap("sync")
        before = self._buffers_before(targets)
        total, stops = self._passes(inputs, targets, world.data_size / max(1, count), stop)
        loss = total / max(1, count)
        taken, norm = math.isfinite(loss), None
        if taken and (self._clip_norm is not None or self._skip):
            norm = self._clipped()
            taken = norm is None or math.isfinite(norm)
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * factor
        if taken:
            self._update()
        if before is not None and (not taken or not len(targets)):
            self._restore_buffers(before)
        for weight in self._graded:  # as zero_grad does, without what torch does around it (9 us)
            weight.grad = None
        clock.lap("compute")
        return StepOutcome(loss, count, stops > 0, taken, norm)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, JSON-able; empty when there is none."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The mirror image of `state_dict`. Raises FormatDamaged."""
        if self._scaler is None:
            return
        if {key: type(value) for key, value in state.items()} != {
            key: type(value) for key, value in self._scaler.state_dict().items()
        }:
            raise FormatDamaged(f"the state of the gradient scaler is damaged: {state!r:.200}")
        self._scaler.load_state_dict(state)

    # -- passes ------------------------------------------------------------------------------------------------

    def _passes(self, inputs: Tensor, targets: Tensor, weight: float, stop: Callable[[], bool]) -> tuple[float, float]:
        """Forward and backward passes of the step; (loss summed over the global batch, how many ranks want to stop)."""
        parts = self._accumulate if self._in_step else max(1, min(self._accumulate, len(targets)))
        early = 0.0
        if parts > 1:
            micro = list(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True))
            with accumulating(self._module):
                losses = [self._forward_backward(*one, weight) for one in micro[:-1]]
            inputs, targets = micro[-1]
            early = float(torch.stack(losses).sum(dtype=torch.float64))
        loss = self._forward(inputs, targets)
        if self._world.device.type == CPU:
            agreed = self._world.begin_sum([loss.item() + early], votes=[stop()])
            self._backward(loss, weight)
        else:  # reading the loss waits for the device: not before it has all of its work
            self._backward(loss, weight)
            agreed = self._world.begin_sum([loss.item() + early], votes=[stop()])
        self._clock.lap("compute")
        self._clock.move("compute", "sync", exposed_s(self._module))
        total, stops = agreed()
        self._clock.lap("sync")
        return total, stops

    def _forward_backward(self, inputs: Tensor, targets: Tensor, weight: float) -> Tensor:
        loss = self._forward(inputs, targets)
        self._backward(loss, weight)
        return loss.detach()

    def _forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self._dtype is None:
            loss = self._loss(self._module(inputs), targets)
        else:
            with torch.autocast(self._world.device.type, self._dtype):
                outputs = self._module(inputs)
            loss = self._loss(outputs.to(torch.float32), targets)
        if loss.dim():
            raise BadInput(
                f"the loss function gave a tensor of shape {tuple(loss.shape)}; it must give the sum over all rows"
            )
        return loss

    def _backward(self, loss: Tensor, weight: float) -> None:
        if self._scaler is not None:
            self._scaler.scale(loss * weight).backward()
            return
        value, seed = self._seed
        if seed is None or value != weight or seed.dtype != loss.dtype:
            seed = torch.tensor(weight, dtype=loss.dtype, device=loss.device)
            self._seed = (weight, seed)
        loss.backward(seed)  # d(loss x weight), without the multiplication

    # -- update ------------------------------------------------------------------------------------------------

    def _clipped(self) -> float | None:
        """The norm of all gradients, which are then scaled to `clip_norm` at most. None when the scaler leaves the step out."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        norm = _total_norm([weight.grad for weight in self._weights if weight.grad is not None])
        value = float(norm)
        if not math.isfinite(value):
            return None if self._scaler is not None else value
        if self._clip_norm is not None and value > self._clip_norm:
            for some in _by_mesh(self._weights):
                clip_grads_with_norm_(some, self._clip_norm, norm)
        return value

    def _update(self) -> None:
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()

    # -- buffers -----------------------------------------------------------------------------------------------

    def _buffers_before(self, targets: Tensor) -> list[Tensor] | None:
        """Copies of the buffers, where the step may have to give them back: statistics of no rows may be no numbers."""
        if not self._buffers or (len(targets) and not self._skip):
            return None
        return [buffer.detach().clone() for buffer in self._buffers]

    def _restore_buffers(self, before: Iterable[Tensor]) -> None:
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, before, strict=True):
                buffer.copy_(saved)


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, of all ranks' shares of them."""
    norms = [get_total_norm(some) for some in _by_mesh(gradients)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def _by_mesh(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors that one operation may take together: those of one mesh (tensor ranks share out some weights, and not others)."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(found.values())
