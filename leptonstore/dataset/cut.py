"""Where rows are cut into groups, column pages into parts, and nodes into parents: always by content, never by history.

A cut depends on nothing but what lies between it and the cut before it, so after an edit the old cuts return at the next
old boundary, and everything beyond is shared. Hashes decide only where to cut; names are always BLAKE3 digests.

    row groups   by the identity columns        parts of a column   by its own values        nodes   by their digests
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.format.page import canonical_values, encode_page, fixed_width, is_variable

U64 = np.ndarray[Any, np.dtype[np.uint64]]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64 (Steele, Lea, Flood 2014)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SAMPLE_WORDS = 5  # of 8 bytes, that stand for a value where its column is cut
# Of a little-endian word: masks of its first 0 to 8 bytes.
_FIRST_BYTES: U64 = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def _splitmix(values: U64) -> U64:
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX1
    values = (values ^ (values >> np.uint64(27))) * _MIX2
    return values ^ (values >> np.uint64(31))


def value_hashes(array: pa.Array) -> U64:
    """A 64-bit hash of each value, of which others in the array have no say (null hashes as the zero value).

    Fixed-width columns are one vectorised pass.
    """
    rows = len(array)
    width = fixed_width(array.type)
    if width is not None:
        return _fixed_hashes(np.frombuffer(canonical_values(array), np.uint8).reshape(rows, width))
    if pa.types.is_boolean(array.type):
        return _fixed_hashes(pc.fill_null(array, False).cast(pa.uint8()).to_numpy().reshape(rows, 1))
    if is_variable(array.type):
        values = [_text_bytes(value) for value in array.to_pylist()]
    else:
        values = [encode_page(array.slice(row, 1)) for row in range(rows)]
    return np.fromiter(
        (int.from_bytes(blake3(value).digest(length=8), "little") for value in values), np.uint64, count=rows
    )


def _text_bytes(value: str | bytes | None) -> bytes:
    return b"" if value is None else value.encode() if isinstance(value, str) else value


def _fixed_hashes(data: np.ndarray[Any, np.dtype[np.uint8]]) -> U64:
    """Sum of words times odd weights (multiply-shift hashing, Dietzfelbinger 1996), then mixed."""
    rows, width = data.shape
    words = -(-width // 8)
    if width % 8:
        padded = np.zeros((rows, words * 8), np.uint8)
        padded[:, :width] = data
        data = padded
    view = np.ascontiguousarray(data).view(np.uint64)
    weights = _splitmix(np.arange(1, words + 1, dtype=np.uint64)) | np.uint64(1)
    return _splitmix((view * weights).sum(axis=1, dtype=np.uint64))


def row_hashes(columns: list[pa.Array]) -> U64:
    """One hash a row over the identity columns."""
    total = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        total = _splitmix(total ^ value_hashes(column))
    return total


class RowCutter:
    """Finds the ends of row groups in a stream of row hashes."""

    def __init__(self) -> None:
        self.open_rows = 0  # in the group that is open

    def ends(self, hashes: U64) -> Iterator[int]:
        """Positions in `hashes` (exclusive ends) at which a group ends."""
        start = -self.open_rows
        # After the least number of rows each row ends its group with this chance; so the mean size is min + 1/chance.
        threshold = np.uint64((1 << 64) // (limits.ROW_GROUP_ROWS_AVG - limits.ROW_GROUP_ROWS_MIN))
        candidates = np.flatnonzero(hashes < threshold) + 1
        while True:
            least, most = start + limits.ROW_GROUP_ROWS_MIN, start + limits.ROW_GROUP_ROWS_MAX
            at = int(np.searchsorted(candidates, max(least, 1)))
            end = min(int(candidates[at]), most) if at < len(candidates) else most
            if end > len(hashes):
                break
            yield end
            start = end
        self.open_rows = len(hashes) - start


class NodeCutter:
    """Finds the ends of parents in a stream of children, by their digests; at least two children a parent, but the last."""

    def __init__(self) -> None:
        self._children = 0  # in the parent that is open

    def ends_after(self, digest: Digest) -> bool:
        """Whether the parent that is open ends with this child."""
        self._children += 1
        cut = int.from_bytes(digest[:8], "little") % limits.NODE_FANOUT_AVG == 0
        if (cut and self._children >= 2) or self._children >= limits.NODE_FANOUT_MAX:
            self._children = 0
            return True
        return False


def sample_hashes(values: pa.Array) -> U64:
    """A 64-bit hash of the length and a few words of each string or byte string: cheap, and good enough to cut by.

    A value of up to 40 bytes counts with all of them; null as the empty one.
    """
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    out = _splitmix(lengths.astype(np.uint64))
    if not len(values):
        return out
    _, raw_offsets, raw_data = values.buffers()
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    dtype = np.dtype(np.int64 if large else np.int32)
    offsets = np.frombuffer(raw_offsets, dtype, len(values), values.offset * dtype.itemsize).astype(np.int64)
    data = raw_data if raw_data is not None and raw_data.size >= 8 else bytes(raw_data or b"").ljust(8, b"\0")
    last = len(data) - 8
    words: U64 = np.ndarray(last + 1, "<u8", data, strides=(1,))  # the eight bytes from each place on
    for word in range(_SAMPLE_WORDS):
        # Evenly spread over the value; one that is short is read past its end, and what is beyond counts as zero.
        at = np.minimum(8 * word, lengths) + np.maximum(lengths - 8 * _SAMPLE_WORDS, 0) * word // (_SAMPLE_WORDS - 1)
        wanted = offsets + at
        places = np.minimum(wanted, last)
        beyond = np.minimum(wanted - places, 7).astype(np.uint64) * np.uint64(8)
        out = _splitmix(out ^ (words[places] >> beyond & _FIRST_BYTES[np.minimum(lengths - at, 8)]))
    return out


def part_ends(values: pa.Array, sizes: np.ndarray[Any, np.dtype[np.int64]], part_bytes: int) -> list[int]:
    """Ends of the parts of a variable-width column: one part up to `part_bytes`, else cut at row boundaries.

    values: as the page keeps them. Where a column is cut is its own affair, so that one can be added without reading others.
    """
    if int(sizes.sum()) <= part_bytes:
        return [len(sizes)]
    # From a third of `part_bytes` on, a row ends its part with a chance in proportion to its bytes, so that the mean is about
    # `part_bytes`; a part never has twice as many, but for a single row. A higher minimum makes cuts that an edit moved return later
    # (decisions/0019).
    least = part_bytes // 3
    chance = np.minimum(1.0, (sizes + 1) / max(1, part_bytes - least))
    hashes = (sample_hashes(values) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    # Lists, as parts are small and many: a look into one takes a tenth of numpy's time.
    wanted: list[int] = np.flatnonzero(hashes < chance).tolist()
    sums: list[int] = np.cumsum(sizes).tolist()
    ends, start, before = [], 0, 0
    while start < len(sums):
        first = max(start, bisect_left(sums, before + least, start))  # with this row there is enough
        at = bisect_left(wanted, first)
        end = wanted[at] + 1 if at < len(wanted) else len(sums)
        over = bisect_right(sums, before + 2 * part_bytes, start)  # with this row there is too much
        if over < end:
            empty = over == start or sums[over - 1] == before
            end = over + 1 if empty else over
        ends.append(end)
        start, before = end, sums[end - 1]
    return ends
