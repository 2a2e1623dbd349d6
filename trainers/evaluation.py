"""What an evaluation finds, and the meters that add it up. No loops here: trainers.evaluate runs the model.

Every kind of evaluation has `rows`, `loss` (mean, in nats) and `metrics()`, the numbers by which runs are compared. All that is added up
are integers (trainers.exact): equal outputs give equal bits, however rows are shared out over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leptonstore.errors import BadInput
from trainers.exact import ExactSum, mean_of
from trainers.losses import IGNORED

TOP = 5  # an answer among the likeliest five counts for top5_accuracy, where there are more classes than that
# The confusion matrix has 8 x classes^2 bytes on every rank: 8 MB here. With more classes there are only the counts of each.
CONFUSION_CLASSES_MAX = 1_024


class Evaluation(Protocol):
    """The result of an evaluation, immutable."""

    @property
    def rows(self) -> int:
        """Rows that were evaluated."""

    @property
    def loss(self) -> float:
        """Mean over rows or tokens; of classes in nats. NaN when the model gave a value that is no number."""

    def metrics(self) -> dict[str, float]:
        """Names and values, "loss" among them: for histories, logs and the choice of the best checkpoint."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, everything; what is no number is null."""


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
    """Of a classifier. `loss` is the mean cross-entropy in nats.

    confusion: [true, predicted] counts rows (int64); None above CONFUSION_CLASSES_MAX classes.
    top5_accuracy: share of rows whose class is among the likeliest five; None where there are no more classes than that.
    """

    rows: int
    accuracy: float
    loss: float
    classes: tuple[str, ...]
    confusion: NDArray[np.int64] | None
    per_class: tuple[ClassScore, ...]
    top5_accuracy: float | None = None

    def metrics(self) -> dict[str, float]:
        """accuracy and loss; top5_accuracy where there is one."""
        more = {} if self.top5_accuracy is None else {"top5_accuracy": self.top5_accuracy}
        return {"accuracy": self.accuracy, "loss": self.loss, **more}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        scores = [
            {"name": score.name, "rows": score.rows, "recall": score.recall, "precision": score.precision}
            for score in self.per_class
        ]
        return {
            "rows": self.rows,
            **_numbers(self.metrics()),
            "per_class": scores,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }


@dataclass(frozen=True)
class TextEvaluation:
    """Of a language model, over every token that has one before it in its window. `loss` is nats per token.

    rows: windows. bytes_per_token: 1 for text that is stored as bytes; None when the data does not say.
    """

    rows: int
    tokens: int
    loss: float
    accuracy: float
    bytes_per_token: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as a choice among so many tokens."""
        return math.exp(min(self.loss, 700.0)) if math.isfinite(self.loss) else math.nan  # exp(710) is no float64

    @property
    def bits_per_byte(self) -> float | None:
        """What a byte of the text takes when the model compresses it; None when the data does not say how many bytes a token is."""
        return None if self.bytes_per_token is None else self.loss / math.log(2) / self.bytes_per_token

    def metrics(self) -> dict[str, float]:
        """loss, perplexity, accuracy (of the likeliest next token), and bits_per_byte where it is known."""
        bits = self.bits_per_byte
        found = {"loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}
        return found if bits is None else {**found, "bits_per_byte": bits}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"rows": self.rows, "tokens": self.tokens, **_numbers(self.metrics())}


@dataclass(frozen=True)
class NumberEvaluation:
    """Of a regression: `loss` is the mean squared error, `mean_absolute_error` in the unit of the labels.

    r2: the share of the labels' variance that the model explains; 1 is perfect, 0 no better than the mean; NaN where labels are all equal.
    """

    rows: int
    loss: float
    mean_absolute_error: float
    r2: float

    def metrics(self) -> dict[str, float]:
        """loss, mean_absolute_error, r2."""
        return {"loss": self.loss, "mean_absolute_error": self.mean_absolute_error, "r2": self.r2}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"rows": self.rows, **_numbers(self.metrics())}


class ClassMeter:
    """A `trainers.tasks.Meter` for logits [b, classes] and labels int64 [b]."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        count = len(classes)
        self._pairs = torch.zeros(count * count, dtype=torch.int64) if count <= CONFUSION_CLASSES_MAX else None
        self._counts = torch.zeros((3, count), dtype=torch.int64)  # rows, predicted, correct of each class
        self._top = torch.zeros(1, dtype=torch.int64)
        self._loss = ExactSum()

    def add(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Meter."""
        count = len(self._classes)
        _require_logits(outputs, targets, count)
        losses = functional.cross_entropy(outputs.to(torch.float32), targets, reduction="none")
        self._loss.add(losses)
        best = outputs.argmax(1)
        if self._pairs is not None:
            self._pairs += torch.bincount(targets * count + best, minlength=count * count).cpu()
        else:
            for at, found in enumerate((targets, best, targets[best == targets])):
                self._counts[at] += torch.bincount(found, minlength=count).cpu()
        if count > TOP:
            self._top += (outputs.topk(TOP, dim=1).indices == targets[:, None]).sum().cpu()
        return losses

    def sums(self) -> Sequence[Tensor]:
        """The confusion matrix or the counts of each class, right answers among the first five, the sum of losses: int64."""
        first = self._counts if self._pairs is None else self._pairs
        return first, self._top, self._loss.sums

    def result(self, sums: Sequence[Tensor]) -> ClassEvaluation:
        """See Meter."""
        first, top, loss = sums
        count, confusion = len(self._classes), None
        if self._pairs is not None:
            confusion = first.view(count, count).numpy()
            counts = [confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()]
        else:
            counts = list(first.numpy())
        rows = int(counts[0].sum())
        if rows == 0:
            raise BadInput("there are no rows to evaluate")
        scores = tuple(ClassScore(name, *(int(part[at]) for part in counts)) for at, name in enumerate(self._classes))
        top5 = int(top) / rows if count > TOP else None
        return ClassEvaluation(
            rows, int(counts[2].sum()) / rows, mean_of(loss, rows), self._classes, confusion, scores, top5
        )


class TokenMeter:
    """A `trainers.tasks.Meter` for logits [b, t, vocabulary] and tokens int64 [b, t]; targets of losses.IGNORED count nothing."""

    def __init__(self, vocabulary: int, bytes_per_token: int | None) -> None:
        self._vocabulary, self._bytes_per_token = vocabulary, bytes_per_token
        self._counts = torch.zeros(3, dtype=torch.int64)  # windows, tokens, right ones
        self._loss = ExactSum()

    def add(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Meter. Gives the losses of all tokens, [b, t]; those of targets that count nothing are 0."""
        if outputs.shape != (*targets.shape, self._vocabulary):
            wanted = (*targets.shape, self._vocabulary)
            raise BadInput(f"the model gave outputs of shape {tuple(outputs.shape)}, not {wanted}")
        if int(targets.max()) >= self._vocabulary:
            raise BadInput(f"there is a token {int(targets.max())}, but the model knows {self._vocabulary}")
        counted = targets != IGNORED
        losses = functional.cross_entropy(
            outputs.flatten(0, 1).to(torch.float32), targets.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(targets.shape)
        self._loss.add(losses[counted])
        right = (outputs.argmax(-1) == targets).sum()
        self._counts += torch.stack([torch.tensor(len(targets)), counted.sum().cpu(), right.cpu()])
        return losses

    def sums(self) -> Sequence[Tensor]:
        """Windows, tokens and right ones; the sum of losses: int64."""
        return self._counts, self._loss.sums

    def result(self, sums: Sequence[Tensor]) -> TextEvaluation:
        """See Meter."""
        counts, loss = sums
        rows, tokens, right = counts.tolist()
        if tokens == 0:
            raise BadInput("there are no tokens to evaluate")
        return TextEvaluation(rows, tokens, mean_of(loss, tokens), right / tokens, self._bytes_per_token)


class NumberMeter:
    """A `trainers.tasks.Meter` for float [b, values] and targets of the same shape."""

    def __init__(self) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64)  # rows, values
        self._sums = [ExactSum() for _ in range(4)]  # squared and absolute errors, labels, labels squared

    def add(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Meter. Gives the mean squared error of each row, [b]."""
        if outputs.shape != targets.shape:
            raise BadInput(f"the model gave outputs of shape {tuple(outputs.shape)}, not {tuple(targets.shape)}")
        wide = targets.to("cpu", torch.float64)
        apart = outputs.to("cpu", torch.float64) - wide
        for part, values in zip(self._sums, (apart.square(), apart.abs(), wide, wide.square()), strict=True):
            part.add(values)
        self._counts += torch.tensor([len(targets), targets.numel()])
        return apart.square().flatten(1).mean(1)

    def sums(self) -> Sequence[Tensor]:
        """Rows and values; squared and absolute errors, labels, squared labels: int64."""
        return self._counts, *(part.sums for part in self._sums)

    def result(self, sums: Sequence[Tensor]) -> NumberEvaluation:
        """See Meter."""
        rows, values = sums[0].tolist()
        if rows == 0:
            raise BadInput("there are no rows to evaluate")
        squared, absolute, mean, square = (mean_of(part, values) for part in sums[1:])
        variance = square - mean * mean
        return NumberEvaluation(rows, squared, absolute, 1 - squared / variance if variance > 0 else math.nan)


def _numbers(values: dict[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _require_logits(logits: Tensor, labels: Tensor, classes: int) -> None:
    if logits.shape != (len(labels), classes):
        raise BadInput(f"the model gave outputs of shape {tuple(logits.shape)}, not ({len(labels)}, {classes})")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadInput(f"labels go from {int(labels.min())} to {int(labels.max())}, but there are {classes} classes")
