"""The tree of a dataset version: row groups below (leptonstore/dataset/groups.py), internal nodes above, all cut by content.

TreeWriter    rows -> a new tree          TreeReader    one node of a level, by row
Leaves        all row groups              put_levels    nodes -> the levels above them
"""

from __future__ import annotations

import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.cut import NodeCutter
from leptonstore.dataset.groups import GroupWriter, stored_columns, told_at
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format.node import Child, InternalNode, RowGroup, encode_internal, parse_node
from leptonstore.format.pack import CONTENT_META
from leptonstore.store import Store
from leptonstore.tiers.chunks import ChunkReader

Rows = np.ndarray[Any, np.dtype[np.int64]]
_PARSED_FACTOR = 8  # what a parsed node takes in memory, beside its bytes


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


class Leaf(NamedTuple):
    """A row group: rows [first, end) of the version, and the digest of its node."""

    first: int
    end: int
    digest: Digest


class _Internal(NamedTuple):
    """An internal node as a search needs it: `starts` has one more than there are children, counted from the node's first row."""

    level: int
    starts: array.array[int]
    digests: list[Digest]


class Leaves:
    """The row groups of a version in row order. Nodes are read when a search comes to them, and kept up to NODE_CACHE_BYTES.

    `find` and `locate` read what leads to the rows asked for; `spans` goes through nodes one after another; `starts` and
    `digests` read every internal node (not the row groups) and keep the result: 60 bytes a row group, 15 MB for 10^9 rows.
    Any thread. All raise ChunkMissing, ChunkCorrupt or FormatDamaged.
    """

    def __init__(self, chunks: ChunkReader, root: Digest | None, rows: int) -> None:
        self._chunks, self._root, self.rows = chunks, root, rows
        self._nodes: Kept[_Internal | RowGroup] = Kept(limits.NODE_CACHE_BYTES)
        self._top: _Internal | RowGroup | None = None
        self._all: tuple[Rows, list[Digest]] | None = None
        if (root is None) != (rows == 0):
            raise FormatDamaged(f"the tree has {'no' if root is None else 'some'} rows where its commit says {rows}")

    # -- one row group -------------------------------------------------------------------------------------------

    def find(self, row: int) -> Leaf:
        """The row group that holds `row` (0 <= row < rows)."""
        node, first, digest = self._root_node(), 0, self._root
        assert digest is not None
        end = self.rows
        while isinstance(node, _Internal):
            at = bisect_right(node.starts, row - first) - 1
            digest, level = node.digests[at], node.level
            first, end = first + node.starts[at], first + node.starts[at + 1]
            if level == 1:
                break
            node = self._node(digest, end - first, level - 1)
        return Leaf(first, end, digest)

    def read(self, leaf: Leaf) -> RowGroup:
        """A row group's node."""
        node = self._node(leaf.digest, leaf.end - leaf.first, 0)
        assert isinstance(node, RowGroup)
        return node

    def read_each(self, leaves: Sequence[Leaf]) -> Iterator[RowGroup]:
        """`read` of each; what lies close together on an object store is read together."""
        missing = list(dict.fromkeys(leaf.digest for leaf in leaves if self._nodes.get(leaf.digest) is None))
        ahead = set(missing) if len(missing) > 1 else set()
        stream = self._chunks.get_many(missing) if ahead else iter(())
        for leaf in leaves:
            if leaf.digest in ahead:
                ahead.remove(leaf.digest)
                self._parsed(leaf.digest, next(stream))
            yield self.read(leaf)

    def group(self, index: int) -> RowGroup:
        """The row group at `index`."""
        return self.read(self.at(index))

    def groups(self, indices: Sequence[int]) -> Iterator[RowGroup]:
        """The row groups at `indices`, read together."""
        return self.read_each([self.at(index) for index in indices])

    def at(self, index: int) -> Leaf:
        """The row group at `index`, unread."""
        return Leaf(int(self.starts[index]), int(self.starts[index + 1]), self.digests[index])

    # -- many ----------------------------------------------------------------------------------------------------

    def locate(self, rows: Rows) -> tuple[list[Leaf], Rows]:
        """(the row groups that hold `rows`, in row order; for each of `rows`, in any order, which of them holds it)."""
        numbers = np.empty(len(rows), np.int64)
        found: list[Leaf] = []
        if len(rows):
            order = np.argsort(rows, kind="stable")
            found, counts = self._locate(np.asarray(rows, np.int64)[order])
            numbers[order] = np.repeat(np.arange(len(found)), counts)
        return found, numbers

    def _locate(self, rows: Rows) -> tuple[list[Leaf], list[int]]:
        """The row groups of `rows`, which are sorted, and how many of the rows each has."""
        assert self._root is not None
        found: list[Leaf] = []
        counts: list[int] = []

        def descend(node: _Internal | RowGroup, leaf: Leaf, start: int, stop: int) -> None:
            if isinstance(node, RowGroup):
                found.append(leaf)
                counts.append(stop - start)
                return
            starts = np.frombuffer(node.starts, np.int64)
            children = np.searchsorted(starts, rows[start:stop] - leaf.first, side="right") - 1
            cuts = [0, *(np.flatnonzero(np.diff(children)) + 1).tolist(), stop - start]
            for one, other in pairwise(cuts):
                at = int(children[one])
                below = Leaf(leaf.first + node.starts[at], leaf.first + node.starts[at + 1], node.digests[at])
                if node.level == 1:
                    found.append(below)
                    counts.append(other - one)
                else:
                    child = self._node(below.digest, below.end - below.first, node.level - 1)
                    descend(child, below, start + one, start + other)

        descend(self._root_node(), Leaf(0, self.rows, self._root), 0, len(rows))
        return found, counts

    def spans(self) -> Iterator[Leaf]:
        """All row groups, in row order; memory is that of one path from the root."""
        if self._root is not None:
            yield from self._spans(self._root_node(), Leaf(0, self.rows, self._root))

    def _spans(self, node: _Internal | RowGroup, leaf: Leaf) -> Iterator[Leaf]:
        if isinstance(node, RowGroup):
            yield leaf
            return
        for digest, (start, end) in zip(node.digests, pairwise(node.starts), strict=True):
            below = Leaf(leaf.first + start, leaf.first + end, digest)
            if node.level == 1:
                yield below
            else:
                yield from self._spans(self._node(digest, end - start, node.level - 1), below)

    @property
    def starts(self) -> Rows:
        """The first row of each row group, and at the end the number of rows."""
        return self._whole()[0]

    @property
    def digests(self) -> list[Digest]:
        """Of each row group's node."""
        return self._whole()[1]

    def _whole(self) -> tuple[Rows, list[Digest]]:
        if self._all is None:
            leaves = list(self.spans())
            starts = np.fromiter((leaf.first for leaf in leaves), np.int64, len(leaves))
            self._all = np.append(starts, self.rows), [leaf.digest for leaf in leaves]
        return self._all

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _root_node(self) -> _Internal | RowGroup:
        if self._top is None:
            assert self._root is not None
            self._top = self._node(self._root, self.rows, None)
        return self._top

    def _node(self, digest: Digest, rows: int, level: int | None) -> _Internal | RowGroup:
        """A node that should have `rows` rows and stand at `level` (None: at any)."""
        node = self._nodes.get(digest)
        if node is None:
            node = self._parsed(digest, self._chunks.get(digest))
        found = 0 if isinstance(node, RowGroup) else node.level
        if level is not None and found != level:
            raise FormatDamaged(f"tree node of level {found} where level {level} belongs")
        held = node.rows if isinstance(node, RowGroup) else node.starts[-1]
        if held != rows:
            named = "its commit" if level is None else "the node above"
            raise FormatDamaged(f"the tree has {held} rows where {named} says {rows}")
        return node

    def _parsed(self, digest: Digest, data: Buffer) -> _Internal | RowGroup:
        parsed = parse_node(data)
        node = parsed if isinstance(parsed, RowGroup) else _searchable(parsed)
        return self._nodes.add(digest, node, len(data) * _PARSED_FACTOR)


def _searchable(node: InternalNode) -> _Internal:
    if node.rows > limits.ORDER_ROWS_MAX:
        raise FormatDamaged(f"tree node claims {node.rows} rows")
    starts = array.array("q", accumulate((child.rows for child in node.children), initial=0))
    return _Internal(node.level, starts, [child.digest for child in node.children])
