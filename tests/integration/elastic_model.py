"""A model whose rank 1 dies in the middle of a run, the first time that torchrun starts it. For test_elastic.py."""

from __future__ import annotations

import os
import signal

from torch import Tensor, nn

DIES_AT = 9  # of its passes: the two that settle buckets, and then as many steps


class Dying(nn.Module):
    """Logistic regression, and the end of rank 1."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, classes)
        self._passes = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self._passes += 1
            first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ.get("DIE") == "1"
            if first and os.environ["RANK"] == "1" and self._passes == DIES_AT:
                os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def network(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """For model.reference."""
    return Dying(sample_shape[0] * sample_shape[1], classes)
