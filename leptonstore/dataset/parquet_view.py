"""ParquetView: some row groups of a version as a Parquet file that is nowhere stored.

    "PAR1" | row group: column chunk: data page, … | … | zeros | footer | length of the footer u32 | "PAR1"

Its size and its footer follow from the nodes (parquet_pages.py); a range is encoded when it is read, from the pages that it covers. So
whoever reads the footer and the column chunks of two columns reads those columns' pages and no other, and prunes row groups by the
bounds that the footer has from the nodes (integers, dates and times; floats have none there: a NaN may be among them that Parquet's
readers would not expect). A Parquet row group is a row group of ours. Nothing is compressed: the bytes never leave memory.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leptonstore import limits
from leptonstore.dataset import parquet_pages as pages
from leptonstore.dataset.kept import Kept
from leptonstore.dataset.tree import Leaf
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.format import thrift
from leptonstore.format.node import Part
from leptonstore.format.page import is_variable

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

MAGIC = b"PAR1"
_SLOT_MEMORY = 150  # bytes of a slot and its offset
_CREATED_BY = b"leptonstore"
_REPETITION, _OPTIONAL, _REPEATED = 3, 1, 2  # field of a schema element, and its values


class _Slot(NamedTuple):
    """Bytes of the file that are encoded together: a part of a column (number >= 0), or a Parquet leaf of a nested column."""

    leaf: Leaf
    column: int
    number: int
    parquet_leaf: int
    size: int


class ParquetTemplate:
    """What all Parquet files over one schema share: the schema as Parquet has it, and Arrow's own beside it."""

    def __init__(self, schema: pa.Schema) -> None:
        out = io.BytesIO()
        pq.write_table(schema.empty_table(), out)
        data = out.getvalue()
        (length,) = struct.unpack("<I", data[-8:-4])
        self.footer = thrift.parse(data[-8 - length : -8])
        elements = iter(self.footer[2].value)
        root = next(elements)
        self.leaves = [self._leaves(elements, (), 0, 0) for _ in range(root[5].value)]

    def _leaves(
        self, elements: Iterator[dict[int, thrift.Field]], above: tuple[str, ...], definition: int, repetition: int
    ) -> tuple[pages.Leaf, ...]:
        """The leaves below the next schema element."""
        element = next(elements)
        kind = element[_REPETITION].value
        path = (*above, element[4].value.decode())
        definition += kind in (_OPTIONAL, _REPEATED)
        repetition += kind == _REPEATED
        if 5 not in element or not element[5].value:
            return (pages.Leaf(path, element[1].value, definition, repetition),)
        below = [self._leaves(elements, path, definition, repetition) for _ in range(element[5].value)]
        return tuple(leaf for leaves in below for leaf in leaves)


class ParquetView:
    """Row groups `leaves` of `dataset` (a whole version) as a Parquet file of `size` bytes. Any thread.

    Raises ChunkMissing or ChunkCorrupt; BadInput for values that Parquet cannot hold.
    """

    def __init__(self, dataset: Dataset, leaves: list[Leaf], template: ParquetTemplate) -> None:
        self._ds, self._template = dataset, template
        self._schema = dataset.schema
        self._slots: list[_Slot] = []
        self._made: Kept[bytes] = Kept(limits.PARQUET_SLOTS_BYTES)
        self._lifted: Kept[tuple[pages.Lifted, ...]] = Kept(limits.PARQUET_SLOTS_BYTES)
        self._end = len(MAGIC)
        groups = [self._row_group(leaf) for leaf in leaves]
        self._offsets = list(accumulate((slot.size for slot in self._slots), initial=len(MAGIC)))
        footer = (
            thrift.Struct()
            .raw(1, template.footer[1])
            .raw(2, template.footer[2])
            .i64(3, sum(leaf.end - leaf.first for leaf in leaves))
            .list(4, thrift.STRUCT, groups)
            .raw(5, template.footer[5])
            .binary(6, _CREATED_BY)
            .raw(7, template.footer[7])
            .done()
        )
        tail = footer + struct.pack("<I", len(footer)) + MAGIC
        # Readers guess how long a footer is and read so much of the end: zeros before it cost nothing, the last page would be read.
        self._tail = bytes(max(limits.PARQUET_TAIL_BYTES - len(tail), 0)) + tail
        self.size = self._end + len(self._tail)
        self.memory_bytes = len(self._tail) + _SLOT_MEMORY * len(self._slots)  # without what is encoded

    # -- the footer ------------------------------------------------------------------------------------------------

    def _row_group(self, leaf: Leaf) -> bytes:
        group, start = self._ds.pages.layout(leaf).group, self._end
        columns: list[bytes] = []
        for index, parts in enumerate(group.columns):
            columns += self._column(leaf, index, parts)
        size = self._end - start
        described = thrift.Struct().list(1, thrift.STRUCT, columns).i64(2, size).i64(3, leaf.end - leaf.first)
        return described.i64(5, start).i64(6, size).done()

    def _column(self, leaf: Leaf, index: int, parts: tuple[Part, ...]) -> list[bytes]:
        """The column chunks of a column: one for each Parquet leaf."""
        field, leaves = self._schema.field(index), self._template.leaves[index]
        layout = pages.layout_of(field.type)
        if layout == pages.FIXED_LIST and any(pages.has_element_nulls(part, field.type) for part in parts):
            layout = pages.NESTED
        if layout == pages.NESTED:
            lifted = self._lift(leaf, index)
            return [
                self._chunk(one, [_Slot(leaf, index, -1, at, len(chunk.data))], chunk.values, None)
                for at, (one, chunk) in enumerate(zip(leaves, lifted, strict=True))
            ]
        slots = [
            _Slot(leaf, index, number, 0, pages.slot_bytes(part, field.type, leaves[0]))
            for number, part in enumerate(parts)
            if part.rows
        ]
        elements = pages.list_size(field.type) if layout == pages.FIXED_LIST else 1
        statistics = _statistics(field.type, leaves[0], parts) if layout == pages.FLAT else None
        return [self._chunk(leaves[0], slots, (leaf.end - leaf.first) * elements, statistics)]

    def _chunk(self, leaf: pages.Leaf, slots: list[_Slot], values: int, statistics: thrift.Struct | None) -> bytes:
        start = self._end
        self._slots += slots
        self._end += sum(slot.size for slot in slots)
        path = [thrift.varint(len(name)) + name for name in (part.encode() for part in leaf.path)]
        encodings = [thrift.zigzag(encoding) for encoding in (pages.PLAIN, pages.RLE)]
        described = (
            thrift.Struct()
            .i32(1, leaf.physical)
            .list(2, thrift.I32, encodings)
            .list(3, thrift.BINARY, path)
            .i32(4, 0)
            .i64(5, values)
            .i64(6, self._end - start)
            .i64(7, self._end - start)
            .i64(9, start)
        )
        if statistics is not None:
            described.struct(12, statistics)
        return thrift.Struct().i64(2, 0).struct(3, described).done()

    # -- the content -------------------------------------------------------------------------------------------------

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the file, cut at its end."""
        end = min(end, self.size)
        out, at = bytearray(), max(start, 0)
        while at < end:
            piece, first = self._piece(at)
            taken = piece[at - first : end - first]
            out += taken
            at += len(taken)
        return bytes(out)

    def _piece(self, at: int) -> tuple[bytes, int]:
        """(what is encoded together around byte `at`, where it begins)."""
        if at < len(MAGIC):
            return MAGIC, 0
        if at >= self._end:
            return self._tail, self._end
        number = bisect_right(self._offsets, at) - 1
        made = self._made.get(number)
        if made is None:
            made = self._encode(self._slots[number])
            self._made.add(number, made, len(made))
        return made, self._offsets[number]

    def _encode(self, slot: _Slot) -> bytes:
        if slot.number < 0:
            return self._lift(slot.leaf, slot.column)[slot.parquet_leaf].data
        field = self._schema.field(slot.column)
        first, column = self._ds.pages.part(slot.leaf, slot.column, slot.number)
        rows = np.arange(first, first + len(column.values))
        where = f"{self._ds.label} rows {rows[0]}-{rows[-1]} column {field.name!r}"
        try:
            values = self._ds.ask([column], [field], rows).batch().column(0)
            return pages.encode(values, self._template.leaves[slot.column][0], slot.size)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
        except ValueError as error:
            raise FormatDamaged(f"{where}: {error}") from None

    def _lift(self, leaf: Leaf, index: int) -> tuple[pages.Lifted, ...]:
        key = (leaf.first, index)
        found = self._lifted.get(key)
        if found is None:
            field = self._schema.field(index)
            column = self._ds.read_rows(np.arange(leaf.first, leaf.end), [field]).column(0)
            found = pages.lift(column, field)
            self._lifted.add(key, found, sum(len(one.data) for one in found))
        return found


def _statistics(data_type: pa.DataType, leaf: pages.Leaf, parts: tuple[Part, ...]) -> thrift.Struct:
    """Null count, and for integers, dates and times the least and greatest value."""
    described = thrift.Struct().i64(3, sum(part.nulls for part in parts))
    held = [part.bounds for part in parts if part.nulls < part.rows]
    if not held or not all(held) or pa.types.is_floating(data_type) or is_variable(data_type):
        return described
    unsigned = pa.types.is_unsigned_integer(data_type)
    both = np.frombuffer(b"".join(held), np.uint64 if unsigned else np.int64).reshape(-1, 2)
    width = 4 if leaf.physical == 1 else 8
    ends = [int(end).to_bytes(8, "little", signed=not unsigned)[:width] for end in (both[:, 0].min(), both[:, 1].max())]
    return described.binary(5, ends[1]).binary(6, ends[0])
