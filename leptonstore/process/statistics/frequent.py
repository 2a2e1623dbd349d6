"""Which values are frequent: counts of at most STATISTICS_FREQUENT values, exact while there are no more.

With more, the count of the first one too many is taken from all, and those that are left with nothing are forgotten (Misra, Gries 1982,
in the mergeable form of Agarwal and others 2012). Whatever is taken at once is taken from STATISTICS_FREQUENT + 1 values (of a block with
long texts: from 480 at least), so no count is too low by more than that part of the rows. `error` says by how much at most, which is mostly
far less: a column of different values costs one a block.

Values are known by 64 bits: numbers are those bits, texts have a hash (texts.py) and are kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.process.statistics.record import Arrays, take

U64 = NDArray[np.uint64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Frequent:
    """keys: what names each value, ascending. rows: of each, too low by at most `error`. texts: of each, for texts."""

    keys: U64
    rows: Counts
    error: int = 0
    texts: tuple[bytes, ...] | None = None

    @classmethod
    def of(cls, keys: U64, rows: Counts, capacity: int = limits.STATISTICS_FREQUENT) -> Frequent:
        """Of the different values of some rows, in any order."""
        taken = taken_from(rows, capacity)
        left = np.flatnonzero(rows > taken)
        left = left[np.argsort(keys[left], kind="stable")]
        return cls(keys[left], rows[left] - taken, taken)

    @classmethod
    def merged(cls, parts: Sequence[Frequent]) -> Frequent:
        """Of all rows of all parts."""
        keys = np.concatenate([part.keys for part in parts])
        rows = np.concatenate([part.rows for part in parts])
        texts: list[bytes] | None = [] if all(part.texts is not None for part in parts) else None
        if texts is not None:
            texts += [text for part in parts for text in part.texts or ()]
        error = sum(part.error for part in parts)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        if len(keys):
            starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
            keys, rows, order = keys[starts], np.add.reduceat(rows, starts), order[starts]
        taken = taken_from(rows, limits.STATISTICS_FREQUENT)
        left = np.flatnonzero(rows > taken)
        kept = None if texts is None else tuple(texts[at] for at in order[left].tolist())
        return cls(keys[left], rows[left] - taken, error + taken, kept)

    def top(self, most: int) -> list[int]:
        """Places of the most frequent, which have more rows than `error`: equally frequent ones in the order of their texts, or keys."""
        names: Sequence[Any] = self.keys.tolist() if self.texts is None else self.texts
        least = np.partition(self.rows, -most)[-most] if len(self.rows) > most else 0
        chosen = np.flatnonzero((self.rows >= least) & (self.rows > self.error))
        return sorted(chosen.tolist(), key=lambda at: (-int(self.rows[at]), names[at]))[:most]

    def arrays(self) -> Arrays:
        """To be kept."""
        found: Arrays = {"keys": self.keys, "rows": self.rows, "error": np.array([self.error], np.int64)}
        if self.texts is not None:
            found["lengths"] = np.array([len(text) for text in self.texts], np.uint32)
            found["texts"] = np.frombuffer(b"".join(self.texts), np.uint8)
        return found

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Frequent:
        """What was kept. Raises FormatDamaged."""
        keys = take(arrays, "keys", "<u8")
        rows = take(arrays, "rows", "<i8", len(keys))
        error = int(take(arrays, "error", "<i8", 1)[0])
        if error < 0 or bool((rows <= 0).any()) or not bool((keys[1:] > keys[:-1]).all()):
            raise FormatDamaged("sketch of frequent values is not in order")
        if "texts" not in arrays:
            return cls(keys, rows, error)
        ends = np.cumsum(take(arrays, "lengths", "<u4", len(keys)), dtype=np.int64)
        data = take(arrays, "texts", "u1", int(ends[-1]) if len(ends) else 0).tobytes()
        starts = [0, *ends.tolist()]
        return cls(keys, rows, error, tuple(data[start:end] for start, end in pairwise(starts)))


def taken_from(rows: Counts, capacity: int) -> int:
    """What has to be taken from all counts so that at most `capacity` are left."""
    return int(np.partition(rows, -capacity - 1)[-capacity - 1]) if len(rows) > capacity else 0
