"""Models that come with the project, and the preprocessing that is part of every one of them.

A model factory is a function `(sample_shape, classes, **params) -> torch.nn.Module`; `sample_shape` is that of one
image as it is stored, (H, W) or (H, W, C). The module that it returns takes float32 [b, C, H, W] in [0, 1] and gives
logits float32 [b, classes]; b may be 0. `build_model` puts the preprocessing before it, so that what is trained,
evaluated and deployed takes stored images, and the exported program cannot be fed differently from the trained one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.errors import BadInput
from trainers.config import ModelConfig, resolve

PIXEL_MAX = 255  # of uint8 images
CLASSES_MAX = 65_536  # as many as a class-label column may name


class Preprocess(nn.Module):
    """uint8 [b, H, W] or [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in 0..1; has no weights.

    Channels stay innermost in memory (channels_last strides), which is how images are stored and also the faster
    layout for convolutions on a CPU.
    """

    def __init__(self, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sample_shape = sample_shape

    def forward(self, images: Tensor) -> Tensor:
        if len(self.sample_shape) == 2:
            images = images.unsqueeze(-1)
        return images.permute(0, 3, 1, 2).to(torch.float32) * (1.0 / PIXEL_MAX)

    def describe(self) -> dict[str, Any]:
        """What a model bundle records about it."""
        return {
            "name": "trainers.models:Preprocess",
            "input": {"dtype": "uint8", "shape": list(self.sample_shape), "range": [0, PIXEL_MAX]},
            "output": {"dtype": "float32", "layout": "CHW", "range": [0.0, 1.0]},
        }


class ImageClassifier(nn.Module):
    """Preprocessing and network as one module: stored uint8 images -> logits float32 [b, classes]."""

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocess(images))
        return logits


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
    if min(sample_shape[:2]) < 4:
        raise BadInput(f"the cnn needs images of at least 4 x 4 pixels, not {sample_shape[0]} x {sample_shape[1]}")
    return CNN(sample_shape, classes, channels, hidden)


def linear(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Multinomial logistic regression on the pixels: the baseline, and the smallest model there is."""
    pixels = 1
    for size in sample_shape:
        pixels *= size
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def build_model(config: ModelConfig, sample_shape: tuple[int, ...], classes: int, seed: int) -> ImageClassifier:
    """The model with weights drawn from `seed`: equal arguments give equal bits. The caller's RNG is left as it was.

    Raises BadInput when the reference, its parameters or the shapes do not fit.
    """
    if len(sample_shape) not in (2, 3):
        raise BadInput(f"images have shape (H, W) or (H, W, C), not {sample_shape}")
    if not 2 <= classes <= CLASSES_MAX:
        raise BadInput(f"a classifier needs 2 to {CLASSES_MAX} classes, not {classes}")
    factory = resolve(config.reference)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = factory(sample_shape, classes, **config.params)
        except TypeError as error:
            raise BadInput(f"model {config.reference!r} does not take these parameters: {error}") from None
    if not isinstance(network, nn.Module):
        raise BadInput(f"model {config.reference!r} returned {type(network).__name__}, not a torch.nn.Module")
    # The layout of what the preprocessing gives, so that gradients come in the layout of the weights.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    return ImageClassifier(Preprocess(sample_shape), network)
