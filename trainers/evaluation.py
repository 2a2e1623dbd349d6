"""What an evaluation finds, and the meters that add it up. No loops here: trainers.evaluate runs the model.

Every kind of evaluation has `rows`, `loss` (mean, in nats) and `metrics()`, the numbers by which runs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leptonstore.errors import BadInput


class Evaluation(Protocol):
    """The result of an evaluation, immutable."""

    @property
    def rows(self) -> int:
        """Rows that were evaluated."""

    @property
    def loss(self) -> float:
        """Mean over rows or tokens, in nats."""

    def metrics(self) -> dict[str, float]:
        """Names and values, "loss" among them: for histories, logs and the choice of the best checkpoint."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, everything."""


@dataclass(frozen=True)
class ClassScore:
    """One class: `rows` have this label, `predicted` were given it, `correct` are both."""

    name: str
    rows: int
    predicted: int
    correct: int

    @property
    def recall(self) -> float:
        """Share of the rows of this class that were found; 0 when there are none."""
        return self.correct / self.rows if self.rows else 0.0

    @property
    def precision(self) -> float:
        """Share of the rows given this class that are of it; 0 when there are none."""
        return self.correct / self.predicted if self.predicted else 0.0


@dataclass(frozen=True)
class ClassEvaluation:
    """Of a classifier; `confusion[true, predicted]` counts rows (int64). `loss` is the mean cross-entropy in nats."""

    rows: int
    accuracy: float
    loss: float
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def per_class(self) -> list[ClassScore]:
        """One score per class, in label order."""
        rows, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return [
            ClassScore(name, int(rows[at]), int(predicted[at]), int(self.confusion[at, at]))
            for at, name in enumerate(self.classes)
        ]

    def metrics(self) -> dict[str, float]:
        """accuracy and loss."""
        return {"accuracy": self.accuracy, "loss": self.loss}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        scores = [
            {"name": score.name, "rows": score.rows, "recall": score.recall, "precision": score.precision}
            for score in self.per_class
        ]
        return {
            "rows": self.rows,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "per_class": scores,
            "confusion": self.confusion.tolist(),
        }


class ClassMeter:
    """A `trainers.tasks.Meter` for logits float32 [b, classes] and labels int64 [b]."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._confusion = torch.zeros((len(classes), len(classes)), dtype=torch.int64)
        self._loss = torch.zeros(1, dtype=torch.float64)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """See Meter."""
        count = len(self._classes)
        _require_logits(outputs, targets, count)
        self._loss += functional.cross_entropy(outputs, targets, reduction="none").to(torch.float64).sum()
        pairs = targets * count + outputs.argmax(1)
        self._confusion += torch.bincount(pairs, minlength=count * count).view(count, count)

    def sums(self) -> Sequence[Tensor]:
        """The confusion matrix, int64 [classes, classes], and the sum of losses, float64 [1]."""
        return self._confusion, self._loss

    def result(self, sums: Sequence[Tensor]) -> ClassEvaluation:
        """See Meter."""
        confusion, loss = sums
        rows = int(confusion.sum())
        if rows == 0:
            raise BadInput("there are no rows to evaluate")
        accuracy = int(confusion.diagonal().sum()) / rows
        return ClassEvaluation(rows, accuracy, float(loss) / rows, self._classes, confusion.numpy())


def _require_logits(logits: Tensor, labels: Tensor, classes: int) -> None:
    if logits.shape != (len(labels), classes):
        raise BadInput(f"the model gave outputs of shape {tuple(logits.shape)}, not ({len(labels)}, {classes})")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadInput(f"labels go from {int(labels.min())} to {int(labels.max())}, but there are {classes} classes")
