"""Which columns the checks of images look at, and the images of a batch: arrays of decoded ones, files of encoded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import SchemaError, listed
from leptonstore.process import columns, images
from leptonstore.process.columns import ImageColumn

TENSOR_CHUNK_BYTES = (
    1 << 20
)  # of pixels that numpy works through at a time, so that what it makes of them stays in the CPU's cache


def chosen(check: str, schema: pa.Schema, wanted: Sequence[str], encoded_only: bool = False) -> list[ImageColumn]:
    """The image columns that a check looks at: those that were asked for, else all that there are.

    encoded_only: of files; a decoded image can be neither truncated nor damaged. Raises SchemaError, naming column and fix.
    """
    found = {one.name: one for one in columns.image_columns(schema) if not (encoded_only and one.shape)}
    kind = "encoded images" if encoded_only else "images"
    if not wanted:
        if not found:
            raise SchemaError(
                f"{check} needs a column of {kind} and there is none; leave it out, or name one in `columns`"
            )
        return list(found.values())
    return [found.get(name) or _named(check, schema, name, encoded_only, found) for name in wanted]


def _named(check: str, schema: pa.Schema, name: str, encoded_only: bool, found: dict[str, ImageColumn]) -> ImageColumn:
    """A column that does not say that it holds images, but can."""
    if name not in schema.names:
        raise SchemaError(f"{check}: there is no column {name!r}; columns of images: {listed(found, 'none')}")
    field = schema.field(name)
    can = columns.as_images(field)
    if can is not None and not (encoded_only and can.shape):
        return can
    kinds = "a binary column" if encoded_only else "a binary column or a tensor of uint8, H x W or H x W x C"
    raise SchemaError(f"{check}: column {name!r} is {field.type}; it needs {kinds}")


def present_files(array: pa.Array) -> tuple[list[int], list[memoryview]]:
    """Rows of an encoded column that are not null, and their bytes."""
    present = [(row, value) for row, value in enumerate(columns.byte_values(array)) if value is not None]
    return [row for row, _ in present], [value for _, value in present]


def pixel_pieces(array: pa.Array) -> Iterator[tuple[NDArray[np.int64], images.Pixels]]:
    """Rows of a decoded column that are not null, with their pixels (n, H, W) or (n, H, W, C), some TENSOR_CHUNK_BYTES at a time."""
    values = columns.tensor_values(array)
    rows = np.flatnonzero(~columns.null_mask(array))
    step = max(1, TENSOR_CHUNK_BYTES // max(1, int(np.prod(values.shape[1:]))))
    for low in range(0, len(rows), step):
        some = rows[low : low + step]
        whole = len(some) == some[-1] - some[0] + 1
        yield some, values[some[0] : some[-1] + 1] if whole else values[some]
