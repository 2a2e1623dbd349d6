"""The tree of a dataset version: row groups below (leptonstore/dataset/groups.py), internal nodes above, all cut by content.

TreeWriter    rows -> a new tree          TreeReader    one node of a level, by row
Leaves        all row groups              put_levels    nodes -> the levels above them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore.dataset.cut import NodeCutter
from leptonstore.dataset.groups import GroupWriter, stored_columns, told_at
from leptonstore.dataset.values import Column
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format.node import Child, InternalNode, RowGroup, encode_internal, parse_node
from leptonstore.format.pack import CONTENT_META
from leptonstore.store import Store
from leptonstore.tiers.chunks import ChunkReader


class Tree(NamedTuple):
    """A stored tree: what a commit says of it. `root` is None when there are no rows."""

    root: Digest | None
    rows: int
    plain_bytes: int


def tree_of(children: Sequence[Child]) -> Tree:
    """The tree whose only node at the top is in `children`, or none."""
    return Tree(children[0].digest, children[0].rows, children[0].plain_bytes) if children else Tree(None, 0, 0)


class ParentWriter:
    """Takes the nodes of a level in order and stores their parents. Memory: one parent. One thread."""

    def __init__(self, store: Store, level: int) -> None:
        self._store, self._level = store, level
        self._cutter = NodeCutter()
        self._open: list[Child] = []
        self._parents: list[Child] = []

    @property
    def open(self) -> bool:
        """Whether there are children after the last cut."""
        return bool(self._open)

    def append(self, children: Sequence[Child]) -> None:
        """Add nodes of the level below. Raises StoreFull."""
        for child in children:
            self._open.append(child)
            if self._cutter.ends_after(child.digest):
                self._close()

    def take(self) -> list[Child]:
        """The parents that were closed since the last call."""
        parents, self._parents = self._parents, []
        return parents

    def finish(self) -> list[Child]:
        """Close the parent that is open, as at the end of the table, and `take`."""
        if self._open:
            self._close()
            self._cutter = NodeCutter()
        return self.take()

    def _close(self) -> None:
        node = InternalNode(self._level, tuple(self._open))
        self._open = []
        digest = self._store.put(encode_internal(node), CONTENT_META)
        self._parents.append(Child(digest, node.rows, node.plain_bytes, node.children[-1].key))


def put_levels(store: Store, children: list[Child], level: int = 0) -> Tree:
    """Store the levels above all nodes of `level`, up to the root. Raises StoreFull."""
    while len(children) > 1:
        level += 1
        writer = ParentWriter(store, level)
        writer.append(children)
        children = writer.finish()
    return tree_of(children)


class TreeWriter:
    """Takes record batches in row order and stores the tree. Memory: one batch, one row group, 100 bytes a row group."""

    def __init__(self, store: Store, schema: pa.Schema, identity: tuple[str, ...], keyed: bool = False) -> None:
        self.store, self.schema = store, schema
        self._writer = GroupWriter(store, schema, identity, keyed)
        self.rows = 0

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises SchemaError when the batch does not fit, StoreFull."""
        self.append_columns(stored_columns(self.store, self.schema, batch, self.rows))

    def append_columns(self, columns: list[Column]) -> None:
        """Add rows as pages keep them: large values have been put already. Raises StoreFull."""
        self._writer.append(columns)
        self.rows += len(columns[0].values)

    def finish(self) -> tuple[Digest | None, int]:
        """(root, plain bytes); the root is None when there were no rows."""
        tree = put_levels(self.store, self._writer.finish())
        return tree.root, tree.plain_bytes


class Span(NamedTuple):
    """A node of some level and the rows [start, end) below it."""

    start: int
    child: Child

    @property
    def end(self) -> int:
        """The row after its last one."""
        return self.start + self.child.rows


class TreeReader:
    """Finds nodes of a stored tree by row. Reads the nodes on the way only, and keeps the last way. One thread."""

    def __init__(self, store: Store, root: Digest, rows: int, name: str = "") -> None:
        self._store, self._name, self.rows = store, name, rows
        self._way: list[tuple[Span, InternalNode | RowGroup]] = []  # from the root down
        top = self._read(Span(0, Child(root, rows, 0)))
        self.height = top.level if isinstance(top, InternalNode) else 0
        if top.rows != rows:
            raise FormatDamaged(f"the tree has {top.rows} rows where its commit says {rows}")
        self.root = Span(0, Child(root, rows, top.plain_bytes))
        self._way = [(self.root, top)]

    def _read(self, span: Span) -> InternalNode | RowGroup:
        with told_at(f"{self._name} rows {span.start}-{span.end - 1} (a tree node)"):
            return parse_node(self._store.get(span.child.digest))

    def node(self, level: int, row: int) -> tuple[Span, InternalNode | RowGroup]:
        """The node of `level` over `row`. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        del self._way[self.height - level + 1 :]
        while len(self._way) > 1 and not self._way[-1][0].start <= row < self._way[-1][0].end:
            self._way.pop()
        while len(self._way) <= self.height - level:
            span, node = self._way[-1]
            assert isinstance(node, InternalNode)
            below = _child_at(span, node, row)
            found = self._read(below)
            if (
                found.level if isinstance(found, InternalNode) else 0
            ) != node.level - 1 or found.rows != below.child.rows:
                raise FormatDamaged("a tree node of another level or size lies where its parent says something else")
            self._way.append((below, found))
        return self._way[-1]

    def span(self, level: int, row: int) -> Span:
        """As `node`, without reading the node itself."""
        if level == self.height:
            return self.root
        span, node = self.node(level + 1, row)
        assert isinstance(node, InternalNode)
        return _child_at(span, node, row)

    def children(self, level: int, start: int, end: int) -> list[Child]:
        """The nodes of `level` over the rows [start, end), which are boundaries of that level and lie below one parent."""
        span, node = self.node(level + 1, start)
        assert isinstance(node, InternalNode)
        starts = accumulate((child.rows for child in node.children), initial=span.start)
        return [child for at, child in zip(starts, node.children, strict=False) if start <= at < end]


def _child_at(span: Span, node: InternalNode, row: int) -> Span:
    start = span.start
    for child in node.children:
        if row < start + child.rows:
            return Span(start, child)
        start += child.rows
    raise FormatDamaged(f"no tree node lies over row {row}")


class Leaves:
    """The row groups of a version in row order, as (first row, digest)."""

    def __init__(self, chunks: ChunkReader, root: Digest | None, rows: int) -> None:
        self.digests: list[Digest] = []
        starts = [0]
        self._chunks = chunks
        if root is not None:
            for child in self._descend(Child(root, rows, 0), None):
                self.digests.append(child.digest)
                starts.append(starts[-1] + child.rows)
        self.starts = np.asarray(starts, np.int64)  # one more than there are leaves: the last is the number of rows
        if int(self.starts[-1]) != rows:
            raise FormatDamaged(f"the tree has {self.starts[-1]} rows where its commit says {rows}")

    def _descend(self, child: Child, level: int | None) -> Iterator[Child]:
        if level == 0:
            yield child
            return
        node = parse_node(self._chunks.get(child.digest))
        if isinstance(node, RowGroup):
            yield child
            return
        if level is not None and node.level != level:
            raise FormatDamaged(f"tree node of level {node.level} where level {level} belongs")
        for below in node.children:
            yield from self._descend(below, node.level - 1)

    def group(self, index: int) -> RowGroup:
        """The row group at `index`. Raises as `groups`."""
        return next(self.groups([index]))

    def groups(self, indices: Sequence[int]) -> Iterator[RowGroup]:
        """The row groups at `indices`, read together. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        for data in self._chunks.get_many([self.digests[index] for index in indices]):
            node = parse_node(data)
            if not isinstance(node, RowGroup):
                raise FormatDamaged("an internal node lies where a row group belongs")
            yield node
