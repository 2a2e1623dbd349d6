"""What is trained: `task_of` finds it from a dataset, `task_from_dict` from a stored description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.process.columns import SPLIT
from trainers.config import DataConfig
from trainers.tasks.images import ImageClassification, is_image
from trainers.tasks.numbers import Regression, numbers_in
from trainers.tasks.split import split_dataset
from trainers.tasks.task import Meter, Task
from trainers.tasks.text import LanguageModelling, is_tokens

__all__ = [
    "ImageClassification",
    "LanguageModelling",
    "Meter",
    "Regression",
    "Task",
    "split_dataset",
    "task_from_dict",
    "task_of",
]

AUTO = "auto"
KINDS: dict[str, Any] = {kind.kind: kind for kind in (ImageClassification, LanguageModelling, Regression)}


def task_of(ds: Dataset, config: DataConfig) -> Task:
    """The task `config.task`, or the one that the schema says.

    "auto" looks at the column `config.inputs`; where that is the default and not there, at the only column of images,
    else of tokens. Raises BadInput, naming column and fix, when no task fits the dataset.
    """
    config = _with_columns(ds, config)
    if config.task != AUTO:
        if config.task not in KINDS:
            raise BadInput(f"data.task is {config.task!r}; it must be one of {', '.join([AUTO, *KINDS])}")
        found: Task = KINDS[config.task].of(ds, config)
        return found
    field = ds.schema.field(config.inputs) if config.inputs in ds.schema.names else None
    if field is not None and is_tokens(field):
        return LanguageModelling.of(ds, config)
    if field is not None and _is_regression(ds, config, field):
        return Regression.of(ds, config)
    return ImageClassification.of(ds, config)  # or says why not


def task_from_dict(tree: Mapping[str, Any]) -> Task:
    """The inverse of `Task.to_dict`. Raises FormatDamaged."""
    # Descriptions of before there were kinds have none.
    kind = KINDS.get(str(tree.get("kind", ImageClassification.kind)))
    if kind is None:
        raise FormatDamaged(f"the task description names an unknown kind: {tree.get('kind')!r:.100}")
    task: Task = kind.from_dict(tree)
    return task


def _is_regression(ds: Dataset, config: DataConfig, inputs: pa.Field) -> bool:
    """Numbers and no pixels go in, and what comes out has no names."""
    if numbers_in(inputs) is None or semantic_of(inputs) == "image" or config.labels not in ds.schema.names:
        return False
    labels = ds.schema.field(config.labels)
    return numbers_in(labels) is not None and class_names(labels) is None


def _with_columns(ds: Dataset, config: DataConfig) -> DataConfig:
    """`config` with column names that the dataset has, where the default ones are not there and there is one choice."""
    default, names = DataConfig(), ds.schema.names
    kinds = {
        "inputs": ([one.name for one in ds.schema if is_image(one)], [one.name for one in ds.schema if is_tokens(one)]),
        "labels": ([one.name for one in ds.schema if class_names(one) is not None and one.name != SPLIT],),
    }
    found: dict[str, Any] = {}
    for key, choices in kinds.items():
        if getattr(config, key) == getattr(default, key) and getattr(config, key) not in names:
            choice = next((some for some in choices if some), [])
            if len(choice) > 1:
                raise BadInput(f"{ds.name} has the columns {', '.join(choice)}: choose one with data.{key}")
            found |= {key: choice[0]} if choice else {}
    if not found:
        if config.inputs not in names and config.inputs == default.inputs:
            there = ", ".join(f"{one.name} ({one.type})" for one in ds.schema)
            raise BadInput(
                f"{ds.name} has no column of images or tokens; it has {there}: for a regression give two columns of numbers "
                "(--set data.inputs=COLUMN --set data.labels=COLUMN; the operation numbers.stack makes one of several); files become "
                f"images by `lepton column cast {ds.name} COLUMN --semantic image`, texts tokens by the operation text.tokenise"
            )
        return config
    return dataclasses.replace(config, **found)
