"""Small datasets for the tests of leptonstore.process: decoded and encoded images, written to a real store."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field, path_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.store import Store


def write(store: Store, name: str, table: pa.Table, identity: Sequence[str]) -> Dataset:
    """Store a table as one commit."""
    source = Source(table.schema, tuple(identity), lambda: iter(table.combine_chunks().to_batches()), len(table))
    return write_dataset(store, name, source, message="test data")


def tensor(images: NDArray[np.generic]) -> pa.Array:
    """An (n, ...) array as a fixed-shape tensor column."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images))


def tensor_table(
    images: NDArray[np.uint8], labels: Sequence[int], names: Sequence[str], splits: Sequence[str] | None = None
) -> pa.Table:
    """Decoded images with `id`, `label` and, if given, `split` (by name)."""
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        tensor_field("image", pa.uint8(), images.shape[1:], "image"),
        class_label_field("label", list(names)),
    ]
    columns = [pa.array(np.arange(len(images))), tensor(images), pa.array(np.asarray(labels, dtype=np.uint8))]
    if splits is not None:
        known = list(dict.fromkeys(splits))
        fields.append(class_label_field("split", known))
        columns.append(pa.array(np.array([known.index(split) for split in splits], dtype=np.uint8)))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def encoded_table(files: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> pa.Table:
    """Encoded images as an image folder has them: `path`, `image`, `label`."""
    schema = pa.schema([path_field("path"), image_field("image"), class_label_field("label", list(names))])
    columns = [
        pa.array([f"{names[label]}/{at:05}.png" for at, label in enumerate(labels)]),
        pa.array(files, type=pa.large_binary()),
        pa.array(np.asarray(labels, dtype=np.uint8)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def encode(pixels: NDArray[np.uint8], format: str = "PNG", **options: object) -> bytes:
    """Pixels as an image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def noise(rows: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random images: no two equal, none constant."""
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)
