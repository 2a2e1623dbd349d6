"""Where rows are cut into groups, column pages into parts, and nodes into parents: always by content, never by history.

A cut depends on nothing but what lies between it and the cut before it, so after an edit the old cuts return at the next
old boundary, and everything beyond is shared. Hashes decide only where to cut; names are always BLAKE3 digests.
"""

from __future__ import annotations

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
# After the least number of rows each row ends its group with this chance; so the mean size is min + 1/chance.
_ROW_THRESHOLD = np.uint64((1 << 64) // (limits.ROW_GROUP_ROWS_AVG - limits.ROW_GROUP_ROWS_MIN))


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
        self._rows = 0  # in the group that is open

    def ends(self, hashes: U64) -> Iterator[int]:
        """Positions in `hashes` (exclusive ends) at which a group ends."""
        start = -self._rows
        candidates = np.flatnonzero(hashes < _ROW_THRESHOLD) + 1
        while True:
            least, most = start + limits.ROW_GROUP_ROWS_MIN, start + limits.ROW_GROUP_ROWS_MAX
            at = int(np.searchsorted(candidates, max(least, 1)))
            end = min(int(candidates[at]), most) if at < len(candidates) else most
            if end > len(hashes):
                break
            yield end
            start = end
        self._rows = len(hashes) - start


def part_ends(hashes: U64, sizes: np.ndarray[Any, np.dtype[np.int64]], part_bytes: int) -> list[int]:
    """Ends of the parts of a variable-width column: one part up to `part_bytes`, else cut at row boundaries.

    hashes: of the rows (`row_hashes`), so that changing a value moves no cut but where the sizes change.
    """
    if int(sizes.sum()) <= part_bytes:
        return [len(sizes)]
    # Once a part has `part_bytes`, a row ends it with a chance in proportion to its bytes; it never has twice as many, but
    # for a single row. The hashes are mixed again: those of the rows that end a row group are small.
    chance = np.minimum(1.0, (sizes + 1) / (part_bytes // 2))
    wanted = (_splitmix(hashes) >> np.uint64(11)).astype(np.float64) / float(1 << 53) < chance
    ends, in_part = [], 0
    for row, (size, want) in enumerate(zip(sizes.tolist(), wanted.tolist(), strict=True)):
        if in_part and in_part + size > 2 * part_bytes:
            ends.append(row)
            in_part = 0
        in_part += size
        if want and in_part >= part_bytes:
            ends.append(row + 1)
            in_part = 0
    if not ends or ends[-1] != len(sizes):
        ends.append(len(sizes))
    return ends


def node_ends(digests: list[Digest]) -> list[int]:
    """Ends of the parents over a sequence of children, by their digests; at least two children a parent, but the last."""
    ends, start = [], 0
    for at, digest in enumerate(digests, 1):
        cut = int.from_bytes(digest[:8], "little") % limits.NODE_FANOUT_AVG == 0
        if (cut and at - start >= 2) or at - start >= limits.NODE_FANOUT_MAX:
            ends.append(at)
            start = at
    if start != len(digests):
        ends.append(len(digests))
    return ends
