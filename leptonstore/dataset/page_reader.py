"""Reading some rows of one column of a version from the pages that hold them, and no other pages.

For comparing versions: it works on the row groups that it is told of, where `Dataset` knows all of them. Not for several threads.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.align import Positions
from leptonstore.dataset.compare import Leaf
from leptonstore.dataset.groups import decode_part
from leptonstore.dataset.values import Column, concat, take
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from leptonstore.format.commit import Commit
from leptonstore.format.node import Part, RowGroup, parse_node
from leptonstore.store import Store


class PageReader:
    """Rows of one version. `label` names it in errors. Memory: DIFF_GROUPS_HELD row groups, DIFF_PAGES_BYTES of pages."""

    def __init__(self, store: Store, commit: Commit, label: str) -> None:
        self.store, self.commit, self.label = store, commit, label
        self._groups: OrderedDict[Digest, RowGroup] = OrderedDict()
        self._pages: OrderedDict[tuple[Digest, int], Column] = OrderedDict()
        self._pages_bytes = 0
        self.leaves: list[Leaf] = []
        self._starts = np.empty(0, np.int64)

    def use(self, leaves: list[Leaf]) -> None:
        """The row groups, in row order, in which the rows lie that are asked for next."""
        self.leaves = leaves
        self._starts = np.array([leaf.first for leaf in leaves], np.int64)

    def group(self, leaf: Leaf) -> RowGroup:
        """The node of a row group. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        found = self._groups.get(leaf.digest)
        if found is None:
            node = parse_node(self._get(leaf.digest, f"rows {leaf.first}-{leaf.first + leaf.rows - 1} (a tree node)"))
            if not isinstance(node, RowGroup) or node.rows != leaf.rows:
                raise FormatDamaged(f"tree node {leaf.digest.hex()[:16]} is not the row group that its parent says")
            if len(node.columns) != len(self.commit.schema):
                raise FormatDamaged(f"row group {leaf.digest.hex()[:16]} has not the columns of its version's schema")
            found = self._groups[leaf.digest] = node
            if len(self._groups) > limits.DIFF_GROUPS_HELD:
                self._groups.popitem(last=False)
        return found

    def _get(self, digest: Digest, what: str) -> bytes:
        try:
            return self.store.get(digest)
        except ChunkCorrupt as error:
            raise error.at(f"{self.label} {what}") from None
        except ChunkMissing as error:
            raise ChunkMissing(error.digest, f"{self.label} {what}") from None

    def signature(self, leaf: Leaf, columns: list[int]) -> Digest:
        """Names the values of some columns in a row group, without reading them: equal ones have equal values."""
        group = self.group(leaf)
        return b"".join(part.digest for column in columns for part in group.columns[column])

    def parts(self, column: int, rows: Positions) -> tuple[Positions, list[Part]]:
        """The pages of a column that may hold `rows` (ascending): (first row of each, page), in row order."""
        starts, parts = [], []
        begins = np.searchsorted(rows, self._starts)
        for leaf, begin, end in zip(self.leaves, begins, [*begins[1:], len(rows)], strict=True):
            if begin == end:
                continue
            first = leaf.first
            for part in self.group(leaf).columns[column]:
                starts.append(first)
                parts.append(part)
                first += part.rows
        return np.array(starts, np.int64), parts

    def read(self, column: int, rows: Positions) -> Column:
        """The values of `rows` (ascending) as the pages keep them. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        if not len(rows):
            return Column(pa.schema([self.commit.schema.field(column)]).empty_table().column(0).combine_chunks())
        starts, parts = self.parts(column, rows)
        begins = np.searchsorted(rows, starts)
        pieces = []
        for part, start, begin, end in zip(parts, starts.tolist(), begins, [*begins[1:], len(rows)], strict=True):
            if begin == end:
                continue
            page = self._page(column, part, start)
            first, last = int(rows[begin]) - start, int(rows[end - 1]) - start
            contiguous = last - first + 1 == end - begin
            pieces.append(page.slice(first, last + 1) if contiguous else take(page, rows[begin:end] - start))
        return concat(pieces)

    def _page(self, column: int, part: Part, first: int) -> Column:
        key = (part.digest, column)
        found = self._pages.get(key)
        if found is not None:
            self._pages.move_to_end(key)
            return found
        field = self.commit.schema.field(column)
        where = f"rows {first}-{first + part.rows - 1} column {field.name!r}"
        data = self._get(part.digest, where)
        found = self._pages[key] = decode_part(data, part, field, f"{self.label} {where}")
        self._pages_bytes += found.values.nbytes
        while self._pages_bytes > limits.DIFF_PAGES_BYTES and len(self._pages) > 1:
            self._pages_bytes -= self._pages.popitem(last=False)[1].values.nbytes
        return found
