"""How good a model is on labelled rows: accuracy, loss, per-class scores and the confusion matrix.

Exact at any number of ranks: every rank counts its own rows, counts are added up as integers and losses as float64.
No row is padded, dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from loaders import DataLoader
from trainers.config import DataConfig
from trainers.parallel import World
from trainers.task import Task, task_of

# Rows of one step, all ranks together: activations of the CNN are 0.1 MB a row for MNIST.
EVALUATE_BATCH_ROWS = 500

Model = Callable[[Tensor], Tensor]


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
class Evaluation:
    """The result; `confusion[true, predicted]` counts rows (int64). `loss` is the mean cross-entropy in nats."""

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


def evaluate(model: Model, ds: Dataset, data: DataConfig | None = None, world: World | None = None) -> Evaluation:
    """Evaluate `model` (uint8 images [b, …] -> logits [b, classes]: a module or a deployed Bundle) on every row of `ds`.

    Raises BadInput when the dataset does not fit (`trainers.task.task_of`) or has no rows.
    """
    data, world = data or DataConfig(), world or World()
    task = task_of(ds, data)
    return evaluate_loader(model, evaluation_loader(ds, task, world), task.classes, world)


def evaluation_loader(ds: Dataset, task: Task, world: World) -> DataLoader:
    """Every row once, in row order, shared out over the ranks."""
    return DataLoader(
        ds,
        shuffle=False,
        global_batch_size=EVALUATE_BATCH_ROWS,
        rank=world.rank,
        world_size=world.size,
        as_tuple=(task.inputs, task.labels),
    )


def evaluate_loader(model: Model, loader: DataLoader, classes: tuple[str, ...], world: World) -> Evaluation:
    """As `evaluate`, over a loader made by `evaluation_loader`. A module is put in eval mode and back."""
    count = len(classes)
    confusion = torch.zeros((count, count), dtype=torch.int64)
    loss_sum = 0.0
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            for images, labels in loader:
                if not len(labels):  # an empty share
                    continue
                labels = labels.to(torch.int64)
                logits = model(images.to(world.device)).to("cpu", torch.float32)
                _require_logits(logits, labels, count)
                losses = functional.cross_entropy(logits, labels, reduction="none")
                loss_sum += float(losses.to(torch.float64).sum())
                pairs = labels * count + logits.argmax(1)
                confusion += torch.bincount(pairs, minlength=count * count).view(count, count)
    finally:
        if training and isinstance(model, nn.Module):
            model.train()
    confusion = world.sum_tensor(confusion)
    (loss_sum,) = world.sum([loss_sum])
    rows = int(confusion.sum())
    if rows == 0:
        raise BadInput("there are no rows to evaluate")
    accuracy = int(confusion.diagonal().sum()) / rows
    return Evaluation(rows, accuracy, loss_sum / rows, classes, confusion.numpy())


def _require_logits(logits: Tensor, labels: Tensor, classes: int) -> None:
    if logits.shape != (len(labels), classes):
        raise BadInput(f"the model gave outputs of shape {tuple(logits.shape)}, not ({len(labels)}, {classes})")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadInput(f"labels go from {int(labels.min())} to {int(labels.max())}, but there are {classes} classes")
