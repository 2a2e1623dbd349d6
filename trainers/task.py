"""What a dataset asks of a model: its input, its classes, and which rows are for training and which for validation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.process.preprocess import split_side
from trainers.config import DataConfig

VALIDATION_SPLITS = ("val", "validation", "test")


@dataclass(frozen=True)
class Task:
    """Image classification: `shape` of one stored uint8 image, names of the classes in label order."""

    inputs: str
    labels: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "inputs": self.inputs,
            "labels": self.labels,
            "shape": list(self.shape),
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Task:
        """The inverse of `to_dict`. Raises FormatDamaged."""
        try:
            shape = tuple(int(size) for size in tree["shape"])
            classes = tuple(str(name) for name in tree["classes"])
            task = cls(str(tree["inputs"]), str(tree["labels"]), shape, classes)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"the task description is damaged: {error!r}") from None
        if len(shape) not in (2, 3) or min(shape) < 1 or len(classes) < 2:
            raise FormatDamaged(f"the task description is damaged: shape {shape}, {len(classes)} classes")
        return task


def task_of(ds: Dataset, config: DataConfig) -> Task:
    """Raises BadInput, naming column and fix, when the dataset is not one of decoded images with class labels."""
    images, labels = _column(ds, config.inputs), _column(ds, config.labels)
    shape, names = tensor_shape(images), class_names(labels)
    if shape is None or images.type.value_type != pa.uint8():
        what = "encoded images" if semantic_of(images) == "image" else str(images.type)
        raise BadInput(
            f"column {config.inputs!r} of {ds.name} holds {what}; a trainer takes uint8 images of one size: "
            "make them with leptonstore.process.preprocess.prepare"
        )
    if len(shape) not in (2, 3):
        raise BadInput(f"column {config.inputs!r} of {ds.name} has rows of shape {shape}, not (H, W) or (H, W, C)")
    if names is None:
        raise BadInput(f"column {config.labels!r} of {ds.name} is no class label; choose another with data.labels")
    if len(names) < 2:
        raise BadInput(f"column {config.labels!r} of {ds.name} names {len(names)} class; a classifier needs two")
    return Task(config.inputs, config.labels, shape, tuple(names))


def split_dataset(ds: Dataset, config: DataConfig) -> tuple[Dataset, Dataset]:
    """(training rows, validation rows). Without a `split` column, `validation_fraction` is held out by row identity,
    which gives the same sides as `leptonstore.process.preprocess.prepare`. Raises BadInput when a side is missing."""
    names = ds.splits()
    if not names:
        return _held_out(ds, config.validation_fraction)
    validation = config.validation_split or next((name for name in VALIDATION_SPLITS if name in names), None)
    for name in (config.train_split, validation):
        if name is None or name not in names:
            raise BadInput(f"{ds.name} has no split {name or 'for validation'!r}; it has {', '.join(names)}")
    assert validation is not None
    train, held_out = ds.split(config.train_split), ds.split(validation)
    for name, rows in ((config.train_split, len(train)), (validation, len(held_out))):
        if rows == 0:
            raise BadInput(f"split {name!r} of {ds.name} has no rows")
    return train, held_out


def _held_out(ds: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    batches = (batch for _, batch in ds.iter_batches(list(ds.identity)))
    sides = [split_side([batch.column(name) for name in ds.identity], fraction) for batch in batches]
    side = np.concatenate(sides) if sides else np.empty(0, np.uint8)
    train, validation = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if not train.size or not validation.size:
        raise BadInput(f"{ds.name} has {len(ds)} rows, too few to hold out {fraction:.0%}; add rows or a split column")
    return ds.select(train), ds.select(validation)


def _column(ds: Dataset, name: str) -> pa.Field:
    if name not in ds.schema.names:
        near = difflib.get_close_matches(name, ds.schema.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(ds.schema.names)}"
        raise BadInput(f"{ds.name} has no column {name!r}{hint}")
    return ds.schema.field(name)
