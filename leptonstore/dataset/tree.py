"""Rows <-> the tree of a dataset version: row groups below, internal nodes above, all cut by content."""

from __future__ import annotations

import array
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.cut import U64, RowCutter, node_ends, part_ends, row_hashes
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.schema import inline_bytes, part_bytes
from leptonstore.dataset.values import Column, concat, intern
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged, SchemaError
from leptonstore.format.node import Child, InternalNode, Part, RowGroup, encode_internal, encode_row_group, parse_node
from leptonstore.format.pack import CONTENT_META
from leptonstore.format.page import encode_binary_pages, encode_page, is_variable
from leptonstore.store import Store

Rows = np.ndarray[Any, np.dtype[np.int64]]
_PARSED_FACTOR = 8  # what a parsed node takes in memory, beside its bytes


class TreeWriter:
    """Takes record batches in row order and stores the tree. Memory: one batch and one row group."""

    def __init__(self, store: Store, schema: pa.Schema, identity: tuple[str, ...]) -> None:
        self.store, self.schema = store, schema
        self._identity = [schema.get_field_index(name) for name in identity]
        self._cutter = RowCutter()
        self._open: list[tuple[list[Column], U64]] = []
        self._groups: list[Child] = []
        self.rows = 0

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises SchemaError when the batch does not fit, StoreFull."""
        if not batch.schema.equals(self.schema, check_metadata=False):
            raise SchemaError(f"a batch has schema {batch.schema} where the dataset has {self.schema}")
        for field, column in zip(self.schema, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                raise SchemaError(f"column {field.name!r} has nulls near row {self.rows}, but is declared without")
        if batch.num_rows == 0:
            return
        self.append_columns(
            [
                intern(self.store, column, inline_bytes(field))
                for field, column in zip(self.schema, batch.columns, strict=True)
            ]
        )

    def append_columns(self, columns: list[Column]) -> None:
        """Add rows as pages keep them: large values have been put already. Raises StoreFull."""
        rows = len(columns[0].values)
        hashes = row_hashes([columns[index].values for index in self._identity])
        start = 0
        for end in self._cutter.ends(hashes):
            self._open.append(([column.slice(start, end) for column in columns], hashes[start:end]))
            self._close_group()
            start = end
        if start < rows:
            self._open.append(([column.slice(start, rows) for column in columns], hashes[start:]))
        self.rows += rows

    def finish(self) -> tuple[Digest | None, int]:
        """(root, plain bytes); the root is None when there were no rows."""
        if self._open:
            self._close_group()
        level, children = 1, self._groups
        while len(children) > 1:
            children = self._parents(level, children)
            level += 1
        return (children[0].digest, children[0].plain_bytes) if children else (None, 0)

    def _parents(self, level: int, children: list[Child]) -> list[Child]:
        parents, start = [], 0
        for end in node_ends([child.digest for child in children]):
            node = InternalNode(level, tuple(children[start:end]))
            parents.append(Child(self.store.put(encode_internal(node), CONTENT_META), node.rows, node.plain_bytes))
            start = end
        return parents

    def _close_group(self) -> None:
        columns = [concat(list(pieces)) for pieces in zip(*(pieces for pieces, _ in self._open), strict=True)]
        hashes = np.concatenate([hashes for _, hashes in self._open])
        self._open = []
        group = RowGroup(
            len(hashes),
            tuple(
                tuple(self._parts(field, column, hashes)) for field, column in zip(self.schema, columns, strict=True)
            ),
        )
        digest = self.store.put(encode_row_group(group), CONTENT_META)
        self._groups.append(Child(digest, group.rows, group.plain_bytes))

    def _parts(self, field: pa.Field, column: Column, hashes: U64) -> Iterator[Part]:
        ends = [len(hashes)]
        if is_variable(field.type):
            ends = part_ends(hashes, column.sizes(), part_bytes(field))
            if column.values.null_count == 0 and len(ends) > 1:
                yield from self._binary_parts(column, ends)
                return
        start = 0
        for end in ends:
            piece = column.slice(start, end)
            start = end
            data = encode_page(piece.values, piece.references)
            has_references = piece.references is not None and bool(piece.references.any())
            yield Part(
                self.store.put(data, plane_width=plane_width(field.type)),
                len(piece.values),
                piece.values.null_count,
                len(data),
                piece.referenced_bytes(),
                has_references,
                bounds_of(piece.values),
            )

    def _binary_parts(self, column: Column, ends: list[int]) -> Iterator[Part]:
        """Many small parts of strings or bytes without nulls: less work for each than above."""
        start = 0
        for end, data in zip(ends, encode_binary_pages(column.values, column.references, ends), strict=True):
            referenced = column.slice(start, end).referenced_bytes() if column.references is not None else 0
            has_references = column.references is not None and bool(column.references[start:end].any())
            yield Part(self.store.put(data), end - start, 0, len(data), referenced, has_references)
            start = end


def plane_width(data_type: pa.DataType) -> int:
    """Bytes of a float when pages of this type are mostly floats: they are stored as byte planes where that is smaller. Else 0."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plane_width(data_type.storage_type)
    if pa.types.is_fixed_size_list(data_type) or pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return plane_width(data_type.value_type)
    return int(data_type.bit_width) // 8 if pa.types.is_floating(data_type) else 0


def bounds_of(values: pa.Array) -> bytes:
    """Least and greatest non-null value in 16 bytes (docs/FORMAT.md, node); empty where the type has none."""
    kinds, data_type = pa.types, values.type
    if kinds.is_unsigned_integer(data_type):
        form, to = "<QQ", pa.uint64()
    elif kinds.is_integer(data_type) or kinds.is_temporal(data_type):
        form, to = "<qq", pa.int64()
        if kinds.is_temporal(data_type):
            values = values.view(pa.int32() if data_type.bit_width == 32 else pa.int64())
    elif kinds.is_floating(data_type):
        form, to = "<dd", pa.float64()
        values = values.filter(pc.invert(pc.is_nan(values)), null_selection_behavior="drop")
    else:
        return b""
    found = pc.min_max(values.cast(to))
    if not found["min"].is_valid:
        return b""
    least, greatest = found["min"].as_py(), found["max"].as_py()
    # Adding 0.0 turns -0.0 into 0.0: which of the two min_max meets first must not show.
    return struct.pack(form, *((least + 0.0, greatest + 0.0) if form == "<dd" else (least, greatest)))


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

    def __init__(self, store: Store, root: Digest | None, rows: int) -> None:
        self._store, self._root, self.rows = store, root, rows
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
        stream = self._store.get_many(missing) if ahead else iter(())
        for leaf in leaves:
            if leaf.digest in ahead:
                ahead.remove(leaf.digest)
                self._parsed(leaf.digest, next(stream))
            yield self.read(leaf)

    def group(self, index: int) -> RowGroup:
        """The row group at `index`."""
        first, end = self.starts[index], self.starts[index + 1]
        return self.read(Leaf(int(first), int(end), self.digests[index]))

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
            node = self._parsed(digest, self._store.get(digest))
        found = 0 if isinstance(node, RowGroup) else node.level
        if level is not None and found != level:
            raise FormatDamaged(f"tree node of level {found} where level {level} belongs")
        held = node.rows if isinstance(node, RowGroup) else node.starts[-1]
        if held != rows:
            named = "its commit" if level is None else "the node above"
            raise FormatDamaged(f"the tree has {held} rows where {named} says {rows}")
        return node

    def _parsed(self, digest: Digest, data: bytes) -> _Internal | RowGroup:
        parsed = parse_node(data)
        node = parsed if isinstance(parsed, RowGroup) else _searchable(parsed)
        return self._nodes.add(digest, node, len(data) * _PARSED_FACTOR)


def _searchable(node: InternalNode) -> _Internal:
    if node.rows > limits.ORDER_ROWS_MAX:
        raise FormatDamaged(f"tree node claims {node.rows} rows")
    starts = array.array("q", accumulate((child.rows for child in node.children), initial=0))
    return _Internal(node.level, starts, [child.digest for child in node.children])
