"""Served: a deployed model as a server knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from trainers.deploy import Bundle
from trainers.serving.limits import OUTPUT_BYTES_MAX, ServeLimits
from trainers.serving.payload import Decode
from trainers.signature import TensorSpec


@dataclass(frozen=True)
class Served:
    """program: rows of `input` [n, ...] -> `output` [n, ...], any n >= 1. decode: an encoded image -> one row, or None.

    about: what /schema tells of where the model comes from. Immutable.
    """

    name: str
    commit: str
    input: TensorSpec
    output: TensorSpec
    program: Callable[[Tensor], Tensor]
    classes: tuple[str, ...] = ()
    decode: Decode | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> Served:
        """The model of a bundle."""
        lineage = bundle.lineage
        about: dict[str, Any] = {key: lineage[key] for key in ("checkpoint", "data", "metrics") if key in lineage}
        return cls(
            bundle.name,
            bundle.commit,
            bundle.input,
            bundle.output,
            bundle.program,
            bundle.classes,
            bundle.decode,
            about,
        )

    def rows_max(self, limits: ServeLimits) -> int:
        """Of one request: so that its answer stays under OUTPUT_BYTES_MAX."""
        return max(1, min(limits.rows_max, OUTPUT_BYTES_MAX // max(self.output.row_bytes, 1)))

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Of a classifier: the best class of each row, and its softmax."""
        logits = outputs.numpy().astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best = logits.argmax(axis=1)
        return [
            {"label": self.classes[index], "index": int(index), "confidence": float(row[index])}
            for index, row in zip(best, shares, strict=True)
        ]
