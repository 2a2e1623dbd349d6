"""A deployed model on new images, or on every row of a dataset version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.schema import class_label_field, semantic_of, tensor_shape
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SourceError
from leptonstore.limits import IMAGE_FILE_BYTES_MAX
from leptonstore.process import columns, images
from leptonstore.store import Store
from trainers.deploy import Bundle

PREDICTED, CONFIDENCE = "predicted", "confidence"
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


def predict_images(bundle: Bundle, inputs: Sequence[str | Path | NDArray[np.uint8]]) -> list[Prediction]:
    """Label images: files (any raster format), or uint8 arrays H x W, H x W x 1 or H x W x 3 of any size.

    Each is made grey or RGB and stretched to the size that the model takes. Raises SourceError, naming the file, for
    one that cannot be read; BadInput for an array that is no image; MissingExtra without Pillow when one is needed.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(inputs), PREDICT_BATCH_ROWS):
        part = inputs[start : start + PREDICT_BATCH_ROWS]
        names = [f"image {start + at}" if isinstance(one, np.ndarray) else str(one) for at, one in enumerate(part)]
        batch = np.stack([_fit(one, name, bundle) for one, name in zip(part, names, strict=True)])
        shares = probabilities(bundle, batch)
        predictions += [_prediction(bundle, name, row) for name, row in zip(names, shares, strict=True)]
    return predictions


def probabilities(bundle: Bundle, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [b, *shape] -> float32 [b, classes], rows sum to 1; any b, computed in bounded parts."""
    parts = [
        torch.softmax(bundle(batch[start : start + PREDICT_BATCH_ROWS]), dim=1).numpy()
        for start in range(0, len(batch), PREDICT_BATCH_ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty((0, len(bundle.classes)), np.float32)


def predict_dataset(store: Store, bundle: Bundle, ds: Dataset) -> Dataset:
    """A new version of `ds` with the columns `predicted` (class label) and `confidence` (float32), on the branch
    "predictions"; its parent is the version that was read, and its lineage names the model.

    Predictions that are there already are replaced. Raises BadInput when the images do not fit the model.
    """
    _require_images(bundle, ds)
    source = Source(
        schema=_schema(bundle, ds),
        identity=ds.identity,
        batches=lambda: _batches(bundle, ds),
        rows=len(ds),
        lineage={
            "operation": "predict",
            "parent": ds.commit,
            "rows": ds.fingerprint,
            "model": {"name": bundle.name, "commit": bundle.commit},
        },
    )
    message = f"predictions of {bundle.name}"
    return write_dataset(store, ds.name, source, message=message, branch=BRANCH, parents=(ds.commit,))


def _batches(bundle: Bundle, ds: Dataset) -> Iterator[pa.RecordBatch]:
    schema = _schema(bundle, ds)
    kept = [name for name in schema.names if name not in (PREDICTED, CONFIDENCE)]
    for _, batch in ds.iter_batches(kept):
        shares = probabilities(bundle, columns.tensor_values(batch.column(bundle.task.inputs)))
        best = shares.argmax(axis=1) if len(shares) else np.empty(0, np.int64)
        made = {
            PREDICTED: pa.array(best, schema.field(PREDICTED).type),
            CONFIDENCE: pa.array(shares[np.arange(len(best)), best], pa.float32()),
        }
        arrays = [made[name] if name in made else batch.column(name) for name in schema.names]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _schema(bundle: Bundle, ds: Dataset) -> pa.Schema:
    kept = [field for field in ds.schema if field.name not in (PREDICTED, CONFIDENCE)]
    label = class_label_field(PREDICTED, list(bundle.classes))
    return pa.schema([*kept, label, pa.field(CONFIDENCE, pa.float32(), nullable=False)])


def _require_images(bundle: Bundle, ds: Dataset) -> None:
    name = bundle.task.inputs
    if name not in ds.schema.names:
        raise BadInput(f"{ds.name} has no column {name!r}, which model {bundle.name} reads")
    field = ds.schema.field(name)
    shape = tensor_shape(field)
    if shape is None or field.type.value_type != pa.uint8():
        what = "encoded images" if semantic_of(field) == "image" else str(field.type)
        raise BadInput(f"column {name!r} of {ds.name} holds {what}; the model takes uint8 {bundle.task.shape}")
    if shape != bundle.task.shape:
        raise BadInput(f"images of {ds.name} have shape {shape}; model {bundle.name} takes {bundle.task.shape}")


def _fit(one: str | Path | NDArray[np.uint8], name: str, bundle: Bundle) -> NDArray[np.uint8]:
    if isinstance(one, np.ndarray):
        if one.dtype != np.uint8 or one.ndim not in (2, 3) or one.size == 0:
            raise BadInput(f"{name} is {one.dtype} {one.shape}; give uint8 pixels (H, W), (H, W, 1) or (H, W, 3)")
        return images.fit(one, bundle.task.shape)
    return images.fit(images.decode(_read(Path(one)), name), bundle.task.shape)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(IMAGE_FILE_BYTES_MAX + 1)  # one more than allowed: decode says that it is too large
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; give the path of an image", str(path)) from None


def _prediction(bundle: Bundle, name: str, row: NDArray[np.float32]) -> Prediction:
    best = int(row.argmax())
    return Prediction(name, bundle.classes[best], best, float(row[best]), row)
