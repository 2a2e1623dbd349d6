"""Bring a dataset into the shape that training reads fastest: decoded images of one size, and a `split` column.

That is image.decode and rows.split (operations/) in one pass over the rows, with the parameters that a training wants. It writes one new
version whose parent is the one it reads, and whose lineage has the recipes. Equal input and parameters give the same commit.

A row never changes side when rows are added, removed or reordered (identity.py). The price: sizes are only about right, and a few rows may
all fall on one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.source import Source
from leptonstore.errors import BadInput, SourceError
from leptonstore.limits import DECODE_BATCH_BYTES, SPLIT_FRACTION
from leptonstore.process import columns
from leptonstore.process.derive import publish_derived
from leptonstore.process.operations.images import Decode, common_shape
from leptonstore.process.operations.rows import Split
from leptonstore.store import Store

SPLIT_NAMES = ("train", "val")


@dataclass(frozen=True)
class _Sides:
    """The split, and the side of each row: it has to be known beforehand that none is empty."""

    operation: Split
    labels: NDArray[np.uint8]


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
        common size (operations.images.common_shape). Encoded columns become H x W when every file is grey, else H x W x 3.
    split_fraction: share of rows (0 < f < 1) that goes to "val"; used only when there is no `split` column.
    seed: chooses another split.

    Raises SourceError for an image that does not decode (run clean first), BadInput for a view, a bad parameter or a
    split that leaves one side empty, MissingExtra when there are encoded images and no Pillow.
    """
    if not 0 < split_fraction < 1:
        raise BadInput(f"split_fraction is {split_fraction}; it must lie between 0 and 1")
    if size is not None and min(size) < 1:
        raise BadInput(f"image size is {size[0]} x {size[1]}; both must be at least 1")
    images = _image_steps(ds, size)
    has_split = columns.SPLIT in ds.schema.names
    if not images and has_split:
        return ds
    if ds.selection is not None:
        raise BadInput(f"a view of {ds.name} cannot be prepared: open the whole version instead")
    sides = None if has_split else _sides(ds, split_fraction, seed)
    steps = [step.recipe() for step in images]
    said = [f"{step.column} to {' x '.join(map(str, step.shape))}" for step in images]
    schema = ds.schema
    for step in images:
        schema = step.output(schema)
    if sides is not None:
        schema = sides.operation.output(schema)
        counts = np.bincount(sides.labels, minlength=len(SPLIT_NAMES)).tolist()
        steps.append(sides.operation.recipe() | {"rows": counts})
        said.append("split into " + " and ".join(f"{n:,} {name}" for name, n in zip(SPLIT_NAMES, counts, strict=True)))
    source = Source(
        schema=schema,
        identity=ds.identity,
        batches=lambda: _batches(ds, schema, images, sides),
        rows=len(ds),
        lineage={"operation": "prepare", "parent": ds.commit, "steps": steps},
    )
    return publish_derived(store, ds, source, "prepare: " + ", ".join(said), branch)


def _image_steps(ds: Dataset, size: tuple[int, int] | None) -> list[Decode]:
    """For each image column that is not yet in the shape that it shall have."""
    steps = []
    for image in columns.image_columns(ds.schema):
        if image.shape is None:
            common = common_shape(ds, image.name)
            shape = common if size is None else (*size, *common[2:])
        else:
            shape = image.shape if size is None else (*size, *image.shape[2:])
        if shape != image.shape:
            steps.append(Decode(image.name, shape))
    return steps


def _sides(ds: Dataset, fraction: float, seed: int) -> _Sides:
    """The side of each row. Raises BadInput when one would be empty: such a split is of no use."""
    operation = Split(SPLIT_NAMES, (1 - fraction, fraction), by=ds.identity, seed=seed)
    found = [_applied(operation, batch, start) for start, batch in ds.iter_batches(columns=list(ds.identity))]
    labels = np.concatenate([array.to_numpy() for array in found]) if found else np.zeros(0, np.uint8)
    held_out = int(np.count_nonzero(labels))
    if held_out in (0, len(ds)):
        empty = SPLIT_NAMES[0 if held_out else 1]
        raise BadInput(
            f"the split would leave {empty!r} empty ({len(ds)} rows, fraction {fraction}); add rows, choose another "
            "fraction or seed, or store a `split` column"
        )
    return _Sides(operation, labels)


def _batches(
    ds: Dataset, schema: pa.Schema, images: Sequence[Decode], sides: _Sides | None
) -> Iterator[pa.RecordBatch]:
    """The rows of `ds` under the plan, in pieces whose decoded images stay within DECODE_BATCH_BYTES."""
    row_bytes = sum(int(np.prod(step.shape)) for step in images)
    rows_max = max(1, DECODE_BATCH_BYTES // max(row_bytes, 1))
    steps = {step.column: step for step in images}
    for start, batch in ds.iter_batches():
        for low in range(0, batch.num_rows, rows_max):
            piece, first = batch.slice(low, rows_max), start + low
            arrays = [
                _applied(steps[name], piece, first) if name in steps else array
                for name, array in zip(batch.schema.names, piece.columns, strict=True)
            ]
            if sides is not None:
                arrays.append(pa.array(sides.labels[first : first + piece.num_rows]))
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _applied(step: Decode | Split, batch: pa.RecordBatch, start: int) -> Any:
    """The column that a step makes of a batch whose first row is `start`. Raises SourceError for the first row that fails, or is null."""
    batch = batch.select(step.reads(batch.schema))
    made = step.apply(batch)
    if made.failed:
        row = min(made.failed)
        raise SourceError(f"{step.column} of row {start + row}: {made.failed[row]}; clean removes such rows")
    if isinstance(step, Decode) and batch.column(0).null_count:
        row = start + int(np.flatnonzero(columns.null_mask(batch.column(0)))[0])
        raise SourceError(f"{step.column} of row {row} is null: an image is needed; remove the row or fill it in")
    return made.columns[step.column]
