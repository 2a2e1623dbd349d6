"""What is trained: `task_of` finds it from a dataset, `task_from_dict` from a stored description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonstore.dataset import Dataset
from leptonstore.errors import FormatDamaged
from trainers.config import DataConfig
from trainers.tasks.images import ImageClassification
from trainers.tasks.split import split_dataset
from trainers.tasks.task import Meter, Task

__all__ = ["ImageClassification", "Meter", "Task", "split_dataset", "task_from_dict", "task_of"]

KINDS = {ImageClassification.kind: ImageClassification}


def task_of(ds: Dataset, config: DataConfig) -> Task:
    """Raises BadInput, naming column and fix, when no task fits the dataset."""
    return ImageClassification.of(ds, config)


def task_from_dict(tree: Mapping[str, Any]) -> Task:
    """The inverse of `Task.to_dict`. Raises FormatDamaged."""
    kind = KINDS.get(
        str(tree.get("kind", ImageClassification.kind))
    )  # descriptions of before there were kinds have none
    if kind is None:
        raise FormatDamaged(f"the task description names an unknown kind: {tree.get('kind')!r:.100}")
    return kind.from_dict(tree)
