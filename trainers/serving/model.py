"""Served: a deployed model as a server knows it.

A language model is asked what comes next: a row is the text so far, of at least one token and at most as many as the model was trained
with; it is filled up behind with FILLER, and the outputs are those of its last token. Since a position sees only those before it, what
stands behind changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.bundle import Bundle
from trainers.serving.limits import OUTPUT_BYTES_MAX, ServeLimits
from trainers.serving.payload import FILLER, Decode
from trainers.signature import TensorSpec
from trainers.tasks import LanguageModelling


@dataclass(frozen=True)
class Served:
    """program: rows of `input` [n, ...] -> `output` [n, ...], any n >= 1.

    decode: an encoded image -> one row, or None. ragged: rows may be shorter than `input` says; texts: their numbers are bytes of UTF-8.
    about: what /schema tells of where the model comes from. Immutable.
    """

    name: str
    commit: str
    input: TensorSpec
    output: TensorSpec
    program: Callable[[Tensor], Tensor]
    classes: tuple[str, ...] = ()
    decode: Decode | None = None
    ragged: bool = False
    texts: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> Served:
        """The model of a bundle."""
        lineage = bundle.lineage
        about: dict[str, Any] = {key: lineage[key] for key in ("checkpoint", "data", "metrics") if key in lineage}
        if isinstance(bundle.task, LanguageModelling):
            gives = TensorSpec(bundle.output.name, bundle.output.dtype, bundle.output.shape[1:])
            texts = bundle.task.bytes_per_token == 1
            return cls(
                bundle.name,
                bundle.commit,
                bundle.input,
                gives,
                lambda rows: _next(bundle, rows),
                ragged=True,
                texts=texts,
                about=about,
            )
        decode = bundle.decode if bundle.takes_images else None
        return cls(
            bundle.name,
            bundle.commit,
            bundle.input,
            bundle.output,
            bundle.program,
            bundle.classes,
            decode,
            about=about,
        )

    def rows_max(self, limits: ServeLimits) -> int:
        """Of one request: so that its answer stays under OUTPUT_BYTES_MAX."""
        return max(1, min(limits.rows_max, OUTPUT_BYTES_MAX // max(self.output.row_bytes, 1)))

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]] | None:
        """The best class (or next token) of each row, and its softmax; None for models that choose nothing."""
        if not self.classes and not self.ragged:
            return None
        logits = outputs.numpy().astype(np.float64)
        with np.errstate(invalid="ignore"):  # of a model that gives infinities
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
        best = logits.argmax(axis=1)
        confidences = np.nan_to_num(shares[np.arange(len(best)), best])
        return [self._prediction(int(index), float(share)) for index, share in zip(best, confidences, strict=True)]

    def _prediction(self, index: int, confidence: float) -> dict[str, Any]:
        if self.classes:
            return {"label": self.classes[index], "index": index, "confidence": confidence}
        return {"token": index, "confidence": confidence}


def _next(bundle: Bundle, rows: Tensor) -> Tensor:
    """int64 [n, length], filled up with FILLER -> the outputs of each row's last token [n, vocabulary]."""
    last = (rows != FILLER).sum(1) - 1
    return bundle.program(rows.clamp_min(0))[torch.arange(len(rows)), last]
