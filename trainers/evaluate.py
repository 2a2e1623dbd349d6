"""How good a model is on the rows of a dataset: accuracy, loss, per-class scores and the confusion matrix.

Exact at any number of ranks: every rank adds up its own rows (trainers.evaluation), counts as integers and losses as
float64. No row is padded, dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from loaders import DataLoader
from trainers.config import DataConfig
from trainers.evaluation import Evaluation
from trainers.parallel import World
from trainers.tasks import Task, task_of

Model = Callable[[Tensor], Tensor]


def evaluate(model: Model, ds: Dataset, data: DataConfig | None = None, world: World | None = None) -> Evaluation:
    """Evaluate `model` (inputs of the task -> outputs: a module or a deployed Bundle) on every row of `ds`.

    Raises BadInput when the dataset does not fit (`trainers.tasks.task_of`) or has no rows.
    """
    data, world = data or DataConfig(), world or World()
    task = task_of(ds, data)
    return evaluate_loader(model, task.loader(ds, data, 0, world, train=False), task, world)


def evaluate_loader(model: Model, loader: DataLoader, task: Task, world: World) -> Evaluation:
    """As `evaluate`, over a loader made by `task.loader(..., train=False)`. A module is put in eval mode and back."""
    meter = task.meter()
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                inputs, targets = task.split_batch(batch, world.device)
                if len(targets):  # else an empty share
                    meter.add(model(inputs).to("cpu", torch.float32), targets.to("cpu"))
    finally:
        if training and isinstance(model, nn.Module):
            model.train()
    return meter.result([world.sum_tensor(part) for part in meter.sums()])
