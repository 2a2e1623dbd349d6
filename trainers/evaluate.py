"""How good a model is on the rows of a dataset: of classes accuracy, loss and the confusion matrix; of text loss and perplexity.

Exact, and the same bits at any number of ranks: every row goes through the model once, in a block of rows that does not depend on the ranks
(trainers.tasks.blocks), and what is added up are integers (trainers.exact). No row is padded, dropped or counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from loaders import DataLoader
from trainers.config import DataConfig
from trainers.evaluation import Evaluation
from trainers.parallel import World
from trainers.tasks import Task, task_of
from trainers.tasks.blocks import blocks_of
from trainers.wrap import forwards_together

Model = Callable[[Tensor], Tensor]
# Called with (number of the first row of a block, inputs, outputs, targets, losses of rows or tokens) of every block, in order.
Watch = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]


def evaluate(
    model: Model,
    ds: Dataset,
    data: DataConfig | None = None,
    world: World | None = None,
    *,
    task: Task | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate `model` (inputs of the task -> outputs: a module or a deployed Bundle) on every row of `ds`.

    task: what the model was trained for; by default that of a Bundle, else what `task_of` finds in `ds` by `data`.
    watch: sees every block of this rank.
    Raises BadInput when the dataset does not fit the task or has no rows.
    """
    data, world = data or DataConfig(), world or World()
    task = task or getattr(model, "task", None)
    if task is None:
        task = task_of(ds, data)
    else:
        task.require_fits(ds)
    return evaluate_loader(model, task.loader(ds, data, 0, world, train=False), task, world, watch)


def evaluate_loader(
    model: Model, loader: DataLoader, task: Task, world: World, watch: Watch | None = None
) -> Evaluation:
    """As `evaluate`, over a loader made by `task.loader(..., train=False)`. A module is put in eval mode and back. Collective."""
    meter, steps = task.meter(), len(loader)
    together = isinstance(model, nn.Module) and forwards_together(model)
    # Forward passes of the rank that has the most blocks. Asked before the first: such a pass is a collective itself.
    most = round(world.sum([float(steps) if world.data_rank == 0 else 0.0])[0]) if together else steps
    with evaluating(model), torch.no_grad():
        for batch, first in zip(loader, blocks_of(loader), strict=False):
            inputs, targets = task.split_batch(batch, world.device)
            outputs = model(inputs)
            losses = meter.add(outputs, targets)
            if watch is not None:
                watch(first, inputs, outputs, targets, losses)
        for _ in range(steps, most):  # a rank with a block less takes part
            model(task.example(1, world.device))
    return meter.result([world.sum_tensor(part) for part in meter.sums()])


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """A module in eval mode while the context lasts; anything else as it is."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if training and isinstance(model, nn.Module):
            model.train()
