"""What a version did to the one that it came from, as row numbers, and where rows of the one stand in the other.

A *gap* g is the place in front of base row g. Memory: 8 to 40 bytes a change; no values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from leptonstore.dataset.align import Positions
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.values import Bits
from leptonstore.format.keys import encode_keys


@dataclass(frozen=True)
class Hunk:
    """Base rows [start, end) were taken out, and the additions [first, last) put in their place. Either may be empty."""

    start: int
    end: int
    first: int
    last: int

    @property
    def adds(self) -> bool:
        """Whether it puts rows in."""
        return self.last > self.first

    def overlaps(self, other: Hunk) -> bool:
        """Whether both take out some row, or one stands inside of what the other takes out."""
        return max(self.start, other.start) < min(self.end, other.end) or (
            other.start < self.start == self.end < other.end or self.start < other.start == other.end < self.end
        )


@dataclass(frozen=True)
class Edits:
    """removed, changed: base rows. changed_after, added: rows of the version. added_at: the gap of each added row.

    columns: a bit for each changed row, by the column's name in the version. All ascend.
    """

    removed: Positions
    changed: Positions
    changed_after: Positions
    columns: dict[str, Bits]
    added: Positions
    added_at: Positions

    def place(self, rows: Positions) -> Positions:
        """Where base rows that were not removed stand in the version."""
        return rows - np.searchsorted(self.removed, rows) + np.searchsorted(self.added_at, rows, side="right")

    def span(self, gaps: Positions) -> tuple[Positions, Positions]:
        """The rows [from, to) of the version that were added at each of some gaps."""
        kept = gaps - np.searchsorted(self.removed, gaps)
        before, with_own = (np.searchsorted(self.added_at, gaps, side=side) for side in ("left", "right"))
        return kept + before, kept + with_own

    def hunks(self) -> Iterator[Hunk]:
        """Removed and added rows that stand together, in order."""
        gaps = self.added_at.tolist()
        cuts = np.flatnonzero(np.diff(self.removed) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(self.removed, cuts) if len(run)]
        at = 0
        for start, end in [*runs, (-1, -1)]:
            while at < len(gaps) and (start < 0 or gaps[at] < start):
                last = bisect_right(gaps, gaps[at])
                yield Hunk(gaps[at], gaps[at], at, last)
                at = last
            if start >= 0:
                last = bisect_right(gaps, end)
                yield Hunk(start, end, at, last)
                at = last


def edits_of(diff: Diff) -> Edits:
    """All changes of a diff, without values."""
    blocks = list(diff.blocks())

    def joined(name: str) -> Positions:
        return np.concatenate([np.empty(0, np.int64), *(getattr(block, name) for block in blocks)]).astype(np.int64)

    names = {name for block in blocks for name in block.columns}
    columns = {
        name: np.concatenate(
            [block.columns.get(name, np.zeros(len(block.changed_before), np.bool_)) for block in blocks]
        )
        for name in sorted(names)
    }
    return Edits(
        joined("removed"),
        joined("changed_before"),
        joined("changed_after"),
        columns,
        joined("added"),
        joined("added_before"),
    )


def keys_of(version: Dataset, rows: Positions) -> list[bytes]:
    """The encoded keys of some rows of a keyed table."""
    table = version.take(rows, version.identity)
    keys: list[bytes] = encode_keys([column.combine_chunks() for column in table.columns], version.identity).to_pylist()
    return keys


def with_exact_gaps(edits: Edits, base: Dataset, version: Dataset) -> Edits:
    """The same, with the gap of each added row found by its key also among rows that were removed (a keyed table)."""
    removed = edits.removed
    if not len(removed):
        return edits
    at = np.searchsorted(removed, edits.added_at) - 1
    doubtful = np.flatnonzero((at >= 0) & (removed[np.maximum(at, 0)] == edits.added_at - 1))
    if not len(doubtful):
        return edits
    run_of = np.concatenate(([0], np.cumsum(np.diff(removed) != 1)))
    starts = np.searchsorted(run_of, np.arange(int(run_of[-1]) + 1))
    wanted = np.flatnonzero(np.isin(run_of, run_of[at[doubtful]]))
    removed_keys = dict(zip(wanted.tolist(), keys_of(base, removed[wanted]), strict=True))
    gaps = edits.added_at.copy()
    for one, key in zip(doubtful.tolist(), keys_of(version, edits.added[doubtful]), strict=True):
        first, last = int(starts[run_of[at[one]]]), int(at[one]) + 1
        place = bisect_right(range(first, last), key, key=removed_keys.__getitem__) + first
        if place < last:
            gaps[one] = removed[place]
    return replace(edits, added_at=gaps)
