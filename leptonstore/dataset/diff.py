"""What changed between two versions, row by row: added, removed and changed rows, and of those the columns.

Rows are told apart by the identity columns. What is read: the row groups that differ and the nodes above them (dataset/compare.py); of
those row groups the pages of columns that differ; identity columns only where they differ themselves, or to name a changed row. Large
values are compared by digest and never read.

A changed row has the same identity in both versions and another value in some column. In a table without a key a row that moved is one
removed and one added; where several rows have one identity, which of them is told as changed follows from their order (and where whole
row groups repeat, equal rows may be told as removed here and added there).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.align import Positions, align
from leptonstore.dataset.compare import Gap, Leaf, gaps, pair_up
from leptonstore.dataset.cut import U64
from leptonstore.dataset.equality import differing, mixed, names_of
from leptonstore.dataset.graph import read_commit
from leptonstore.dataset.page_reader import PageReader
from leptonstore.dataset.schema_diff import Columns, SchemaDiff, match_columns
from leptonstore.dataset.values import Bits, Column
from leptonstore.digest import digest_of
from leptonstore.format.page import REFERENCE
from leptonstore.store import Store

ADDED, REMOVED, CHANGED = "added", "removed", "changed"


@dataclass(frozen=True)
class LargeValue:
    """A value that stands elsewhere in the store, and was not read: `store.get(bytes.fromhex(digest))` reads it."""

    digest: str
    size: int


@dataclass(frozen=True)
class RowChange:
    """One row. `before` and `after` are its row numbers in the two versions, None where it is not there.

    old, new: values by column: all of a removed or added row, of a changed one those that differ (`columns`).
    """

    kind: str
    key: dict[str, Any]
    before: int | None
    after: int | None
    columns: tuple[str, ...] = ()
    old: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DiffStat:
    """Counts. `columns` has the number of changed rows of each column that has any."""

    rows_before: int
    rows_after: int
    added: int
    removed: int
    changed: int
    columns: dict[str, int]
    schema: SchemaDiff

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.schema)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "schema": self.schema.to_json()}


@dataclass(frozen=True)
class Block:
    """Changes of a stretch of rows, all by row number and ascending. `columns`: a bit for each changed row, where any is set."""

    leaves_before: list[Leaf]
    leaves_after: list[Leaf]
    removed: Positions
    added: Positions
    changed_before: Positions
    changed_after: Positions
    columns: dict[str, Bits]
    added_before: Positions  # for each added row, the row of `before` in front of which it stands


class Diff:
    """The difference of two versions of one store; nothing is read before it is asked for. Not for several threads.

    before, after: digests of commits (hex). Its methods raise RefMissing, ChunkMissing, ChunkCorrupt or FormatDamaged.
    """

    def __init__(self, store: Store, before: str, after: str) -> None:
        self.store, self.before, self.after = store, before, after
        self._old, self._new = read_commit(store, before), read_commit(store, after)
        self._columns: Columns = match_columns(store, self._old, self._new, after, before)
        self._before = PageReader(store, self._old, f"version {before[:12]}")
        self._after = PageReader(store, self._new, f"version {after[:12]}")

    @property
    def schema(self) -> SchemaDiff:
        """Differences of the schemas."""
        return self._columns.schema

    @property
    def columns(self) -> Columns:
        """Which columns of the two versions belong together."""
        return self._columns

    def __bool__(self) -> bool:
        return bool(self.schema) or self._old.root != self._new.root

    def stat(self) -> DiffStat:
        """How many rows and columns differ; no value is read that need not be."""
        added = removed = changed = 0
        columns: dict[str, int] = {}
        for block in self.blocks():
            added, removed = added + len(block.added), removed + len(block.removed)
            changed += len(block.changed_before)
            for name, bits in block.columns.items():
                columns[name] = columns.get(name, 0) + int(bits.sum())
        order = {name: columns[name] for name in self._new.schema.names if name in columns}
        return DiffStat(self._old.rows, self._new.rows, added, removed, changed, order, self.schema)

    # -- which rows ----------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[Block]:
        """Which rows differ, in row order, without their values."""
        for gap in gaps(self.store, self._old, self._new):
            for piece in self._pieces(gap):
                for part in self._by_leaf(piece, *self._paired(piece)):
                    block = self._compared(*part)
                    if len(block.removed) or len(block.added) or len(block.changed_before):
                        yield block

    def _pieces(self, gap: Gap) -> Iterator[Gap]:
        """A gap cut where both sides have row groups of equal identities, and to a bounded number of rows."""
        at, other = 0, 0
        row, other_row = gap.before_row, gap.after_row
        pairs = self._equal_identities(gap)
        for mine, theirs in [*pairs, (len(gap.before), len(gap.after))]:
            rest = Gap(gap.before[at:mine], gap.after[other:theirs], row, other_row)
            if rest.before or rest.after:
                # With a key, a row that is the same must not be taken for two.
                yield from [rest] if self._old.keyed and self._new.keyed else _bounded(rest)
            if (mine, theirs) == (len(gap.before), len(gap.after)):
                return
            one, two = gap.before[mine], gap.after[theirs]
            yield Gap([one], [two], one.first, two.first)
            at, other, row, other_row = mine + 1, theirs + 1, one.first + one.rows, two.first + two.rows

    def _equal_identities(self, gap: Gap) -> list[tuple[int, int]]:
        keys = [self._columns.shared[name] for name in self._columns.keys]
        if not keys or not gap.before or not gap.after:
            return []
        sides = (
            (self._before, gap.before, [key[0] for key in keys]),
            (self._after, gap.after, [key[1] for key in keys]),
        )
        names = [[reader.signature(leaf, columns) for leaf in leaves] for reader, leaves, columns in sides]
        if len(gap.before) == len(gap.after) == 1:
            return [(0, 0)] if names[0] == names[1] else []
        return list(zip(*pair_up(*([digest_of(name) for name in side] for side in names)), strict=True))

    def _paired(self, gap: Gap) -> tuple[Positions, Positions]:
        """Rows (of the versions) that are the same row, ascending in both."""
        self._before.use(gap.before)
        self._after.use(gap.after)
        rows, others = _rows(gap.before), _rows(gap.after)
        keys = [self._columns.shared[name] for name in self._columns.keys]
        if not keys or not len(rows) or not len(others):
            return rows[:0], others[:0]
        if len(gap.before) == len(gap.after) == 1:
            one, other = gap.before[0], gap.after[0]
            if self._before.signature(one, [a for a, _ in keys]) == self._after.signature(other, [b for _, b in keys]):
                return rows, others
        here, there, exact = self._aligned(rows, others)
        if exact:
            return rows[here], others[there]
        kept = np.ones(len(here), np.bool_)
        for name in self._columns.keys:  # numbers may be equal by chance, values not
            kept &= ~self._differ(name, rows[here], others[there])
        return rows[here[kept]], others[there[kept]]

    def _aligned(self, rows: Positions, others: Positions) -> tuple[Positions, Positions, bool]:
        """Positions in `rows` and `others` of rows that seem to have equal keys, and whether it is sure that they have."""
        sums: tuple[U64, U64] | None = None
        for name in self._columns.keys:
            names, other_names, exact = names_of(*self._read(name, rows, others), self._type(name))
            first = sums is None
            sums = (names, other_names) if sums is None else (mixed(sums[0], names), mixed(sums[1], other_names))
        assert sums is not None
        return *align(*sums), exact and first

    def _by_leaf(
        self, gap: Gap, here: Positions, there: Positions
    ) -> Iterator[tuple[list[Leaf], list[Leaf], Positions, Positions, Positions, Positions, int]]:
        """(row groups, paired rows of both, other rows of both, end of the rows before), for one row group of `before` at a time."""
        first_after = gap.after[0].first if gap.after else 0
        end_after = gap.after[-1].first + gap.after[-1].rows if gap.after else 0
        for number, leaf in enumerate(gap.before):
            last = number == len(gap.before) - 1
            stop = int(np.searchsorted(here, leaf.first + leaf.rows))
            own, others = here[:stop], there[:stop]
            here, there = here[stop:], there[stop:]
            end = end_after if last else int(others[-1]) + 1 if len(others) else first_after
            after = [one for one in gap.after if one.first < end and one.first + one.rows > first_after]
            removed = _others(leaf.first, leaf.first + leaf.rows, own)
            added = _others(first_after, end, others)
            yield [leaf], after, own, others, removed, added, leaf.first + leaf.rows
            first_after = end
        if not gap.before:
            none = np.empty(0, np.int64)
            yield [], gap.after, none, none, none, _rows(gap.after), gap.before_row

    def _compared(
        self,
        leaves_before: list[Leaf],
        leaves_after: list[Leaf],
        here: Positions,
        there: Positions,
        removed: Positions,
        added: Positions,
        end_before: int,
    ) -> Block:
        self._before.use(leaves_before)
        self._after.use(leaves_after)
        bits = {name: self._differ(name, here, there) for name in self._columns.others}
        any_differ = np.zeros(len(here), np.bool_)
        for one in bits.values():
            any_differ |= one
        columns = {name: one[any_differ] for name, one in bits.items() if one.any()}
        place = np.searchsorted(there, added)
        in_front = np.concatenate((here, [end_before]))[place] if len(added) else added
        return Block(
            leaves_before, leaves_after, removed, added, here[any_differ], there[any_differ], columns, in_front
        )

    # -- values --------------------------------------------------------------------------------------------------

    def _type(self, name: str) -> pa.DataType:
        return self._new.schema.field(name).type

    def _read(self, name: str, rows: Positions, others: Positions) -> tuple[Column, Column]:
        column, other = self._columns.shared[name]
        return self._before.read(column, rows), self._after.read(other, others)

    def _differ(self, name: str, rows: Positions, others: Positions) -> Bits:
        """A bit for each pair of rows: whether their values in a column differ. Pages that both have are not read."""
        out = np.zeros(len(rows), np.bool_)
        if not len(rows):
            return out
        column, other = self._columns.shared[name]
        starts, parts = self._before.parts(column, rows)
        other_starts, other_parts = self._after.parts(other, others)
        if _in_step(rows, starts, others, other_starts) and all(
            one.digest == two.digest for one, two in zip(parts, other_parts, strict=False)
        ):
            return out  # what most columns of most row groups are
        numbers: dict[bytes, int] = {}
        names, other_names = (
            np.array([numbers.setdefault(part.digest, len(numbers)) for part in side]) for side in (parts, other_parts)
        )
        at = np.searchsorted(starts, rows, side="right") - 1
        other_at = np.searchsorted(other_starts, others, side="right") - 1
        same = (names[at] == other_names[other_at]) & (rows - starts[at] == others - other_starts[other_at])
        doubtful = np.flatnonzero(~same)
        if len(doubtful):
            mine, theirs = self._read(name, rows[doubtful], others[doubtful])
            out[doubtful] = differing(mine, theirs, self._type(name))
        return out

    def rows(self, limit: int | None = None) -> Iterator[RowChange]:
        """The changes with their values, in row order: at most `limit`."""
        left = limit
        for block in self.blocks():
            self._before.use(block.leaves_before)
            self._after.use(block.leaves_after)
            kinds, places, other_places = _in_order(block)
            kinds, places, other_places = kinds[:left], places[:left], other_places[:left]
            for first in range(0, len(kinds), limits.DIFF_BATCH_ROWS):
                chosen = slice(first, first + limits.DIFF_BATCH_ROWS)
                yield from self._told(block, kinds[chosen], places[chosen], other_places[chosen])
            if left is not None:
                left -= len(kinds)
                if left == 0:
                    return

    def _told(self, block: Block, kinds: Positions, places: Positions, other_places: Positions) -> Iterator[RowChange]:
        """The values of some changes of a block."""
        removed = self._records(self._before, places[kinds == 0], self._old.schema.names)
        added = self._records(self._after, other_places[kinds == 1], self._new.schema.names)
        changed, changed_after = places[kinds == 2], other_places[kinds == 2]
        keys = self._records(self._after, changed_after, list(self._columns.keys))
        own = np.searchsorted(block.changed_before, changed)
        old: list[dict[str, Any]] = [{} for _ in changed]
        new: list[dict[str, Any]] = [{} for _ in changed]
        for name, bits in block.columns.items():
            at = np.flatnonzero(bits[own])
            mine, theirs = self._read(name, changed[at], changed_after[at])
            for values, column in ((old, mine), (new, theirs)):
                for row, value in zip(at.tolist(), python_values(column, self._type(name)), strict=True):
                    values[row][name] = value
        streams = iter(removed), iter(added), iter(zip(keys, old, new, strict=True))
        was = {now: self._old.schema.names[a] for now, (a, _) in self._columns.shared.items()}
        for kind, before, after in zip(kinds.tolist(), places.tolist(), other_places.tolist(), strict=True):
            if kind == 0:
                record = next(streams[0])
                yield RowChange(
                    REMOVED, {key: record[was[key]] for key in self._columns.keys}, before, None, old=record
                )
            elif kind == 1:
                record = next(streams[1])
                yield RowChange(ADDED, {key: record[key] for key in self._columns.keys}, None, after, new=record)
            else:
                key, one, other = next(streams[2])
                yield RowChange(CHANGED, key, before, after, tuple(one), one, other)

    def _records(self, reader: PageReader, rows: Positions, names: list[str]) -> list[dict[str, Any]]:
        if not len(rows):
            return []
        schema = reader.commit.schema
        columns = [
            python_values(reader.read(schema.get_field_index(name), rows), schema.field(name).type) for name in names
        ]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def python_values(column: Column, data_type: pa.DataType) -> list[Any]:
    """Python values of a column of this type, `LargeValue` where one stands elsewhere."""
    values: list[Any] = column.values.to_pylist()
    if column.references is None:
        return values
    text = pa.types.is_string(data_type) or pa.types.is_large_string(data_type)
    for row, elsewhere in enumerate(column.references.tolist()):
        if elsewhere:
            digest, size = REFERENCE.unpack(values[row])
            values[row] = LargeValue(digest.hex(), size)
        elif text and values[row] is not None:
            values[row] = values[row].decode()
    return values


def _in_order(block: Block) -> tuple[Positions, Positions, Positions]:
    """Kind (0 removed, 1 added, 2 changed), row before, row after of a block's changes, as they stand in the versions."""
    counts = (len(block.removed), len(block.added), len(block.changed_before))
    kinds = np.repeat(np.arange(3), counts)
    places = np.concatenate((block.removed, block.added_before, block.changed_before))
    other_places = np.concatenate((np.full(counts[0], -1), block.added, block.changed_after))
    order = np.lexsort((other_places, kinds, places))
    return kinds[order], places[order], other_places[order]


def _rows(leaves: list[Leaf]) -> Positions:
    """The rows of neighbouring row groups."""
    return np.arange(leaves[0].first, leaves[-1].first + leaves[-1].rows) if leaves else np.empty(0, np.int64)


def _in_step(rows: Positions, starts: Positions, others: Positions, other_starts: Positions) -> bool:
    """Whether two stretches of rows without holes lie alike in their pages."""
    count = len(rows)
    return (
        len(starts) == len(other_starts)
        and int(rows[-1] - rows[0]) == int(others[-1] - others[0]) == count - 1
        and bool((starts - rows[0] == other_starts - others[0]).all())
    )


def _others(first: int, end: int, rows: Positions) -> Positions:
    """Rows from `first` up to `end` that are not among `rows`."""
    left = np.ones(end - first, np.bool_)
    left[rows - first] = False
    return np.flatnonzero(left) + first


def _bounded(gap: Gap) -> Iterator[Gap]:
    """Pieces of a gap with a bounded number of rows on each side."""
    before, after = deque(gap.before), deque(gap.after)
    row, other_row = gap.before_row, gap.after_row
    while before or after:
        mine, theirs = _taken(before), _taken(after)
        yield Gap(mine, theirs, row, other_row)
        row += sum(leaf.rows for leaf in mine)
        other_row += sum(leaf.rows for leaf in theirs)


def _taken(leaves: deque[Leaf]) -> list[Leaf]:
    out: list[Leaf] = []
    rows = 0
    while leaves and (not out or rows + leaves[0].rows <= limits.DIFF_ALIGN_ROWS_MAX):
        out.append(leaves.popleft())
        rows += out[-1].rows
    return out
