"""The smallest image models: the CNN of the main job, and a linear one."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from leptonstore.errors import BadInput

EDGE_MIN = 4  # pixels: below it nothing is left behind a convolution of 3 and a pool of 2


class CNN(nn.Module):
    """Conv 3x3 relu, max-pool 2, dense relu, dense. relu and max commute: pooling first does a quarter of the work."""

    def __init__(self, sample_shape: tuple[int, ...], classes: int, channels: int, hidden: int) -> None:
        super().__init__()
        height, width = sample_shape[:2]
        pooled = ((height - 2) // 2) * ((width - 2) // 2)
        self.conv = nn.Conv2d(sample_shape[2] if len(sample_shape) == 3 else 1, channels, kernel_size=3)
        self.hidden = nn.Linear(channels * pooled, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(functional.max_pool2d(self.conv(images), 2))
        logits: Tensor = self.output(functional.relu(self.hidden(features.flatten(1))))
        return logits


def cnn(sample_shape: tuple[int, ...], classes: int, channels: int = 32, hidden: int = 128) -> nn.Module:
    """The CNN of the main job. Raises BadInput for images under 4 x 4 pixels."""
    if min(sample_shape[:2]) < EDGE_MIN:
        raise BadInput(f"the cnn needs images of at least 4 x 4 pixels, not {sample_shape[0]} x {sample_shape[1]}")
    return CNN(sample_shape, classes, channels, hidden)


def linear(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Multinomial logistic regression on the pixels: the baseline, and the smallest model there is."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), classes))
