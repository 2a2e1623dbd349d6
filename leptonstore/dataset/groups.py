"""Rows <-> row groups, the leaves of a version's tree: a column's pages, cut into parts, and the node that lists them."""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.cut import RowCutter, part_ends, row_hashes
from leptonstore.dataset.schema import array_planes, inline_bytes, part_bytes
from leptonstore.dataset.values import Column, Spots, concat, intern
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, FormatDamaged, SchemaError
from leptonstore.format.keys import encode_keys
from leptonstore.format.node import Child, Part, RowGroup, encode_row_group
from leptonstore.format.pack import CONTENT_META
from leptonstore.format.page import decode_page, encode_binary_pages, encode_page, is_variable
from leptonstore.store import Store


def stored_columns(
    store: Store, schema: pa.Schema, batch: pa.RecordBatch, first_row: int = 0, spots: Spots | None = None
) -> list[Column]:
    """The columns of `batch` as pages keep them: large values are put into the store; where `spots` says where they stand, as references.

    first_row: of the batch, for errors. Raises SchemaError when the batch does not fit `schema` (whose metadata does not count), StoreFull.
    """
    if not batch.schema.equals(schema, check_metadata=False):
        raise SchemaError(f"a batch has schema {batch.schema} where the dataset has {schema}")
    for field, array in zip(schema, batch.columns, strict=True):
        if not field.nullable and array.null_count:
            raise SchemaError(f"column {field.name!r} has nulls near row {first_row}, but is declared without")
    return [
        intern(
            store,
            array,
            inline_bytes(field),
            None if spots is None else spots.of(field.name),
            array_planes(field) or 0,
        )
        for field, array in zip(schema, batch.columns, strict=True)
    ]


class GroupWriter:
    """Takes rows in order, cuts them into row groups and stores these. Memory: one batch and one row group. One thread.

    keyed: the identity columns are the key; each child then knows its greatest key, and rows must come in its order. Begins at a cut: what
    comes out does not depend on the rows before.
    """

    def __init__(self, store: Store, schema: pa.Schema, identity: Sequence[str], keyed: bool = False) -> None:
        self.store, self.schema = store, schema
        self._identity = [schema.get_field_index(name) for name in identity]
        self._names, self._keyed = tuple(identity), keyed
        self._cutter = RowCutter()
        # Rows that were not looked at yet: edits come in many small pieces, and hashing one costs as much as hashing hundreds.
        self._waiting: list[list[Column]] = []
        self._waiting_rows = 0
        self._open: list[list[Column]] = []
        self._groups: list[Child] = []
        self._last_key: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether there are rows after the last cut."""
        self._look()
        return self._cutter.open_rows > 0

    def append(self, columns: list[Column]) -> None:
        """Add rows as pages keep them. Raises StoreFull."""
        rows = len(columns[0].values)
        if rows == 0:
            return
        self._waiting.append(columns)
        self._waiting_rows += rows
        if self._waiting_rows >= limits.ROW_GROUP_ROWS_MIN:
            self._look()

    def _look(self) -> None:
        """Cut what waits."""
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        hashes = row_hashes([concat([columns[index] for columns in waiting]).values for index in self._identity])
        ends = deque(self._cutter.ends(hashes))
        first = 0  # of the piece at hand
        for columns in waiting:
            start, rows = 0, len(columns[0].values)
            while ends and ends[0] <= first + rows:
                end = ends.popleft() - first
                self._open.append([column.slice(start, end) for column in columns])
                self._close_group()
                start = end
            if start < rows:
                self._open.append([column.slice(start, rows) for column in columns] if start else columns)
            first += rows

    def take(self) -> list[Child]:
        """The row groups that were closed since the last call."""
        self._look()
        groups, self._groups = self._groups, []
        return groups

    def finish(self) -> list[Child]:
        """Close the group that is open, as at the end of the table, and `take`."""
        self._look()
        if self._open:
            self._close_group()
            self._cutter = RowCutter()
        return self.take()

    def _close_group(self) -> None:
        columns = [concat(list(pieces)) for pieces in zip(*self._open, strict=True)]
        self._open = []
        parts = (column_parts(self.store, field, column) for field, column in zip(self.schema, columns, strict=True))
        group = RowGroup(len(columns[0].values), tuple(parts))
        self._groups.append(put_row_group(self.store, group, self._greatest_key(columns) if self._keyed else b""))

    def _greatest_key(self, columns: list[Column]) -> bytes:
        """Of a row group that is closed. Raises BadInput when its rows are not in the order of their keys: whoever edits keeps that."""
        keys = encode_keys([columns[index].values for index in self._identity], self._names)
        in_order = pc.all(pc.less(keys[:-1], keys[1:])).as_py() is not False
        if not in_order or (self._last_key is not None and keys[0].as_py() <= self._last_key):
            raise BadInput(f"rows are not in the order of their key ({', '.join(self._names)}), or two have the same")
        self._last_key = keys[-1].as_py()
        return self._last_key


def put_row_group(store: Store, group: RowGroup, key: bytes = b"") -> Child:
    """Store a leaf. key: the greatest key in it, of a keyed table. Raises StoreFull."""
    digest = store.put(encode_row_group(group), CONTENT_META)
    return Child(digest, group.rows, group.plain_bytes, key[: limits.NODE_KEY_BYTES_MAX])


def column_parts(store: Store, field: pa.Field, column: Column) -> tuple[Part, ...]:
    """Store the pages of one column of a row group. A function of the values and the field alone. Raises StoreFull."""
    ends = [len(column.values)]
    if is_variable(field.type):
        ends = part_ends(column.values, column.sizes(), part_bytes(field))
        if column.values.null_count == 0 and len(ends) > 1:
            return tuple(_binary_parts(store, column, ends))
    return tuple(_parts(store, field, column, ends))


def _parts(store: Store, field: pa.Field, column: Column, ends: list[int]) -> Iterator[Part]:
    start = 0
    for end in ends:
        piece = column.slice(start, end)
        start = end
        data = encode_page(piece.values, piece.references)
        has_references = piece.references is not None and bool(piece.references.any())
        yield Part(
            store.put(data, plane_width=plane_width(field.type)),
            len(piece.values),
            piece.values.null_count,
            len(data),
            piece.referenced_bytes(),
            has_references,
            bounds_of(piece.values),
        )


def _binary_parts(store: Store, column: Column, ends: list[int]) -> Iterator[Part]:
    """Many small parts of strings or bytes without nulls: less work for each than above."""
    start = 0
    for end, data in zip(ends, encode_binary_pages(column.values, column.references, ends), strict=True):
        referenced = column.slice(start, end).referenced_bytes() if column.references is not None else 0
        has_references = column.references is not None and bool(column.references[start:end].any())
        yield Part(store.put(data), end - start, 0, len(data), referenced, has_references)
        start = end


def read_column(store: Store, parts: Sequence[Part], field: pa.Field, first_row: int, name: str) -> Column:
    """One column of a row group as its pages keep it. `first_row` and `name` (of the version) are for errors.

    Raises ChunkMissing, ChunkCorrupt or FormatDamaged.
    """
    pieces, at = [], first_row
    for part in parts:
        where = f"{name} rows {at}-{at + part.rows - 1} column {field.name!r}"
        with told_at(where):
            data = store.get(part.digest)
        pieces.append(decode_part(data, part, field, where))
        at += part.rows
    return concat(pieces)


def decode_part(data: Buffer, part: Part, field: pa.Field, where: str) -> Column:
    """The values of a page, as many as its node says. Raises FormatDamaged; with `where` when they are not."""
    page = decode_page(data, field.type)
    if len(page.values) != part.rows:
        raise FormatDamaged(f"{where}: page has {len(page.values)} rows where its node says {part.rows}")
    return Column(page.values, page.references)


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


def plane_width(data_type: pa.DataType) -> int:
    """Bytes of a number when pages of this type are mostly floats, or tensors of integers: they are stored as byte planes where that is
    smaller. Else 0."""
    if isinstance(data_type, pa.FixedShapeTensorType) and pa.types.is_integer(data_type.value_type):
        width = int(data_type.value_type.bit_width) // 8
        return width if width > 1 else 0
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
