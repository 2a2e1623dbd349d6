"""Large values of a column, read straight into the column's buffer.

    references -> index (or hot cache) -> records (near ones in one request on an object store) -> decode and check into their place

Fresh memory costs as much as hashing (tiers/direct.py), so each value is written once: a list of bytes objects, and an array of them,
would be two more copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.format.page import REFERENCE, as_binary
from leptonstore.tiers.chunks import ChunkFinder

Bits = np.ndarray[Any, np.dtype[np.bool_]]
_OFFSETS_32_MAX = (1 << 31) - 1


def read_into_array(reader: ChunkFinder, values: pa.Array, references: Bits, data_type: pa.DataType) -> pa.Array | None:
    """The array of `values` with each reference replaced by what it refers to, None when that has to be done one by one.

    Raises ChunkMissing or ChunkCorrupt.
    """
    binary = as_binary(data_type)
    values = values.cast(binary)
    wanted = [REFERENCE.unpack(value) for value in values.filter(pa.array(references)).to_pylist()]
    found = reader.find_many([digest for digest, _ in wanted])
    # A length in a page is believed only where the index (or the cached value) says the same: memory is allocated for it.
    if any(known != length for known, (_, length) in zip(found.lengths, wanted, strict=True)):
        return None
    lengths = np.array(pc.fill_null(pc.binary_length(values), 0), np.int64)
    lengths[references] = [length for _, length in wanted]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > _OFFSETS_32_MAX and binary == pa.binary():
        return None
    buffer = pa.allocate_buffer(int(offsets[-1]))
    out = memoryview(buffer).cast("B")
    starts = offsets[:-1][references].tolist()
    parts = [out[start : start + length] for start, (_, length) in zip(starts, wanted, strict=True)]
    found.read_into(parts)
    for row in np.flatnonzero(~references & (lengths > 0)).tolist():
        out[offsets[row] : offsets[row + 1]] = memoryview(values[row].as_buffer()).cast("B")
    valid = pa.array(values.is_valid()).buffers()[1] if values.null_count else None
    width = np.int32 if binary == pa.binary() else np.int64
    made = pa.Array.from_buffers(binary, len(values), [valid, pa.py_buffer(offsets.astype(width)), buffer])
    return made.cast(data_type)
