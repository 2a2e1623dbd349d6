"""Bring a dataset into the shape that training reads fastest: decoded images of one size, and a `split` column.

Both operations write one new version whose parent is the one they read, and whose lineage says what was done with
which parameters. Equal input and parameters give the same commit.

The split is a pure function of a row's identity: BLAKE3 of (seed, values of the identity columns), read as a fraction,
says the side. A row therefore never changes side when rows are added, removed or reordered, and rows with the same
identity always stand on the same side. The price: sizes are only about right, a few rows may all fall on one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, SourceError
from leptonstore.limits import DECODE_BATCH_BYTES, PREPARED_EDGE_MAX, SPLIT_FRACTION
from leptonstore.process import columns, images
from leptonstore.process.derive import publish_derived
from leptonstore.store import Store

SPLIT_NAMES = ["train", "val"]


@dataclass(frozen=True)
class _Plan:
    """What is to be done: image columns and the shape that they get, and the fraction of rows for validation."""

    shapes: dict[str, tuple[int, ...]]
    decoded: dict[str, bool]  # image column -> whether it holds encoded files now
    fraction: float | None  # None: the split stays as it is
    seed: int


def prepare(
    store: Store,
    ds: Dataset,
    size: tuple[int, int] | None = None,
    split_fraction: float = SPLIT_FRACTION,
    seed: int = 0,
    branch: str = "main",
) -> Dataset:
    """Decode image columns to uint8 tensors of one shape, add a `split` column where there is none; `ds` if neither.

    size: (height, width) of every image; None keeps decoded columns as they are and gives encoded ones their most
        common size, scaled down to PREPARED_EDGE_MAX where it is larger (a decoded photograph has 36 MB). Encoded
        columns become H x W when every file is grey, else H x W x 3.
    split_fraction: share of rows (0 < f < 1) that goes to "val"; used only when there is no `split` column.
    seed: chooses another split.

    Raises SourceError for an image that does not decode (run clean first), BadInput for a view, a bad parameter or a
    split that leaves one side empty, MissingExtra when there are encoded images and no Pillow.
    """
    if not 0 < split_fraction < 1:
        raise BadInput(f"split_fraction is {split_fraction}; it must lie between 0 and 1")
    if size is not None and min(size) < 1:
        raise BadInput(f"image size is {size[0]} x {size[1]}; both must be at least 1")
    plan = _plan(ds, size, split_fraction, seed)
    if not plan.shapes and plan.fraction is None:
        return ds
    if ds.selection is not None:
        raise BadInput(f"a view of {ds.name} cannot be prepared: open the whole version instead")
    steps = [_image_step(name, shape, plan.decoded[name]) for name, shape in plan.shapes.items()]
    if plan.fraction is not None:
        steps.append(_split_step(ds, plan.fraction, seed))
    source = Source(
        schema=_schema(ds.schema, plan),
        identity=ds.identity,
        batches=lambda: _batches(ds, plan),
        rows=len(ds),
        lineage={"operation": "prepare", "parent": ds.commit, "steps": steps},
    )
    message = "prepare: " + ", ".join(_said(step) for step in steps)
    return publish_derived(store, ds, source, message, branch)


def split_side(identity: list[pa.Array], fraction: float, seed: int = 0) -> NDArray[np.uint8]:
    """1 (validation) or 0 (training) for each row, from the columns that identify it. Pure; no other row matters."""
    rows = len(identity[0])
    encoded = [_identity_bytes(array) for array in identity]
    prefix = b"lepton.split" + int(seed).to_bytes(8, "little", signed=True)
    heads = bytearray()
    for row in range(rows):
        hasher = blake3(prefix)
        for values in encoded:
            value = values[row]
            hasher.update(b"\0" if value is None else b"\1" + memoryview(value).nbytes.to_bytes(8, "little"))
            if value is not None:
                hasher.update(value)
        heads += hasher.digest(length=8)
    return (np.frombuffer(bytes(heads), dtype="<u8") < int(fraction * 2**64)).astype(np.uint8)


def _identity_bytes(array: pa.Array) -> list[Buffer | None]:
    """One canonical byte string per row: the bytes of strings and binaries, little-endian values of anything fixed."""
    if columns.has_lengths(array.type) and not pa.types.is_list(array.type) and not pa.types.is_large_list(array.type):
        return list(columns.byte_values(array))
    missing = columns.null_mask(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        flat = np.ascontiguousarray(columns.tensor_values(array)).reshape(len(array), -1)
        return [None if missing[row] else flat[row].data.cast("B") for row in range(len(array))]
    if columns.is_number(array.type):
        dense = columns.numbers(array.fill_null(0) if array.null_count else array)
        return [None if missing[row] else value.tobytes() for row, value in enumerate(dense)]
    return [None if value is None else repr(value).encode() for value in array.to_pylist()]


def _plan(ds: Dataset, size: tuple[int, int] | None, fraction: float, seed: int) -> _Plan:
    shapes: dict[str, tuple[int, ...]] = {}
    decoded: dict[str, bool] = {}
    for image in columns.image_columns(ds.schema):
        shape = _shape(ds, image, size)
        if shape != image.shape:
            shapes[image.name], decoded[image.name] = shape, image.shape is None
    has_split = ds.schema.get_field_index(columns.SPLIT) >= 0
    return _Plan(shapes, decoded, None if has_split else fraction, seed)


def _shape(ds: Dataset, image: columns.ImageColumn, size: tuple[int, int] | None) -> tuple[int, ...]:
    """The shape that an image column will have."""
    if image.shape is not None:
        return image.shape if size is None else (*size, *image.shape[2:])
    sizes: Counter[tuple[int, int]] = Counter()
    colour = False
    for start, batch in ds.iter_batches(columns=[image.name]):
        for row, value in enumerate(columns.byte_values(batch.column(0))):
            info = images.probe(_present(value, start + row, image.name), f"{image.name} of row {start + row}")
            sizes[info.height, info.width] += 1
            colour |= info.channels == 3
    if not sizes:
        raise BadInput(f"{ds.name} has no rows; import some images first")
    height, width = max(sizes, key=lambda pair: (sizes[pair], pair[0] * pair[1], pair))
    scale = min(1.0, PREPARED_EDGE_MAX / max(height, width))
    common = (max(1, round(height * scale)), max(1, round(width * scale)))
    return (*(size or common), *((3,) if colour else ()))


def _schema(schema: pa.Schema, plan: _Plan) -> pa.Schema:
    fields = []
    for field in schema:
        if field.name in plan.shapes:
            field = tensor_field(field.name, pa.uint8(), plan.shapes[field.name], semantic="image")
        fields.append(field)
    if plan.fraction is not None:
        fields.append(class_label_field(columns.SPLIT, SPLIT_NAMES))
    return pa.schema(fields, metadata=schema.metadata)


def _batches(ds: Dataset, plan: _Plan) -> Iterator[pa.RecordBatch]:
    """The rows of `ds` under the plan, in pieces whose decoded images stay within DECODE_BATCH_BYTES."""
    schema = _schema(ds.schema, plan)
    row_bytes = sum(int(np.prod(shape)) for shape in plan.shapes.values())
    rows_max = max(1, DECODE_BATCH_BYTES // max(row_bytes, 1))
    for start, batch in ds.iter_batches():
        for low in range(0, batch.num_rows, rows_max):
            piece = batch.slice(low, rows_max)
            arrays = []
            for name, array in zip(batch.schema.names, piece.columns, strict=True):
                if name in plan.shapes:
                    array = _fitted(array, start + low, schema.field(name), plan)
                arrays.append(array)
            if plan.fraction is not None:
                identity = [piece.column(name) for name in ds.identity]
                arrays.append(pa.array(split_side(identity, plan.fraction, plan.seed)))
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _fitted(array: pa.Array, start: int, field: pa.Field, plan: _Plan) -> pa.Array:
    """One piece of an image column in its new shape; `start` is the number of its first row, for errors."""
    shape = plan.shapes[field.name]
    out = np.empty((len(array), *shape), dtype=np.uint8)
    if plan.decoded[field.name]:
        values = [_present(value, start + row, field.name) for row, value in enumerate(columns.byte_values(array))]
        for row, image in enumerate(images.map_decoded(lambda pixels: images.fit(pixels, shape), values)):
            if isinstance(image, SourceError):
                raise SourceError(f"{field.name} of row {start + row}: {image}; clean removes such rows") from image
            out[row] = image
    else:
        if array.null_count:
            _present(None, start + int(np.flatnonzero(columns.null_mask(array))[0]), field.name)
        for row, pixels in enumerate(columns.tensor_values(array)):
            out[row] = images.fit(pixels, shape)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), type=field.type.storage_type)
    return pa.ExtensionArray.from_storage(field.type, storage)


def _present(value: memoryview | None, row: int, column: str) -> memoryview:
    if value is None:
        raise SourceError(f"{column} of row {row} is null: an image is needed; remove the row or fill it in")
    return value


def _image_step(name: str, shape: tuple[int, ...], encoded: bool) -> dict[str, Any]:
    return {
        "operation": "decode" if encoded else "resize",
        "column": name,
        "shape": list(shape),
        "filter": "bilinear",
        "decoder": f"pillow {images.pillow_version()}",
    }


def _split_step(ds: Dataset, fraction: float, seed: int) -> dict[str, Any]:
    """Count the sides first: a split with an empty side is of no use, and the reader of a report asks for sizes."""
    held_out = 0
    for _, batch in ds.iter_batches(columns=list(ds.identity)):
        held_out += int(split_side([batch.column(name) for name in ds.identity], fraction, seed).sum())
    if held_out in (0, len(ds)):
        empty = SPLIT_NAMES[0 if held_out else 1]
        raise BadInput(
            f"the split would leave {empty!r} empty ({len(ds)} rows, fraction {fraction}); add rows, choose another "
            "fraction or seed, or store a `split` column"
        )
    return {
        "operation": "split",
        "names": SPLIT_NAMES,
        "rows": [len(ds) - held_out, held_out],
        "fraction": fraction,
        "seed": seed,
        "identity": list(ds.identity),
    }


def _said(step: dict[str, Any]) -> str:
    """One step in words, for the commit message."""
    if step["operation"] == "split":
        train, val = step["rows"]
        return f"split into {train:,} train and {val:,} val"
    return f"{step['operation']} {step['column']} to {' x '.join(str(edge) for edge in step['shape'])}"
