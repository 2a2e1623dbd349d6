"""Rows <-> the tree of a dataset version: row groups below, internal nodes above, all cut by content."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.cut import U64, RowCutter, node_ends, part_ends, row_hashes
from leptonstore.dataset.schema import inline_bytes, part_bytes
from leptonstore.dataset.values import Column, concat, intern
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged, SchemaError
from leptonstore.format.node import Child, InternalNode, Part, RowGroup, encode_internal, encode_row_group, parse_node
from leptonstore.format.pack import CONTENT_META
from leptonstore.format.page import encode_binary_pages, encode_page, is_variable
from leptonstore.store import Store
from leptonstore.tiers.chunks import ChunkReader


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
        for field, array in zip(self.schema, batch.columns, strict=True):
            if not field.nullable and array.null_count:
                raise SchemaError(f"column {field.name!r} has nulls near row {self.rows}, but is declared without")
        if batch.num_rows == 0:
            return
        self.append_columns(
            [
                intern(self.store, array, inline_bytes(field))
                for field, array in zip(self.schema, batch.columns, strict=True)
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
