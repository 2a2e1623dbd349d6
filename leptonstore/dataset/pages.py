"""Pages of a version, decoded: a column of a row group, or those parts of it that hold the rows asked for.

    row group -> parts of the column (their rows stand in its node) -> pages that are not kept yet, read together -> values

So one row of a column of long texts reads one page of about 64 KiB, and not the whole row group's. Errors name rows and column.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.tree import Leaf, Leaves, Rows
from leptonstore.dataset.values import Column
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from leptonstore.format.node import Part, RowGroup
from leptonstore.format.page import decode_page
from leptonstore.store import Store

_PART_MEMORY = 100  # bytes of a part's place in a layout, and its share of what keeps it


class Layout(NamedTuple):
    """starts: for each column, the first row of each of its parts (and the end), None for a column that is read as a whole."""

    group: RowGroup
    starts: list[list[int] | None]


class Pages:
    """Decoded pages of one version; PAGE_CACHE_BYTES of them are kept. Any thread; two that read one page at a time are harmless.

    label: NAME@REF, for messages. reads: pages that were read and decoded so far (not those that were kept).
    """

    def __init__(self, store: Store, schema: pa.Schema, leaves: Leaves, label: str) -> None:
        self._store, self._schema, self._leaves, self._label = store, schema, leaves, label
        self._kept: Kept[Column] = Kept(limits.PAGE_CACHE_BYTES)
        self._layouts: Kept[Layout] = Kept(limits.NODE_CACHE_BYTES)
        self.reads = 0

    def group(self, leaf: Leaf) -> RowGroup:
        """A row group's node. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        return self.layout(leaf).group

    def groups(self, leaves: Sequence[Leaf]) -> list[RowGroup]:
        """The nodes of row groups; what lies close together on an object store is read together."""
        stream = self._leaves.read_each(leaves)
        out = []
        for leaf in leaves:
            with told_at(_node_place(self._label, leaf)):
                out.append(self._checked(leaf, next(stream)))
        return out

    def _checked(self, leaf: Leaf, group: RowGroup) -> RowGroup:
        if len(group.columns) != len(self._schema):
            raise FormatDamaged(
                f"{self._label} rows {leaf.first}-{leaf.end - 1}: {len(group.columns)} columns where the schema has "
                f"{len(self._schema)}"
            )
        return group

    def layout(self, leaf: Leaf) -> Layout:
        """A row group's node, and where the parts of its columns begin."""
        found = self._layouts.get(leaf.first)
        if found is None:
            with told_at(_node_place(self._label, leaf)):
                group = self._checked(leaf, self._leaves.read(leaf))
            starts = [
                None if _is_small(parts) else list(accumulate((part.rows for part in parts), initial=leaf.first))
                for parts in group.columns
            ]
            size = sum(_PART_MEMORY * len(parts) for parts in group.columns)
            found = self._layouts.add(leaf.first, Layout(group, starts), size)
        return found

    def at(self, leaf: Leaf, layout: Layout, column: int, row: int) -> tuple[Column, int]:
        """(a page that holds a row of the version, where in it)."""
        starts = layout.starts[column]
        if starts is None:
            page = self._kept.get((leaf.first, column))
            if page is None:
                page = self._whole(leaf, column, layout.group.columns[column])
            return page, row - leaf.first
        number = bisect_right(starts, row) - 1
        page = self._kept.get((leaf.first, column, number))
        if page is None:
            page = self._some(leaf, column, layout.group.columns[column], [number], True)[0]
        return page, row - starts[number]

    def column(self, leaf: Leaf, column: int, rows: Rows | None = None, keep: bool = True) -> Column:
        """Values of one column of a row group, as pages keep them: all, or those of `rows` (of the version), in that order."""
        whole = self._kept.get((leaf.first, column))
        if whole is None:
            parts = self.group(leaf).columns[column]
            if rows is not None and not _is_small(parts):
                return self._of_parts(leaf, column, parts, rows - leaf.first, keep)
            if keep and _is_small(parts):
                whole = self._whole(leaf, column, parts)
            else:
                whole = column_values.concat(self._some(leaf, column, parts, range(len(parts)), keep))
        return whole if rows is None else column_values.take(whole, rows - leaf.first)

    def part(self, leaf: Leaf, column: int, number: int) -> tuple[int, Column]:
        """(the first row of the version in a part of a column, its values)."""
        parts = self.group(leaf).columns[column]
        before = sum(part.rows for part in parts[:number])
        if not _is_small(parts):
            return leaf.first + before, self._some(leaf, column, parts, [number], True)[0]
        whole = self._kept.get((leaf.first, column)) or self._whole(leaf, column, parts)
        return leaf.first + before, whole.slice(before, before + parts[number].rows)

    def _of_parts(self, leaf: Leaf, column: int, parts: tuple[Part, ...], rows: Rows, keep: bool) -> Column:
        """The values of `rows` (of the row group), from the parts that hold them."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts = np.fromiter(accumulate((part.rows for part in parts), initial=0), np.int64, len(parts) + 1)
        numbers = np.searchsorted(starts, ordered, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        wanted = [int(numbers[start]) for start in cuts[:-1]]
        pages = self._some(leaf, column, parts, wanted, keep)
        joined = column_values.concat(
            [
                column_values.take(page, ordered[start:end] - starts[number])
                for page, number, (start, end) in zip(pages, wanted, pairwise(cuts), strict=True)
            ]
        )
        if bool((order[1:] > order[:-1]).all()):
            return joined
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return column_values.take(joined, back)

    def _whole(self, leaf: Leaf, column: int, parts: tuple[Part, ...]) -> Column:
        """All of a column that is small, kept as one."""
        page = column_values.concat(list(self._read(leaf, column, parts, range(len(parts)))))
        return self._kept.add((leaf.first, column), page, page.values.nbytes)

    def _some(
        self, leaf: Leaf, column: int, parts: tuple[Part, ...], numbers: Sequence[int], keep: bool
    ) -> list[Column]:
        """The pages of these parts."""
        pages = [self._kept.get((leaf.first, column, number)) for number in numbers]
        missing = [number for number, page in zip(numbers, pages, strict=True) if page is None]
        read = self._read(leaf, column, parts, missing)
        out = []
        for number, page in zip(numbers, pages, strict=True):
            if page is None:
                page = next(read)
                if keep:
                    page = self._kept.add((leaf.first, column, number), page, page.values.nbytes)
            out.append(page)
        return out

    def _read(self, leaf: Leaf, column: int, parts: tuple[Part, ...], numbers: Sequence[int]) -> Iterator[Column]:
        """Read and decode; what lies close together on an object store is read together."""
        field = self._schema.field(column)
        starts = list(accumulate((part.rows for part in parts), initial=leaf.first))

        def where(number: int) -> str:
            return f"{self._label} rows {starts[number]}-{starts[number + 1] - 1} column {field.name!r}"

        digests = [parts[number].digest for number in numbers]
        stream = self._store.get_many(digests) if len(digests) > 1 else iter([])
        for number, digest in zip(numbers, digests, strict=True):
            try:
                page = decode_page(next(stream) if len(digests) > 1 else self._store.get(digest), field.type)
            except (ChunkCorrupt, ChunkMissing) as error:
                raise told(error, where(number)) from None
            if len(page.values) != parts[number].rows:
                raise FormatDamaged(
                    f"{where(number)}: page has {len(page.values)} rows where its node says {parts[number].rows}"
                )
            self.reads += 1
            yield Column(page.values, page.references)

    def resolve(self, column: Column, field: pa.Field, rows: Rows | range) -> pa.Array:
        """Read the values that stand elsewhere; `rows` (of the version) are for messages. Raises ChunkMissing or ChunkCorrupt."""
        if column.references is None:
            return column.values
        try:
            return column_values.resolve(self._store, column, field.type)
        except (ChunkCorrupt, ChunkMissing):
            for at in column.references.nonzero()[0].tolist():
                with told_at(f"{self._label} row {rows[at]} column {field.name!r}"):
                    column_values.resolve(self._store, column.slice(at, at + 1), field.type)
            raise


def _node_place(label: str, leaf: Leaf) -> str:
    return f"{label} rows {leaf.first}-{leaf.end - 1} (a tree node)"


def _is_small(parts: tuple[Part, ...]) -> bool:
    """Whether the parts are read, and kept, together."""
    return len(parts) == 1 or sum(part.page_bytes for part in parts) <= limits.COLUMN_WHOLE_BYTES_MAX


@contextlib.contextmanager
def told_at(where: str) -> Iterator[None]:
    """Inside, a chunk that is missing or corrupt is named with the place in the dataset that it costs."""
    try:
        yield
    except (ChunkCorrupt, ChunkMissing) as error:
        raise told(error, where) from None


def told(error: ChunkCorrupt | ChunkMissing, where: str) -> ChunkCorrupt | ChunkMissing:
    """The error, with the place in the dataset."""
    if error.where:
        return error  # what stands nearer to it knows better
    return error.at(where) if isinstance(error, ChunkCorrupt) else ChunkMissing(error.digest, where)
