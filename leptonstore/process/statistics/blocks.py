"""Blocks: consecutive row groups whose statistics are made, kept and found again as one.

Where a block ends is decided by the identity columns of its row groups alone, as a row group's end is by that of its rows. So a block of
which nothing changed is the same block in every version, and adding or changing a column moves no block. Of a column whose pages are
large, a block is several pieces: its parts, as many as STATISTICS_BLOCK_BYTES hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.format.node import Part, RowGroup


@dataclass(frozen=True)
class Block:
    """Row groups of the version, and the row that they begin with."""

    first: int
    groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """Rows of all."""
        return sum(group.rows for group in self.groups)

    def parts(self, column: int) -> tuple[Part, ...]:
        """The pages of a column, in row order."""
        return tuple(part for group in self.groups for part in group.columns[column])

    def pieces(self, column: int) -> list[tuple[int, tuple[Part, ...]]]:
        """(first row of the version, pages) of what is sketched as one."""
        found: list[tuple[int, tuple[Part, ...]]] = []
        at = start = self.first
        held: list[Part] = []
        size = 0
        for part in self.parts(column):
            more = part.page_bytes + part.referenced_bytes
            if held and size + more > limits.STATISTICS_BLOCK_BYTES:
                found.append((start, tuple(held)))
                start, held, size = at, [], 0
            held.append(part)
            size += more
            at += part.rows
        return [*found, (start, tuple(held))] if held else found


def blocks_of(ds: Dataset) -> Iterator[Block]:
    """The blocks of a version (not of a view), in row order. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
    column = ds.schema.get_field_index(ds.identity[0]) if ds.identity else 0
    open_: list[RowGroup] = []
    first = at = 0
    for group in _groups(ds):
        open_.append(group)
        at += group.rows
        cut = int.from_bytes(group.columns[column][-1].digest[-8:], "little") % limits.STATISTICS_BLOCK_GROUPS_AVG == 0
        if cut or len(open_) == limits.STATISTICS_BLOCK_GROUPS_MAX:
            yield Block(first, tuple(open_))
            first, open_ = at, []
    if open_:
        yield Block(first, tuple(open_))


def _groups(ds: Dataset) -> Iterator[RowGroup]:
    leaves = ds.leaves.spans()
    while some := list(islice(leaves, limits.SCAN_GROUPS_BATCH)):
        yield from ds.pages.groups(some)
