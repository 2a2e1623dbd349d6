"""A number for each row, drawn from what identifies it and from nothing else: what splits and samples decide by.

It is BLAKE3 of (purpose, seed, values of the columns). So a row keeps its number whatever becomes of the others: when the dataset grows,
shrinks or is sorted anew, and on every machine. Rows of equal values have the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore.digest import Buffer
from leptonstore.process import columns

SPLIT, SAMPLE = b"lepton.split", b"lepton.sample"


def identity_numbers(identity: Sequence[pa.Array], seed: int = 0, purpose: bytes = SPLIT) -> NDArray[np.uint64]:
    """A number below 2^64 for each row, evenly spread. identity: the columns that identify it, at least one; a null is a value, too.

    seed: below 2^63; another one draws other numbers, and so does another purpose. Pure; any thread.
    """
    encoded = [_identity_bytes(array) for array in identity]
    prefix = purpose + int(seed).to_bytes(8, "little", signed=True)
    heads = bytearray()
    for row in zip(*encoded, strict=True):
        parts = [prefix]
        for value in row:
            if value is None:
                parts.append(b"\0")
            else:
                parts += b"\1" + len(value).to_bytes(8, "little"), value
        heads += blake3(b"".join(parts)).digest(length=8)
    return np.frombuffer(bytes(heads), dtype="<u8").astype(np.uint64, copy=False)


def split_side(identity: Sequence[pa.Array], fraction: float, seed: int = 0) -> NDArray[np.uint8]:
    """1 (held out) or 0 (training) for each row: what rows.split gives two sides, the second of which has this fraction."""
    return (identity_numbers(identity, seed) < np.uint64(int(fraction * 2**64))).astype(np.uint8)


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
        return _cells(dense, missing)
    return [None if value is None else repr(value).encode() for value in array.to_pylist()]


def _cells(values: NDArray[Any], missing: NDArray[np.bool_]) -> list[Buffer | None]:
    """The bytes of each value."""
    data, width = values.tobytes(), values.dtype.itemsize
    cells: list[Buffer | None] = [data[at : at + width] for at in range(0, len(data), width)]
    for row in np.flatnonzero(missing).tolist():
        cells[row] = None
    return cells
