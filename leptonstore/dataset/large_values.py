"""Large values of a column, read straight into the column's buffer, in two steps: ask, and use.

    references -> index (or hot cache) -> records asked for, near ones together on an object store | -> decode and check into their place

Fresh memory costs as much as hashing (recycle.py), so each value is written once: a list of bytes objects, and an array of them,
would be two more copies.
"""

from __future__ import annotations

from operator import eq
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.recycle import Recycler
from leptonstore.digest import Digest
from leptonstore.format.page import REFERENCE, as_binary
from leptonstore.tiers.chunks import ChunkFinder

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Lengths = np.ndarray[Any, np.dtype[np.int64]]
_REFERENCES = np.dtype([("digest", f"V{REFERENCE.size - 8}"), ("length", "<u8")])
_OFFSETS_32_MAX = (1 << 31) - 1


def references_of(values: pa.Array, references: Bits) -> tuple[list[Digest], Lengths]:
    """The digests and the lengths that the marked rows of a column refer to, in their order."""
    joined = b"".join(values.filter(pa.array(references)).to_pylist())
    table = np.frombuffer(joined, _REFERENCES)
    return [joined[at : at + 32] for at in range(0, len(joined), REFERENCE.size)], table["length"].astype(np.int64)


class LargeValues:
    """The array of `values` with each reference replaced by what it refers to; looked for now, made by `array`.

    `fits` is False when that has to be done one by one: values in pieces, values that are not published yet, too many bytes for the type.
    """

    def __init__(self, reader: ChunkFinder, values: pa.Array, references: Bits, data_type: pa.DataType) -> None:
        self._binary, self._type = as_binary(data_type), data_type
        self._values, self._references = values.cast(self._binary), references
        digests, referenced = references_of(self._values, references)
        found = reader.find_many(digests)
        lengths = np.array(pc.fill_null(pc.binary_length(self._values), 0), np.int64)
        lengths[references] = referenced
        self._lengths, self._offsets = lengths, np.zeros(len(values) + 1, np.int64)
        # A length in a page is believed only where the index (or the cached value) says the same: memory is allocated for it.
        self.fits = all(map(eq, found.lengths, referenced.tolist()))
        if self.fits:
            np.cumsum(lengths, out=self._offsets[1:])
            self.fits = bool(self._offsets[-1] <= _OFFSETS_32_MAX or self._binary != pa.binary())
        self._found = found if self.fits else None

    @property
    def light(self) -> bool:
        """As FoundChunks."""
        return self._found is not None and self._found.light

    def begin(self) -> None:
        """Have them on their way while other work is done. Once."""
        if self._found is not None:
            self._found.begin()

    def array(self, memory: Recycler | None = None) -> pa.Array:
        """The values, in memory of `memory`'s. Once. Raises ChunkMissing or ChunkCorrupt."""
        assert self._found is not None
        offsets, references = self._offsets, self._references
        size = int(offsets[-1])
        if memory is None:
            buffer = pa.allocate_buffer(size)
            out = memoryview(buffer).cast("B")
        else:
            buffer, out = memory.take(size)
        starts, ends = offsets[:-1][references].tolist(), offsets[1:][references].tolist()
        self._found.read_into([out[start:end] for start, end in zip(starts, ends, strict=True)])
        for row in np.flatnonzero(~references & (self._lengths > 0)).tolist():
            out[offsets[row] : offsets[row + 1]] = memoryview(self._values[row].as_buffer()).cast("B")
        valid = pa.array(self._values.is_valid()).buffers()[1] if self._values.null_count else None
        width = np.int32 if self._binary == pa.binary() else np.int64
        buffers = [valid, pa.py_buffer(offsets.astype(width)), buffer]
        return pa.Array.from_buffers(self._binary, len(offsets) - 1, buffers).cast(self._type)
