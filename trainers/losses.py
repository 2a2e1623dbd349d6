"""Losses: functions `(outputs, targets, **params) -> Tensor`, 0-d, the SUM over the rows (or tokens) that count.

The loop divides by the count of the whole global batch, so that uneven shares, micro-batches and empty ranks give the
gradient of the whole batch. A loss of no rows is zero, and still a function of the outputs: backward passes need it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits [b, classes] in any float dtype, labels int64 [b]. In nats."""
    return functional.cross_entropy(outputs, targets, reduction="sum")
