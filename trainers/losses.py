"""Losses: functions (outputs, targets, **params) -> 0-d Tensor, the SUM over the valid rows (or tokens) of a share.

Sums, and not means, because shares of a global batch differ in size: the loop divides by what the whole batch counts
(trainers.tasks.task: `count`). An empty share gives 0, connected to the outputs, so that its backward pass takes part.

A loss of one's own is named in the configuration as "package.module:function" and keeps to the same law.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A target that is none: padding, or a token that nobody wants to be predicted. As torch's default ignore_index.
IGNORED = -100


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Of logits [b, ..., classes] and class numbers int64 [b, ...]; targets of IGNORED count nothing. In nats.

    label_smoothing: share in [0, 1) of each target that is spread over all classes (Szegedy et al. 2016).
    """
    return functional.cross_entropy(
        outputs.flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared differences of [b, ...] and [b, ...], averaged over the values of a row, summed over rows."""
    apart = outputs.to(torch.float32) - targets.to(torch.float32)
    return apart.square().flatten(1).mean(1).sum() if apart.dim() > 1 else apart.square().sum()
