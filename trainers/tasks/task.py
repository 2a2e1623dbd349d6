"""Task: what a dataset asks of a model. Each kind is a file of this package; the loop, evaluation and deployment know this protocol only.

kind                    file          a batch is                                        what is counted
image-classification    images.py     images, decoded or through transforms, and labels rows
language-modelling      text.py       windows of a stream of tokens                     tokens
regression              numbers.py    numbers, and numbers                              rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from loaders import DataLoader
from trainers.config import DataConfig, ModelConfig
from trainers.evaluation import Evaluation
from trainers.parallel import World


class Meter(Protocol):
    """An evaluation in the making, on one rank. Sums are what ranks add up, so that the result is exact at any number of them."""

    def add(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Take in one batch: `outputs` of the model and the targets that belong to them, on any device; never empty.

        Gives the losses: float [b], or [b, t] of tokens. Raises BadInput when outputs and targets do not fit each other or the task.
        """

    def sums(self) -> Sequence[Tensor]:
        """What has been added up, int64 tensors of equal shapes on every rank, also before the first `add` (trainers.exact)."""

    def result(self, sums: Sequence[Tensor]) -> Evaluation:
        """The evaluation of all ranks' sums added up. Raises BadInput when there were no rows."""


class Task(Protocol):
    """Immutable; any thread. `inputs` and `labels` are names of columns."""

    @property
    def kind(self) -> str:
        """As in the table above."""

    @property
    def inputs(self) -> str:
        """The column that the model sees."""

    @property
    def labels(self) -> str:
        """The column that it shall tell."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `trainers.tasks.task_from_dict` is the inverse. Equal for runs that may continue each other."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Dotted keys of the configuration that suit this kind, where nobody says otherwise: model, loss, batch size."""

    def describe(self) -> str:
        """What was found in the dataset, in one line for people."""

    def require_fits(self, ds: Dataset) -> None:
        """Raises BadInput, naming the column, when `ds` is not what this task was found in: for evaluation on other data."""

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """The model with its preprocessing, weights drawn from `seed`, on the CPU: it takes the inputs of `split_batch`.

        Raises BadInput when the reference, its parameters or the shapes do not fit.
        """

    def loader(self, rows: Dataset, config: DataConfig, seed: int, world: World, train: bool) -> DataLoader:
        """Training: global batches of `config.global_batch_size` in shuffled epochs. An epoch has `len(loader.dataset)` rows, which are
        windows where texts are cut into them. Else every row once, in row order, as whole blocks of this rank (trainers.tasks.blocks).

        Raises BadInput when there is not one row.
        """

    def split_batch(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of a batch of `loader`, on the device; both have zero rows when the share is empty."""

    def count(self, targets: Tensor) -> int:
        """What the loss of these targets is divided by: valid rows, or tokens."""

    def count_of(self, rows: int) -> int | None:
        """The same from the number of rows alone; None when only the targets say it, and ranks must ask each other."""

    def example(self, rows: int, device: torch.device) -> Tensor:
        """Inputs of made-up data, for passes whose results nobody reads."""

    def meter(self) -> Meter:
        """A new one, with nothing added."""
