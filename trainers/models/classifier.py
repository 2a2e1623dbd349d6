"""Preprocessing and network of an image model as one module.

What is trained, evaluated and deployed takes images as the loader gives them, and the exported program cannot be fed
differently from the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.errors import BadInput
from trainers.config import ModelConfig
from trainers.models.build import build_network

PIXEL_MAX = 255  # of uint8 images
CLASSES_MAX = 65_536  # as many as a class-label column may name


class Preprocess(nn.Module):
    """uint8 [b, H, W] or [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in 0..1; has no weights.

    mean, std: of each channel, on the scale of 0..1: (x - mean) / std follows, and these are buffers of the model.
    Channels stay innermost in memory (channels_last strides), which is how images are stored and also the faster
    layout for convolutions on a CPU.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, sample_shape: tuple[int, ...], mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        super().__init__()
        self.sample_shape = sample_shape
        self.mean, self.std = tuple(mean), tuple(std)
        if mean:
            scale = 1.0 / (torch.tensor(std, dtype=torch.float64) * PIXEL_MAX)
            shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
            self.register_buffer("scale", scale.to(torch.float32)[:, None, None])
            self.register_buffer("shift", shift.to(torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if len(self.sample_shape) == 2:
            images = images.unsqueeze(-1)
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        return pixels * self.scale + self.shift if self.mean else pixels * (1.0 / PIXEL_MAX)

    def describe(self) -> dict[str, Any]:
        """What a model bundle records about it."""
        described: dict[str, Any] = {
            "name": "trainers.models:Preprocess",
            "input": {"dtype": "uint8", "shape": list(self.sample_shape), "range": [0, PIXEL_MAX]},
            "output": {"dtype": "float32", "layout": "CHW", "range": [0.0, 1.0]},
        }
        if self.mean:
            described["output"] = {"dtype": "float32", "layout": "CHW"}
            described["normalize"] = {"mean": list(self.mean), "std": list(self.std)}
        return described


class Planes(nn.Module):
    """float32 [b, C, H, W], which a chain of transforms made ready for the network: passed on as they are."""

    def __init__(self, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sample_shape = sample_shape

    def forward(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    def describe(self) -> dict[str, Any]:
        """What a model bundle records about it."""
        return {
            "name": "trainers.models:Planes",
            "input": {"dtype": "float32", "shape": list(self.sample_shape), "layout": "CHW"},
            "output": {"dtype": "float32", "layout": "CHW"},
        }


class ImageClassifier(nn.Module):
    """Preprocessing and network as one module: images as the loader gives them -> logits float32 [b, classes]."""

    def __init__(self, preprocess: Preprocess | Planes, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocess(images))
        return logits


def build_model(
    config: ModelConfig,
    sample_shape: tuple[int, ...],
    classes: int,
    seed: int,
    preprocess: Preprocess | Planes | None = None,
) -> ImageClassifier:
    """The model with weights drawn from `seed`: equal arguments give equal bits. The caller's RNG is left as it was.

    sample_shape: (H, W) or (H, W, C) of one image, also where `preprocess` (default: Preprocess) takes it otherwise.
    Raises BadInput when the reference, its parameters or the shapes do not fit.
    """
    if len(sample_shape) not in (2, 3):
        raise BadInput(f"images have shape (H, W) or (H, W, C), not {sample_shape}")
    if not 2 <= classes <= CLASSES_MAX:
        raise BadInput(f"a classifier needs 2 to {CLASSES_MAX} classes, not {classes}")
    network = build_network(config, (sample_shape, classes), seed)
    # The layout of what the preprocessing gives, so that gradients come in the layout of the weights.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    return ImageClassifier(preprocess or Preprocess(sample_shape), network)
