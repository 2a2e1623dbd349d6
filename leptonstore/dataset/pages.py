"""Reading pages: which parts of a column some rows stand in, and what those parts hold.

    rows -> row groups (nodes) -> parts -> pages: kept, or read, all that one call needs together -> values in the order asked

What is read and kept as one thing is a `Stretch` of a column: all parts of a row group where they have at most COLUMN_WHOLE_BYTES_MAX,
decoded and kept up to PAGE_CACHE_BYTES, so that rows in random order are one gather for each row group; of longer columns one part, so
that a row of a long text does not read those of the whole row group. Where the reader is the hot cache of the host it is one part, too:
decoding it copies nothing, and it is kept only when it holds hardly more than references (`is_directory`).
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.forked import renew_in_children
from leptonstore.dataset.groups import decode_part, told_at
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.tree import Leaf, Leaves, Rows
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from leptonstore.format.node import Part, RowGroup
from leptonstore.tiers.chunks import ChunkReader


def is_directory(part: Part) -> bool:
    """Whether a page is mostly references: small, needed again and again, and dear to miss."""
    return (
        part.has_references and part.page_bytes <= limits.DIRECTORY_BYTES + limits.DIRECTORY_ROW_BYTES_MAX * part.rows
    )


class Stretch(NamedTuple):
    """Consecutive parts of a column, and the row of the version that they begin with."""

    first: int
    parts: tuple[Part, ...]
    field: pa.Field

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def is_directory(self) -> bool:
        """Whether it is mostly references."""
        return all(map(is_directory, self.parts))


class Layout(NamedTuple):
    """A row group's node and, of each column, what is read as one: the parts, and the row of the version that they begin with."""

    group: RowGroup
    starts: list[list[int]]
    units: list[list[tuple[Part, ...]]]


_PART_MEMORY = 200  # bytes of a part's places in a layout
Key = tuple[int, str]  # of a stretch: its first row, its column


class Pages:
    """The pages of one version. Any thread.

    named:   the version, as errors call it.
    reads:   pages that were read and decoded so far, not those that were kept.
    on_host: the reader keeps what it gives for all processes of the host; then what is returned here is a copy of it.
    """

    def __init__(self, chunks: ChunkReader, leaves: Leaves, schema: pa.Schema, named: str, on_host: bool) -> None:
        self._chunks, self._leaves, self._schema = chunks, leaves, schema
        self._named, self._on_host = named, on_host
        self._groups: dict[int, RowGroup] = {}
        self._stretches: dict[tuple[int, int], tuple[Rows, list[Stretch]]] = {}
        self._kept: OrderedDict[Key, Column] = OrderedDict()
        self._kept_bytes = 0
        self._layouts: Kept[Layout] = Kept(limits.NODE_CACHE_BYTES)
        self._lock = threading.Lock()
        renew_in_children(self)
        self.reads = 0

    def gather(self, rows: Rows, fields: Sequence[pa.Field], keep: bool = True, lend: bool = False) -> list[Column]:
        """The values of some rows of the version, as the pages keep them, in the order asked; at least one row.

        keep: whether pages are kept for the next call. lend: whoever asks lets go of what it gets at once; then it may be views of what
        lies in the host's cache. Raises ChunkMissing, ChunkCorrupt or FormatDamaged, with the place.
        """
        first, last = int(rows[0]), int(rows[-1])
        if (lend or not self._on_host) and last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
            with told_at(f"{self._named} rows {first}-{last} (a tree node)"):
                leaf = self._leaves.find(first)
            if last < leaf.end:
                return self._run(leaf, first, last + 1, fields, keep)
        return self.gather_spread(rows, [self.spread(rows, field) for field in fields], keep)

    def _run(self, leaf: Leaf, first: int, end: int, fields: Sequence[pa.Field], keep: bool) -> list[Column]:
        """Consecutive rows [first, end) of one row group: slices, without looking where each row is."""
        layout = self.layout(leaf)
        wanted: list[list[Stretch]] = []
        for field in fields:
            column = self._schema.get_field_index(field.name)
            starts = layout.starts[column]
            from_, to = bisect_right(starts, first) - 1, bisect_left(starts, end)
            units = layout.units[column]
            wanted.append([Stretch(starts[at], units[at], field) for at in range(from_, to) if units[at][0].rows])
        columns = iter(self._columns([stretch for some in wanted for stretch in some], keep))
        out = []
        for some in wanted:
            pieces = [
                (column := next(columns)).slice(max(first - one.first, 0), min(end - one.first, len(column.values)))
                for one in some
            ]
            out.append(column_values.concat(pieces))
        return out

    def gather_spread(
        self, rows: Rows, spread: Sequence[tuple[list[Stretch], Rows]], keep: bool = True
    ) -> list[Column]:
        """`gather` of columns for which `spread` was asked already."""
        columns = iter(self._columns([stretch for used, _ in spread for stretch in used], keep))
        return [self._assembled(rows, used, which, columns) for used, which in spread]

    def spread(self, rows: Rows, field: pa.Field) -> tuple[list[Stretch], Rows]:
        """The stretches of a column that rows of the version stand in, ascending; and in which of them each row stands."""
        groups = np.unique(np.searchsorted(self._leaves.starts, rows, side="right") - 1).tolist()
        self._load(groups)
        column = self._schema.get_field_index(field.name)
        of_groups = [self._of_group(index, column, field) for index in groups]
        stretches = [stretch for _, some in of_groups for stretch in some]
        firsts = np.concatenate([firsts for firsts, _ in of_groups])
        used, which = np.unique(np.searchsorted(firsts, rows, side="right") - 1, return_inverse=True)
        return [stretches[at] for at in used.tolist()], which

    # -- one row group -------------------------------------------------------------------------------------------

    def groups(self, leaves: Sequence[Leaf]) -> list[RowGroup]:
        """The nodes of row groups, read together. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        stream = self._leaves.read_each(leaves)
        out = []
        for leaf in leaves:
            with told_at(self._node_at(leaf)):
                group = next(stream)
            if len(group.columns) != len(self._schema):
                raise FormatDamaged(f"{self._node_at(leaf)}: {len(group.columns)} columns, not {len(self._schema)}")
            out.append(group)
        return out

    def _node_at(self, leaf: Leaf) -> str:
        return f"{self._named} rows {leaf.first}-{leaf.end - 1} (a tree node)"

    def layout(self, leaf: Leaf) -> Layout:
        """A row group's node, and how its columns are read."""
        found = self._layouts.get(leaf.first)
        if found is None:
            (group,) = self.groups([leaf])
            units = [self._units(parts) for parts in group.columns]
            starts = [
                list(accumulate((sum(part.rows for part in unit) for unit in column), initial=leaf.first))
                for column in units
            ]
            size = _PART_MEMORY * sum(map(len, group.columns))
            found = self._layouts.add(leaf.first, Layout(group, starts, units), size)
        return found

    def refers(self, row: int, fields: Sequence[pa.Field]) -> bool:
        """Whether values of some columns stand elsewhere than in their pages, in the row group of a row of the version."""
        columns = self.layout(self._leaves.find(row)).group.columns
        indices = [self._schema.get_field_index(field.name) for field in fields]
        return any(part.has_references for column in indices for part in columns[column])

    def _units(self, parts: tuple[Part, ...]) -> list[tuple[Part, ...]]:
        small = len(parts) == 1 or sum(part.page_bytes for part in parts) <= limits.COLUMN_WHOLE_BYTES_MAX
        return [parts] if small and not self._on_host else [(part,) for part in parts]

    def parts(self, first: int, end: int, field: pa.Field) -> Iterator[Stretch]:
        """The pages of a column that rows [first, end) of the version stand in, each as a stretch of its own.

        Raises ChunkMissing, ChunkCorrupt or FormatDamaged.
        """
        column = self._schema.get_field_index(field.name)
        leaves, row = [], first
        while row < end:
            leaves.append(self._leaves.find(row))
            row = leaves[-1].end
        for leaf, group in zip(leaves, self.groups(leaves), strict=True):
            at = leaf.first
            for part in group.columns[column]:
                if at < end and at + part.rows > first:
                    yield Stretch(at, (part,), field)
                at += part.rows

    def at(self, layout: Layout, column: int, field: pa.Field, row: int) -> tuple[Column, int]:
        """(values of the column among which a row of the version is, where in them)."""
        starts = layout.starts[column]
        number = 0 if len(starts) == 2 else bisect_right(starts, row) - 1
        first = starts[number]
        # Without the lock, which would cost as much as the rest: each of the two calls is atomic, and it may go in between.
        page = self._kept.get((first, field.name))
        if page is None:
            page = self._columns([Stretch(first, layout.units[column][number], field)], True)[0]
        else:
            try:  # noqa: SIM105 - a context manager would cost more than the look-up
                self._kept.move_to_end((first, field.name))
            except KeyError:
                pass
        return page, row - first

    def part(self, leaf: Leaf, column: int, number: int) -> tuple[int, Column]:
        """(the first row of the version in a part of a column, its values)."""
        layout, field = self.layout(leaf), self._schema.field(column)
        parts = layout.group.columns[column]
        first = leaf.first + sum(part.rows for part in parts[:number])
        values, at = self.at(layout, column, field, first)
        return first, values.slice(at, at + parts[number].rows)

    # -- nodes and pages -------------------------------------------------------------------------------------------

    def _load(self, groups: list[int]) -> None:
        """Read the nodes that are not known yet."""
        missing = [index for index in groups if index not in self._groups]
        if not missing:
            return
        try:
            self._groups.update(zip(missing, self._leaves.groups(missing), strict=True))
        except (ChunkCorrupt, ChunkMissing):
            starts = self._leaves.starts
            for index in missing:
                with told_at(f"{self._named} rows {starts[index]}-{starts[index + 1] - 1} (a tree node)"):
                    list(self._leaves.groups([index]))
            raise

    def _of_group(self, index: int, column: int, field: pa.Field) -> tuple[Rows, list[Stretch]]:
        """The stretches of a column in a row group, and the rows that they begin with."""
        found = self._stretches.get((index, column))
        if found is None:
            parts, first = self._groups[index].columns[column], int(self._leaves.starts[index])
            units = self._units(parts)
            firsts = first + np.cumsum([0, *(sum(part.rows for part in unit) for unit in units[:-1])], dtype=np.int64)
            found = firsts, [Stretch(at, unit, field) for at, unit in zip(firsts.tolist(), units, strict=True)]
            self._stretches[index, column] = found
        return found

    def _columns(self, wanted: list[Stretch], keep: bool) -> list[Column]:
        found: dict[Key, Column] = {}
        missing: dict[Key, Stretch] = {}
        with self._lock:
            for stretch in wanted:
                key = stretch.first, stretch.field.name
                kept = self._kept.get(key)
                if kept is None:
                    missing[key] = stretch
                else:
                    self._kept.move_to_end(key)
                    found[key] = kept
        # Read outside the lock, so that several threads decode several pages at once; two of one page is harmless.
        for key, column in zip(missing, self.read(list(missing.values())), strict=True):
            found[key] = column
            if keep and (not self._on_host or missing[key].is_directory):
                self._keep(key, column)
        return [found[stretch.first, stretch.field.name] for stretch in wanted]

    def read(self, missing: list[Stretch]) -> Iterator[Column]:
        """The values of each, read together and not kept. Raises ChunkMissing, ChunkCorrupt or FormatDamaged, with the place."""
        try:
            pages = self._chunks.get_many([part.digest for stretch in missing for part in stretch.parts])
            for stretch in missing:
                copied = self._on_host and stretch.is_directory  # it is kept
                at, pieces = stretch.first, []
                for part in stretch.parts:
                    data = next(pages)
                    pieces.append(self._decoded(bytes(data) if copied else data, part, at, stretch.field))
                    at += part.rows
                    self.reads += 1
                yield column_values.concat(pieces)
        except (ChunkCorrupt, ChunkMissing):
            for stretch in missing:
                at = stretch.first
                for part in stretch.parts:
                    with told_at(self._where(part, at, stretch.field)):
                        self._chunks.get(part.digest)
                    at += part.rows
            raise

    def _decoded(self, data: Buffer, part: Part, first: int, field: pa.Field) -> Column:
        return decode_part(data, part, field, self._where(part, first, field))

    def _where(self, part: Part, first: int, field: pa.Field) -> str:
        return f"{self._named} rows {first}-{first + part.rows - 1} column {field.name!r}"

    def _keep(self, key: Key, column: Column) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = column
            self._kept_bytes += column.values.nbytes
            while self._kept_bytes > limits.PAGE_CACHE_BYTES and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].values.nbytes

    def _assembled(self, rows: Rows, used: list[Stretch], which: Rows, columns: Iterator[Column]) -> Column:
        """The rows of one column; `columns` has its parts next."""
        if len(used) == 1:
            return self._picked(next(columns), rows - used[0].first)
        order = np.argsort(which, kind="stable")
        cuts = np.flatnonzero(np.diff(which[order])) + 1
        pieces = [
            self._picked(next(columns), rows[chosen] - stretch.first)
            for stretch, chosen in zip(used, np.split(order, cuts), strict=True)
        ]
        column = column_values.concat(pieces)
        if bool((order[1:] > order[:-1]).all()):
            return column
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return column_values.take(column, back)

    def _picked(self, column: Column, rows: Rows) -> Column:
        # Of what lies in the host's cache nothing is given away uncopied: whoever kept it would pin it there.
        if not self._on_host and len(rows) == len(column.values) and bool((np.diff(rows) == 1).all()):
            return column
        return column_values.take(column, rows)
