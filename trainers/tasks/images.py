"""Classification of images: uint8 images of one size, and class labels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.errors import BadInput, FormatDamaged
from loaders import DataLoader
from trainers.config import DataConfig, ModelConfig
from trainers.evaluation import ClassMeter
from trainers.models import ImageClassifier, build_model
from trainers.parallel import World

# Rows of one step of an evaluation, all ranks together: activations of the CNN are 0.1 MB a row for MNIST.
EVALUATE_BATCH_ROWS = 500


@dataclass(frozen=True)
class ImageClassification:
    """A `trainers.tasks.Task`. `shape` of one stored uint8 image, names of the classes in label order."""

    inputs: str
    labels: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    kind: ClassVar[str] = "image-classification"

    @classmethod
    def of(cls, ds: Dataset, config: DataConfig) -> ImageClassification:
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
        return cls(config.inputs, config.labels, shape, tuple(names))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "kind": self.kind,
            "inputs": self.inputs,
            "labels": self.labels,
            "shape": list(self.shape),
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> ImageClassification:
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

    def build(self, config: ModelConfig, seed: int) -> ImageClassifier:
        """See Task."""
        return build_model(config, self.shape, len(self.classes), seed)

    def loader(self, rows: Dataset, config: DataConfig, seed: int, world: World, train: bool) -> DataLoader:
        """See Task. Batches are tuples (images, labels)."""
        return DataLoader(
            rows,
            shuffle=train,
            seed=seed,
            global_batch_size=config.global_batch_size if train else EVALUATE_BATCH_ROWS,
            rank=world.rank,
            world_size=world.size,
            as_tuple=(self.inputs, self.labels),
        )

    def split_batch(self, batch: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """(uint8 [b, *shape], int64 [b])."""
        images, labels = batch
        return images.to(device, non_blocking=True), labels.to(device, torch.int64, non_blocking=True)

    def count(self, targets: Tensor) -> int:
        """Rows."""
        return len(targets)

    def count_of(self, rows: int) -> int:
        """Rows."""
        return rows

    def example(self, rows: int, device: torch.device) -> Tensor:
        """Black images, uint8 [rows, *shape]."""
        return torch.zeros((rows, *self.shape), dtype=torch.uint8, device=device)

    def meter(self) -> ClassMeter:
        """Accuracy, loss and the confusion matrix."""
        return ClassMeter(self.classes)


def _column(ds: Dataset, name: str) -> pa.Field:
    if name not in ds.schema.names:
        near = difflib.get_close_matches(name, ds.schema.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(ds.schema.names)}"
        raise BadInput(f"{ds.name} has no column {name!r}{hint}")
    return ds.schema.field(name)
