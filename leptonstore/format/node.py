"""LND1: the nodes of a dataset version's tree. All integers are little-endian.

    head          0 magic "LND1" | 4 level u8 | 5 flags u8 (1: keyed) | 6 columns u16 (level 0) | 8 rows u64 | 16 plain bytes u64
    level 0       a row group; for each column: parts u32, then for each part
                      digest (32) | rows u32 | nulls u32 | page bytes u64 | referenced bytes u64 | flags u8
                      (1: has references, 2: has bounds) | [least value (8) | greatest value (8)]
    level 1..16   children u32, then for each child: digest (32) | rows u64 | plain bytes u64
                      keyed: | key length u16 | greatest key below it (format/keys.py), its first 64 bytes

A part is one page; a column has several where its pages are cut. Bounds are those of the non-null values, as i64 for integers,
dates and times, u64 for uint64, f64 for floats (NaN is left out, -0.0 counts as 0.0). A node holds no history: it is a
function of the rows and the schema.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import FormatDamaged

FLAG_REFERENCES, FLAG_BOUNDS = 1, 2
FLAG_KEYED = 1  # of an internal node
_HEAD = struct.Struct("<4sBBHQQ")
_COUNT = struct.Struct("<I")
_PART = struct.Struct("<32sIIQQB")
_BOUNDS_BYTES = 16
_CHILD = struct.Struct("<32sQQ")
_KEYED_CHILD = struct.Struct("<32sQQH")


@dataclass(frozen=True)
class Part:
    """One page of a column. `bounds` is 16 bytes (least, greatest) or empty."""

    digest: Digest
    rows: int
    nulls: int
    page_bytes: int
    referenced_bytes: int = 0
    has_references: bool = False
    bounds: bytes = b""


@dataclass(frozen=True)
class RowGroup:
    """A leaf: for each column of the schema, in order, its parts; each column's parts have `rows` rows in all."""

    rows: int
    columns: tuple[tuple[Part, ...], ...]

    @property
    def plain_bytes(self) -> int:
        """Bytes of all pages and of the values that they refer to."""
        return sum(part.page_bytes + part.referenced_bytes for parts in self.columns for part in parts)


@dataclass(frozen=True)
class Child:
    """A node one level down, with what a search needs. key: the greatest below it in a keyed table, cut to NODE_KEY_BYTES_MAX.

    A row group does not say whether its table is keyed; that is known by its parent, or by the commit.
    """

    digest: Digest
    rows: int
    plain_bytes: int
    key: bytes = b""


@dataclass(frozen=True)
class InternalNode:
    """A node above row groups. Either all children have a key or none has."""

    level: int
    children: tuple[Child, ...]

    @property
    def keyed(self) -> bool:
        """Whether the table has a key."""
        return bool(self.children and self.children[-1].key)

    @property
    def rows(self) -> int:
        """Rows below this node."""
        return sum(child.rows for child in self.children)

    @property
    def plain_bytes(self) -> int:
        """Plain bytes below this node."""
        return sum(child.plain_bytes for child in self.children)


def encode_row_group(group: RowGroup) -> bytes:
    """Level 0."""
    out = [_HEAD.pack(b"LND1", 0, 0, len(group.columns), group.rows, group.plain_bytes)]
    for parts in group.columns:
        out.append(_COUNT.pack(len(parts)))
        for part in parts:
            flags = FLAG_REFERENCES * part.has_references | FLAG_BOUNDS * bool(part.bounds)
            out.append(
                _PART.pack(part.digest, part.rows, part.nulls, part.page_bytes, part.referenced_bytes, flags)
                + part.bounds
            )
    return b"".join(out)


def encode_internal(node: InternalNode) -> bytes:
    """Level 1 and above."""
    head = _HEAD.pack(b"LND1", node.level, FLAG_KEYED * node.keyed, 0, node.rows, node.plain_bytes)
    out = [head, _COUNT.pack(len(node.children))]
    for child in node.children:
        if node.keyed:
            out.append(_KEYED_CHILD.pack(child.digest, child.rows, child.plain_bytes, len(child.key)) + child.key)
        else:
            out.append(_CHILD.pack(child.digest, child.rows, child.plain_bytes))
    return b"".join(out)


class _Cursor:
    def __init__(self, data: Buffer) -> None:
        self.view, self.at = memoryview(data), 0

    def unpack(self, form: struct.Struct) -> tuple:
        return form.unpack(self.bytes(form.size))

    def bytes(self, size: int) -> memoryview:
        part = self.view[self.at : self.at + size]
        if len(part) != size:
            raise FormatDamaged("tree node is truncated")
        self.at += size
        return part

    def count(self, row_bytes: int, most: int) -> int:
        (count,) = self.unpack(_COUNT)
        if count > most or count * row_bytes > len(self.view) - self.at:
            raise FormatDamaged(f"tree node claims {count} entries")
        return int(count)


def parse_node(data: Buffer) -> RowGroup | InternalNode:
    """Bytes -> node. Raises FormatDamaged: wrong magic or level, truncated, trailing bytes, sums that do not add up."""
    cursor = _Cursor(data)
    magic, level, flags, columns, rows, plain_bytes = cursor.unpack(_HEAD)
    if magic != b"LND1" or level > limits.NODE_LEVEL_MAX or columns > limits.COLUMNS_MAX:
        raise FormatDamaged("tree node has the wrong magic, level or number of columns")
    if flags > (FLAG_KEYED if level else 0):
        raise FormatDamaged(f"tree node has unknown flags {flags}")
    node = _parse_row_group(cursor, rows, columns) if level == 0 else _parse_internal(cursor, level, bool(flags))
    if cursor.at != len(cursor.view):
        raise FormatDamaged("tree node has bytes after its end")
    if node.rows != rows or node.plain_bytes != plain_bytes:
        raise FormatDamaged("tree node's rows or bytes do not add up")
    # A few small nodes without rows could stand for more children than anybody can walk.
    if rows == 0 or (isinstance(node, InternalNode) and any(child.rows == 0 for child in node.children)):
        raise FormatDamaged("tree node has no rows, or a child without")
    return node


def _parse_row_group(cursor: _Cursor, rows: int, columns: int) -> RowGroup:
    all_parts = []
    for _ in range(columns):
        parts = []
        for _ in range(cursor.count(_PART.size, limits.ROW_GROUP_ROWS_MAX)):
            digest, part_rows, nulls, page_bytes, referenced, flags = cursor.unpack(_PART)
            bounds = bytes(cursor.bytes(_BOUNDS_BYTES)) if flags & FLAG_BOUNDS else b""
            parts.append(Part(digest, part_rows, nulls, page_bytes, referenced, bool(flags & FLAG_REFERENCES), bounds))
        if sum(part.rows for part in parts) != rows:
            raise FormatDamaged("row group has a column with too few or too many rows")
        all_parts.append(tuple(parts))
    return RowGroup(rows, tuple(all_parts))


def _parse_internal(cursor: _Cursor, level: int, keyed: bool) -> InternalNode:
    count = cursor.count((_KEYED_CHILD if keyed else _CHILD).size, limits.NODE_FANOUT_MAX)
    if not keyed:
        return InternalNode(level, tuple(Child(*cursor.unpack(_CHILD)) for _ in range(count)))
    children = []
    for _ in range(count):
        digest, rows, plain_bytes, length = cursor.unpack(_KEYED_CHILD)
        if length > limits.NODE_KEY_BYTES_MAX:
            raise FormatDamaged(f"tree node has a key of {length} bytes")
        children.append(Child(digest, rows, plain_bytes, bytes(cursor.bytes(length))))
    if any(one.key > other.key for one, other in pairwise(children)):
        raise FormatDamaged("tree node has keys that do not ascend")
    return InternalNode(level, tuple(children))
