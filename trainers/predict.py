"""A model of the store on new images, or on every row of a dataset version.

What is predicted becomes columns of a new version, by the kind of task:

    images      predicted (class label), confidence (float32)
    text        loss (float32, nats per token of the row's own text), perplexity; null for texts of fewer than two tokens
    numbers     predicted (float32, or a tensor of them)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import class_label_field, semantic_of, tensor_field, tensor_shape
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, LeptonError, SourceError
from leptonstore.limits import IMAGE_FILE_BYTES_MAX
from leptonstore.process import columns, images
from leptonstore.store import Store
from trainers.evaluation import TokenMeter
from trainers.losses import IGNORED
from trainers.opened import StoredModel
from trainers.tasks import ImageClassification, LanguageModelling, Regression, Task
from trainers.tasks.blocks import block_rows

PREDICTED, CONFIDENCE, LOSS, PERPLEXITY = "predicted", "confidence", "loss", "perplexity"
BRANCH = "predictions"
PREDICT_BATCH_ROWS = 500  # images in memory at a time, as decoded pixels and activations


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image. `probabilities` is float32 [classes]; `confidence` that of `label`."""

    source: str
    label: str
    index: int
    confidence: float
    probabilities: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"source": self.source, "label": self.label, "index": self.index, "confidence": self.confidence}


# -- images, one by one ------------------------------------------------------------------------------------------------


def predict_images(model: StoredModel, inputs: Sequence[str | Path | NDArray[np.uint8]]) -> list[Prediction]:
    """Label images: files (any raster format), or uint8 arrays H x W, H x W x 1 or H x W x 3 of any size.

    A model that was trained through transforms gets images through those of validation; for any other each is made grey or
    RGB and stretched to the size that the model takes. Raises SourceError, naming the file, for one that cannot be read;
    BadInput for an array that is no image, or a model of another kind; MissingExtra without Pillow when one is needed.
    """
    task = _image_task(model)
    predictions: list[Prediction] = []
    for start in range(0, len(inputs), PREDICT_BATCH_ROWS):
        part = inputs[start : start + PREDICT_BATCH_ROWS]
        names = [f"image {start + at}" if isinstance(one, np.ndarray) else str(one) for at, one in enumerate(part)]
        made = [_fit(one, name, task) for one, name in zip(part, names, strict=True)]
        shares = probabilities(model, torch.stack(made))
        predictions += [_prediction(task, name, row) for name, row in zip(names, shares, strict=True)]
    return predictions


def probabilities(model: StoredModel, batch: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
    """Images as the model takes them [b, *shape] -> float32 [b, classes], rows sum to 1; any b, computed in bounded parts."""
    # torch knows no read-only memory: what is mapped from the store is copied.
    whole = torch.from_numpy(np.require(batch, requirements=["C", "W"])) if isinstance(batch, np.ndarray) else batch
    parts = [
        torch.softmax(model(whole[start : start + PREDICT_BATCH_ROWS]).to(torch.float32), dim=1).numpy()
        for start in range(0, len(whole), PREDICT_BATCH_ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty((0, len(_image_task(model).classes)), np.float32)


# -- every row of a dataset --------------------------------------------------------------------------------------------


def predict_dataset(store: Store, model: StoredModel, ds: Dataset) -> Dataset:
    """A new version of `ds` with the columns that the model predicts (see the module), on the branch "predictions"; its
    parent is the version that was read, and its lineage names the model.

    Predictions that are there already are replaced. Raises BadInput when the rows do not fit the model.
    """
    _require_inputs(model.task, model.name, ds)
    source = Source(
        schema=_schema(model.task, ds),
        identity=ds.identity,
        batches=lambda: _batches(model, ds),
        rows=len(ds),
        lineage={
            "operation": "predict",
            "parent": ds.commit,
            "rows": ds.fingerprint,
            "model": {"name": model.name, "commit": model.commit},
        },
    )
    message = f"predictions of {model.name}"
    return write_dataset(store, ds.name, source, message=message, branch=BRANCH, parents=(ds.commit,))


def _schema(task: Task, ds: Dataset) -> pa.Schema:
    made = _fields(task)
    names = {field.name for field in made}
    return pa.schema([*(field for field in ds.schema if field.name not in names), *made])


def _fields(task: Task) -> list[pa.Field]:
    if isinstance(task, ImageClassification):
        return [
            class_label_field(PREDICTED, list(task.classes)),
            pa.field(CONFIDENCE, pa.float32(), nullable=False),
        ]
    if isinstance(task, LanguageModelling):
        return [pa.field(LOSS, pa.float32()), pa.field(PERPLEXITY, pa.float32())]
    if isinstance(task, Regression):
        if task.targets == 1:
            return [pa.field(PREDICTED, pa.float32(), nullable=False)]
        return [tensor_field(PREDICTED, pa.float32(), (task.targets,))]
    raise BadInput(f"rows cannot be predicted for {task.kind}")


def _batches(model: StoredModel, ds: Dataset) -> Iterator[pa.RecordBatch]:
    schema = _schema(model.task, ds)
    made_names = {field.name for field in _fields(model.task)}
    kept = [name for name in schema.names if name not in made_names]
    task: Any = model.task
    read = kept if task.inputs in kept else [*kept, task.inputs]
    for first, batch in ds.iter_batches(read):
        column = batch.column(task.inputs)
        if isinstance(task, ImageClassification):
            made = _labels(model, task, column, schema, first)
        elif isinstance(task, LanguageModelling):
            made = _losses(model, task, column)
        else:
            made = _numbers(model, task, column, schema)
        arrays = [made[name] if name in made else batch.column(name) for name in schema.names]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _labels(
    model: StoredModel, task: ImageClassification, column: pa.Array, schema: pa.Schema, first: int
) -> dict[str, pa.Array]:
    parts = []
    for start in range(0, len(column), PREDICT_BATCH_ROWS):
        piece = column.slice(start, PREDICT_BATCH_ROWS)
        parts.append(probabilities(model, _inputs(task, piece, first + start)))
    shares = np.concatenate(parts) if parts else np.empty((0, len(task.classes)), np.float32)
    best = shares.argmax(axis=1) if len(shares) else np.empty(0, np.int64)
    return {
        PREDICTED: pa.array(best, schema.field(PREDICTED).type),
        CONFIDENCE: pa.array(shares[np.arange(len(best)), best], pa.float32()),
    }


def _inputs(task: ImageClassification, piece: pa.Array, first: int) -> NDArray[np.uint8] | torch.Tensor:
    """Images of a column as the model takes them. Raises SourceError, naming the row, for one that cannot be decoded."""
    decoded = isinstance(piece.type, pa.FixedShapeTensorType)
    if decoded and not task.transforms:
        return columns.tensor_values(piece)
    values = list(columns.tensor_values(piece)) if decoded else columns.byte_values(piece)
    made = []
    for at, value in enumerate(values):
        try:
            made.append(task.prepared([value]))
        except SourceError as error:
            raise SourceError(f"{task.inputs} of row {first + at}: {error}; clean removes such rows") from error
    return torch.cat(made) if made else task.prepared([])


def _losses(model: StoredModel, task: LanguageModelling, column: pa.Array) -> dict[str, pa.Array]:
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    tokens = columns.numbers(column.flatten())
    ends = np.cumsum(lengths)
    documents = [tokens[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    means = score_texts(model, task, documents)
    perplexities = [None if mean is None else math.exp(min(mean, 80.0)) for mean in means]  # exp(89) is no float32
    return {LOSS: pa.array(means, pa.float32()), PERPLEXITY: pa.array(perplexities, pa.float32())}


def score_texts(model: StoredModel, task: LanguageModelling, texts: Sequence[NDArray[Any]]) -> list[float | None]:
    """Nats per token of each text by itself, None where it has fewer than two tokens.

    A text that is longer than the model's window is told window by window, as evaluation does: each of its tokens but the first
    once, with what stands before it in its window. Raises BadInput for a token that the model does not know.
    """
    meter = TokenMeter(task.vocabulary, task.bytes_per_token)
    pieces: list[tuple[int, NDArray[np.int64]]] = []
    for number, text in enumerate(texts):
        wide = text.astype(np.int64)
        for start in range(0, len(wide) - 1, task.length):
            piece = np.full(task.length + 1, IGNORED, np.int64)
            part = wide[start : start + task.length + 1]
            piece[: len(part)] = part
            pieces.append((number, piece))
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    block = block_rows(4 * task.length * task.vocabulary)
    for at in range(0, len(pieces), block):
        numbers = np.array([number for number, _ in pieces[at : at + block]])
        windows = torch.from_numpy(np.stack([piece for _, piece in pieces[at : at + block]]))
        task.require_known(int(windows.max()), "a text")
        inputs, targets = windows[:, :-1].clamp_min(0), windows[:, 1:]
        losses = meter.add(model(inputs), targets).to(torch.float64).sum(1).numpy()
        np.add.at(sums, numbers, losses)
        np.add.at(counts, numbers, (targets != IGNORED).sum(1).numpy())
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def _numbers(model: StoredModel, task: Regression, column: pa.Array, schema: pa.Schema) -> dict[str, pa.Array]:
    values = columns.numbers(column if isinstance(column.type, pa.FixedShapeTensorType) else _flat(column))
    wide = torch.from_numpy(values.astype(np.float32).reshape(len(column), task.features))
    parts = [model(wide[at : at + PREDICT_BATCH_ROWS]) for at in range(0, len(wide), PREDICT_BATCH_ROWS)]
    found = torch.cat(parts).to(torch.float32).numpy() if parts else np.empty((0, task.targets), np.float32)
    if task.targets == 1:
        return {PREDICTED: pa.array(found.reshape(-1), pa.float32())}
    return {PREDICTED: tensor_column(schema.field(PREDICTED), found)}


def _flat(column: pa.Array) -> pa.Array:
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column


def _require_inputs(task: Any, name: str, ds: Dataset) -> None:
    """Labels need not be there."""
    if task.inputs not in ds.schema.names:
        raise BadInput(f"{ds.name} has no column {task.inputs!r}, which model {name} reads")
    if not isinstance(task, ImageClassification) or task.transforms:
        if isinstance(task, LanguageModelling):
            task.require_fits(ds)
        return
    field = ds.schema.field(task.inputs)
    shape = tensor_shape(field)
    if shape is None or field.type.value_type != pa.uint8():
        what = "encoded images" if semantic_of(field) == "image" else str(field.type)
        raise BadInput(f"column {task.inputs!r} of {ds.name} holds {what}; the model takes uint8 {task.shape}")
    if shape != task.shape:
        raise BadInput(f"images of {ds.name} have shape {shape}; model {name} takes {task.shape}")


def _image_task(model: StoredModel) -> ImageClassification:
    if not isinstance(model.task, ImageClassification):
        raise BadInput(f"model {model.name} is of {model.task.kind}: it labels no images")
    return model.task


def _owned(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """torch knows no read-only memory: what is mapped from the store, or decoded in place, is copied."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _fit(one: str | Path | NDArray[np.uint8], name: str, task: ImageClassification) -> torch.Tensor:
    if isinstance(one, np.ndarray):
        if one.dtype != np.uint8 or one.ndim not in (2, 3) or one.size == 0:
            raise BadInput(f"{name} is {one.dtype} {one.shape}; give uint8 pixels (H, W), (H, W, 1) or (H, W, 3)")
        return task.prepared([one])[0] if task.transforms else _owned(images.fit(one, task.shape))
    data = _read(Path(one))
    if not task.transforms:
        return _owned(images.fit(images.decode(data, name), task.shape))
    try:
        return task.prepared([data])[0]
    except LeptonError as error:
        raise SourceError(f"{name}: {error}", name) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(IMAGE_FILE_BYTES_MAX + 1)  # one more than allowed: decode says that it is too large
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; give the path of an image", str(path)) from None


def _prediction(task: ImageClassification, name: str, row: NDArray[np.float32]) -> Prediction:
    best = int(row.argmax())
    return Prediction(name, task.classes[best], best, float(row[best]), row)
