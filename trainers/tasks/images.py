"""Classification of images, and class labels: decoded images of one size, or encoded ones (JPEG, PNG, ...) with transforms.

    stored                      data.transforms                         what the model takes
    uint8 tensors (H, W[, C])   none                                    them
    uint8 tensors, or files     [DecodeImage,] crops, flips, ...        uint8 (H, W, C), as the chain makes it
                                ... Normalize or ToFloat at the end     the same: that last step is done by the model
                                anything that ends in float32 (C, H, W) it

So an image travels as bytes, a quarter of what floats take, and a deployed model takes images, not normalised floats.
validation_transforms must not be random; without them those of training are taken with crops from the middle and no flips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of, tensor_shape
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.process.columns import is_binary
from loaders import DataLoader
from loaders.transforms import (
    CenterCrop,
    DecodeImage,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToFloat,
    Transform,
)
from trainers.config import DataConfig, ModelConfig
from trainers.evaluation import ClassMeter
from trainers.models import CLASSES_MAX, ImageClassifier, Planes, Preprocess, build_model
from trainers.parallel import World
from trainers.tasks.blocks import block_loader, block_rows
from trainers.tasks.chains import chain_of, described, trusted_chain
from trainers.tasks.columns import column_of
from trainers.tasks.shuffled import shuffled_loader

PIXELS_MAX = 1 << 28  # of one image that a model takes, in a stored description
# What a person who has not said how files become images of one size can type; a test does.
HINT = (
    'and a model takes images of one size: decode them once (printf \'dataset = "{dataset}"\\ninto = "{name}@decoded"\\n'
    'operation = [{{use = "image.decode", column = "{column}", shape = [64, 64, 3]}}]\\n\' > decode.toml; '
    "lepton process run decode.toml; lepton train {name}@decoded), or whenever they are read: --set 'data.transforms.{column}="
    '["loaders.transforms:DecodeImage", {{"reference": "loaders.transforms:RandomResizedCrop", "params": {{"size": 64}}}}]\''
)


@dataclass(frozen=True)
class ImageClassification:
    """A `trainers.tasks.Task`. `shape` of one image as the model takes it, names of the classes in label order.

    dtype: "uint8", shape (H, W) or (H, W, C); or "float32", shape (C, H, W). mean, std: what the model normalises by.
    transforms: those of validation, [{"reference", "params"}, ...]; () where images are taken as they are stored.
    """

    inputs: str
    labels: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    transforms: tuple[Mapping[str, Any], ...] = ()

    kind: ClassVar[str] = "image-classification"
    defaults: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def of(cls, ds: Dataset, config: DataConfig) -> ImageClassification:
        """Raises BadInput, naming column and fix, when the dataset is not one of images with class labels."""
        images, labels = column_of(ds, config.inputs, "inputs"), column_of(ds, config.labels, "labels")
        names = class_names(labels)
        if names is None:
            raise BadInput(
                f"column {config.labels!r} of {ds.name} is no class label; choose another with data.labels, or make it one: "
                f"lepton column cast {ds.name} {config.labels} --semantic class_label --classes A,B"
            )
        if len(names) < 2:
            raise BadInput(f"column {config.labels!r} of {ds.name} names {len(names)} class; a classifier needs two")
        for column in {*config.transforms, *config.validation_transforms} - {config.inputs}:
            raise BadInput(f"data.transforms names the column {column!r}; only {config.inputs!r} is transformed here")
        training, validation = chains(config, config.inputs)
        if not validation:
            return cls(config.inputs, config.labels, _stored_shape(ds, images, config.inputs), tuple(names))
        if not is_image(images):
            raise BadInput(f"column {config.inputs!r} of {ds.name} holds {images.type}, and no images")
        tail = _tail(training, validation)
        shape, dtype = _shape_after(ds, config.inputs, _without(training, tail), _without(validation, tail))
        if tail and dtype != "uint8":  # the last steps change floats: they stay in the chain
            tail = []
            shape, dtype = _shape_after(ds, config.inputs, training, validation)
        mean, std = _statistics(tail, shape[2] if len(shape) == 3 else 1)
        told = tuple(described(_without(validation, tail)))
        return cls(config.inputs, config.labels, shape, tuple(names), dtype, mean, std, told)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, C): what model factories are told."""
        return self.shape if self.dtype == "uint8" else (*self.shape[1:], self.shape[0])

    def describe(self) -> str:
        """One line for people."""
        size = " x ".join(map(str, self.shape))
        how = f" after {len(self.transforms)} transforms" if self.transforms else ""
        return (
            f"image classification: column {self.inputs!r}, {self.dtype} {size}{how}, "
            f"{len(self.classes):,} classes of column {self.labels!r}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        tree: dict[str, Any] = {
            "kind": self.kind,
            "inputs": self.inputs,
            "labels": self.labels,
            "shape": list(self.shape),
            "classes": list(self.classes),
        }
        # Absent where nothing was done to images, as in what was stored before there were transforms.
        if self.transforms or self.dtype != "uint8":
            tree |= {"dtype": self.dtype, "transforms": [dict(step) for step in self.transforms]}
        if self.mean:
            tree |= {"mean": list(self.mean), "std": list(self.std)}
        return tree

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> ImageClassification:
        """The inverse of `to_dict`. Raises FormatDamaged."""
        try:
            shape = tuple(int(size) for size in tree["shape"])
            classes = tuple(str(name) for name in tree["classes"])
            mean, std = (tuple(float(one) for one in tree.get(name, ())) for name in ("mean", "std"))
            steps = tuple(dict(step) for step in tree.get("transforms", ()))
            dtype = str(tree.get("dtype", "uint8"))
            task = cls(str(tree["inputs"]), str(tree["labels"]), shape, classes, dtype, mean, std, steps)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"the task description is damaged: {error!r}") from None
        fits = len(shape) in (2, 3) and min(shape) >= 1 and math.prod(shape) <= PIXELS_MAX
        fits = fits and 2 <= len(classes) <= CLASSES_MAX
        fits = fits and dtype in ("uint8", "float32") and (dtype == "uint8" or len(shape) == 3)
        channels = shape[2] if dtype == "uint8" and len(shape) == 3 else 1
        normal = all(math.isfinite(one) for one in mean) and all(0 < one < math.inf for one in std)
        if not fits or not normal or len(mean) != len(std) or len(mean) not in (0, channels):
            raise FormatDamaged(f"the task description is damaged: {dtype} {shape}, {len(classes)} classes")
        return task

    def require_fits(self, ds: Dataset) -> None:
        """See Task."""
        images, labels = column_of(ds, self.inputs, "inputs"), column_of(ds, self.labels, "labels")
        if self.transforms:
            if not is_image(images):
                raise BadInput(f"column {self.inputs!r} of {ds.name} holds {images.type}, and no images")
        elif _stored_shape(ds, images, self.inputs) != self.shape:
            found = tensor_shape(images)
            raise BadInput(f"images of {ds.name} have shape {found}; the model takes {self.shape}")
        names = class_names(labels)
        if names is None or tuple(names) != self.classes:
            told = ", ".join((names or [])[:5]) or "none"
            raise BadInput(f"classes of {ds.name} are {told}; the model has {', '.join(self.classes[:5])}")

    def build(self, config: ModelConfig, seed: int) -> ImageClassifier:
        """See Task. The factory is called (sample_shape, classes, **params)."""
        whole = self.dtype == "uint8"
        preprocess = Preprocess(self.shape, self.mean, self.std) if whole else Planes(self.shape)
        return build_model(config, self.sample_shape, len(self.classes), seed, preprocess)

    def prepared(self, values: Sequence[Any]) -> Tensor:
        """Inputs of the model from values as they are stored: encoded images as bytes, or arrays. Stacked, [b, *shape].

        Raises FormatDamaged for transforms that are not this project's, SourceError for bytes that are no image.
        """
        chain = trusted_chain(list(self.transforms), "this model")
        made = [self._through(chain, value) for value in values]
        kind = np.uint8 if self.dtype == "uint8" else np.float32
        return torch.from_numpy(np.stack(made) if made else np.empty((0, *self.shape), kind))

    def _through(self, chain: Sequence[Transform], value: Any) -> NDArray[Any]:
        encoded = isinstance(value, bytes | bytearray | memoryview)
        for step in chain:
            if encoded or not isinstance(step, DecodeImage):  # pixels are decoded already
                value = step(value)
        array = np.ascontiguousarray(value)
        if array.shape != self.shape or str(array.dtype) != self.dtype:
            raise BadInput(f"an image became {array.dtype} {array.shape}; the model takes {self.dtype} {self.shape}")
        return array

    def loader(self, rows: Dataset, config: DataConfig, seed: int, world: World, train: bool) -> DataLoader:
        """See Task. Batches are tuples (images, labels)."""
        columns = (self.inputs, self.labels)
        if not train:
            row_bytes = 4 * (math.prod(self.shape) + len(self.classes))
            chain = self._validation_chain(config)
            options = {"transforms": {self.inputs: chain}, "num_workers": config.workers} if chain else {}
            return block_loader(rows, block_rows(row_bytes), world, as_tuple=columns, **options)
        training, validation = chains(config, self.inputs)
        chain = _without(training, _tail(training, validation)) if self.dtype == "uint8" else training
        transforms = {self.inputs: chain} if chain else None
        return shuffled_loader(rows, config, seed, world, as_tuple=columns, transforms=transforms)

    def _validation_chain(self, config: DataConfig) -> list[Transform]:
        """From the configuration where that says it (it may name anybody's transforms), else from the description."""
        if not config.transforms and not config.validation_transforms:
            return trusted_chain(list(self.transforms), "this model")
        training, validation = chains(config, self.inputs)
        return _without(validation, _tail(training, validation)) if self.dtype == "uint8" else validation

    def split_batch(self, batch: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """(images [b, *shape], int64 [b])."""
        images, labels = batch
        return images.to(device, non_blocking=True), labels.to(device, torch.int64, non_blocking=True)

    def count(self, targets: Tensor) -> int:
        """Rows."""
        return len(targets)

    def count_of(self, rows: int) -> int:
        """Rows."""
        return rows

    def example(self, rows: int, device: torch.device) -> Tensor:
        """Made-up images [rows, *shape] in which every pixel value occurs."""
        places = torch.arange(rows * math.prod(self.shape), device=device)
        pixels = (places * 2_654_435_761 >> 16 & 255).view(rows, *self.shape)  # Knuth's multiplicative hash
        return pixels.to(torch.uint8) if self.dtype == "uint8" else pixels.to(torch.float32) / 127.5 - 1

    def meter(self) -> ClassMeter:
        """Accuracy, loss and the confusion matrix."""
        return ClassMeter(self.classes)


def is_image(field: pa.Field) -> bool:
    """Whether a column holds images, decoded or encoded."""
    shape = tensor_shape(field)
    if shape is not None:
        return bool(field.type.value_type == pa.uint8()) and len(shape) in (2, 3)
    return semantic_of(field) == "image" and is_binary(field.type)


def chains(config: DataConfig, column: str) -> tuple[list[Transform], list[Transform]]:
    """(training, validation) transforms of the column of images. Raises BadInput for a random one in validation."""
    training = chain_of(config.transforms.get(column, ()), column)
    if column not in config.validation_transforms:
        return training, [step for one in training for step in _without_chance(one)]
    validation = chain_of(config.validation_transforms[column], column)
    for step in validation:
        if not step.deterministic:
            raise BadInput(f"data.validation_transforms.{column} holds {step.name}, which is random: evaluation is not")
    return training or validation, validation


def _without_chance(step: Transform) -> list[Transform]:
    """What stands in validation for a transform of training."""
    if step.deterministic:
        return [step]
    if type(step) is RandomHorizontalFlip:
        return []
    if type(step) is RandomCrop:
        return [CenterCrop(step.size)]
    if type(step) is RandomResizedCrop:
        return [Resize(max(step.size), step.antialias), CenterCrop(step.size)]
    raise BadInput(
        f"the transform {step.name} is random; say what evaluation does instead with data.validation_transforms"
    )


def _tail(training: Sequence[Transform], validation: Sequence[Transform]) -> list[Transform]:
    """The last steps of both chains that the model does instead: ToFloat, Normalize."""
    found: list[Transform] = []
    for kind in (Normalize, ToFloat):
        ends = [chain[len(chain) - len(found) - 1] for chain in (training, validation) if len(chain) > len(found)]
        if len(ends) == 2 and all(type(end) is kind for end in ends) and ends[0].parameters() == ends[1].parameters():
            found.insert(0, ends[0])
    return found


def _without(chain: list[Transform], tail: Sequence[Transform]) -> list[Transform]:
    return chain[: len(chain) - len(tail)]


def _statistics(tail: Sequence[Transform], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for step in tail:
        if isinstance(step, Normalize):
            if len(step.mean) != channels:
                raise BadInput(f"Normalize was given {len(step.mean)} means, and images have {channels} channels")
            return step.mean, step.std
    return (), ()


def _stored_shape(ds: Dataset, images: pa.Field, name: str) -> tuple[int, ...]:
    shape = tensor_shape(images)
    if shape is None or images.type.value_type != pa.uint8():
        if is_image(images):
            hint = HINT.format(column=name, name=ds.name, dataset=f"{ds.name}@{ds.ref}")
            raise BadInput(f"column {name!r} of {ds.name} holds encoded images, {hint}")
        raise BadInput(
            f"column {name!r} of {ds.name} holds {images.type}; an image classifier takes uint8 tensors of shape (H, W) or "
            "(H, W, C), or encoded images: choose another column with data.inputs"
        )
    if len(shape) not in (2, 3):
        raise BadInput(f"column {name!r} of {ds.name} has rows of shape {shape}, not (H, W) or (H, W, C)")
    return shape


def _shape_after(
    ds: Dataset, name: str, training: Sequence[Transform], validation: Sequence[Transform]
) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) of what both chains make of an image; the first row says it."""
    if not len(ds):
        raise BadInput(f"{ds.name} has no rows")
    value = ds[0][name]
    made = []
    for chain in (training, validation):
        array = value
        for step in chain:
            array = step(array) if step.deterministic else step(array, rng=np.random.default_rng(0))
        made.append(np.asarray(array))
    first, second = made
    for array in made:
        if array.dtype not in (np.uint8, np.float32) or array.ndim not in (2, 3):
            raise BadInput(
                f"the transforms of {name!r} make {array.dtype} {array.shape} of an image, not uint8 (H, W, C) or "
                "float32 (C, H, W)"
            )
    if first.shape != second.shape or first.dtype != second.dtype:
        raise BadInput(
            f"the transforms of {name!r} make {first.dtype} {first.shape} of an image in training and {second.dtype} "
            f"{second.shape} in validation: they must agree"
        )
    return first.shape, str(first.dtype)
