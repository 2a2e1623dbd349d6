"""Regression: tell numbers from numbers. One column of each; either may hold fixed-shape tensors or fixed-size lists.

Inputs are taken as they are: what is on very different scales is better brought to one in the data (or in a model of one's own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import semantic_of, tensor_shape
from leptonstore.errors import BadInput, FormatDamaged
from loaders import DataLoader
from trainers.config import DataConfig, ModelConfig
from trainers.evaluation import NumberMeter
from trainers.models import build_network
from trainers.parallel import World
from trainers.tasks.blocks import block_loader, block_rows
from trainers.tasks.columns import column_of
from trainers.tasks.shuffled import shuffled_loader

GROUPS_TOGETHER = 64  # row groups whose nodes are read at once
VALUES_MAX = 1 << 24  # numbers of one row, in a stored description


class Numbers(nn.Module):
    """Any fixed-width numbers [b, ...] -> float32 [b, features] -> network -> [b, targets]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.network(values.to(torch.float32).flatten(1))
        return found


@dataclass(frozen=True)
class Regression:
    """A `trainers.tasks.Task`. features, targets: numbers of one row of the columns `inputs` and `labels`."""

    inputs: str
    labels: str
    features: int
    targets: int

    kind: ClassVar[str] = "regression"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model.reference": "trainers.models:mlp",
        "loss.reference": "trainers.losses:mse",
    }

    @classmethod
    def of(cls, ds: Dataset, config: DataConfig) -> Regression:
        """Raises BadInput, naming column and fix, when a column does not hold numbers."""
        sizes = []
        for name, key in ((config.inputs, "inputs"), (config.labels, "labels")):
            field = column_of(ds, name, key)
            size = numbers_in(field)
            if size is None:
                what = f"{semantic_of(field) or field.type}"
                raise BadInput(
                    f"column {name!r} of {ds.name} holds {what}; a regression takes numbers, or tensors of them, without "
                    f"nulls: choose another with data.{key}"
                )
            sizes.append(size)
        return cls(config.inputs, config.labels, *sizes)

    def describe(self) -> str:
        """One line for people."""
        return f"regression: {self.targets} of column {self.labels!r} from {self.features} of column {self.inputs!r}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "kind": self.kind,
            "inputs": self.inputs,
            "labels": self.labels,
            "features": self.features,
            "targets": self.targets,
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Regression:
        """The inverse of `to_dict`. Raises FormatDamaged."""
        try:
            task = cls(str(tree["inputs"]), str(tree["labels"]), int(tree["features"]), int(tree["targets"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"the task description is damaged: {error!r}") from None
        if not (1 <= task.features <= VALUES_MAX and 1 <= task.targets <= VALUES_MAX):
            raise FormatDamaged(f"the task description is damaged: {task}")
        return task

    def require_fits(self, ds: Dataset) -> None:
        """See Task."""
        for name, key, size in ((self.inputs, "inputs", self.features), (self.labels, "labels", self.targets)):
            found = numbers_in(column_of(ds, name, key))
            if found != size:
                raise BadInput(f"column {name!r} of {ds.name} has {found} numbers a row, and the model takes {size}")

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """See Task: [b, ...] -> float32 [b, targets]. The factory is called (features, targets, **params)."""
        return Numbers(build_network(config, (self.features, self.targets), seed))

    def loader(self, rows: Dataset, config: DataConfig, seed: int, world: World, train: bool) -> DataLoader:
        """See Task. Batches are tuples (inputs, labels). Raises BadInput, with the fix, when there are nulls among them."""
        columns = (self.inputs, self.labels)
        for name in columns:
            _require_no_nulls(rows, name)
        if not train:
            return block_loader(rows, block_rows(4 * (self.features + self.targets)), world, as_tuple=columns)
        return shuffled_loader(rows, config, seed, world, as_tuple=columns)

    def split_batch(self, batch: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """(float32 [b, features], float32 [b, targets]): columns of single numbers come as [b], tensors as [b, ...]."""
        inputs, labels = (part.to(device, non_blocking=True).to(torch.float32) for part in batch)
        return inputs.reshape(len(inputs), self.features), labels.reshape(len(labels), self.targets)

    def count(self, targets: Tensor) -> int:
        """Rows."""
        return len(targets)

    def count_of(self, rows: int) -> int:
        """Rows."""
        return rows

    def example(self, rows: int, device: torch.device) -> Tensor:
        """Numbers in [-1, 1], float32 [rows, features]."""
        places = torch.arange(rows * self.features, device=device, dtype=torch.float32)
        return torch.sin(places).view(rows, self.features)

    def meter(self) -> NumberMeter:
        """Squared and absolute errors."""
        return NumberMeter()


def numbers_in(field: pa.Field) -> int | None:
    """How many numbers a row of a column holds; None for columns that hold something else."""
    data_type, size = field.type, 1
    shape = tensor_shape(field)
    if shape is not None:
        data_type, size = data_type.value_type, math.prod(shape)
    while pa.types.is_fixed_size_list(data_type):
        data_type, size = data_type.value_type, size * data_type.list_size
    number = pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_boolean(data_type)
    return size if number and semantic_of(field) in ("", "image") and size else None


def _require_no_nulls(rows: Dataset, name: str) -> None:
    """As NaN they would spoil the loss. Nodes of the tree know; values are read only where those have nulls, and rows are a selection."""
    index = rows.schema.get_field_index(name)
    groups = len(rows.leaves.starts) - 1
    if not rows.schema.field(index).nullable or not any(
        part.nulls
        for start in range(0, groups, GROUPS_TOGETHER)
        for group in rows.leaves.groups(range(start, min(start + GROUPS_TOGETHER, groups)))
        for part in group.columns[index]
    ):
        return
    nulls = sum(batch.column(0).null_count for _, batch in rows.iter_batches([name], keep=False))
    if nulls:
        raise BadInput(
            f"column {name!r} of {rows.name} has nulls in {nulls:,} of {len(rows):,} rows, which are no numbers: fill them, or leave "
            f'these rows out (lepton delete {rows.name}@{rows.ref} --where "{name} is null"; older versions keep them)'
        )
