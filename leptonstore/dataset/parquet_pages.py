"""Values as plain-encoded Parquet data pages of a size that is known before the values are read.

    flat            numbers, dates and times, bools, strings and bytes                         one data page for each part of the column
    fixed lists     tensors and fixed_size_list of numbers, where no list and no element is null                          the same
    nested          all else (lists, structs, decimals, …): encoded by pyarrow, a column of a row group at a time; their pages have to be
                    read to know the size

Of a part, its node tells rows, nulls and the bytes of its page. That is the exact number of values; of strings and bytes it bounds the
bytes (a page pads them, and a large value leaves a reference behind). What is left is filled by a field of the page header that
no reader knows: readers skip those. So `slot_bytes` is the size of `encode` for whatever values the page turns out to have.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leptonstore.errors import BadInput
from leptonstore.format import thrift
from leptonstore.format.node import Part
from leptonstore.format.page import canonical_values, fixed_width, is_variable

FLAT, FIXED_LIST, NESTED = "flat", "fixed list", "nested"
PLAIN, RLE = 0, 3
PAGE_BYTES_MAX = (1 << 31) - 1
_HEADER_BYTES = 64  # what a page header takes without its filling, at most, and with the filling's own head
_FILLING = 20_000  # field of the page header; Parquet uses single digits
_PAGE_HEAD = 64  # of our pages: 24 + 8 for each of at most 5 buffers, to the next 64


@dataclass(frozen=True)
class Leaf:
    """A Parquet column: its path, physical type (Parquet's number) and greatest levels."""

    path: tuple[str, ...]
    physical: int
    definition_max: int
    repetition_max: int


def _padded(size: int) -> int:
    return -(-size // 64) * 64


def layout_of(data_type: pa.DataType) -> str:
    """How values of a type are encoded: FLAT, FIXED_LIST or NESTED."""
    if _is_flat(data_type):
        return FLAT
    storage = data_type.storage_type if isinstance(data_type, pa.FixedShapeTensorType) else data_type
    if pa.types.is_fixed_size_list(storage) and _is_flat(storage.value_type) and fixed_width(storage.value_type):
        return FIXED_LIST
    return NESTED


def _is_flat(data_type: pa.DataType) -> bool:
    kinds = pa.types
    if kinds.is_timestamp(data_type) or kinds.is_time32(data_type):
        return bool(data_type.unit != "s")  # Parquet has no seconds: they are multiplied
    return bool(
        kinds.is_integer(data_type)
        or kinds.is_floating(data_type)
        or kinds.is_boolean(data_type)
        or kinds.is_date32(data_type)
        or kinds.is_time64(data_type)
        or kinds.is_duration(data_type)
        or kinds.is_fixed_size_binary(data_type)
        or is_variable(data_type)
    )


def has_element_nulls(part: Part, data_type: pa.DataType) -> bool:
    """Whether a part of fixed lists has a null, of a list or of an element: then its page has validity bits."""
    width = fixed_width(data_type)
    assert width is not None
    return bool(part.nulls) or part.page_bytes != _PAGE_HEAD + _padded(part.rows * width)


def list_size(data_type: pa.DataType) -> int:
    """Elements of a fixed list."""
    storage = data_type.storage_type if isinstance(data_type, pa.FixedShapeTensorType) else data_type
    return int(storage.list_size)


def _physical_width(data_type: pa.DataType) -> int:
    """Bytes that a fixed-width value takes in Parquet: integers have four at least."""
    width = fixed_width(data_type)
    assert width is not None
    return max(width, 4) if pa.types.is_integer(data_type) else width


def _levels_bytes(part: Part, data_type: pa.DataType, leaf: Leaf) -> int:
    """Bytes of the levels of a part, at most."""
    size = 0
    if leaf.repetition_max:
        size += 4 + 10 + -(-part.rows * list_size(data_type) // 8)
    if leaf.definition_max:
        size += 4 + 10 + (-(-part.rows // 8) if part.nulls else 1)
    return size


def slot_bytes(part: Part, data_type: pa.DataType, leaf: Leaf) -> int:
    """The size of `encode` for the values of a part, of layout FLAT or FIXED_LIST."""
    present = part.rows - part.nulls
    if pa.types.is_boolean(data_type):
        values = -(-present // 8)
    elif is_variable(data_type):
        large = pa.types.is_large_string(data_type) or pa.types.is_large_binary(data_type)
        bits = _padded(-(-part.rows // 8))
        other = (
            _PAGE_HEAD
            + _padded((part.rows + 1) * (8 if large else 4))
            + bits * (bool(part.nulls) + part.has_references)
        )
        values = 4 * present + max(part.page_bytes - other, 0) + part.referenced_bytes
    elif leaf.repetition_max:
        storage = data_type.storage_type if isinstance(data_type, pa.FixedShapeTensorType) else data_type
        values = part.rows * list_size(data_type) * _physical_width(storage.value_type)
    else:
        values = present * _physical_width(data_type)
    return _HEADER_BYTES + _levels_bytes(part, data_type, leaf) + values


def encode(values: pa.Array, leaf: Leaf, slot: int) -> bytes:
    """A data page of `slot` bytes (`slot_bytes`), header included. Raises BadInput when it is over 2 GiB."""
    if slot > PAGE_BYTES_MAX:
        raise BadInput("it is over 2 GiB, which a Parquet page cannot hold; use to_arrow() or `lepton export`")
    count, body = len(values), bytearray()
    if leaf.repetition_max:
        size = list_size(values.type)
        levels = np.ones(count * size, np.bool_)
        levels[::size] = False
        body += _bit_packed(levels)
        storage = values.storage if isinstance(values, pa.ExtensionArray) else values
        values = storage.flatten()
        count = len(values)
    if leaf.definition_max:
        if values.null_count:
            body += _bit_packed(np.asarray(values.is_valid().to_numpy(zero_copy_only=False), np.bool_))
        else:
            run = thrift.varint(count << 1) + bytes([leaf.definition_max])
            body += struct.pack("<I", len(run)) + run
    body += _plain(values.drop_null() if values.null_count else values)
    return _with_header(bytes(body), count, slot)


def _bit_packed(levels: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    """Levels of one bit, as one run of Parquet's hybrid encoding, with its length before it."""
    bits = np.packbits(levels, bitorder="little").tobytes()
    run = thrift.varint(len(bits) << 1 | 1) + bits
    return struct.pack("<I", len(run)) + run


def _plain(values: pa.Array) -> bytes:
    data_type = values.type
    if pa.types.is_boolean(data_type):
        return np.packbits(np.asarray(values.to_numpy(zero_copy_only=False), np.bool_), bitorder="little").tobytes()
    if is_variable(data_type):
        return _plain_variable(values)
    plain = memoryview(canonical_values(values))
    if pa.types.is_integer(data_type) and data_type.bit_width < 32:
        return np.frombuffer(plain, data_type.to_pandas_dtype()).astype("<i4").tobytes()
    return plain.tobytes()


def _plain_variable(values: pa.Array) -> bytes:
    """Each value after its length."""
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<u4")
    if not len(lengths):
        return b""
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    _, raw, data = values.buffers()
    dtype = np.dtype(np.int64 if wide else np.int32)
    offsets = np.frombuffer(raw, dtype, len(values) + 1, values.offset * dtype.itemsize)
    first, last = int(offsets[0]), int(offsets[-1])
    source = np.frombuffer(data, np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    out = np.empty(4 * len(lengths) + len(source), np.uint8)
    heads = (offsets[:-1] - first).astype(np.int64) + 4 * np.arange(len(lengths))
    content = np.ones(len(out), np.bool_)
    for byte in range(4):
        out[heads + byte] = lengths.view(np.uint8)[byte::4]
        content[heads + byte] = False
    out[content] = source
    return out.tobytes()


def _with_header(body: bytes, values: int, slot: int) -> bytes:
    described = thrift.Struct().i32(1, values).i32(2, PLAIN).i32(3, RLE).i32(4, RLE)
    header = thrift.Struct().i32(1, 0).i32(2, len(body)).i32(3, len(body)).struct(5, described)
    # The filling: one type byte, three of its id, five of its length; then the end of the header.
    filling = slot - len(body) - len(header.done()) - 1 - len(thrift.zigzag(_FILLING)) - 5
    if filling < 0:
        raise ValueError("a page is longer than its node said")  # encode's callers say whose
    return header.binary(_FILLING, bytes(filling), 5).done() + body


@dataclass(frozen=True)
class Lifted:
    """A column chunk as pyarrow encodes it. values: of the leaf, nulls included."""

    data: bytes
    values: int


def lift(column: pa.Array, field: pa.Field) -> tuple[Lifted, ...]:
    """The column chunks (one for each Parquet leaf) of a nested column, without dictionaries and compression."""
    out = io.BytesIO()
    table = pa.Table.from_arrays([column], schema=pa.schema([field]))
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, out, row_group_size=max(1, len(column)), store_schema=False, **options)
    data = out.getvalue()
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    lifted = []
    for number in range(group.num_columns):
        chunk = group.column(number)
        start = chunk.data_page_offset
        lifted.append(Lifted(data[start : start + chunk.total_compressed_size], chunk.num_values))
    return tuple(lifted)
