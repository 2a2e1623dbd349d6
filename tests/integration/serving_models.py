"""Models behind a server for the tests: small, quick, and with what a test needs to know of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leptonstore.process import images
from trainers.config import ModelConfig
from trainers.models import build_model
from trainers.program import Program, export
from trainers.serving.model import Served
from trainers.signature import TensorSpec

SHAPE = (8, 8)
CLASSES = ("flat", "left", "top")
LOGITS = TensorSpec("logits", "float32", (len(CLASSES),))


def classifier() -> Served:
    """An untrained CNN of uint8 images, as a deployed program."""
    model = build_model(ModelConfig(), SHAPE, len(CLASSES), seed=0).eval()
    program = Program(*export(model, torch.zeros((2, *SHAPE), dtype=torch.uint8)))
    spec = TensorSpec("images", "uint8", SHAPE, 0, 255)
    return Served(
        "birds", "c0" * 32, spec, LOGITS, program, CLASSES, lambda data: images.fit(images.decode(data), SHAPE)
    )


def numbers(program: Callable[[Tensor], Tensor] | None = None) -> Served:
    """float32 [3] -> float32 [2]; by default sums of the row, which do not depend on anything else."""

    def sums(rows: Tensor) -> Tensor:
        return torch.stack([rows.sum(1), -rows.sum(1)], 1)

    return Served(
        "sums",
        "5a" * 32,
        TensorSpec("rows", "float32", (3,), -100.0, 100.0),
        TensorSpec("sums", "float32", (2,)),
        program or sums,
    )


class Gate:
    """A model that a test can hold: it computes only while the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def __call__(self, rows: Tensor) -> Tensor:
        self.entered.set()
        assert self.open.wait(60)
        return torch.stack([rows.sum(1), -rows.sum(1)], 1)

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()


def png(height: int = 8, width: int = 8, seed: int = 0) -> bytes:
    import io

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
