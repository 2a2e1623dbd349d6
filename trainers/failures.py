"""What a step that failed is told as: one line that names step and rows, and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from leptonstore.errors import BadInput, LossNotFinite
from trainers.config import TrainConfig

ROWS_NAMED_MAX = 10  # in a message
# What torch's CPU allocator and other backends say in plain RuntimeErrors.
MEMORY_WORDS = ("can't allocate memory", "out of memory", "not enough memory")
NOT_TRAINING = "its batches are of the task (trainers.tasks) and keep no gradients, so it is the model that is too large for this device"
COMPILER_MODULES = ("torch._dynamo", "torch._inductor")


def _named(rows: Sequence[int]) -> str:
    """The first row numbers of a batch, and how many more there are."""
    first = ", ".join(str(row) for row in rows[:ROWS_NAMED_MAX])
    more = len(rows) - ROWS_NAMED_MAX
    return f"{first} and {more} more" if more > 0 else first


class BadStep(NamedTuple):
    """A step whose loss or gradient was not finite. where: "step 3 of 15 of run 'x'". rows: what their numbers count, and the numbers."""

    where: str
    loss: float
    kind: str
    rows: list[int]
    dataset: str

    def error(self, step: int, why: str = "") -> LossNotFinite:
        """As an error that ends the run at `step` (1-based). why: what was tried before."""
        bad = "a gradient" if math.isfinite(self.loss) else "the loss"
        value = "not finite" if math.isfinite(self.loss) else str(self.loss)
        skip = "" if why else '; on_bad_loss = "skip" leaves such steps out'
        return LossNotFinite(
            f"{bad} is {value} at {self.where}, of {self.kind} {_named(self.rows)} of {self.dataset}{why}: lower optimizer.lr, set "
            f"clip_norm, or look at these rows{skip}",
            step,
            self.rows,
        )


def told(error: Exception, config: TrainConfig, where: str, training: bool = True) -> BadInput | None:
    """The error that a user can act on, for what a step raised; None when it is none of those.

    where: "step 3 of 15 of run 'x'". training: False for an evaluation, whose memory is the model's and a batch's, without gradients.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in MEMORY_WORDS):
        advice = _less_memory(config) if training else NOT_TRAINING
        return BadInput(f"out of memory at {where}: {advice}; the last checkpoint is intact: go on with --resume")
    if config.compile and type(error).__module__.startswith(COMPILER_MODULES):
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return BadInput(f"torch.compile failed at {where}: {reason:.300}; train with compile = false")
    return None


def _less_memory(config: TrainConfig) -> str:
    """What to change, the cheapest first; what is set already is left out. Accumulation and recomputing may change on resume."""
    micro = -(-config.data.global_batch_size // config.accumulate)
    ways = []
    if micro > 1:
        ways.append(f"raise accumulate (now {config.accumulate}: micro-batches of {micro} rows over all ranks)")
    if not config.recompute:
        ways.append("set recompute = true")
    if config.precision == "float32":
        ways.append('set precision = "bf16" (another run)')
    if config.data.global_batch_size > 1:
        ways.append(f"lower data.global_batch_size (now {config.data.global_batch_size}; another run)")
    return ", or ".join(ways) or "the model itself is too large for this device"
